"""Pickles written opcode by opcode."""

from __future__ import annotations

import struct


def g(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


STORAGE = b"(" + text("storage") + g("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"

LONG_STORAGE = b"(" + text("storage") + g("torch", "LongStorage") + text("0") + text("cpu") + b"K\x02tQ"

NO_HOOKS = g("collections", "OrderedDict") + b")R"


def a_tensor(shape: bytes, strides: bytes, storage: bytes = STORAGE, more: bytes = b"") -> bytes:
    return (
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage
        + b"K\x00"
        + shape
        + strides
        + b"\x89"
        + NO_HOOKS
        + more
        + b"tR"
    )

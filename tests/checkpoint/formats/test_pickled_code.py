"""Pickles that hold more than data: which types are allowed, and what is refused."""

from __future__ import annotations

import argparse

import needs
import numpy as np
import pytest
import torch
from pickle_opcodes import g, pickled
from written_files import everything_of, write_zip

from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage.stored import StoredTensor


class Evil:
    def __reduce__(self):
        return print, ("code of the file was run",)


class Settings:
    def __init__(self):
        self.lr = 0.1


def test_a_pickle_with_code_is_refused_with_all_the_names_it_uses(tmp_path, capsys):
    content = {"a": torch.ones(1), "x": Evil(), "y": Settings(), "z": np.random.RandomState(0)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(RuntimeError) as caught:
            everything_of(tmp_path / "c.pth")
        message = str(caught.value)
        assert f"{tmp_path}/c.pth: the file holds more than tensors" in message
        for name in ("builtins.print", "test_pickled_code.Settings", "numpy.random", "weights_only=False", "allow=["):
            assert name in message or name.replace("builtins", "__builtin__") in message
    assert "code of the file" not in capsys.readouterr().out


def test_types_can_be_allowed_by_class_and_by_name(tmp_path):
    torch.save({"a": torch.ones(1), "y": Settings()}, tmp_path / "c.pth")
    for allow in ((Settings,), (f"{Settings.__module__}.Settings",)):
        found = read(tmp_path / "c.pth", Reading(allow=allow))
        assert type(found["y"]) is Settings
        assert found["y"].lr == 0.1
        assert isinstance(found["a"], StoredTensor)
    with pytest.raises(ValueError, match=r"allow='no.such.thing' cannot be imported"):
        Reading(allow=("no.such.thing",))
    with pytest.raises(TypeError, match="allow must hold classes"):
        Reading(allow=(3,))


@needs.mark(needs.torch_from(2, 5))  # which has a list of safe types
def test_types_registered_as_safe_with_torch_are_allowed(tmp_path):
    torch.save({"y": Settings()}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([Settings]):
        assert type(read(tmp_path / "c.pth", Reading())["y"]) is Settings


def test_code_runs_only_with_weights_only_false(tmp_path, capsys):
    torch.save({"a": torch.ones(1), "x": Evil()}, tmp_path / "c.pth")
    assert read(tmp_path / "c.pth", Reading(weights_only=False))["a"].item() == 1
    assert "code of the file was run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "attack",
    {
        "call of a class": pickled(g("os", "system"), b"X\x02\x00\x00\x00id\x85R"),
        "attribute of a function": pickled(
            g("torch._utils", "_rebuild_tensor_v2"), b"N}X\x0c\x00\x00\x00__defaults__K\x01s\x86b"
        ),
        "what a function is": pickled(
            g("torch._utils", "_rebuild_tensor_v2"),
            b"N}X\x09\x00\x00\x00_function" + g("collections", "OrderedDict") + b"s\x86b",
        ),
        "attribute of a class": pickled(g("argparse", "Namespace"), b"N}X\x01\x00\x00\x00xK\x01s\x86b"),
        "attribute of a stand-in": pickled(
            g("mmengine.logging.history_buffer", "HistoryBuffer"), b"N}X\x08\x00\x00\x00__init__K\x01s\x86b"
        ),
        "dotted name": pickled(g("collections", "OrderedDict.__class__")),
        "object array": pickled(
            g("numpy.core.multiarray", "_reconstruct"),
            g("numpy", "ndarray"),
            b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85",
            g("numpy", "dtype"),
            b"X\x02\x00\x00\x00O8K\x00K\x01\x87R\x89]K\x01atb",
        ),
        "tensor without a storage": pickled(g("torch._utils", "_rebuild_tensor_v2"), b"(NK\x00)))\x89NtR"),
        "unknown persistent id": pickled(b"X\x01\x00\x00\x00xQ"),
        "stack underflow": pickled(b"R"),
    }.items(),
    ids=lambda attack: attack[0],
)
def test_pickles_that_attack_the_unpickler_change_nothing(tmp_path, attack):
    write_zip(tmp_path / "c.pth", attack[1])
    with pytest.raises(RuntimeError, match=r"c\.pth: the file (is damaged|holds more)"):
        read(tmp_path / "c.pth", Reading())
    assert not hasattr(argparse.Namespace, "x")
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")  # and the next file is read as ever
    assert everything_of(tmp_path / "good.pth")["a"].item() == 1


def test_an_array_whose_bytes_are_a_number_takes_no_memory(tmp_path):
    """bytearray(2**40) would be a terabyte of zeros."""
    data = pickled(
        g("numpy.core.multiarray", "_reconstruct"),
        g("numpy", "ndarray"),
        b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85",
        g("numpy", "dtype"),
        b"X\x02\x00\x00\x00u1K\x00K\x01\x87R\x89\x8a\x06\x00\x00\x00\x00\x00\x01tb",
    )
    write_zip(tmp_path / "c.pth", data)
    with pytest.raises(RuntimeError, match="a numpy array of objects is not plain data"):
        read(tmp_path / "c.pth", Reading())

"""Small honest checkpoints of every format, and damaged copies of them, for tools/fuzz_checkpoints.py.

Every mutant is determined by a seed and its number.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import pickletools
import random
import re
import struct
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

FORMATS = ("zip", "legacy", "safetensors", "index", "folder")
DATA_FILE = "__0_0.distcp"
# Where counts, sizes and signs overflow.
_EDGES = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63)
_TEXTS = ("0", "-1", "1e999", "null", "[]", "{}", '""', "true", "18446744073709551616", "9" * 40, "0.5", "[0,0]")
# Names that honest files ask for, and hostile ones.
_NAMES = tuple(
    line.encode()
    for line in (
        *("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "torch\nFloatStorage"),
        *("torch._utils\n_rebuild_sparse_tensor", "torch._utils\n_rebuild_qtensor", "torch\nQInt8Storage"),
        *("collections\nOrderedDict", "collections\nCounter", "collections\ndefaultdict", "builtins\nset"),
        *("builtins\neval", "builtins\nprint", "os\nsystem", "os\ngetcwd", "builtins\nrange", "builtins\nfrozenset"),
        *("builtins\nbytearray", "_codecs\nencode", "numpy._core.multiarray\n_reconstruct", "numpy\nndarray"),
        *("numpy\ndtype", "datetime\ndatetime", "pathlib\nPosixPath", "argparse\nNamespace", "torch\nSize"),
        *("torch\ndevice", "torch\nbfloat16", "builtins\ncomplex", "torch._utils\n_rebuild_from_type_v2"),
    )
)
_OPCODES = pickletools.opcodes
# More changes at a time only make the file unreadable from its first byte.
_MOST_CHANGES = 8


@dataclass(frozen=True)
class Honest:
    """An undamaged checkpoint: the bytes of its files by name, and which of them to open."""

    format: str
    files: dict[str, bytes]
    opened: str


def model() -> nn.Module:
    """Returns the model that all checkpoints fit, with its values from before the load."""
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for name, dtype in (("bf16", torch.bfloat16), ("u8", torch.uint8), ("flag", torch.bool), ("i64", torch.int64)):
        made.register_buffer(name, torch.zeros(5, dtype=dtype))
    made.register_buffer("wide", torch.zeros(4, 6))
    for tensor in made.state_dict().values():
        tensor.fill_(77) if tensor.dtype != torch.bool else tensor.fill_(True)
    return made


def honest_checkpoints() -> dict[str, list[Honest]]:
    """Returns the checkpoints to damage, by format."""
    with tempfile.TemporaryDirectory() as folder:
        return {format: _saved(format, Path(folder) / format) for format in FORMATS}


def _state() -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = model().state_dict()  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    for key, tensor in state.items():
        values = torch.randn(tensor.shape, generator=generator) * 50
        state[key] = (values.abs() if tensor.dtype == torch.uint8 else values).to(tensor.dtype)
    return state


def _saved(format: str, folder: Path) -> list[Honest]:
    folder.mkdir()
    state = _state()
    if format in ("zip", "legacy"):
        nested = {"state_dict": state, "meta": {"epoch": 3, "names": ("a", b"b"), "lr": 0.5, "size": torch.Size([1])}}
        shared: OrderedDict[str, Any] = OrderedDict(state)
        base = torch.arange(48.0).reshape(6, 8)
        shared["wide"], shared["view"] = base[:, 2:6].t(), base[1]
        shared["0.weight"] = nn.Parameter(state["0.weight"])
        special = OrderedDict(state, wide=state["wide"].to_sparse())
        found = []
        # torch reads protocol 2, and calls the others untested.
        for content, protocol in ((state, 2), (nested, 2), (shared, 2), (special, 2), (nested, 4)):
            memory = io.BytesIO()
            if format == "zip":
                torch.save(content, memory, pickle_protocol=protocol)
            else:
                _save_legacy(content, memory, protocol)
            found.append(Honest(format, {"c.pth": memory.getvalue()}, "c.pth"))
        return found
    contiguous = {key: value.contiguous() for key, value in state.items()}
    if format == "safetensors":
        from safetensors.torch import save

        return [Honest(format, {"c.safetensors": save(contiguous, {"format": "pt"})}, "c.safetensors")]
    if format == "index":
        from safetensors.torch import save

        keys = sorted(contiguous)
        first, second = ({key: contiguous[key] for key in part} for part in (keys[:5], keys[5:]))
        memory = io.BytesIO()
        torch.save(second, memory)
        shards = {"a.safetensors": save(first), "b.bin": memory.getvalue()}
        names = {key: "a.safetensors" if key in first else "b.bin" for key in keys}
        index = json.dumps({"metadata": {"total_size": 999}, "weight_map": names}).encode()
        opened = "model.safetensors.index.json"
        return [Honest(format, {opened: index, **shards}, opened)]
    return [_saved_folder(state, folder)]


def _save_legacy(content: object, file: io.BytesIO, protocol: int) -> None:
    """Writes torch's older format; torch.save names storages by their addresses, which differ between runs."""
    storages: dict[int, Any] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            key = storages.setdefault(value._cdata, (str(len(storages)), value))[0]
            kind = getattr(torch, value._pickle_storage_type())  # type: ignore[no-untyped-call]
            return "storage", kind, key, "cpu", value._size(), None  # type: ignore[no-untyped-call]

    sizes = {"short": 2, "int": 4, "long": 4}
    for each in (
        torch.serialization.MAGIC_NUMBER,
        torch.serialization.PROTOCOL_VERSION,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes},
    ):
        pickle.dump(each, file, protocol=protocol)
    Pickler(file, protocol).dump(content)
    pickle.dump([key for key, _ in storages.values()], file, protocol=protocol)
    for _, storage in storages.values():
        file.write(struct.pack("<q", storage._size()) + bytes(storage._untyped_storage.tolist()))


def _saved_folder(state: OrderedDict[str, Any], folder: Path) -> Honest:
    from torch.distributed.checkpoint.state_dict_saver import save

    logging.disable(logging.CRITICAL)  # torch warns about a single process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(dict(state), checkpoint_id=folder, no_dist=True)
    finally:
        logging.disable(logging.NOTSET)
    contents = pickle.loads((folder / ".metadata").read_bytes())
    contents.storage_meta = None  # a path and a number that differ between runs
    return Honest("folder", {".metadata": pickle.dumps(contents), DATA_FILE: (folder / DATA_FILE).read_bytes()}, "")


# --- damage ----------------------------------------------------------------------------------------------------------


def mutant(honest: dict[str, list[Honest]], format: str, seed: int, number: int) -> tuple[Honest, str]:
    """Returns a damaged checkpoint, and a description of the damage."""
    rng = random.Random(f"{seed}:{format}:{number}")
    original = rng.choice(honest[format])
    name = rng.choice(sorted(original.files))
    data = original.files[name]
    structured = _STRUCTURED.get(Path(name).suffix or name, _any_bytes)
    if format == "legacy":
        structured = _pickle
    how = structured if rng.random() < 0.7 else _any_bytes
    changed, done = how(data, rng)
    return Honest(format, {**original.files, name: changed}, original.opened), f"{name}: {done}"


def _any_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    changed = bytearray(data)
    what = rng.choice(("bits", "bytes", "copy", "cut", "remove", "insert", "number"))
    for _ in range(rng.choice((1, 1, 1, 2, 4, _MOST_CHANGES))):
        at = rng.randrange(len(changed)) if changed else 0
        n = min(rng.choice((1, 2, 4, 8, 64)), len(changed) - at)
        other = rng.randrange(len(changed)) if changed else 0
        if what == "bits" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == "bytes" and changed:
            changed[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif what == "copy":
            changed[at : at + n] = data[other : other + n].ljust(n, b"\0")
        elif what == "cut":
            return bytes(changed[:at]), "cut"
        elif what == "remove":
            del changed[at : at + n]
        elif what == "insert":
            changed[at:at] = data[other : other + n]
        elif what == "number" and at + 8 <= len(changed):
            size = rng.choice((1, 2, 4, 8))
            changed[at : at + size] = _number(size, rng)
    return bytes(changed), what


def _number(size: int, rng: random.Random) -> bytes:
    value = rng.choice(_EDGES) * rng.choice((1, 1, -1))
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def _json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes a number, a text or a piece of JSON."""
    text = data.decode()
    what = rng.choice((r"\d+", r"\d+", r'"[^"]*"', r"[\[{][^\[\]{}]*[\]}]", r"[\[\]{},:]"))
    places = list(re.finditer(what, text))
    place = rng.choice(places)
    other = rng.choice(places).group()
    new = rng.choice((other, other, str(rng.choice(_EDGES)), rng.choice(_TEXTS), place.group() * 2, ""))
    if what == r"\d+" and rng.random() < 0.5:
        new = str(int(place.group()) + rng.choice((-8, -4, -1, 1, 4, 8)))
    return (text[: place.start()] + new + text[place.end() :]).encode(), f"JSON {place.group()} to {new}"[:100]


def _safetensors(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.15:
        return _number(8, rng) + data[8:], "length of the header"
    header, done = _json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :], done


def _zip(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes one entry of an archive, and writes the archive anew."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("/data.pkl"))
    name = pickled if rng.random() < 0.7 else rng.choice(sorted(entries))
    entries[name], done = (_pickle if name == pickled else _any_bytes)(entries[name], rng)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for each, content in entries.items():
            archive.writestr(zipfile.ZipInfo(each), content)
    return memory.getvalue(), f"{name}: {done}"


def _pickle(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes whole instructions of the pickles that a file begins with."""
    places, end = [], 0
    try:
        while True:  # legacy files have five, followed by the tensors
            for _, _, at in pickletools.genops(data[end:]):
                assert at is not None
                places.append(end + at)
            end = data.index(b".", places[-1]) + 1
    except (ValueError, KeyError, IndexError, UnicodeDecodeError):
        pass
    places = [at for at in places if at < max(end, 1)]
    changed, done = data, []
    # From the back, so that earlier positions stay valid.
    for k in sorted((rng.randrange(len(places) - 1) for _ in range(rng.choice((1, 1, 1, 2, 3)))), reverse=True):
        old = data[places[k] : places[k + 1]]
        other = rng.randrange(len(places) - 1)
        what = rng.choice(("instruction", "instruction", "drop", "repeat", "replace", "argument", "argument"))
        if what == "instruction":
            new = _instruction(rng) + old
        elif what == "repeat":
            new = old * rng.choice((2, 3, 50))
        elif what == "replace":
            new = data[places[other] : places[other + 1]]
        else:
            new = _argument(old, rng) if what == "argument" else b""
        changed = changed[: places[k]] + new + changed[places[k] + len(old) :]
        done.append(f"{what} at {places[k]}: {old[:20]!r} to {new[:20]!r}")
    return changed, ", ".join(done)


def _argument(old: bytes, rng: random.Random) -> bytes:
    if old[:1] == b"c":
        return b"c" + rng.choice(_NAMES) + b"\n"
    if len(old) in (2, 3, 5, 9):
        return old[:1] + _number(len(old) - 1, rng)
    return old[:1] + _any_bytes(old[1:], rng)[0]


def _instruction(rng: random.Random) -> bytes:
    opcode = rng.choice(_OPCODES)
    code = opcode.code.encode("latin1")
    if opcode.arg is None:
        return code
    if opcode.arg.n >= 0:
        return code + _number(opcode.arg.n, rng)
    if opcode.arg.n == pickletools.UP_TO_NEWLINE:
        return code + (rng.choice(_NAMES) if opcode.name in ("GLOBAL", "INST") else rng.choice(_TEXTS).encode()) + b"\n"
    size = {"1": 1, "4": 4, "8": 8}[opcode.arg.name[-1]] if opcode.arg.name[-1] in "148" else 4
    payload = rng.choice(_NAMES)
    claimed = len(payload) if rng.random() < 0.6 else rng.choice(_EDGES)
    return code + (claimed % (1 << 8 * size)).to_bytes(size, "little") + payload


_STRUCTURED: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    ".pth": _zip,
    ".bin": _zip,
    ".safetensors": _safetensors,
    ".json": _json,
    ".metadata": _pickle,
}

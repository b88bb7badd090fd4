"""Writes the files of this folder that were made by hand; README.md says what each of them is for.

Those that the fuzzer found are kept as it found them. Run from the root: ``PYTHONPATH=tools python tests/hostile/generate.py``.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from mutants import DATA_FILE, honest_checkpoints

HERE = Path(__file__).parent
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"


def tensor(shape: bytes, strides: bytes) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + b"K\x00"
        + shape
        + strides
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def archive(name: str, instructions: bytes) -> None:
    """Writes an archive whose pickle is made of these instructions, with a storage of four floats."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for entry, data in (
            ("data.pkl", b"\x80\x02" + instructions + b"."),
            ("data/0", bytes(16)),
            ("version", b"3\n"),
        ):
            file.writestr(zipfile.ZipInfo(f"a/{entry}"), data)
    written(name, memory.getvalue())


def written(name: str, data: bytes) -> None:
    path = HERE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def code() -> None:
    archive("code/command.pth", b"cos\nsystem\nX\x0c\x00\x00\x00touch HACKED\x85R")
    archive("code/command-by-inst.pth", b"(X\x0c\x00\x00\x00touch HACKEDios\nsystem\n")
    state = b"N}X\x01\x00\x00\x00pK\x01s\x86b0}"
    archive("code/class-of-torch.pth", b"ctorch.distributed.tensor._dtensor_spec\nDTensorSpec\n" + state)
    state = b"N}X\x0b\x00\x00\x00is_absoluteccollections\nOrderedDict\ns\x86b."
    written("code/class-of-pathlib/.metadata", b"\x80\x02cpathlib\nPosixPath\n" + state)
    archive("code/items-of-a-dict.pth", b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb")


def memory() -> None:
    archive("memory/memo.pth", b"]r" + struct.pack("<I", 2**27))
    archive(
        "memory/set-of-a-tensor.pth",
        b"cbuiltins\nfrozenset\n" + tensor(b"J\x00\x00\x00\x04\x85", b"K\x00\x85") + b"\x85R",
    )
    size = b"\x8a\x05" + (2**31).to_bytes(5, "little")
    archive(
        "memory/array-of-a-number.pth",
        b"cnumpy._core.numeric\n_frombuffer\n("
        + size
        + b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x01\x85X\x01\x00\x00\x00CtR",
    )
    archive(
        "memory/shared-lists.pth",
        b"]q\x00"
        + b"]("
        + b"h\x00" * 10
        + b"e"
        + b"".join(b"q%c](" % n + b"h%c" % n * 10 + b"e" for n in range(1, 13))
        + b"Q",
    )
    archive("memory/length.pth", b"\x96" + (2**63 - 1).to_bytes(8, "little") + b"abc")
    header = json.dumps({"wide": {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}}).encode()
    written("memory/dimensions.safetensors", struct.pack("<Q", len(header)) + header + bytes(4))


def values() -> None:
    ones = torch.ones(4, 6)
    saved("values/negated.pth", {"wide": torch.view_as_complex(torch.ones(4, 6, 2)).conj().imag})
    state = OrderedDict(wide=ones)
    state._metadata = OrderedDict({"": {"version": 1}, "1": None})
    saved("values/versions.pth", state)
    sparse = torch.sparse_coo_tensor(torch.tensor([[10**6], [10**6]]), torch.ones(1), (4, 6), check_invariants=False)
    saved("values/sparse-indices.pth", {"wide": sparse})
    saved("values/bytes-of-bools.pth", {"flag": torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8).view(torch.bool)})
    header = json.dumps({"flag": {"dtype": "BOOL", "shape": [5], "data_offsets": [0, 5]}}).encode()
    written("values/bytes-of-bools.safetensors", struct.pack("<Q", len(header)) + header + b"\0\1\2\3\xff")


def archives() -> None:
    whole = honest_checkpoints()["zip"][0].files["c.pth"]
    entry = whole.rindex(b"archive/data/4") - 46  # its line in the archive's directory
    written("values/marked-as-folder.pth", whole[: entry + 38] + b"\x10" + whole[entry + 39 :])


def saved(name: str, content: object) -> None:
    memory = io.BytesIO()
    torch.save(content, memory)
    written(name, memory.getvalue())


def places() -> None:
    folder = honest_checkpoints()["folder"][0].files
    data = folder[DATA_FILE]
    first = data.index(b"PK\1\2")  # of the first tensor's archive
    entry = data.index(b"archive/data/0", first) - 46
    written("values/chunk-marked-as-folder/.metadata", folder[".metadata"])
    written(f"values/chunk-marked-as-folder/{DATA_FILE}", data[: entry + 38] + b"\x10" + data[entry + 39 :])
    for name, change in (
        ("values/part-of-a-tensor", "chunks"),
        ("places/parent-folder", "../part-of-a-tensor/" + DATA_FILE),
        ("places/device", "/dev/zero"),
    ):
        contents = pickle.loads(folder[".metadata"])
        if change == "chunks":
            contents.state_dict_metadata["wide"].chunks[0].sizes = torch.Size([1, 6])
        else:
            for place in contents.storage_data.values():
                place.relative_path = change
        written(f"{name}/.metadata", pickle.dumps(contents))
        written(f"{name}/{DATA_FILE}", folder[DATA_FILE])
    for name, shard in (
        ("control-characters", "b\x1b[2J.bin"),
        ("index-of-the-parent", "../values/bytes-of-bools.safetensors"),
    ):
        index = json.dumps({"weight_map": {"wide": shard, "flag": shard}}).encode()
        written(f"places/{name}/model.safetensors.index.json", index)


if __name__ == "__main__":
    code()
    memory()
    values()
    archives()
    places()

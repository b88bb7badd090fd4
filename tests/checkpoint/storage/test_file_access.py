"""How the bytes of files are reached: mapped or read, and given back."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from written_files import everything_of

import fastinit
from fastinit.checkpoint.storage import files


def test_network_file_systems_are_read_and_others_mapped(tmp_path, monkeypatch):
    mounts = tmp_path / "mountinfo"
    lines = [
        "22 1 8:1 / / rw - ext4 /dev/a rw",
        f"23 22 0:5 / {tmp_path}/net\\040work rw,relatime shared:3 - nfs4 server:/x rw",
        f"24 23 8:2 / {tmp_path}/net\\040work/local rw - xfs /dev/b rw",
        f"25 22 0:6 / {tmp_path}/fuse rw - fuse.sshfs host: rw",
        f"26 22 0:7 / {tmp_path}/block rw - fuseblk /dev/c rw",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    original = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **k: original(mounts if "mountinfo" in str(self) else self, **k)
    )
    expected = {
        "net work": True,
        "net work/local": False,
        "fuse": True,
        "block": False,
        ".": False,
        "net workshop": False,
    }
    for folder, on_network in expected.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "c.pth"
        torch.save({"a": torch.ones(1)}, path)
        assert files.is_on_network(path) is on_network
        assert files.File(path).access == ("read" if on_network else "auto")
    assert files.File(tmp_path / "fuse" / "c.pth", "map").access == "map"


def test_file_descriptors_and_mappings_are_given_back(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "c.pth")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for _ in range(20):
        everything_of(tmp_path / "c.pth")
        made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1000))})
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()

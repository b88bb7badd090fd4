"""What a load costs, seen from outside of its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import needs
import pytest
import torch
from loading import ACCESS

from fastinit.checkpoint.storage import batches

safetensors = needs.module("safetensors.torch")


def costs(tmp_path, script, *arguments):
    """Runs a script that prints "ready", works when told to, and waits; returns (peak memory growth, bytes read)."""
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, str(path), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def number(file, name):
            lines = Path(f"/proc/{process.pid}/{file}").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

        assert process.stdout.readline() == "ready\n"
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        memory, n_read = number("status", "VmRSS"), number("io", "rchar")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        found = (number("status", "VmHWM") - memory) * 1024, number("io", "rchar") - n_read
        process.stdin.write("end\n")
        process.stdin.flush()
    assert process.returncode == 0
    return found


LOADS = """
import sys, torch, fastinit
from torch import nn
path, tiny, access, prefix = sys.argv[1:]
def model(width, n):
    made = nn.ModuleDict({f"b{i}": nn.Linear(width, width, bias=False) for i in range(n)})
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made
def load(made, path):
    cfg = dict(type="Pretrained", checkpoint=path, access=access, prefix=prefix or None)
    fastinit.initialize(made if not prefix else made[prefix], cfg)
made = model(1000, 20)
load(model(1, 20), tiny)
print("ready", flush=True)
sys.stdin.readline()
load(made, path)
assert made["b3"].weight[5, 7] == 3.0
print("done", flush=True)
sys.stdin.readline()
"""


@needs.mark(needs.LINUX)
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("prefix", ["", "b3"])
def test_a_load_needs_little_memory_and_a_prefix_reads_only_its_part(tmp_path, access, kind, prefix):
    states = [{f"b{i}.weight": torch.full((n, n), float(i)) for i in range(20)} for n in (1000, 1)]
    for state, name in zip(states, ("big", "tiny")):
        if kind == "zip":
            torch.save(state, tmp_path / name)
        else:
            safetensors.save_file(state, tmp_path / name)
    size = (tmp_path / "big").stat().st_size
    peak, n_read = costs(tmp_path, LOADS, tmp_path / "big", tmp_path / "tiny", access, prefix)
    piece = batches.MAPPED_PIECE_BYTES if access == "map" else 2 * batches.PIECE_BYTES  # what is on the way at one time
    assert peak < 0.05 * size + piece
    if access == "read":
        assert n_read < (0.051 if prefix else 1.001) * size + 100_000
    else:
        assert n_read < 100_000


@needs.mark(needs.LINUX)
def test_the_memory_measurement_detects_a_second_copy(tmp_path):
    """The control: what mmengine does would be noticed."""
    script = LOADS.replace("    cfg = dict", "    kept = torch.load(path)\n    cfg = dict")
    state = {f"b{i}.weight": torch.full((1000, 1000), float(i)) for i in range(20)}
    torch.save(state, tmp_path / "big")
    torch.save({key: torch.zeros(1, 1) for key in state}, tmp_path / "tiny")
    peak, n_read = costs(tmp_path, script, tmp_path / "big", tmp_path / "tiny", "read", "")
    assert peak > 70e6
    assert n_read > 150e6

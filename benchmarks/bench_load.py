"""Loading checkpoints of 2.4 GB in 328 tensors and 84 MB in 20,000: ours against mmengine, torch and safetensors.

Each measurement runs in its own process, watched from outside: peak memory above the model's and bytes read come from
/proc. Every way must first give the file's values, bit for bit. "Cold": the file is not in the page cache. Writes
``results/bench_load.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tables import write
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load as load_folder
from torch.distributed.checkpoint.state_dict_saver import save as write_folder

import fastinit
from fastinit.demo import GPT

ROUNDS = 3
LAYERS, WIDTH, VOCABULARY, CONTEXT = 27, 1280, 50257, 1024  # 597 million parameters
PREFIX = "blocks.0"  # one of 27 layers
PTH, SAFE, FOLDER = "model.pth", "model.safetensors", "model.folder"
# What a load costs beside its bytes: 200 groups of 50 layers, each with a weight of 4 KiB and a bias.
GROUPS, IN_GROUP, SMALL_WIDTH = 200, 50, 32
MANY_PTH, MANY_SAFE = "many.pth", "many.safetensors"


def model_of(what: str) -> nn.Module:
    """Returns the model to load into, with its memory touched; "meta" has no memory."""
    if what == "many":
        return nn.Sequential(
            *(nn.Sequential(*(nn.Linear(SMALL_WIDTH, SMALL_WIDTH) for _ in range(IN_GROUP))) for _ in range(GROUPS))
        )
    with torch.device("meta"):
        model = GPT(LAYERS, WIDTH, VOCABULARY, CONTEXT)
    if what == "meta":
        return model
    part: nn.Module = model.blocks[0] if what == "part" else model
    part.to_empty(device="cpu")
    if what == "model":
        model.head.weight = model.tokens.weight
    for parameter in part.parameters():
        nn.init.zeros_(parameter)
    return part


# --- the ways; each gets a model and a path --------------------------------------------------------------------------


def mmengine_load(model: nn.Module, path: str) -> None:
    """mmengine, as it is."""
    from mmengine.runner import checkpoint

    checkpoint.load_checkpoint(model, path, map_location="cpu", logger="silent")


def mmengine_prefix(model: nn.Module, path: str) -> None:
    """mmengine's Pretrained with a prefix."""
    from mmengine.runner import checkpoint

    state_dict = checkpoint._load_checkpoint_with_prefix(PREFIX, path, map_location="cpu")
    checkpoint.load_state_dict(model, state_dict, strict=False, logger="silent")


def torch_load(model: nn.Module, path: str) -> None:
    """torch.load, then copy."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


def torch_mmap(model: nn.Module, path: str) -> None:
    """torch.load with mmap, then copy."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])


def torch_assign(model: nn.Module, path: str) -> None:
    """torch.load with mmap, assigned."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    model.load_state_dict(state_dict, assign=True)


def safetensors_load(model: nn.Module, path: str) -> None:
    """safetensors' own function."""
    safetensors.torch.load_model(model, path)


def torch_folder(model: nn.Module, path: str) -> None:
    """torch.distributed.checkpoint, straight into the model's tensors."""
    with warnings.catch_warnings():  # that the process is alone
        warnings.simplefilter("ignore")
        load_folder(model.state_dict(), checkpoint_id=path, no_dist=True)


def ours(model: nn.Module, path: str) -> None:
    """Ours, by default."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path))


def ours_map(model: nn.Module, path: str) -> None:
    """Ours, mapped."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, access="map"))


def ours_load(model: nn.Module, path: str) -> None:
    """Ours, through mmengine's function."""
    fastinit.checkpoint.load_checkpoint(model, path, logger="silent")


def ours_assign(model: nn.Module, path: str) -> None:
    """Ours, assigned."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, assign=True))


def ours_prefix(model: nn.Module, path: str) -> None:
    """Ours, one layer of the file."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, prefix=PREFIX))


Way = Callable[[nn.Module, str], None]
# (model, file, way, its name, label in the table)
WAYS: list[tuple[str, str, str, Way, str]] = [
    ("copy", "model", PTH, mmengine_load, "mmengine load_checkpoint"),
    ("copy", "model", PTH, torch_load, "torch.load, load_state_dict"),
    ("copy", "model", PTH, torch_mmap, "torch.load(mmap=True), load_state_dict"),
    ("copy", "model", PTH, ours, "fastinit"),
    ("copy", "model", PTH, ours_map, "fastinit, access='map'"),
    ("copy", "model", PTH, ours_load, "fastinit load_checkpoint"),
    ("copy", "model", SAFE, safetensors_load, "safetensors load_model"),
    ("copy", "model", SAFE, ours, "fastinit"),
    ("copy", "model", SAFE, ours_map, "fastinit, access='map'"),
    ("copy", "model", FOLDER, torch_folder, "torch.distributed.checkpoint.load"),
    ("copy", "model", FOLDER, ours, "fastinit"),
    ("20,000 tensors", "many", MANY_PTH, mmengine_load, "mmengine load_checkpoint"),
    ("20,000 tensors", "many", MANY_PTH, torch_load, "torch.load, load_state_dict"),
    ("20,000 tensors", "many", MANY_PTH, torch_mmap, "torch.load(mmap=True), load_state_dict"),
    ("20,000 tensors", "many", MANY_PTH, ours, "fastinit"),
    ("20,000 tensors", "many", MANY_PTH, ours_load, "fastinit load_checkpoint"),
    ("20,000 tensors", "many", MANY_SAFE, safetensors_load, "safetensors load_model"),
    ("20,000 tensors", "many", MANY_SAFE, ours, "fastinit"),
    ("20,000 tensors", "many", MANY_SAFE, ours_load, "fastinit load_checkpoint"),
    ("assign", "meta", PTH, torch_assign, "torch.load(mmap=True), assign=True"),
    ("assign", "meta", PTH, ours_assign, "fastinit, assign=True"),
    ("assign", "meta", SAFE, ours_assign, "fastinit, assign=True"),
    ("one layer", "part", PTH, mmengine_prefix, "mmengine, prefix"),
    ("one layer", "part", PTH, ours_prefix, "fastinit, prefix"),
    ("one layer", "part", SAFE, ours_prefix, "fastinit, prefix"),
]


# --- one measurement -------------------------------------------------------------------------------------------------


def child(way: Way, what: str, path: str) -> None:
    """Loads on request, reports the seconds, and stays alive until the parent has read /proc."""
    answers, sys.stdout = sys.stdout, sys.stderr  # mmengine prints
    model = model_of(what)
    way(nn.Linear(1, 1), _tiny(path, f"{PREFIX}." if what == "part" else ""))  # imports and other one-time costs
    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    way(model, path)
    print(time.perf_counter() - began, file=answers, flush=True)
    sys.stdin.readline()


def _tiny(path: str, prefix: str) -> str:
    tiny = Path(path).with_name(f"tiny-{prefix}{Path(path).name}")
    if not tiny.exists():
        state = {f"{prefix}weight": torch.ones(1, 1), f"{prefix}bias": torch.ones(1)}
        if tiny.suffix == ".folder":
            save_folder(state, tiny)
        elif tiny.suffix == ".pth":
            torch.save({"state_dict": state}, tiny)
        else:
            safetensors.torch.save_file(state, tiny)
    return str(tiny)


def measure(index: int, path: Path, cold: bool) -> tuple[float, float, float]:
    """Returns (seconds, GB of peak memory above the model's, GB read from the disk) of one way."""
    command = [sys.executable, __file__, str(index), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the measured process failed")
        _cache(path, not cold)
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # resets the peak
        memory, read = _number(process.pid, "status", "VmRSS"), _number(process.pid, "io", "read_bytes")
        process.stdin.write("go\n")
        process.stdin.flush()
        seconds = float(process.stdout.readline())
        peak = _number(process.pid, "status", "VmHWM") - memory
        n_read = _number(process.pid, "io", "read_bytes") - read
        process.stdin.write("end\n")
        process.stdin.flush()
    return seconds, peak / 1e6 * 1.024, n_read / 1e9


def _number(process: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _cache(path: Path, wanted: bool) -> None:
    """Puts a file, or those of a folder, into the page cache, or takes them out."""
    for each in _files(path):
        with each.open("rb") as file:
            if wanted:
                while file.read(1 << 24):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


def save_folder(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes a folder of torch.distributed.checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_folder(state, checkpoint_id=folder, no_dist=True)


def save(folder: Path) -> dict[str, nn.Module]:
    """Writes the files, and returns their models."""
    sources = {PTH: GPT(LAYERS, WIDTH, VOCABULARY, CONTEXT), MANY_PTH: model_of("many")}
    for name, model in sources.items():
        fastinit.initialize(model, dict(type="Normal", param="*"), backend="cpp", seed=0)
        torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 12}}, folder / name)
        safetensors.torch.save_model(model, str((folder / name).with_suffix(".safetensors")))
    save_folder(sources[PTH].state_dict(), folder / FOLDER)
    os.sync()
    return {**sources, SAFE: sources[PTH], FOLDER: sources[PTH], MANY_SAFE: sources[MANY_PTH]}


def must_be_right(folder: Path, sources: dict[str, nn.Module]) -> None:
    """Raises SystemExit unless every way gives the file's values."""
    for _, what, name, way, label in WAYS:
        model = model_of(what)
        way(model, str(folder / name))
        prefix = f"{PREFIX}." if what == "part" else ""
        expected = sources[name].state_dict()
        for key, value in model.state_dict().items():
            if not torch.equal(value, expected[prefix + key]):
                raise SystemExit(f"{label}: {key} has other values than the file")


def main() -> None:
    """Measures in turns, and writes the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        must_be_right(folder, save(folder))
        found: dict[tuple[int, bool], list[tuple[float, float, float]]] = {}
        for turn in range(ROUNDS):
            for index, (_, _, file, *_) in enumerate(WAYS):
                for cold in (False, True):
                    if turn < ROUNDS - 1 or not cold:
                        found.setdefault((index, cold), []).append(measure(index, folder / file, cold))
            print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr)
        n_bytes = {path.name: sum(file.stat().st_size for file in _files(path)) for path in folder.iterdir()}
    rows: list[dict[str, Any]] = []
    middle = {
        key: tuple(statistics.median(each[i] for each in measured) for i in range(3)) for key, measured in found.items()
    }
    for index, (what, _, file, _, label) in enumerate(WAYS):
        base = next(i for i, way in enumerate(WAYS) if way[0] == what)
        warm, from_disk = middle[index, False], middle[index, True]
        rows.append(
            {
                "load": what,
                "file": f"{file.rpartition('.')[2]}, {n_bytes[file] / 1e9:.2f} GB",
                "way": label,
                "warm, s": f"{warm[0]:.3f}",
                "cold, s": f"{from_disk[0]:.3f}",
                "peak memory above the model's, GB": f"{warm[1]:.3f}",
                "read from disk, GB": f"{from_disk[2]:.3f}",
                "times faster, warm": f"{middle[base, False][0] / warm[0]:.1f}",
            }
        )
    write("bench_load.csv", rows)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _, what_, _, way_, _ = WAYS[int(sys.argv[1])]
        child(way_, what_, sys.argv[2])
    else:
        main()

"""A checkpoint of initial weights on the disk: a model is made and saved, or ``fastinit.write`` writes it unmade.

Each measurement runs in its own process (see fresh.py) and ends when the bytes are on the disk. The files are compared
first. Writes ``results/bench_write.csv``. Each part takes a minute or two and keeps the rows of the others: ``--only
580M`` measures that model, ``--large`` writes 20 GB once, checks parts of them, and removes them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fresh
import torch
import transformers
from bench_build import llama
from safetensors import safe_open
from safetensors.torch import save_file
from tables import replace
from transformers.models.llama import modeling_llama  # noqa: F401  (transformers imports it at first use)

import fastinit

AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM
ROUNDS = 3
SMALL = partial(llama, 256, 512, 2, "float32")
MODELS = {
    "Llama, 580M, float32": partial(llama, 1536, 4096, 17, "float32"),
    "Llama, 1.3B, bfloat16": partial(llama, 2048, 5632, 24, "bfloat16"),
}
LARGE = partial(llama, 4096, 14336, 40, "bfloat16")
NORMAL = fastinit.plans.Normal(0, 0.02)


def saved(config: Callable[[], Any], folder: Path, backend: str | None) -> None:
    """The way that users write today: the model is made, by its constructor or by ``build``, and saved."""
    make = partial(AutoModelForCausalLM.from_config, config())
    model = make() if backend is None else fastinit.build(make, backend=backend, seed=0)
    path = folder / "model.safetensors"
    save_file(model.state_dict(), path, metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def written(config: Callable[[], Any], folder: Path, **how: Any) -> None:
    """Ours."""
    make = partial(AutoModelForCausalLM.from_config, config())
    fastinit.write(make, folder, seed=0, max_shard_size="1TB", **how)


def in_folder(way: Callable[..., None], config: Callable[[], Any]) -> None:
    """Runs a way in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench_write.") as folder:
        way(config, Path(folder))


def must_be_right() -> None:
    """Raises SystemExit unless the files are the same, and a folder for torch.distributed has their values."""
    from torch.distributed.checkpoint.state_dict_loader import load

    with tempfile.TemporaryDirectory(prefix="bench_write.") as name:
        folders = [Path(name) / each for each in ("ours", "theirs", "dcp")]
        for folder in folders:
            folder.mkdir()
        written(SMALL, folders[0])
        saved(SMALL, folders[1], "cpp")
        written(SMALL, folders[2], format="dcp")
        ours, theirs = (folder / "model.safetensors" for folder in folders[:2])
        if ours.read_bytes() != theirs.read_bytes():
            raise SystemExit("the files differ")
        state = AutoModelForCausalLM.from_config(SMALL()).state_dict()
        load(state, checkpoint_id=folders[2])
        with safe_open(ours, "pt") as file:
            if any(not torch.equal(file.get_tensor(key), tensor) for key, tensor in state.items()):
                raise SystemExit("the folder differs")


def large(folder: Path) -> dict[str, Any]:
    """Writes a checkpoint of 20 GB, checks rows of all of its weights, and returns its row."""
    config = LARGE()
    seconds, gigabytes = fresh.seconds_and_gigabytes(lambda: fastinit.write(partial(_of, config), folder, seed=0), 1)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                if len(shape) == 1:  # of a norm
                    continue
                row = shape[0] * 7 // 10
                values = fastinit.values(name, shape, NORMAL, seed=0, dtype=torch.bfloat16, box=row)
                if not torch.equal(part[row], values):
                    raise SystemExit(f"{name}: row {row} differs")
    return row_of(f"Llama, {n_bytes / 2e9:.0f}B, bfloat16", "write", n_bytes, seconds, gigabytes, "")


def row_of(label: str, way: str, n_bytes: int, seconds: float, gigabytes: float, faster: str) -> dict[str, Any]:
    """Returns a row of the table."""
    return {
        "model": label,
        "way": way,
        "seconds": f"{seconds:.2f}",
        "GB/s": f"{n_bytes / 1e9 / seconds:.2f}",
        "peak memory, GB": f"{gigabytes:.2f}",
        "times faster": faster,
    }


def _of(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config)


def main() -> None:
    """Measures in turns, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="write 20 GB once, and check them")
    parser.add_argument("--only", default="", metavar="TEXT", help="of the models, those with this in their names")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"files of each way (default: {ROUNDS})")
    options = parser.parse_args()
    if options.large:
        with tempfile.TemporaryDirectory(prefix="bench_write.") as folder:
            replace("bench_write.csv", [large(Path(folder))], "model", "way")
        return
    fresh.check(must_be_right)
    ways: dict[str, Callable[..., None]] = {
        "from_config, save_file": partial(saved, backend=None),
        "build, cpp, save_file": partial(saved, backend="cpp"),
        "write": written,
        "write, dcp": partial(written, format="dcp"),
    }
    rows: list[dict[str, Any]] = []
    models = {label: config for label, config in MODELS.items() if options.only in label}
    if not models:
        parser.error(f"--only {options.only!r} matches no model; there are: {'; '.join(MODELS)}")
    for label, config in models.items():
        with torch.device("meta"):
            n_bytes = sum(each.nbytes for each in AutoModelForCausalLM.from_config(config()).parameters())
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                found[name].append(fresh.seconds_and_gigabytes(partial(in_folder, way, config), n_bytes))
        medians = {name: [statistics.median(each[i] for each in found[name]) for i in (0, 1)] for name in ways}
        for name, (seconds, gigabytes) in medians.items():
            faster = f"{medians['from_config, save_file'][0] / seconds:.1f}"
            rows.append(row_of(label, name, n_bytes, seconds, gigabytes, faster))
            print(rows[-1], flush=True)
    replace("bench_write.csv", rows, "model", "way")


if __name__ == "__main__":
    main()

"""Checks torchtitan's own Llama 3 on one and two ranks: is every weight the one that a single process gets?

    python -m venv venv && venv/bin/pip install torch torchtitan==0.3.0 .
    venv/bin/python tools/check_torchtitan.py

Each run is a group of processes (gloo, on the CPU) with FSDP2. A recipe of torchtitan's constructor and its
``init_states`` on the meta device is run on the sharded model: all parameters and buffers must have the bits of
``fastinit.build`` of the whole model, and be of the kinds that torchtitan's own code draws. Then the same by
``capture`` around ``init_states`` of the sharded model, which draws fused weights by order: those are counted, and must
be listed as ``unkeyed``. Prints a table. Exit code 1: a weight is another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sweep_checks import other_kind, seed_all

import fastinit

WORLDS = (1, 2)
SEED = 3


def made() -> Any:
    """Returns torchtitan's small Llama 3, started by its own code."""
    model = built()
    model.init_states()
    return model


def built() -> Any:
    """Returns the same without values."""
    from torchtitan.models.llama3 import model_registry

    return model_registry("debugmodel").model.build()


def sharded(model: Any) -> Any:
    """Returns the model after FSDP2 of each layer and of the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model: Any) -> dict[str, torch.Tensor]:
    """Returns all parameters and buffers, gathered."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: getattr(each, "full_tensor", lambda each=each: each)().detach() for name, each in tensors.items()}


def different(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Returns the names of tensors that are not equal bit for bit."""
    return [name for name, tensor in expected.items() if name not in found or not torch.equal(found[name], tensor)]


def work(results: str) -> None:
    """One rank."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    own = []
    for seed in range(3):
        seed_all(seed)
        own.append(whole(made()))
    expected = whole(fastinit.build(made, backend="cpp", seed=SEED))
    with fastinit.capture() as recipe, torch.device("meta"):
        model = made()
    fastinit.materialize(sharded(model), recipe=recipe, backend="cpp", seed=SEED, device="cpu")
    found = whole(model)
    others = [name for name in found if other_kind([each[name] for each in own], found[name])]
    with torch.device("meta"):
        model = built()
    sharded(model).to_empty(device="cpu")
    with fastinit.capture(model, backend="cpp", seed=SEED) as captured, torch.no_grad():
        model.init_states()
    assert captured.report is not None
    by_order = different(whole(model), expected)
    counts = dict(
        tensors=len(expected),
        different=different(found, expected),
        other_kind=others,
        by_order=len(by_order),
        silent=[] if captured.report.unkeyed or not by_order else by_order,
    )
    if torch.distributed.get_rank() == 0:
        Path(results).write_text(json.dumps(counts))
    torch.distributed.destroy_process_group()


def run(world: int) -> dict[str, Any]:
    """Returns what the ranks found."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, __file__, str(results)], capture_output=True, text=True, env=environment, check=False
        )
        if not results.exists():
            raise SystemExit(f"{world} ranks: no results\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        counts: dict[str, Any] = json.loads(results.read_text())
        return counts


def main() -> None:
    """Runs all, prints the table, and exits with 1 if a weight is another one."""
    if find_spec("torchtitan") is None:
        raise SystemExit("torchtitan is not installed: pip install torchtitan==0.3.0")
    from importlib.metadata import version

    print(f"torchtitan {version('torchtitan')}, torch {torch.__version__}, llama3 debugmodel, FSDP2 on gloo\n")
    print(
        "| ranks | tensors | recipe: other bits | recipe: another kind | capture of shards: by order | without a word |"
    )
    print("|---|---|---|---|---|---|")
    wrong = False
    for world in WORLDS:
        counts = run(world)
        lists = [counts["different"], counts["other_kind"], counts["silent"]]
        wrong |= any(lists)
        n_other, n_kind, n_silent = map(len, lists)
        print(f"| {world} | {counts['tensors']} | {n_other} | {n_kind} | {counts['by_order']} | {n_silent} |")
        for each in lists:
            print("\n".join(f"    {name}" for name in each), end="\n" if each else "")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    work(sys.argv[1]) if len(sys.argv) > 1 else main()

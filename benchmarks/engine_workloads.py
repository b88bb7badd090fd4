"""The workloads of bench_engine.py, each run in a process of its own: models of many small tensors, where the engine
costs more than the kernels, and one Llama.

Only fastinit's public API is used, so that the same file measures any checkout on PYTHONPATH. Run as
``python engine_workloads.py NAME SCALE REPEATS``, it prints one line of JSON: the digest of what the workload made, and
the seconds of each repeat. With 0 repeats it only makes the digest.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import fresh
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastinit

SEED = 5
RULES = [
    dict(type="TruncNormal", std=0.02, layer="Linear"),
    dict(type="Constant", val=1, layer="LayerNorm"),
    dict(type="Normal", std=0.01, param="*.3.0.weight"),
    dict(type="Xavier", layer="Conv2d", override=dict(type="Constant", val=0, name="head")),
]
# How long a virtual machine keeps free memory before it has given most of it back to its host.
IDLE_S = 15


@dataclass(frozen=True)
class Workload:
    """A workload. Each repeat passes the result of ``prepare`` to ``run``, and only ``run`` is timed."""

    n_tensors: int
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    digest: Callable[[Any], str]
    """Returns the digest of the result of ``run``."""
    peer: Callable[[Any], Any] | None = None
    """Does the same without fastinit; timed in turns with ``run``."""
    is_peers_bits: bool = False
    """``run`` must give what ``peer`` gives, bit for bit."""
    n_fresh_bytes: int = 0
    """Memory that ``run`` takes; if not 0, each repeat has a process and fresh memory of its own, and wall time counts
    instead of CPU time."""
    idle_s: float = 0
    """How long to wait before a repeat in fresh memory, instead of warming it."""


def blocks(n_blocks: int) -> nn.Module:
    """Returns a model with four tensors in each of ``n_blocks`` blocks, in groups of 50, and a head."""
    model = nn.Sequential()
    for start in range(0, n_blocks, 50):
        size = min(50, n_blocks - start)
        model.append(nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(size))))
    model.add_module("convolution", nn.Conv2d(1, 1, 1))
    model.add_module("head", nn.Linear(8, 8))
    return model


def on_meta(n_blocks: int) -> nn.Module:
    """Returns ``blocks`` without memory."""
    with torch.device("meta"):
        return blocks(n_blocks)


def deep_tree(n_modules: int) -> fastinit.BaseModule:
    """Returns a tree of BaseModules with a config each, in chains 50 deep."""

    class Link(fastinit.BaseModule):
        def __init__(self, depth: int) -> None:
            super().__init__(dict(type="Normal", std=0.1, layer="Linear"))
            self.fc = nn.Linear(8, 8)
            if depth > 1:
                self.next = Link(depth - 1)

    chains = [Link(min(50, n_modules - start)) for start in range(0, n_modules, 50)]
    return fastinit.ModuleList(chains)


def weights(model: nn.Module) -> str:
    """Returns the digest of a model's names and bits."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().view(torch.uint8).reshape(-1).numpy().data)
    return found.hexdigest()


def rows(plan: fastinit.Plan) -> str:
    """Returns the digest of a plan's rows, without the texts that are only for people."""
    plain: Iterable[Any] = (
        (row.parameter, row.shape, row.dtype, row.device, row.action, sorted(row.values.items()), row.rule, row.backend)
        for row in plan.rows
    )
    return hashlib.sha256("\n".join(map(repr, plain)).encode()).hexdigest()


def plan(backend: str, scale: float) -> Workload:
    """Plans 20,000 tensors by several rules."""
    model = blocks(int(5000 * scale))
    run = partial(fastinit.plan, init_cfg=RULES, backend=backend, seed=SEED)
    return Workload(len(list(model.parameters())), lambda: model, run, rows)


def initialize(backend: str, scale: float) -> Workload:
    """Initializes 20,000 tensors by several rules."""
    model = blocks(int(5000 * scale))

    def run(model: nn.Module) -> nn.Module:
        fastinit.initialize(model, RULES, backend=backend, seed=SEED)
        return model

    return Workload(len(list(model.parameters())), lambda: model, run, weights)


def capture(backend: str, scale: float) -> Workload:
    """Makes 10,000 layers in a block of ``capture``."""
    n_blocks = int(5000 * scale)

    def run(_: object) -> nn.Module:
        with fastinit.capture(backend=backend, seed=SEED):
            return blocks(n_blocks)

    return _constructing(n_blocks, run, backend)


def build(backend: str, scale: float) -> Workload:
    """Builds a model of 4,000 tiny tensors."""
    n_blocks = int(1000 * scale)

    def run(_: object) -> nn.Module:
        return fastinit.build(blocks, n_blocks, backend=backend, seed=SEED)

    return _constructing(n_blocks, run, backend)


class PassingFunctions(TorchFunctionMode):
    """Does nothing about what it is told of."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function."""
        return func(*args, **kwargs) if kwargs else func(*args)


class PassingOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """As ``PassingFunctions``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator."""
        return func(*args, **kwargs) if kwargs else func(*args)


def modes_alone(scale: float) -> Workload:
    """Makes the model of ``build`` without fastinit, in two modes of torch's that do nothing."""
    n_blocks = int(1000 * scale)

    def run(_: object) -> nn.Module:
        with PassingFunctions(), PassingOperators():  # type: ignore[no-untyped-call]
            return blocks(n_blocks)

    return _constructing(n_blocks, run, "torch")


def _constructing(n_blocks: int, run: Callable[[Any], nn.Module], backend: str) -> Workload:
    def plainly(_: object) -> nn.Module:
        return blocks(n_blocks)

    def seeded() -> None:
        torch.manual_seed(SEED)

    n_tensors = len(list(on_meta(n_blocks).parameters()))
    return Workload(n_tensors, seeded, run, weights, peer=plainly, is_peers_bits=backend == "torch")


def init_weights(backend: str, scale: float) -> Workload:
    """Calls init_weights of 2,000 BaseModules."""
    tree = deep_tree(int(2000 * scale))

    def run(model: fastinit.BaseModule) -> nn.Module:
        with fastinit.use(backend=backend, seed=SEED):
            model.init_weights()
        return model

    # A tree initializes itself once.
    return Workload(len(list(tree.parameters())), lambda: copy.deepcopy(tree), run, weights)


def materialize_by_config(scale: float) -> Workload:
    """Materializes 10,000 layers by a config, the rest by the layers' own code."""
    n_blocks = int(5000 * scale)

    def run(model: nn.Module) -> nn.Module:
        fastinit.materialize(model, RULES, backend="cpp", seed=SEED)
        return model

    return Workload(len(list(on_meta(n_blocks).parameters())), partial(on_meta, n_blocks), run, weights)


def materialize_by_recipe(scale: float) -> Workload:
    """Materializes 10,000 layers by a recipe."""
    n_blocks = int(5000 * scale)
    with fastinit.capture() as recipe:
        recipe.bind(on_meta(n_blocks))

    def run(model: nn.Module) -> nn.Module:
        fastinit.materialize(model, recipe=recipe, backend="cpp", seed=SEED)
        return model

    return Workload(len(list(on_meta(n_blocks).parameters())), partial(on_meta, n_blocks), run, weights)


def build_llama(idle_s: float, scale: float) -> Workload:
    """Builds a Llama of 580 million parameters in memory that this process never touched."""
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401  (transformers imports it at first use)

    make: Any = transformers.AutoModelForCausalLM
    config = transformers.LlamaConfig(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=max(1, int(17 * scale)),
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=max(1000, int(32000 * scale)),
        dtype="float32",
    )
    with torch.device("meta"):
        parameters = list(make.from_config(config).parameters())

    def run(_: object) -> nn.Module:
        model: nn.Module = fastinit.build(make.from_config, config, backend="cpp", seed=SEED)
        return model

    n_bytes = sum(parameter.nbytes for parameter in parameters)
    return Workload(len(parameters), lambda: None, run, weights, n_fresh_bytes=n_bytes, idle_s=idle_s)


WORKLOADS: dict[str, Callable[[float], Workload]] = {
    "plan, torch": partial(plan, "torch"),
    "plan, cpp": partial(plan, "cpp"),
    "initialize, torch": partial(initialize, "torch"),
    "initialize, cpp": partial(initialize, "cpp"),
    "capture, torch": partial(capture, "torch"),
    "capture, cpp": partial(capture, "cpp"),
    "build, tiny tensors, torch": partial(build, "torch"),
    "build, tiny tensors, cpp": partial(build, "cpp"),
    "two idle modes of torch, tiny tensors": modes_alone,
    "init_weights, torch": partial(init_weights, "torch"),
    "init_weights, cpp": partial(init_weights, "cpp"),
    "materialize by config, cpp": materialize_by_config,
    "materialize by recipe, cpp": materialize_by_recipe,
    "build, Llama of 580M, warm memory, cpp": partial(build_llama, 0),
    "build, Llama of 580M, idle memory, cpp": partial(build_llama, IDLE_S),
}


def digest_of(workload: Workload) -> str:
    """Runs a workload once; raises SystemExit if a second run, or the peer where it must be equal, gives other bits."""
    found = [workload.digest(workload.run(workload.prepare()))]
    if not workload.n_fresh_bytes:
        found.append(workload.digest(workload.run(workload.prepare())))
    if workload.is_peers_bits:
        assert workload.peer is not None
        found.append(workload.digest(workload.peer(workload.prepare())))
    if len(set(found)) > 1:
        raise SystemExit(f"runs of one workload give different results: {found}")
    return found[0]


def cpu_seconds(workload: Workload, run: Callable[[Any], Any]) -> float:
    """Returns the CPU time of one repeat."""
    prepared = workload.prepare()
    gc.collect()  # or the repeat pays for the collection that earlier ones made due
    began = time.process_time()
    kept = run(prepared)
    seconds = time.process_time() - began
    del kept
    return seconds


def measured(workload: Workload, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each repeat, of fastinit and of the peer."""
    if workload.n_fresh_bytes:
        n_bytes = 0 if workload.idle_s else workload.n_fresh_bytes
        time.sleep(workload.idle_s)
        seconds, _ = fresh.seconds_and_gigabytes(
            lambda: workload.run(workload.prepare()), n_bytes, fresh.State.JUST_FREED
        )
        return {"fastinit": [seconds], "peer": []}
    found: dict[str, list[float]] = {"fastinit": [], "peer": []}
    cpu_seconds(workload, workload.run)  # imports, caches
    for _ in range(repeats):
        found["fastinit"].append(cpu_seconds(workload, workload.run))
        if workload.peer is not None:
            found["peer"].append(cpu_seconds(workload, workload.peer))
    return found


def main() -> None:
    """Runs one workload and prints what came of it."""
    name, scale, repeats = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(SEED)  # where a workload leaves a tensor as its constructor drew it, both sides have the same
    workload = WORKLOADS[name](scale)
    found: dict[str, object] = {"fastinit from": fastinit.__file__, "tensors": workload.n_tensors}
    if not workload.n_fresh_bytes:  # torch's threads do not survive a fork
        torch.set_num_threads(1)  # CPU time counts all threads, and tensors this small need one
    if repeats:
        found.update(measured(workload, repeats))
    else:
        found["digest"] = digest_of(workload)
    print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()

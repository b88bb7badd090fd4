"""``plan`` with a device or a function: what ``materialize``, or ``build`` and ``init_weights``, then do, row by row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.plans import Row

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])


class Table(nn.Module):
    """Makes its table anew, in code that is run when there is memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(4.0))
        self.l = nn.Linear(3, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.table = torch.arange(4.0) * 2


class Tree(fastinit.BaseModule):
    def __init__(self) -> None:
        super().__init__(dict(type="Constant", val=4.0, layer="Linear"))
        self.fc, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(3)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 4, padding_idx=2)
        self.head = nn.Linear(4, 8)
        self.head.weight = self.words.weight


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layers": lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Conv2d(3, 4, 3)),
    "attention": lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 8),
    "a table": lambda: Table(),
    "a tree": lambda: Tree(),
    "tied": lambda: Padded(),
}


def fills(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    return {
        (row.parameter, row.shape, row.dtype, row.device, row.description, row.backend)
        for row in rows
        if row.action == "fill" and not row.replaced
    }


@backends
@pytest.mark.parametrize("cfg", [None, dict(type="Normal", std=0.5, layer="Linear")], ids=["own code", "a rule"])
@pytest.mark.parametrize("name", MODELS)
def test_materialize_fills_what_its_plan_shows(name: str, cfg: Any, backend: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    plan = fastinit.plan(model, cfg, device="cpu", backend=backend, seed=0)
    report = fastinit.materialize(model, cfg, backend=backend, seed=0)
    assert fills(plan.rows) == fills(report.rows) and plan.rows
    assert {row.parameter for row in plan.rows} >= set(model.state_dict()) - {"head.weight"}
    assert plan.unreached == ()


@backends
@pytest.mark.parametrize("prefix", ["teacher", {"": "teacher", "words": "shared.words"}], ids=["a text", "a map"])
@pytest.mark.parametrize("name", MODELS)
def test_behind_a_prefix_materialize_fills_what_its_plan_shows(name: str, prefix: Any, backend: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    how: dict[str, Any] = dict(prefix=prefix, backend=backend, seed=0)
    plan = fastinit.plan(model, device="cpu", **how)
    assert {row.parameter.partition(".")[0] for row in plan.rows} <= {"teacher", "shared"}
    assert fills(plan.rows) == fills(fastinit.materialize(model, **how).rows) and plan.rows


@backends
@pytest.mark.parametrize("name", MODELS)
def test_build_and_init_weights_fill_what_the_plan_of_the_function_shows(name: str, backend: str) -> None:
    plan = fastinit.plan(MODELS[name], backend=backend, seed=0)
    with fastinit.capture(backend=backend, seed=0) as recipe:
        kept = MODELS[name]()
    made = fills(recipe.report.rows)
    if isinstance(kept, Tree):
        with fastinit.use(backend=backend, seed=0):
            kept.init_weights()
        assert kept.last_init_report is not None
        after = fills(kept.last_init_report.rows)
        made = {fill for fill in made if fill[0] not in {name for name, *_ in after}} | after
    assert fills(plan.rows) == made and plan.rows
    assert {row.parameter for row in plan.rows} >= set(dict(kept.named_parameters()))


def test_the_model_is_as_it_was() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({name.replace(" ", "_"): make() for name, make in MODELS.items()})
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    fastinit.plan(model, dict(type="Normal", layer="Linear"), device="cpu")
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before


def test_rows_name_the_device_that_the_model_is_to_be_on() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    plan = fastinit.plan(model, device="cuda:1", backend="torch")
    assert {row.device for row in plan.rows} == {"cuda:1"}


def test_a_buffer_that_own_code_makes_anew_has_a_row() -> None:
    with torch.device("meta"):
        model = Table()
    (row,) = (row for row in fastinit.plan(model, device="cpu").rows if row.parameter == "table")
    assert row.action == "compute" and "Table" in row.description


def test_a_config_beside_a_function_comes_after_its_own_init() -> None:
    plan = fastinit.plan(MODELS["layers"], dict(type="Constant", val=7, layer="Linear"))
    last = {row.parameter: row.description for row in plan.rows if not row.replaced}
    assert last["0.weight"] == "constant(7)" and last["1.weight"] == "constant(1)"


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "give a device"),
        (lambda: 3, {}, "it returned <class 'int'>"),
        (3, {}, "module"),
    ],
    ids=["no config", "no module", "a number"],
)
def test_what_cannot_be_planned_is_refused(module: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fastinit.plan(module, **options)


def test_the_meta_device_is_no_place_to_be() -> None:
    with pytest.raises(ValueError, match="device='meta' has no memory"):
        fastinit.plan(nn.Linear(2, 2), device="meta")


SHARDED = """
import os, torch, fastinit
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
with torch.device("meta"):
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 6))
for layer in [*model, model]:
    fully_shard(layer, mesh=init_device_mesh("cpu", (4,)))
before = [id(parameter) for parameter in model.parameters()]
plan = fastinit.plan(model, dict(type="Normal", param="0.weight"), device="cpu", backend="cpp", seed=0)
assert before == [id(parameter) for parameter in model.parameters()]
print(*(f"{row.parameter} {row.shape} {row.description.partition('(')[0]}" for row in plan.rows), sep="\\n", flush=True)
os._exit(0)  # a group of ranks that are not there cannot be taken down
"""


@needs.mark(needs.CPP, needs.torch_from(2, 6))  # which has fully_shard
def test_one_rank_plans_a_model_in_shards_without_asking_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "0.weight (8, 8) normal",
        "0.bias (8,) uniform",
        "1.weight (8,) constant",
        "1.bias (8,) constant",
        "2.weight (6, 8) uniform",
        "2.bias (6,) uniform",
    ], done.stderr

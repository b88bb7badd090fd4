"""What ``verify`` draws and compares: the native core tells where, nothing else is drawn or changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from lock_files import net
from torch import nn
from verified import DISTRIBUTIONS, differing, flip, made

import fastinit
from fastinit import Plan
from fastinit.backends import cpp_backend
from fastinit.contract.records import lowered
from fastinit.execution import comparing
from fastinit.plans import Fill

pytestmark = needs.mark(needs.CPP)


def test_a_block_that_records_is_not_in_the_way() -> None:
    model, plan = made()
    with fastinit.capture(net(), backend="cpp", seed=1):
        nn.init.zeros_(model[0].weight)  # pending until something reads it
        found = fastinit.verify(model, plan)
    assert [each.name for each in found.differs] == ["0.weight"]


def test_the_model_and_the_generators_are_as_they_were() -> None:
    model, plan = made()
    versions, state = [parameter._version for parameter in model.parameters()], torch.get_rng_state()
    fastinit.verify(model, plan)
    assert versions == [parameter._version for parameter in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())


def test_no_memory_is_asked_for_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    empty = torch.empty

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        asked.append(made.numel())
        return made

    model, plan = made(dict(type="Normal", std=1, param="*"), nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)))
    flip(model[0].weight, (7, 9))
    monkeypatch.setattr(comparing.torch, "empty", counted)
    assert differing(model, plan) == [("0.weight", (7, 9))]
    assert max(asked) < 256 * 256 // 100  # the one value that is told of, and the fills' description on a GPU


def test_strided_memory_is_drawn_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_PIECE", 1 << 8)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(256, 512)[:, ::2], requires_grad=False))
    model, plan = made(dict(type="Normal", std=1, param="weight"), model)
    flip(model.weight, (1, 0))
    run, drawn = cpp_backend.run, []

    def counted(fills: Any, seed: int, **_: Any) -> int:
        drawn.extend(fill.tensor.numel() for fill in fills)
        return run(fills, seed)

    monkeypatch.setattr(cpp_backend, "run", counted)
    assert differing(model, plan) == [("weight", (1, 0))]
    assert drawn == [1 << 8] * 2  # nothing behind the difference


@pytest.mark.parametrize("isa", cpp_backend._native.instruction_sets() if cpp_backend._native else [])
@pytest.mark.parametrize("n_threads", [1, 5])
@pytest.mark.parametrize("kind", ["normal", "uniform", "trunc_normal", "tail", "constant"])
def test_the_core_finds_the_first_byte_that_differs(kind: str, n_threads: int, isa: str) -> None:
    tensor = torch.zeros(300_001)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
    _, plan = made(dict(**DISTRIBUTIONS[kind], param="weight"), model)
    (fill,) = (item for item in plan.items if isinstance(item, Fill))
    table = lowered([Fill.whole("weight", tensor, fill.distribution, "", "")], 7).view("u1")
    compare = cpp_backend._core().compare
    assert compare(table, n_threads, isa).tolist() == [-1]
    generator = random.Random(n_threads)
    for at in [0, 4095, 4096, 65_535, 65_536, 300_000, *(generator.randrange(300_001) for _ in range(20))]:
        behind = generator.randrange(at, 300_001)
        flip(tensor, (at,))
        flip(tensor, (behind,)) if behind != at else None
        assert compare(table, n_threads, isa).tolist() == [at]
        flip(tensor, (at,))
        flip(tensor, (behind,)) if behind != at else None


def test_a_whole_tensor_that_is_drawn_elsewhere_in_its_stream_is_verified(tmp_path: Path) -> None:
    """A fill of all elements whose numbers are those of other indices: ``drawn_at`` without ``part`` in the file."""
    model = nn.Linear(6, 4, bias=False)
    plan = fastinit.plan(model, dict(type="Normal", std=1, param="weight"), backend="cpp", seed=7)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    document = json.loads(text)
    document["items"][0]["drawn_at"] = {"first": 100, "steps": [1, 4]}  # the transposed matrix, from number 100 on
    (tmp_path / "plan.json").write_text(json.dumps(document))
    plan = Plan.load(tmp_path / "plan.json")
    fastinit.initialize(model, plan)
    stream = fastinit.values("weight", (200,), fastinit.plans.Normal(0, 1), seed=7)
    assert torch.equal(model.weight, stream[100:124].view(6, 4).t())
    assert fastinit.verify(model, plan).held == ("weight",)
    flip(model.weight, (2, 5))
    flip(model.weight, (3, 0))
    assert differing(model, plan) == [("weight", (2, 5))]

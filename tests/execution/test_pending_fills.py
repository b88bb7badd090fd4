"""Pending fills that are known by their tensors, what a call notes as done, and the report of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from capturing import cpp
from helpers import named_fill, same_bits
from torch import nn
from torch.overrides import TorchFunctionMode

from fastinit.execution import pending, runner
from fastinit.execution.done import CheckpointReport, Done
from fastinit.execution.ledger import Ledger
from fastinit.execution.pending import LatestPerTensor
from fastinit.execution.reports import Report, plan_of, report_of
from fastinit.execution.scope import Scope
from fastinit.plans import Box, Call, Constant, Copy, CopyEntry, Fill, LoadResult, Normal

META = torch.device("meta")


class Backend:
    """A backend that notes what it runs."""

    def __init__(self, runs: list[str], *, is_contract: bool) -> None:
        self.IS_CONTRACT = is_contract
        self._runs = runs

    def why_not_now(self, device: torch.device) -> None:
        return None

    def run(self, fills: Sequence[Fill], seed: int | None, generators: object = None, **_: object) -> int:
        self._runs += [f"{fill.name}={fill.distribution!r}" for fill in fills]
        return 1


class Waiting:
    """Pending fills of a call: those called c... are of a contract backend, others of one that runs at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        monkeypatch.setitem(runner.BACKENDS, "cpp", Backend(self.runs, is_contract=True))  # type: ignore[arg-type]
        monkeypatch.setitem(runner.BACKENDS, "torch", Backend(self.runs, is_contract=False))  # type: ignore[arg-type]
        self.scope = Scope(None, None, backend="cpp", seed=0)
        monkeypatch.setattr(self.scope.backends, "of", lambda fill: "cpp" if fill.name[0] == "c" else "torch")
        self.done = Done(self.scope, None)
        self.queue = LatestPerTensor()

    def put(self, *fills: Fill) -> None:
        self.queue.put(fills, self.scope, self.done)

    def flush(self) -> None:
        self.queue.flush(self.scope, self.done)

    @property
    def noted(self) -> list[str]:
        return [fill.name for fill in self.done.items if isinstance(fill, Fill)]


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(monkeypatch)


def fill(name: str, value: float = 0, tensor: torch.Tensor | None = None, device: Any = "cpu") -> Fill:
    tensor = torch.zeros(3, device=device) if tensor is None else tensor
    return Fill.whole(name, tensor, Constant(value), "init_cfg", "")


def test_of_each_tensor_the_last_fill_runs_and_is_noted(waiting: Waiting) -> None:
    tensor = torch.zeros(3)
    waiting.put(fill("c", 1, tensor), fill("c2", 5))
    waiting.put(fill("c", 2, tensor))
    assert waiting.runs == [] and waiting.noted == []
    waiting.flush()
    assert waiting.runs == ["c2=Constant(value=5)", "c=Constant(value=2)"] and waiting.noted == ["c2", "c"]


def test_what_has_run_is_not_pending_any_more(waiting: Waiting) -> None:
    waiting.put(fill("c"))
    waiting.flush()
    waiting.flush()
    assert len(waiting.runs) == 1


def test_a_fill_that_runs_at_once_comes_after_pending_ones_of_its_device(waiting: Waiting) -> None:
    waiting.put(fill("c", 1), fill("t", 2))
    assert waiting.runs == ["c=Constant(value=1)", "t=Constant(value=2)"] and waiting.noted == ["c", "t"]


def test_a_fill_that_runs_at_once_leaves_those_of_other_devices_pending(waiting: Waiting) -> None:
    waiting.put(fill("c", device=META), fill("t", 2))
    assert waiting.runs == ["t=Constant(value=2)"]


def test_closing_a_call_runs_what_is_pending(waiting: Waiting) -> None:
    waiting.put(fill("c"))
    waiting.queue.close(waiting.scope, waiting.done)
    assert waiting.noted == ["c"]


def test_other_code_runs_after_what_is_pending(waiting: Waiting) -> None:
    waiting.put(fill("c"))
    waiting.queue.before(Call(nn.Module(), "", "", "", lambda: None), waiting.scope, waiting.done)
    assert waiting.noted == ["c"]


def test_only_fills_of_contract_backends_ask_other_ranks(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pending, "ask_if_sharded", lambda fill, scope: asked.append(fill.name))
    waiting.put(fill("c"), fill("t"))
    assert asked == ["c"]


def test_a_part_of_a_call_has_pending_fills_of_its_own(waiting: Waiting) -> None:
    waiting.put(fill("c"))
    waiting.queue.for_part().flush(waiting.scope, waiting.done)
    assert waiting.noted == []


@cpp
def test_a_fill_of_a_part_runs_over_what_is_left_of_the_whole() -> None:
    layer = nn.Linear(4, 3, bias=False)
    scope = Scope(layer, None, backend="cpp", seed=0)
    queue, done, tensor = LatestPerTensor(), Done(scope, None), layer.weight
    row = Fill("weight", tensor, Constant(9), "", "", (4,), (Box(tensor.detach()[1], 4, (1,)),))
    queue.put([Fill.whole("weight", tensor, Normal(0, 1), "", ""), row], scope, done)
    queue.flush(scope, done)
    expected = named_fill("weight", (3, 4), Normal(0, 1))
    expected[1] = 9
    assert same_bits(tensor, expected)
    assert [(each.name, each.shape) for each in done.items if isinstance(each, Fill)] == [
        ("weight", (3, 4)),
        ("weight", (4,)),
    ]


@pytest.mark.parametrize("name", ["c", "t"])
def test_the_ledger_learns_of_fills_when_they_have_run(waiting: Waiting, name: str) -> None:
    made = Fill.whole(name, torch.zeros(3), Constant(0), "init_cfg", "fill")
    waiting.done.ledger = Ledger({made.tensor: name}, "nobody")
    waiting.put(made)
    waiting.flush()
    assert waiting.done.ledger[made.tensor]["init_info"] == "fill"


@pytest.mark.parametrize(("has_subclasses", "sees"), [(False, False), (True, True)])
def test_modes_of_the_user_see_nothing_of_fastinits_own_work(has_subclasses: bool, sees: bool) -> None:
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    tensor = torch.zeros(3)
    with Mode(), LatestPerTensor().own_work(has_subclasses=has_subclasses):
        _ = tensor.shape
    assert bool(seen) is sees


# --- what was done ----------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


RESULT = LoadResult(("a.weight",), (), (), ())


def copy_of(module: nn.Module, tensor: torch.Tensor) -> Copy:
    entry = CopyEntry("a.weight", tensor, "a.weight", tuple(tensor.shape))
    return Copy(module, (entry,), "c.pth", "init_cfg", "PretrainedInit", False, False, lambda: (RESULT, (entry,)))


def test_what_a_part_has_done_the_larger_call_has_done_too() -> None:
    model = Pair()
    outer = Done(Scope(model, None), None)
    part = Done(Scope(model.a, outer.scope), outer)
    part.add([fill("a.weight", 1, model.a.weight)], CheckpointReport("c.pth", "init_cfg", RESULT))
    assert len(outer.items) == 1 and [each.source for each in outer.checkpoints] == ["c.pth"]


def test_what_a_call_of_its_own_names_has_done_is_not_the_larger_calls() -> None:
    outer = Done(Scope(Pair(), None), None)
    Done(Scope(Pair(), outer.scope), outer).add([fill("a.weight")])
    assert outer.items == []


def test_a_part_writes_into_the_larger_calls_ledger() -> None:
    model = Pair()
    outer = Done(Scope(model, None), None)
    part = Done(Scope(model.a, outer.scope), outer)
    assert part.open_ledger(()) is outer.ledger is part.ledger


def test_a_ledger_learns_first_what_was_done_and_then_what_is_pending() -> None:
    model = Pair()
    done = Done(Scope(model, None), None)
    for module, info in ((model.a, "done"), (model.b, "done")):
        done.add([Fill.whole("", module.weight, Constant(0), "", info)])
    ledger = done.open_ledger([Fill.whole("", model.a.weight, Constant(0), "", "pending")])
    assert [ledger[module.weight]["init_info"] for module in (model.a, model.b)] == ["pending", "done"]


# --- the report -------------------------------------------------------------------------------------------------------


def a_report(**values: Any) -> Report:
    return Report(
        **{
            "rows": (),
            "checkpoints": (),
            "engine": "avx2",
            "numbers": "contract 1",
            "seed": 3,
            "seconds": 0.5,
            "n_bytes": 8,
            "provenance": {"w": "NormalInit"},
            "unreached": ("b",),
            "launches": {"cpu": 2},
            "unkeyed": ("#0",),
            **values,
        }
    )


def test_the_json_of_a_report_holds_all_of_it() -> None:
    assert json.loads(a_report().to_json()) == {
        "fastinit_report": 1,
        "engine": "avx2",
        "numbers": "contract 1",
        "seed": 3,
        "seconds": 0.5,
        "n_bytes": 8,
        "rows": [],
        "checkpoints": [],
        "provenance": {"w": "NormalInit"},
        "unreached": ["b"],
        "launches": {"cpu": 2},
        "unkeyed": ["#0"],
    }


def test_the_summary_of_a_report_tells_all_that_is_out_of_the_ordinary() -> None:
    result = LoadResult(("w",), ("x",), ("y",), ("z",), ("'module.' in 3 names",))
    text = a_report(checkpoints=(CheckpointReport("c.pth", "init_cfg", result),)).summary()
    for told in ("seed: 3", "2 launches on cpu", "#0", "1 tensors copied from c.pth", "'module.' in 3 names"):
        assert told in text, told
    for what in ("missing: x", "unexpected: y", "mismatched: z", "parameters that nothing wrote: b"):
        assert what.split(": ")[0] in text and what.split(": ")[1] in text, what


def test_the_summary_of_a_report_counts_calls_of_other_code() -> None:
    model = Pair()
    done = Done(Scope(model, None), None)
    done.add([Call(model, "f() of Pair", "init_cfg", "f", lambda: None)])
    report = report_of(done, done.open_ledger(()), ())
    assert "and 1 calls of other code" in report.summary()


def test_the_report_counts_the_bytes_of_copies() -> None:
    model = Pair()
    done = Done(Scope(model, None), None)
    done.add([copy_of(model, model.a.weight), fill("b.weight", 0, model.b.weight)])
    assert report_of(done, done.open_ledger(()), ()).n_bytes == 32


def test_a_plan_takes_what_a_checkpoint_holds_for_reached() -> None:
    model = Pair()
    assert plan_of([copy_of(model, model.a.weight)], Scope(model, None)).unreached == ("b.weight",)


def test_a_plan_within_a_call_shows_the_seed_of_that() -> None:
    model = Pair()
    assert plan_of([], Scope(model.a, Scope(model, None, seed=4))).seed == 4

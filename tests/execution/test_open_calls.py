"""An open call: what it checks, in which order it runs steps, and what it notes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from capturing import cpp
from torch import nn

from fastinit.backends import cpp_backend
from fastinit.execution import calls, hosts, pending
from fastinit.execution.calls import OpenCall, Step, open_call
from fastinit.plans import Call, Constant, Copy, CopyEntry, Fill, LoadResult


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))


def fill(module: nn.Sequential, value: float, index: int = 0, **more: Any) -> Fill:
    tensor = more.get("tensor", module[index].weight)
    return Fill.whole(f"{index}.weight", tensor, Constant(value), "init_cfg", f"fill {value}")


def code(module: nn.Module, function: Callable[[], object]) -> Call:
    return Call(module, "code()", "init_cfg", "code", function)


def step(module: nn.Module, *items: Any, plan_again: Callable[[], Any] = lambda: pytest.fail("not stale")) -> Step:
    return Step(module, list(items), plan_again)


def replace_weight(module: nn.Sequential) -> None:
    module[0].weight = nn.Parameter(torch.zeros(2, 2))


def nothing() -> None:
    return None


# --- steps ------------------------------------------------------------------------------------------------------------


def test_steps_after_code_are_planned_again_up_to_the_last() -> None:
    made = model()

    def again() -> list[Fill]:
        return [fill(made, 4)]

    with open_call(made) as call:
        steps = [
            step(made, code(made, lambda: replace_weight(made))),
            step(made, fill(made, 1), plan_again=lambda: [fill(made, 2, 1)]),
            step(made, fill(made, 3), plan_again=again),
        ]
        call.run(steps)
        report = call.report()
    assert (made[0].weight == 4).all() and (made[1].weight == 2).all()
    assert report.provenance == {"0.weight": "fill 4 (init_cfg)", "1.weight": "fill 2 (init_cfg)"}


def test_steps_after_a_copy_that_replaces_parameters_are_planned_again() -> None:
    made = model()

    def load() -> tuple[LoadResult, tuple[()]]:
        replace_weight(made)
        return LoadResult(("0.weight",), (), (), ()), ()

    copied = Copy(made, (), "c.pth", "init_cfg", "copy", True, False, load)
    with open_call(made) as call:
        call.run([step(made, copied), step(made, fill(made, 1), plan_again=lambda: [fill(made, 5)])])
    assert (made[0].weight == 5).all()


def test_steps_after_fills_are_not_planned_again() -> None:
    made = model()
    with open_call(made) as call:
        call.run([step(made, fill(made, 1)), step(made, fill(made, 2))])
    assert (made[0].weight == 2).all()


def test_what_is_planned_again_is_checked_before_it_runs() -> None:
    made = model()
    on_meta = fill(made, 1, tensor=torch.empty(2, 2, device="meta"))
    with pytest.raises(RuntimeError, match="is on the meta device"), open_call(made) as call:
        call.run([step(made, code(made, nothing)), step(made, plan_again=lambda: [on_meta])])


def test_a_parameter_that_code_puts_in_is_known_by_its_name_from_then_on() -> None:
    made = model()
    with open_call(made) as call:
        call.run([step(made, code(made, lambda: replace_weight(made)))])
        assert call.scope.parameters()[made[0].weight] == "0.weight"
        assert call.report().provenance == {"0.weight": "code (init_cfg)"}


def test_code_is_noted_as_done() -> None:
    made = model()
    with open_call(made) as call:
        call.run([step(made, code(made, nothing))])
        assert [row.action for row in call.report().rows] == ["call"]


def test_code_that_is_no_step_tells_whether_it_wrote_a_parameter() -> None:
    made = model()
    with open_call(made) as call:
        assert call.run_code(code(made, lambda: made[0].weight.fill_(3))) and not call.run_code(code(made, nothing))
        assert not call.done.items  # whoever runs it notes it
        assert call.report().provenance == {"0.weight": "code"}


def test_fills_are_checked_before_they_run() -> None:
    with pytest.raises(RuntimeError, match="is on the meta device"), open_call(None, devices=()) as call:
        call.fill([fill(model(), 1, tensor=torch.empty(2, device="meta"))])


def test_what_was_copied_is_noted_as_it_turned_out() -> None:
    made = model()
    entries = tuple(CopyEntry(f"{i}.weight", made[i].weight, "", (2, 2)) for i in range(2))

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        return LoadResult(("0.weight",), (), (), ()), entries[:1]

    with open_call(made) as call:
        call.run([step(made, Copy(made, entries, "c.pth", "init_cfg", "copy", False, False, load))])
        report = call.report()
    assert [row.parameter for row in report.rows] == ["0.weight"] and report.provenance == {
        "0.weight": "copy (init_cfg)"
    }


@cpp
def test_code_finds_the_values_of_the_fills_before_it() -> None:
    made, seen = model(), []
    with open_call(made, backend="cpp") as call:
        call.run([step(made, fill(made, 3), code(made, lambda: seen.append(made[0].weight.tolist())))])
    assert seen == [[[3, 3], [3, 3]]]


# --- hosts ------------------------------------------------------------------------------------------------------------


class Library:
    """A host that keeps books: what it was told, and what the module held by then."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def is_initializing(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Sequential)

    def wrote(self, module: nn.Module, info: str) -> None:
        self.told.append((info, float(next(module.parameters()).detach().sum())))

    def logs(self, module: nn.Module) -> bool:
        return False


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made = Library()
    monkeypatch.setattr(hosts, "hosts", [made])
    yield made


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
def test_a_host_is_told_of_each_step_once_it_is_written(library: Library, backend: str) -> None:
    made = model()
    with open_call(made, backend=backend) as call:
        call.run([step(made, fill(made, 1)), step(made, fill(made, 2)), step(made)])
    assert library.told == [("fill 1", 4.0), ("fill 2", 8.0), ("", 8.0)]


def test_a_library_that_is_not_initializing_is_told_nothing(library: Library) -> None:
    made = nn.ModuleList(model())
    with open_call(made) as call:
        call.run([step(made, fill(made, 1))])  # type: ignore[arg-type]
    assert library.told == []


# --- the end ----------------------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_an_error_before_anything_is_written_is_no_partial_initialization(caplog: pytest.LogCaptureFixture) -> None:
    made = model()
    with pytest.raises(OSError, match="disk"), open_call(made) as call:
        call.run([step(made)])
        raise OSError("disk")
    assert warnings_of(caplog) == []


def test_an_error_after_a_write_is_warned_of_once_for_all_calls(caplog: pytest.LogCaptureFixture) -> None:
    made = model()
    with pytest.raises(OSError, match="disk"), open_call(made) as outer:
        outer.run_items([fill(made, 1)])
        with open_call(made) as inner:
            inner.run_items([fill(made, 2, 1)])
            raise OSError("disk")
    assert warnings_of(caplog) == [
        "OSError stopped the initialization of Sequential after 2 fills, copies and calls: it is only partly initialized"
    ]


@cpp
def test_fills_that_were_refused_are_no_partial_initialization(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("one stream")

    monkeypatch.setattr(pending, "prepare", refuse)
    made = model()
    with pytest.raises(RuntimeError, match="one stream"), open_call(made, backend="cpp", seed=0) as call:
        call.run([step(made, fill(made, 1))])
        call.flush()
    assert warnings_of(caplog) == []


@cpp
def test_a_launch_that_fails_is_a_partial_initialization_without_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError("device")

    monkeypatch.setattr(cpp_backend, "run", fail)
    made = model()
    with pytest.raises(OSError, match="device"), open_call(made, backend="cpp", seed=0) as call:
        call.run([step(made, fill(made, 1))])
        call.flush()
    assert warnings_of(caplog) == ["OSError stopped the initialization of Sequential: it is only partly initialized"]


@cpp
def test_what_a_call_within_has_written_is_a_partial_initialization_of_the_larger(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = model()
    with pytest.raises(OSError, match="disk"), open_call(made) as outer:
        outer.has_begun = True
        with open_call(made, backend="cpp", seed=0) as inner:
            inner.run_items([fill(made, 2, 1)])
            inner.flush()
            raise OSError("disk")
    assert len(warnings_of(caplog)) == 1


def test_no_call_is_open_after_one() -> None:
    with open_call(model()):
        assert calls.current_call() is not None
    assert calls._current.get() is None


def test_a_call_runs_what_is_pending_when_it_ends() -> None:
    class Pending(calls.LatestPerTensor):
        def close(self, scope: Any, done: Any) -> None:
            closed.append("closed")

    closed: list[str] = []
    with open_call(model()) as call:
        call.pending = Pending()
    assert closed == ["closed"]


def test_a_report_runs_what_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(OpenCall, "flush", lambda self: flushed.append("flushed"))
    with open_call(model()) as call:
        call.report()
    assert flushed == ["flushed"]


@pytest.mark.parametrize("devices", [None, (), {torch.device("cuda", 1)}], ids=["of the root", "none", "given"])
def test_code_draws_from_the_generators_of_the_devices_that_are_filled(devices: Any) -> None:
    with open_call(model(), seed=3, devices=devices) as call:
        assert call.scope.devices == ({torch.device("cpu")} if devices is None else set(devices))

"""The sequence of items: what is handed to the pending fills, what runs where it stands, and what is noted of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import cpp
from torch import nn

from fastinit.errors import InitRuntimeError
from fastinit.execution.calls import OpenCall, open_call
from fastinit.execution.sequence import exchanges_parameters, run_items
from fastinit.plans import Call, Constant, Copy, CopyEntry, Fill, Item, LoadResult, Replay, ReplayEntry

NOTHING = LoadResult((), ("weight",), (), ())
ONE = LoadResult(("weight",), (), (), ())


def fill(module: nn.Linear, value: float) -> Fill:
    return Fill.whole("weight", module.weight, Constant(value), "init_cfg", f"fill {value}")


def code(module: nn.Module, function: Callable[[], object]) -> Call:
    return Call(module, "code()", "init_cfg", "code", function)


def copied(module: nn.Linear, result: LoadResult = ONE, value: float = 7, **kind: bool) -> Copy:
    entries = (CopyEntry("weight", module.weight, "weight", (2, 2)),) if result.copied else ()

    @torch.no_grad()
    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        if result.copied:
            module.weight.fill_(value)
        return result, entries

    made = {"replaces": False, "runs_own_code": False, **kind}
    return Copy(module, entries, "c.pth", "init_cfg[1]", "copy", load=load, **made)


def run(call: OpenCall, *items: Item, **options: Any) -> None:
    run_items(items, call.scope, call.pending, call.done, **options)


@cpp
def test_fills_wait_until_something_else_is_to_run() -> None:
    module = nn.Linear(2, 2, bias=False)
    seen: list[float] = []
    with open_call(module, backend="cpp") as call:
        before = module.weight.clone()
        run(call, fill(module, 1), fill(module, 2))
        assert torch.equal(module.weight, before)
        run(call, code(module, lambda: seen.append(module.weight[0, 0].item())), fill(module, 3))
        assert seen == [2] and (module.weight == 2).all()
    assert (module.weight == 3).all()


@cpp
def test_fills_that_may_not_wait_do_not() -> None:
    module = nn.Linear(2, 2, bias=False)
    with open_call(module, backend="cpp") as call:
        run(call, fill(module, 1), may_wait=False)
        assert (module.weight == 1).all()


def test_what_was_asked_for_and_what_was_done_are_noted_in_order() -> None:
    module = nn.Linear(2, 2, bias=False)
    items = fill(module, 1), code(module, lambda: None), copied(module), fill(module, 2)
    with open_call(module, backend="torch") as call:
        run(call, *items)
        assert call.done.requested == [items[0], items[3]]
        assert [type(item) for item in call.done.items] == [Fill, Call, Copy, Fill]
        assert [each.rule for each in call.done.checkpoints] == ["init_cfg[1]"]


def test_a_copy_is_noted_with_the_entries_that_it_wrote() -> None:
    module = nn.Linear(2, 2, bias=False)
    with open_call(module, backend="torch") as call:
        item = copied(module)
        run(call, Copy(module, (), "c.pth", "init_cfg", "copy", False, False, item.load))
        (done,) = call.done.items
        assert isinstance(done, Copy) and done.entries == item.entries
        assert call.report().provenance["weight"] == "copy (init_cfg)"


def test_a_computation_is_attributed_to_what_wrote_each_entry_when_it_was_recorded() -> None:
    module = nn.Linear(2, 2)
    entries = tuple(ReplayEntry(name, getattr(module, name), f"wrote {name}") for name in ("weight", "bias"))
    seen: list[Any] = []
    with open_call(module, backend="torch") as call:
        run(call, Replay(module, entries, "init_cfg", "computed", lambda *each: seen.append(each)))
        assert seen == [(entries, call.scope)]
        assert call.report().provenance == {
            "weight": "wrote weight (init_cfg)",
            "bias": "wrote bias (init_cfg)",
        }


@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_without_a_copy_is_an_error_in_a_strict_call(strict: bool) -> None:
    module = nn.Linear(2, 2, bias=False)
    with open_call(module, strict=strict) as call:
        if not strict:
            run(call, copied(module, NOTHING))
            assert len(call.done.checkpoints) == 1
            return
        with pytest.raises(InitRuntimeError, match=r"^init_cfg\[1\]: .*c\.pth.* \(an error under strict\)") as error:
            run(call, copied(module, NOTHING))
        assert error.value.place == "init_cfg[1]" and not call.done.items


def test_a_strict_call_takes_a_checkpoint_of_which_something_is_copied() -> None:
    module = nn.Linear(2, 2, bias=False)
    with open_call(module, strict=True) as call:
        run(call, copied(module))
    assert (module.weight == 7).all()


@pytest.mark.parametrize("kind", ["code", "a copy with code", "a copy"])
def test_what_code_of_others_writes_beside_is_attributed_to_its_item(kind: str) -> None:
    module = nn.Linear(2, 2)

    @torch.no_grad()
    def function() -> None:
        module.bias.fill_(3)

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        function()
        return NOTHING, ()

    item: Item = code(module, function)
    if kind != "code":
        item = Copy(module, (), "c.pth", "init_cfg", "code", False, kind == "a copy with code", load)
    with open_call(module, backend="torch") as call:
        run(call, item)
        provenance = call.report().provenance
    assert provenance.get("bias") == (None if kind == "a copy" else "code (init_cfg)")


@pytest.mark.parametrize("replaces", [True, False])
def test_parameters_that_an_item_puts_in_get_names_and_its_info(replaces: bool) -> None:
    module = nn.Linear(2, 2, bias=False)
    new = nn.Parameter(torch.zeros(2, 2))

    def load() -> tuple[LoadResult, tuple[CopyEntry, ...]]:
        module.weight = new
        return ONE, ()

    with open_call(module, backend="torch") as call:
        call.scope.names.parameters()
        run(call, Copy(module, (), "c.pth", "init_cfg", "copy", replaces, False, load))
        assert (new in call.scope.names.parameters()) is replaces
        assert (new in call.ledger()) is replaces
        if replaces:
            assert call.ledger()[new]["init_info"] == "copy"


def test_which_items_may_exchange_parameters() -> None:
    module = nn.Linear(2, 2, bias=False)
    assert exchanges_parameters(code(module, lambda: None)) and exchanges_parameters(copied(module, replaces=True))
    assert not exchanges_parameters(copied(module, runs_own_code=True)) and not exchanges_parameters(fill(module, 1))


def test_an_item_that_is_no_fill_counts_as_a_write() -> None:
    module = nn.Linear(2, 2)
    with open_call(module, backend="torch") as call:
        assert not call.scope.has_written
        run(call, code(module, lambda: None))
        assert call.scope.has_written

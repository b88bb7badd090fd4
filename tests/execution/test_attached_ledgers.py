"""Ledgers on the modules of a tree, for as long as one ``init_weights`` runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fastinit.errors import InitAssertionError
from fastinit.execution import hosts
from fastinit.execution.attached_ledgers import (
    attached,
    check_no_new_parameters,
    is_in_progress,
    ledger_of,
    update_init_info,
)
from fastinit.execution.calls import OpenCall, open_call


class Library:
    """A host that initializes one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.told: list[tuple[nn.Module, str]] = []

    def is_initializing(self, module: nn.Module) -> bool:
        return module is self.module

    def wrote(self, module: nn.Module, info: str) -> None:
        self.told.append((module, info))

    def is_model_wrapper(self, parent: nn.Module, child: object) -> bool | None:
        return None

    def logs(self, module: nn.Module) -> bool:
        return False


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2, bias=False)))


@pytest.fixture
def call(model: nn.Sequential) -> Iterator[OpenCall]:
    with open_call(model) as call:
        yield call


def test_all_modules_of_the_tree_refer_to_one_ledger_meanwhile(model: nn.Sequential, call: OpenCall) -> None:
    with attached(model, call.done) as ledger:
        assert all(ledger_of(module) is ledger for module in model.modules()) and call.done.ledger is ledger
        assert set(ledger) == set(model.parameters())
        assert is_in_progress(model[1]) and not is_in_progress(nn.Linear(1, 1))
        told = {info["init_info"] for info in ledger.values()}
        assert told == {"The value is the same before and after calling `init_weights` of Sequential "}
    assert ledger.is_closed and not any(ledger_of(module) or is_in_progress(module) for module in model.modules())


def test_modules_that_come_and_go_meanwhile_are_left_clean(model: nn.Sequential, call: OpenCall) -> None:
    gone, new = model[1], nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt), attached(model, call.done) as ledger:
        model[1] = new
        new._params_init_info = ledger
        raise KeyboardInterrupt
    assert ledger.is_closed and not any(ledger_of(module) for module in (*gone.modules(), *model.modules()))


def test_a_ledger_that_is_closed_is_nobodys_initialization(model: nn.Sequential, call: OpenCall) -> None:
    with attached(model, call.done) as ledger:
        copy = nn.Linear(1, 1)
        copy._params_init_info = ledger
        assert is_in_progress(copy)
    assert ledger_of(copy) is ledger and not is_in_progress(copy)


def test_what_is_no_ledger_of_ours_is_none() -> None:
    module = nn.Linear(1, 1)
    module._params_init_info = {}
    assert ledger_of(module) is None


def test_a_tree_within_a_larger_call_knows_what_that_wrote_and_tells_it_the_rest(
    model: nn.Sequential, call: OpenCall
) -> None:
    first, second = model[0].weight, model[1][0].weight
    outer = call.ledger()
    outer.record(first, "the larger call")
    with attached(model, call.done) as ledger:
        assert ledger[first]["init_info"] == "the larger call"
        ledger.record(second, "the tree")
        assert second not in outer.written
    assert outer.written == {first, second} and outer[second]["init_info"] == "the tree"
    assert outer[first]["init_info"] == "the larger call"


def test_a_tree_that_fails_tells_the_larger_call_nothing(model: nn.Sequential, call: OpenCall) -> None:
    outer = call.ledger()
    with pytest.raises(ValueError), attached(model, call.done) as ledger:
        ledger.record(model[0].weight, "the tree")
        raise ValueError
    assert outer.written == set()


def test_a_host_that_initializes_a_module_has_the_books(
    model: nn.Sequential, call: OpenCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(model[0])
    monkeypatch.setattr(hosts, "hosts", [library])
    assert is_in_progress(model[0]) and not is_in_progress(model[1])
    update_init_info(model[0], "code of theirs")
    assert library.told == [(model[0], "code of theirs")]
    with attached(model, call.done) as ledger:
        update_init_info(model[0], "again")
        assert ledger.written == set() and len(library.told) == 2


def test_a_parameter_that_was_added_is_named(model: nn.Sequential) -> None:
    known = dict.fromkeys(model.parameters())
    check_no_new_parameters(model, known)
    model[1].new = nn.Parameter(torch.zeros(1))
    with pytest.raises(InitAssertionError, match=r"named `1\.new` .* of `Sequential`"):
        check_no_new_parameters(model, known)

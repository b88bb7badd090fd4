"""The ledger: who wrote a parameter, where other code wrote by views, by ``.data`` and into shared memory."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from fastinit.execution.attached_ledgers import log_ledger, update_init_info
from fastinit.execution.ledger import FunctionSensor, Ledger


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))


class Books:
    """A module and its ledger, and what both say of who wrote ``a`` and ``b``."""

    def __init__(self) -> None:
        self.module = Pair()
        self.ledger = Ledger(dict.fromkeys(self.module.parameters(), ""), "nobody")

    def running(self, info: str):  # type: ignore[no-untyped-def]
        return self.ledger.attributing(self.module, info, FunctionSensor)

    @property
    def told(self) -> tuple[str, str]:
        return tuple(self.ledger[each]["init_info"] for each in (self.module.a, self.module.b))  # type: ignore[return-value]


@pytest.fixture
def books() -> Books:
    return Books()


def test_a_write_is_attributed_to_the_code_that_ran(books: Books) -> None:
    with books.running("code"), torch.no_grad():
        books.module.a.fill_(1)
    assert books.told == ("code", "nobody") and books.ledger.written == {books.module.a}


@pytest.mark.parametrize("write", ["data", "view", "keyword"])
def test_a_write_to_what_shares_its_memory_is_attributed(books: Books, write: str) -> None:
    with books.running("code"), torch.no_grad():
        if write == "data":
            books.module.a.data[1:].fill_(1)
        elif write == "view":
            books.module.a.detach()[2:3].mul_(2)
        else:
            torch.add(torch.ones(4), 1, out=books.module.a.data)
    assert books.told == ("code", "nobody")


def test_other_memory_for_a_parameter_is_attributed(books: Books) -> None:
    with books.running("code"):
        books.module.b.data = torch.ones(4)
    assert books.told == ("nobody", "code")


def test_a_write_beside_a_parameter_in_its_storage_is_not_attributed() -> None:
    memory = torch.zeros(8)
    module = nn.Module()
    module.a, module.b = nn.Parameter(memory[:4].data), nn.Parameter(memory[4:].data)  # versions of their own
    ledger = Ledger(dict.fromkeys(module.parameters(), ""), "nobody")
    with ledger.attributing(module, "code", FunctionSensor):
        memory[4:].fill_(1)
    assert ledger.written == {module.b}


def test_a_parameter_that_moved_is_known_by_its_new_memory(books: Books) -> None:
    memory = torch.zeros(4)
    with books.running("moved"):
        books.module.a.data = memory
    with books.running("written"):
        memory.fill_(1)
    assert books.told == ("written", "nobody")


def test_code_within_other_code_has_its_own_writes(books: Books) -> None:
    with books.running("outer"), torch.no_grad():
        books.module.a.fill_(1)
        with books.ledger.attributing(nn.Module(), "inner", FunctionSensor):
            books.module.b.fill_(1)
    assert books.told == ("outer", "inner")


def test_code_within_other_code_is_not_credited_with_what_came_before(books: Books) -> None:
    with books.running("outer"), torch.no_grad():
        books.module.a.fill_(1)
        with books.ledger.attributing(books.module, "inner", FunctionSensor):
            books.module.b.fill_(1)
    assert books.told == ("outer", "inner")


def test_code_within_other_code_may_write_what_that_has_written(books: Books) -> None:
    with books.running("outer"), torch.no_grad():
        books.module.a.fill_(1)
        with books.ledger.attributing(books.module, "inner", FunctionSensor):
            books.module.a.fill_(2)
    assert books.told == ("inner", "nobody")


def test_code_within_other_code_has_its_own_writes_by_views(books: Books) -> None:
    with books.running("outer"), books.ledger.attributing(nn.Module(), "inner", FunctionSensor):
        books.module.b.data[1:].fill_(1)
    assert books.told == ("nobody", "inner")


def test_other_memory_is_attributed_where_other_code_ran_since(books: Books) -> None:
    with books.running("outer"):
        books.module.b.data = torch.ones(4)
        with books.ledger.attributing(nn.Module(), "inner", FunctionSensor):
            pass
    assert books.told == ("nobody", "outer")


def test_a_write_to_a_parameter_without_memory_is_attributed() -> None:
    parameter = nn.Parameter(torch.zeros(4, device="meta"))
    ledger = Ledger({parameter: "w"}, "nobody")
    with ledger.attributing(nn.Module(), "code", FunctionSensor), torch.no_grad():
        parameter.fill_(1)
    assert ledger[parameter]["init_info"] == "code"


def test_the_last_of_nested_writes_counts(books: Books) -> None:
    with books.running("outer"), torch.no_grad():
        books.module.a.fill_(1)
        with books.running("inner"):
            books.module.a.fill_(2)
    assert books.told[0] == "inner"


def test_nested_code_takes_no_second_sensor(books: Books) -> None:
    with books.running("outer"):
        n = torch._C._len_torch_function_stack()
        with books.running("inner"):
            assert torch._C._len_torch_function_stack() == n


def test_code_that_fails_leaves_the_ledger_as_it_was(books: Books) -> None:
    with pytest.raises(OSError, match="disk"), books.running("fails"), torch.no_grad():
        books.module.a.fill_(1)
        raise OSError("disk")
    with books.running("works"), torch.no_grad():
        books.module.b.fill_(1)
    assert books.ledger[books.module.b]["init_info"] == "works" and torch._C._len_torch_function_stack() == 0


def test_what_fastinit_records_is_not_attributed_to_code_around_it(books: Books) -> None:
    with books.running("code"), torch.no_grad():
        books.module.a.fill_(1)
        books.ledger.record(books.module.a, "fastinit")
    assert books.told == ("fastinit", "nobody")


def test_a_write_after_a_record_counts_again(books: Books) -> None:
    with books.running("code"), torch.no_grad():
        books.ledger.record(books.module.a, "fastinit")
        books.module.a.fill_(1)
    assert books.told == ("code", "nobody")


def test_a_write_that_was_attributed_is_not_attributed_again(books: Books) -> None:
    with books.running("first"), torch.no_grad():
        books.module.a.fill_(1)
    with books.running("second"):
        pass
    assert books.told == ("first", "nobody")


def test_parameters_that_code_puts_in_are_adopted_once(books: Books) -> None:
    new = nn.Parameter(torch.zeros(2))
    books.ledger.record(books.module.a, "fill")
    books.ledger.adopt([books.module.a, new], "code")
    assert books.told[0] == "fill" and books.ledger[new]["init_info"] == "code" and new in books.ledger.written


def test_writes_to_an_adopted_parameter_are_seen(books: Books) -> None:
    with books.running("first"):
        books.module.c = nn.Parameter(torch.zeros(2))
    books.ledger.adopt([books.module.c], "first")
    with books.running("second"), torch.no_grad():
        books.module.c.data.fill_(1)
    assert books.ledger[books.module.c]["init_info"] == "second"


def test_a_copy_of_a_ledger_is_empty_and_closed(books: Books) -> None:
    copied = copy.deepcopy(books.ledger)
    assert copied == {} and copied.is_closed and not books.ledger.is_closed


# --- update_init_info -------------------------------------------------------------------------------------------------


def test_update_init_info_claims_what_was_written_so_far(books: Books) -> None:
    books.module._params_init_info = books.ledger  # type: ignore[assignment]
    with books.running("code"), torch.no_grad():
        books.module.a.fill_(1)
        update_init_info(books.module, "mine")
        books.module.b.fill_(1)
    assert books.told == ("mine", "code")


def test_update_init_info_outside_an_initialization_is_an_error(books: Books) -> None:
    with pytest.raises(AssertionError, match="Can not find `_params_init_info`"):
        update_init_info(books.module, "mine")


def test_update_init_info_refuses_a_new_parameter(books: Books) -> None:
    books.module._params_init_info = books.ledger  # type: ignore[assignment]
    books.module.c = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="Find a new :obj:`Parameter` named `c`"):
        update_init_info(books.module, "mine")


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_first", [True, False])
def test_only_the_first_rank_logs(
    books: Books, is_first: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastinit.execution.attached_ledgers.is_rank_zero", lambda: is_first)
    with caplog.at_level(logging.INFO, "fastinit"):
        log_ledger(books.ledger, {books.module.a: "a"})
    assert [record.getMessage() for record in caplog.records] == ["a - (4,): nobody"] * is_first


def test_a_lazy_parameter_is_logged_as_uninitialized(caplog: pytest.LogCaptureFixture) -> None:
    lazy = nn.parameter.UninitializedParameter()
    with caplog.at_level(logging.INFO, "fastinit"):
        log_ledger(Ledger({lazy: "w"}, "nobody"), {lazy: "w"})
    assert "w - uninitialized: nobody" in caplog.text

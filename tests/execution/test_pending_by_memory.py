"""Pending fills that are known by their memory: when they run, as what, and what is noted of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from capturing import cpp
from helpers import named_fill, same_bits
from torch import nn

from fastinit.execution import pending_by_memory, runner
from fastinit.execution.done import Done
from fastinit.execution.memory_book import MemoryBook
from fastinit.execution.pending_by_memory import ByMemory
from fastinit.execution.places import Place
from fastinit.execution.scope import Scope
from fastinit.execution.writes import PendingFill, State
from fastinit.plans import Box, Call, Constant, Copy, Fill, LoadResult, Normal

pytestmark = cpp
DRAW = Normal(0, 1)


class Model(nn.Module):
    """A parameter, another, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("c", torch.zeros(4))


class Watched:
    """A call that watches memory."""

    def __init__(self, **options: Any) -> None:
        self.model = Model()
        self.scope = Scope(self.model, None, **{"backend": "cpp", "seed": 0, **options})
        self.book = MemoryBook()
        self.queue = ByMemory(self.book)
        self.done = Done(self.scope, None)

    def fill(self, name: str = "w", values: Any = DRAW) -> Fill:
        return Fill.whole(name, getattr(self.model, name), values, "init_cfg", f"fill of {name}")

    def column(self, values: Any = DRAW) -> Fill:
        """Returns the fill of the second column of ``w``, which no earlier fill can spare."""
        box = Box(self.model.w.detach()[:, 1], 1, (4,))
        return Fill("w", self.model.w, values, "init_cfg", "column of w", (6,), (box,))

    def put(self, *fills: Fill, scope: Scope | None = None, done: Done | None = None) -> None:
        self.queue.put(fills, scope or self.scope, done or self.done)

    def flush(self) -> None:
        self.queue.flush(self.scope, self.done)

    def settle(self) -> tuple[str, ...]:
        return self.queue.settle(self.scope, self.done)

    def at(self, tensor: torch.Tensor) -> Place:
        place = self.book.place_of(tensor)
        assert place is not None
        return place

    def request(self, tensor: torch.Tensor, values: Any = DRAW, scope: Scope | None = None) -> PendingFill:
        """Notes a fill as code asks for it, which knows no names."""
        return self.book.add(self.at(tensor), values, scope or self.scope, "model.py:1", "`normal_`")

    @property
    def noted(self) -> list[str]:
        return [item.name for item in self.done.items if isinstance(item, Fill)]


@pytest.fixture
def call() -> Watched:
    return Watched()


def mixed(call: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has torch execute constants, and cpp what is drawn."""
    monkeypatch.setattr(
        call.scope.backends, "of", lambda fill: "torch" if isinstance(fill.distribution, Constant) else "cpp"
    )


# --- when they run ----------------------------------------------------------------------------------------------------


def test_a_fill_is_pending_until_the_call_is_flushed(call: Watched) -> None:
    call.put(call.fill())
    assert (call.model.w == 0).all()
    call.flush()
    assert same_bits(call.model.w, named_fill("w", (6, 4), DRAW))


def test_the_version_is_counted_when_a_fill_is_requested_and_only_then(call: Watched) -> None:
    before = call.model.w._version
    call.put(call.fill())
    assert call.model.w._version == before + 1
    call.flush()
    assert call.model.w._version == before + 1


def test_a_fill_of_exposed_memory_runs_at_once(call: Watched) -> None:
    call.book.expose(call.at(call.model.w))
    call.put(call.fill())
    assert same_bits(call.model.w, named_fill("w", (6, 4), DRAW))


def test_a_fill_that_runs_at_once_comes_after_a_pending_one_of_its_memory(
    call: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed(call, monkeypatch)
    call.put(call.fill(), call.column(Constant(9)))
    call.flush()
    expected = named_fill("w", (6, 4), DRAW)
    expected[:, 1] = 9
    assert same_bits(call.model.w, expected)


def test_a_fill_that_ran_at_once_is_noted_once(call: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(call, monkeypatch)
    call.put(call.fill(values=Constant(1)))
    call.flush()
    call.settle()
    assert call.noted == ["w"]


def a_copy(module: nn.Module, **kind: Any) -> Copy:
    def load() -> Any:
        return LoadResult((), (), (), ()), ()

    made = {"replaces": False, "runs_own_code": False, **kind}
    return Copy(module, (), "c.pth", "init_cfg", "", load=load, **made)


@pytest.mark.parametrize("kind", [{"replaces": True}, {"runs_own_code": True}, {"unknown": "not here yet"}], ids=str)
def test_a_copy_that_may_do_more_than_overwrite_comes_after_what_is_pending(call: Watched, kind: Any) -> None:
    call.put(call.fill())
    call.queue.before(a_copy(call.model, **kind), call.scope, call.done)
    assert call.book.pending() == []


def test_what_a_plain_copy_may_overwrite_stays_pending(call: Watched) -> None:
    call.put(call.fill())
    call.queue.before(a_copy(call.model), call.scope, call.done)
    assert len(call.book.pending()) == 1


def test_watched_code_finds_fills_pending(call: Watched) -> None:
    call.put(call.fill())
    call.queue.before(Call(call.model, "", "", "", lambda: None), call.scope, call.done)
    assert len(call.book.pending()) == 1


def test_what_a_copy_has_overwritten_is_not_filled_any_more(call: Watched) -> None:
    call.put(call.fill())
    call.queue.overwritten(call.model.w, "copy")
    call.flush()
    assert (call.model.w == 0).all()


def test_a_flush_agrees_with_other_ranks_where_nothing_is_pending_here(
    call: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed: list[str] = []
    monkeypatch.setattr(call.scope.seed, "agree", lambda: agreed.append("once"))
    call.flush()
    assert agreed == ["once"]


def test_a_call_with_a_seed_of_its_own_runs_everything_when_it_ends(call: Watched) -> None:
    call.put(call.fill())
    own = Scope(call.model, call.scope, seed=3)
    call.queue.close(own, Done(own, call.done))
    assert call.book.pending() == []


def test_what_a_part_has_requested_stays_pending_when_it_ends(call: Watched) -> None:
    call.put(call.fill())
    part = Scope(call.model, call.scope)
    call.queue.close(part, Done(part, call.done))
    assert len(call.book.pending()) == 1


def test_only_fills_of_contract_backends_ask_other_ranks(call: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed(call, monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr(pending_by_memory, "ask_if_sharded", lambda fill, scope: asked.append(fill.name))
    call.put(call.fill(), call.fill("v", Constant(1)))
    assert asked == ["w"]


def test_a_fill_without_memory_is_run_without_a_launch(call: Watched) -> None:
    meta = torch.empty(4, device="meta")
    fill = call.request(meta)
    call.flush()
    assert fill.state is State.RUN and call.scope.launches == {}


# --- what fails -------------------------------------------------------------------------------------------------------


def collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives all names one stream."""
    original = runner.streams_of
    monkeypatch.setattr(runner, "streams_of", lambda names: original(["w" for _ in names]))


def test_streams_that_collide_are_an_error_before_anything_is_written(
    call: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    collide(monkeypatch)
    call.put(call.fill(), call.fill("v"))
    with pytest.raises(RuntimeError, match="have the same random stream"):
        call.flush()
    assert (call.model.w == 0).all() and len(call.book.pending()) == 2


def test_after_a_failed_agreement_distributed_fills_do_not_stay_pending(
    call: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    collide(monkeypatch)
    call.put(call.fill(), call.fill("v"))
    monkeypatch.setattr(pending_by_memory, "is_sharded", lambda tensor: tensor is call.model.w)
    with pytest.raises(RuntimeError, match="have the same random stream"):
        call.flush()
    (left,) = call.book.pending()
    assert left.named is not None and left.named.name == "v"


def test_a_strict_call_refuses_a_draw_whose_name_is_not_known() -> None:
    call = Watched(strict=True)
    tensor = torch.zeros(4)
    call.request(tensor)
    with pytest.raises(RuntimeError, match=r"strict: model.py:1 draws normal\(mean=0, std=1\) of shape \(4,\)"):
        call.flush()
    assert (tensor == 0).all()


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_fill_of_a_named_tensor_is_listed_as_it_was_requested(call: Watched) -> None:
    fills = [call.fill(), call.fill("c")]
    call.put(*fills)
    assert list(call.queue.named()) == fills


def test_a_fill_of_a_tensor_without_a_name_is_listed_as_none(call: Watched) -> None:
    call.put(Fill.whole("#0", torch.zeros(4), DRAW, "", ""))
    assert list(call.queue.named()) == []


def test_a_root_that_is_bound_later_has_owners(call: Watched) -> None:
    other = Model()
    assert call.queue.owner_of(call.at(other.w), call.scope) is None
    call.scope.names.add(other, "other")
    owner = call.queue.owner_of(call.at(other.w), call.scope)
    assert owner is not None and owner.name == "other.w"


def test_a_parameter_that_comes_later_is_an_owner_once_that_was_seen(call: Watched) -> None:
    call.queue.owners(call.scope)
    call.model.late = nn.Parameter(torch.zeros(3))
    call.book.generation += 1
    owner = call.queue.owner_of(call.at(call.model.late), call.scope)
    assert owner is not None and owner.name == "late"


def test_a_parameter_owns_the_memory_that_it_shares_with_a_buffer(call: Watched) -> None:
    call.model.register_buffer("a", call.model.v.detach())
    owner = call.queue.owner_of(call.at(call.model.v), call.scope)
    assert owner is not None and owner.name == "v"


# --- what is noted ----------------------------------------------------------------------------------------------------


def test_fills_that_code_requested_are_noted_by_their_names_once(call: Watched) -> None:
    call.request(call.model.w)
    call.flush()
    assert call.settle() == call.settle() == () and call.noted == ["w"]


def test_a_draw_that_got_its_name_after_it_had_run_is_noted_by_it(call: Watched) -> None:
    drawn = torch.zeros(3)
    call.request(drawn)
    call.flush()
    call.model.late = nn.Parameter(drawn)
    call.book.generation += 1
    assert call.settle() == ("late",) and call.noted == ["late"]


def test_a_draw_that_nobody_names_is_listed_and_no_item(call: Watched) -> None:
    tensor = torch.zeros(2, 3)
    call.request(tensor)
    call.flush()
    assert call.settle() == ("#0 (2x3, model.py:1)",) and call.noted == []


def test_a_call_with_a_seed_of_its_own_reports_its_fills_itself(call: Watched) -> None:
    own = Scope(call.model, call.scope, seed=3)
    call.request(call.model.w)
    call.request(call.model.v, scope=own)
    call.flush()
    call.settle()
    done = Done(own, call.done)
    call.queue.settle(own, done)
    assert [item.name for item in done.items if isinstance(item, Fill)] == ["v"]
    assert call.noted == ["w", "v"]  # what a part has done, the larger call has done too


def test_a_part_reports_what_it_requested_itself(call: Watched) -> None:
    part = Scope(call.model, call.scope)
    done = Done(part, call.done)
    call.put(call.fill())
    call.put(call.fill("v"), scope=part, done=done)
    call.flush()
    call.queue.settle(part, done)
    assert [item.name for item in done.items if isinstance(item, Fill)] == ["v"]


def test_the_ledger_has_the_last_writer_of_a_parameter(call: Watched) -> None:
    call.request(call.model.w)
    call.flush()
    ledger = call.done.open_ledger(())
    ledger.record(call.model.w, "later")
    call.settle()
    assert ledger[call.model.w]["init_info"] == "later"


def test_the_ledger_learns_of_other_writes(call: Watched) -> None:
    call.book.wrote(call.at(call.model.w), "code", False)
    call.settle()
    assert call.done.open_ledger(())[call.model.w]["init_info"] == "code"


def test_the_ledger_keeps_who_wrote_a_parameter_besides_other_code(call: Watched) -> None:
    ledger = call.done.open_ledger(())
    ledger.record(call.model.w, "known")
    call.book.wrote(call.at(call.model.w), "code", False)
    call.settle()
    assert ledger[call.model.w]["init_info"] == "known"


@pytest.mark.parametrize(("backend", "unkeyed"), [("cpp", ("w",)), ("torch", ())])
def test_random_writes_of_other_code_are_unnamed_draws_where_draws_go_by_name(
    backend: str, unkeyed: Sequence[str]
) -> None:
    call = Watched(backend=backend)
    call.book.wrote(call.at(call.model.w), "code", True)
    assert call.settle() == unkeyed


def test_a_part_leaves_writes_of_other_code_to_the_larger_call(call: Watched) -> None:
    call.book.wrote(call.at(call.model.w), "code", True)
    part = Scope(call.model, call.scope)
    assert call.queue.settle(part, Done(part, call.done)) == ()

"""Pending fills of calls that watch memory: kept until something reads the bytes, whoever requested them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from ..backends import BACKENDS
from ..errors import InitRuntimeError, kind_of
from ..logs import logger
from ..naming import Names
from ..plans import Call, Copy, Fill, Replay, describe, names_line
from ..shards.dtensor import is_sharded
from .done import Done
from .ledger import Ledger
from .memory_book import MemoryBook
from .owners import Owner, Owners, fill_for, fills_for
from .places import Place
from .runner import ask_if_sharded, execute, prepare
from .scope import Scope
from .writes import OtherWrite, PendingFill, State


class ByMemory:
    """The fills of one outermost call that watches memory, and of the calls in it."""

    def __init__(self, book: MemoryBook) -> None:
        self.book = book
        self._owners: dict[Names, tuple[tuple[int, int], Owners]] = {}
        self.warns = False
        """The tensors outlive an exception, so the log says which of them are not initialized."""
        self._by_order: list[PendingFill] = []
        """The draws that were needed before they had a name, whatever was done to them afterwards."""

    # --- the protocol of pending fills --------------------------------------------------------------------------------

    def put(self, fills: Sequence[Fill], scope: Scope, done: Done) -> None:
        """Keeps fills of contract backends until something reads what they write; runs torch's at once."""
        book = self.book
        with book.paused():
            parameters, buffers = scope.names.parameters(), scope.names.buffers()
            for fill in fills:
                name = scope.backends.of(fill)
                is_contract = BACKENDS[name].IS_CONTRACT
                if is_contract:
                    ask_if_sharded(fill, scope)
                if fill.is_part and not fill.boxes:  # of a distributed tensor: it is done, elsewhere
                    done.filled([fill])
                for part in _in_one_place(fill):
                    place = book.place_of(part.boxes[0].tensor if part.is_part else part.tensor)
                    assert place is not None, "a backend that fills it has been found"
                    if not is_contract:
                        self.run(book.pending(place))
                        execute([part], scope)
                        done.filled([part])
                    named = part if part.tensor in parameters or part.tensor in buffers else None
                    state = State.PENDING if is_contract else State.REPORTED
                    book.add(
                        place,
                        part.distribution,
                        scope.effective,
                        part.rule,
                        part.info,
                        asked_by=done,
                        named=named,
                        state=state,
                    )
                    if is_contract:
                        torch.autograd.graph.increment_version(part.tensor)
                        if done.ledger is not None and part.info:
                            done.ledger.record(part.tensor, part.info, is_part=part.is_part)
                        if book.is_exposed(place):
                            self.run(book.pending(place))

    def before(self, item: Copy | Replay | Call, scope: Scope, done: Done) -> None:
        """Runs everything before a copy that does more than overwrite tensors. Watched code reads what it needs."""
        if isinstance(item, Copy) and (item.runs_own_code or item.replaces or item.unknown):
            self.flush(scope, done)

    def overwritten(self, tensor: torch.Tensor, by: str) -> None:
        """Notes that a copy has written a tensor."""
        with self.book.paused():
            place = self.book.place_of(tensor)
            if place is not None:
                self.book.wrote(place, by, False)

    def flush(self, scope: Scope, done: Done) -> None:
        """Runs everything that is pending; agrees with other ranks even where nothing of it is here."""
        self.run(self.book.pending())
        with self.book.paused():
            scope.seed.agree()

    def drop(self, error: BaseException) -> None:
        """Forgets what is pending, whose memory keeps what is in it, because of an exception."""
        with self.book.paused():
            fills = self.book.pending()
            for fill in fills:
                fill.state = State.REPORTED
            if fills and self.warns:
                logger.warning(
                    "%s: %d fills that were requested and not yet written are dropped; their tensors are not "
                    "initialized: %s",
                    kind_of(error),
                    len(fills),
                    names_line("tensors", self._names_of(fills)),
                )

    def named(self) -> Iterable[Fill]:
        """Returns the fills that rules requested and that still show."""
        for fill in self.book.fills():
            if fill.named is not None:
                yield fill.named

    def for_part(self) -> ByMemory:
        """Returns itself: a part's fills may stay pending until something reads them."""
        return self

    def close(self, scope: Scope, done: Done) -> None:
        """Runs everything at the end of a call with a seed of its own; a part's may stay pending."""
        if scope.effective is scope:
            self.flush(scope, done)

    def sensing(self, ledger: Ledger) -> AbstractContextManager[object]:
        """As ``MemoryBook.sensing``."""
        return self.book.sensing(ledger)

    def own_work(self, *, has_subclasses: bool = False) -> AbstractContextManager[object]:
        """As ``MemoryBook.paused``."""
        return self.book.paused(has_subclasses)

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, fills: Sequence[PendingFill]) -> None:
        """Runs pending fills, in as few launches as there are seeds and devices.

        Raises:
            RuntimeError: in a strict call, a draw that has no name yet; nothing is written.
        """
        if fills:
            with self.book.paused():
                for scope in dict.fromkeys(fill.scope for fill in fills):
                    self._run([fill for fill in fills if fill.scope is scope], scope)

    def _run(self, pending: Sequence[PendingFill], scope: Scope) -> None:
        found = list(fills_for(pending, self.book, self.owners(scope)))
        if scope.strict:
            for each, fill in found:
                if each.stream is not None and not each.stream.is_name:
                    raise InitRuntimeError(
                        f"strict: {each.rule} draws {describe(fill.distribution)} of shape {fill.shape}, and the "
                        f"numbers are needed before it is known what the tensor will be called",
                        hint=f". Without strict they come from the stream {fill.stream_name!r}, by order",
                    )
        try:
            prepare([fill for _, fill in found], scope)
        except RuntimeError:
            for each, fill in found:
                if is_sharded(fill.tensor):  # nobody knows what is right for it
                    each.state = State.RUN
            raise
        for each in pending:  # before they run: what is interrupted is not run again
            each.state = State.RUN
        try:
            execute([fill for _, fill in found if not fill.tensor.is_meta], scope, are_counted=True)
        except BaseException as error:
            if self.warns:
                names = self._names_of([each for each, _ in found])
                logger.warning(
                    "%s stopped a launch: %s",
                    kind_of(error),
                    names_line("tensors are initialized only in part or not at all", names),
                )
            raise
        for each, fill in found:
            each.ran = fill
            if each.stream is not None and not each.stream.is_name and not fill.tensor.is_meta:
                self._by_order.append(each)
        for each in pending:
            if each.values is not each.distribution:
                each.values.replay(each.place.view())  # type: ignore[union-attr]

    # --- names --------------------------------------------------------------------------------------------------------

    def owners(self, scope: Scope) -> Owners:
        """Returns the parameters and buffers of a call by where they lie."""
        names = scope.names
        now = self.book.generation, names.n_roots
        found = self._owners.get(names)
        if found is None or found[0] != now:
            names.renew()
            named = [*names.parameters().items(), *names.buffers().items()]
            found = self._owners[names] = now, Owners(named, self.book, names.ordinal)
        return found[1]

    def owner_of(self, place: Place, scope: Scope) -> Owner | None:
        """Returns the parameter or buffer that holds a place."""
        return self.owners(scope).of(place)

    def _names_of(self, fills: Iterable[PendingFill]) -> list[str]:
        """Returns the names of what fills are for, each once; where there is none, what is known of it."""
        names: dict[str, None] = {}
        for each in fills:
            owner = self.owner_of(each.place, each.scope)
            if each.named is not None:
                names[each.named.name] = None
            elif owner is not None:
                names[owner.name] = None
            else:
                names[f"a tensor of shape {tuple(each.place.shape)} ({each.rule})"] = None
        return list(names)

    def drawn_by_order(self, scope: Scope) -> list[str]:
        """Returns what was drawn for a call before it had a name, as the report's ``unkeyed`` lists it."""
        drawn = [each for each in self._by_order if each.scope is scope]
        if not drawn:  # as nearly always: looking up the owners would be a walk through the model
            return []
        owners = self.owners(scope)
        return list(dict.fromkeys(_told(each, owners.of(each.place)) for each in drawn))

    # --- settling -----------------------------------------------------------------------------------------------------

    def settle(self, scope: Scope, done: Done) -> tuple[str, ...]:
        """Notes what was written under names as done, and returns what was drawn without a name."""
        with self.book.paused():
            owners, is_whole = self.owners(scope), scope.effective is scope
            unkeyed: dict[str, None] = dict.fromkeys(self.drawn_by_order(scope) if is_whole else ())
            ledger = done.open_ledger(self.named())
            # A part of a larger call reports what it requested itself, and leaves the rest to that.
            fills = self.book.fills() if is_whole else self.book.asked_by(done)
            own = [each for each in fills if each.scope is scope or not is_whole]
            done.add(list(self._settled(own, owners, ledger, unkeyed)))
            for owner in owners if is_whole else ():
                writes = self.book.writes_at(owner.place)
                for other in writes:
                    if not isinstance(other, OtherWrite):
                        continue
                    if other.is_random and BACKENDS[scope.backends.on(owner.tensor.device)].IS_CONTRACT:
                        unkeyed[owner.name] = None
                # Of blocks with seeds of their own, too, which have reports of their own.
                if history := self.book.history(owner.place, writes):
                    done.seen[owner.tensor] = history
                    others = any(isinstance(write, OtherWrite) for write in writes)
                    if others and any(write.place.covers(owner.place) for write in writes):
                        done.computed.add(owner.tensor)
                    known = ledger[owner.tensor]["init_info"] if owner.tensor in ledger.written else ""
                    # What is attributed to a larger piece of code stays attributed to that.
                    if history.startswith(known) or any(write.info.startswith(known) for write in writes):
                        ledger.record(owner.tensor, history)
            return tuple(unkeyed)

    def _settled(
        self, fills: Iterable[PendingFill], owners: Owners, ledger: Ledger, unkeyed: dict[str, None]
    ) -> Iterator[Fill]:
        """Yields what has to be reported of fills that have run; notes those whose numbers have no name."""
        for each in fills:
            owner, stream = owners.of(each.place), each.stream
            if stream is not None and not stream.is_name:
                unkeyed[_told(each, owner)] = None
            if each.state is State.REPORTED or (owner is None and each.named is None):
                continue
            fill = each.ran
            if fill is None or (owner is not None and fill.tensor is not owner.tensor):  # it has got a name meanwhile
                fill = fill_for(each, owners)
            each.state = State.REPORTED
            if fill is not None:
                if fill.tensor not in ledger.written:
                    ledger.record(fill.tensor, fill.info)
                yield fill


def _told(fill: PendingFill, owner: Owner | None) -> str:
    """Returns how the report lists a draw that goes by order: the parameter that has it, else the draw itself."""
    if owner is not None:
        return owner.name
    assert fill.stream is not None, "it has been drawn"
    return f"{fill.stream.name} ({'x'.join(map(str, fill.place.shape))}, {fill.rule})"


def _in_one_place(fill: Fill) -> Sequence[Fill]:
    """Returns a fill in pieces of one box, if it is of a part of a tensor: that lies in several boxes, or elsewhere."""
    return [replace(fill, parts=(box,)) for box in fill.boxes] if fill.is_part else [fill]

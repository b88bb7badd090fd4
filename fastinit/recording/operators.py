"""What torch's operators mean to fills that wait, in one block of code.

``handlers`` says which of them ask for a fill, change one, copy one or join some, and what is done instead here. All
others run as they are, after the fills of all tensors that they touch have been executed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from ..backends import BACKENDS
from ..errors import InitRuntimeError
from ..execution.history import then
from ..execution.pending_by_memory import ByMemory
from ..execution.places import Place
from ..execution.scope import Scope
from ..execution.seeds import Generators
from ..execution.version_counters import tensors_in
from ..execution.writes import PendingFill, State
from ..plans import Constant, Distribution, Fill, is_drawn
from ..plans.arithmetic import Chain, Change, in_dtype
from ..shards.dtensor import PLAIN, is_sharded, mesh_of, shard_fill, why_not_shards
from .callers import where
from .draws import Seeding, draw
from .effects import Effect, arguments_written, effect_of, without_protected
from .journal import Journal
from .scalars import Scalars

aten = torch.ops.aten
Operator = Any
Arguments = tuple[Any, ...]
Handler = Callable[["Operators", Operator, Arguments, Mapping[str, Any]], Any]
NOT_HANDLED = object()  # what a handler returns if the operator is to run as it is


class Operators:
    """Interprets operators, one outermost call's.

    Args:
        pending: the fills that wait.
        scope: returns the scope of the innermost call that is open, whose seed and backend count for new fills.
        handlers: what is done instead of running an operator.
        fills: the operators among them that give a tensor values whatever it had.
    """

    def __init__(
        self,
        pending: ByMemory,
        scope: Callable[[], Scope],
        handlers: Mapping[Operator, Handler],
        fills: Collection[Operator],
    ) -> None:
        self.pending = pending
        self.book = pending.book
        self.journal = Journal()
        """What is computed on tensors without memory."""
        self.scalars = Scalars(self.book)
        self.seeding = Seeding()
        self._scope = scope
        self._handlers = handlers
        self._fills = fills
        self.unread: Scope | None = None
        """Whose report nobody gets: what torch fills at once in such a call needs no note (``leaves_no_note``)."""
        self._known: dict[int, tuple[Handler | None, Effect, Operator]] = {}
        """By the identity of an operator, which is held: its handler, and what it does."""
        self._can: dict[object, bool] = {}
        """By backend, values, dtype and geometry: whether such a fill may wait (``fill_new``)."""

    # --- the way in ---------------------------------------------------------------------------------------------------

    def run(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns what ``func(*args, **kwargs)`` returns; what it writes may wait."""
        known = self._known.get(id(func))
        if known is None:  # a hash of an operator is Python code, and asked for with each
            known = self._known[id(func)] = self._handlers.get(func), effect_of(func), func
        handler, effect, _ = known
        if self.book.protected and effect.written:
            unprotected = without_protected(self.book, effect, args, kwargs)
            if unprotected is not None:
                if func not in self._fills and func is not aten.copy_.default:  # whose results nobody needs
                    self.run(func, *unprotected)
                return args[0]
        with self.book.lock:
            if handler is not None:
                result = handler(self, func, args, kwargs)
                if result is not NOT_HANDLED:
                    return result
            if effect.moves:
                self.book.generation += 1
            is_unnamed = effect.is_random and not self.seeding.is_own_in_fork
            if is_unnamed and effect.written:
                self._must_not_be_strict(func, args)
            if not effect.reads_nothing:
                numbers = None if effect.is_random else self.scalars.of(tensors_in((*args, *kwargs.values())))
                for tensor in tensors_in((*args, *kwargs.values())):
                    self.read(tensor)
                    self.journal.note_fills(tensor, self.pending)
        result = self.draw(func, args, kwargs) if effect.is_random else func(*args, **kwargs)  # not under the lock
        if not effect.reads_nothing:
            with self.book.lock:
                problem = f"`{func}` draws under a seed of its own" if effect.is_random and not is_unnamed else ""
                written = arguments_written(effect, args, kwargs)
                is_kept = self.journal.keep(func, args, kwargs, result, written, problem)
                for tensor in tensors_in(written):
                    self.wrote(func, tensor, is_unnamed, changes=effect.changes)
                if (effect.is_random or is_kept) and not effect.written:
                    for tensor in tensors_in((result,)):
                        self.wrote(func, tensor, is_unnamed)
                self.scalars.computed(func, args, kwargs, numbers, result)
        return result

    @property
    def generators(self) -> Generators | None:
        """What draws come from: the innermost call's generators; None: torch's default ones."""
        return None if self.seeding.is_own else self._scope().effective.seed.generators

    def own_generator(self) -> torch.Generator | None:
        """Returns the generator that draws on the CPU come from; None: torch's default one."""
        return None if self.generators is None else self.generators.own(torch.device("cpu"))

    def draw(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Runs an operator that draws, with the generators of the innermost call."""
        return draw(func, args, kwargs, self.generators)

    def run_sharded(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns what an operator makes of a distributed tensor, NOT_HANDLED where torch is to take it apart."""
        with self.book.lock:
            is_fill = func in self._fills and is_sharded(args[0])
            return self._handlers[func](self, func, args, kwargs) if is_fill else NOT_HANDLED

    def _must_not_be_strict(self, func: Operator, args: Arguments) -> None:
        scope = self._scope().effective
        for tensor in tensors_in(args):
            if scope.strict and scope.backends.is_contract(tensor.device):
                raise InitRuntimeError(
                    f"strict: `{func}` at {where()} draws into a tensor of shape {tuple(tensor.shape)}, from a "
                    f"generator of torch's and so by order",
                    hint=". Without strict it does, and the report lists it",
                )

    def read(self, tensor: torch.Tensor) -> None:
        """Executes what waits in the memory of a tensor: somebody is about to look at it, or to change it."""
        place = self.book.place_of(tensor)
        if place is not None:
            self.read_place(place)

    def read_place(self, place: Place) -> None:
        """As ``read``."""
        waiting = self.book.pending(place)
        if not waiting:
            return
        if all(isinstance(entry.distribution, Constant) for entry in waiting):  # not worth a launch; the same bits
            with self.book.paused():
                for entry in waiting:
                    view = entry.place.view()
                    if view is not None and not view.is_meta:
                        view.fill_(entry.distribution.value)  # type: ignore[union-attr]
                    entry.state = State.RUN
            return
        self.pending.run(waiting)

    def made(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Notes that a tensor was made with these values."""
        with self.book.lock:
            if tensor.is_meta:
                self.journal.keep(aten.copy_.default, (tensor, values), {}, tensor, [tensor])
                self.wrote("torch.tensor", tensor)
            if not values.dim():
                self.scalars.made(tensor, values.item())

    def expose(self, tensor: torch.Tensor) -> None:
        """Somebody gets the address of the tensor's memory."""
        place = self.book.place_of(tensor)
        if place is not None:
            self.read_place(place)
            self.book.expose(place)

    def wrote(
        self, func: Operator | str, tensor: torch.Tensor, is_random: bool = False, *, changes: bool = False
    ) -> None:
        """Notes a write that is no fill, by an operator or by what no operator shows."""
        place = self.book.place_of(tensor)
        if place is not None:
            self.book.wrote(place, f"`{func}` at {where()}", is_random, changes=changes)

    # --- fills --------------------------------------------------------------------------------------------------------

    def leaves_no_note(self, tensor: torch.Tensor) -> bool:
        """Tells whether a fill of a tensor is done at once, and nobody will ask for it.

        That is where no report is made, as of ``build``, of memory that nothing is known of: nothing waits there that
        the fill might replace. One element may be asked for as a number (``Scalars``).
        """
        scope = self._scope().effective
        if scope is not self.unread or type(tensor) not in PLAIN or tensor.is_meta or self.book.is_sensing:
            return False
        if tensor.numel() < 2:
            return False
        return not scope.backends.is_contract(tensor.device) and self.book.is_unknown(tensor)

    def fill_new(self, tensor: torch.Tensor, distribution: Callable[[], Distribution], what: str) -> bool:
        """As ``fill``, only for what most constructors ask for: of an ordinary tensor in new memory, it may wait.

        A fill costs a third so. False: nothing was done, ``fill`` is to be asked.
        """
        scope = self._scope().effective
        device = tensor.device
        if not scope.backends.is_contract(device) or self.seeding.is_own_in_fork:
            return False
        place = self.book.new_place(tensor)
        if place is None:
            return False
        try:
            values = distribution()
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError):
            return False
        kind = scope.backends.on(device), values, place.dtype, place.memory
        can = self._can.get(kind)
        if can is None:  # of memory of its own, the rest of what it depends on is the same for all of a kind
            can = self._can[kind] = _can(scope, tensor, values)
        if can:
            at = where()
            self.book.add(place, values, scope, at, f"`{what}` at {at}")
        return can

    def fill(
        self,
        tensor: torch.Tensor,
        distribution: Callable[[], Distribution],
        what: str,
        now: Callable[[], object],
    ) -> bool:
        """Notes that a tensor is to get the values of a distribution; ``now`` writes them at once.

        Returns whether that was noted, and done where it had to be; False: nothing was done.
        """
        if self.leaves_no_note(tensor):
            now()
            return True
        place = self.book.place_of(tensor)
        scope = self._scope().effective
        if place is None:
            return False
        if place.storage_id in self.book.protected:
            return True
        try:
            values = distribution()
        except (RuntimeError, TypeError, ValueError, ZeroDivisionError):
            return False  # the operator has an error of its own for it
        device = tensor.device
        is_contract = scope.backends.is_contract(device)
        wait = is_contract and _can(scope, tensor, values)
        if not wait and not isinstance(values, Constant) and is_contract and device.type != "meta":
            return False  # a draw that the backend cannot do
        if (is_contract or tensor.is_meta) and is_drawn(values) and self.seeding.is_own_in_fork:
            return False
        if device.type == "meta" and tensor.dtype.is_complex and is_drawn(values):
            return False  # no contract backend can; with memory it would be torch's
        if is_sharded(tensor):
            if not wait:
                if is_drawn(values) and not is_contract:
                    scope.torch_draws_on_mesh(where(), f"a tensor of shape {tuple(tensor.shape)}", device)
                return False  # torch takes it apart, and what it does to the part that is here comes by
            scope.seed.ask(mesh_of(tensor), f"{tuple(tensor.shape)} {tensor.dtype} {values!r}")
        before = self.book.writes_at(place)
        for entry in before:
            if isinstance(entry, PendingFill) and isinstance(entry.values, Chain) and not place.covers(entry.place):
                self.read_place(place)
                break
        at = where()
        if wait:
            self.book.add(place, values, scope, at, f"`{what}` at {at}")
            if self.book.is_exposed(place):
                self.read_place(place)
        else:
            if before:  # nearly all memory is new
                self._overwrite(place)
            now()
            self.book.add(place, values, scope, at, f"`{what}` at {at}", state=State.RUN)
        return True

    def _overwrite(self, place: Place) -> None:
        """Makes a place ready for a write at once: what waits for it is dropped, or done where more waits than it."""
        self.book.forget(place)
        if any(entry.is_pending for entry in self.book.fills_at(place)):
            self.read_place(place)

    def created(self, like: Any, func: Operator, args: Arguments, kwargs: Mapping[str, Any], values: Any) -> Any:
        """Returns a new tensor, as a function such as torch.zeros or torch.randn makes it; its values wait."""
        device = kwargs.get("device")
        if device is None:
            device = like.device if like is not None else torch.device("cpu")
        if kwargs.get("pin_memory") or kwargs.get("layout") not in (None, torch.strided) or kwargs.get("generator"):
            return NOT_HANDLED
        if like is not None and self.book.place_of(like) is None:
            return NOT_HANDLED
        device = torch.device(device)
        if self.seeding.is_own_in_fork and effect_of(func).is_random:
            return NOT_HANDLED
        if not self._scope().effective.backends.is_contract(device) or device.type == "meta":
            result = self.draw(func, args, kwargs) if effect_of(func).is_random else func(*args, **kwargs)
            is_noted = self.fill(result, values, str(func), lambda: None)
            return result if is_noted or not result.is_meta else NOT_HANDLED
        meta = func(*args, **{**kwargs, "device": "meta"})
        result = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=device)
        return result if self.fill(result, values, str(func), lambda: None) else NOT_HANDLED

    # --- arithmetic on a fill -----------------------------------------------------------------------------------------

    def changed(self, tensor: torch.Tensor, change: Change, func: Operator, args: Arguments, kwargs: Any) -> Any:
        """Does an in-place operation with numbers to a tensor, by changing the numbers of its fill if it has one."""
        place = self.book.place_of(tensor)
        entry = None if place is None else self.book.current(place)
        if place is None or entry is None:
            return NOT_HANDLED
        after = change.of(entry.values, tensor.dtype)
        if after is None:
            return NOT_HANDLED
        if not entry.is_pending:
            func(*args, **kwargs)
        if isinstance(after, Chain):
            after.steps.append((func, args[1:], kwargs))
        if self.journal.knows(entry):  # an operator has read it as it was
            self.journal.keep(func, args, kwargs, tensor, [tensor])
        entry.values = after
        entry.info = then(entry.info, f"`{func}` at {where()}")
        entry.named = None  # a rule's fill is not what is there now
        self.book.touch(place)
        return tensor

    def changed_copy(self, tensor: torch.Tensor, change: Change, func: Operator, args: Arguments, kwargs: Any) -> Any:
        """Returns a new tensor with a changed fill, of the same draw."""
        sources = self._sources(tensor)
        values = [change.of(entry.distribution, tensor.dtype) for entry in sources]
        if not sources or any(after is None or isinstance(after, Chain) for after in values):
            return NOT_HANDLED
        dtype = func(torch.empty(1, dtype=tensor.dtype, device="cpu"), *args[1:], **kwargs).dtype
        if dtype != tensor.dtype and not all(isinstance(after, Constant) for after in values):
            return NOT_HANDLED

        def now() -> Any:
            return func(*args, **kwargs)

        by = f"`{func}` at {where()}"
        return self._copied(tensor, sources, values, lambda: torch.empty_like(tensor, dtype=dtype), now, by)

    def cast(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns the copy of a tensor in another dtype, on another device or in another layout."""
        tensor = args[0]
        sources = self._sources(tensor)
        if not sources:
            return NOT_HANDLED
        dtype = kwargs.get("dtype") or tensor.dtype
        values = [in_dtype(entry.distribution, tensor.dtype, dtype) for entry in sources]
        if None in values or kwargs.get("pin_memory") or kwargs.get("layout") not in (None, torch.strided):
            return NOT_HANDLED
        device = torch.device(kwargs.get("device") or tensor.device)
        memory_format = kwargs.get("memory_format") or torch.preserve_format

        def empty() -> torch.Tensor:
            return torch.empty_like(tensor, dtype=dtype, device=device, memory_format=memory_format)

        return self._copied(tensor, sources, values, empty, lambda: func(*args, **kwargs))

    def copy_into(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """``target.copy_(source)``: the target's old values do not matter, and the source's may still wait."""
        target, source = args[:2]
        place = self.book.place_of(target)
        if place is None:
            return NOT_HANDLED
        sources = self._sources(source) if source.shape == target.shape else []
        values = [in_dtype(entry.distribution, source.dtype, target.dtype) for entry in sources]
        if sources and self._can_hold(sources, values, source, target):
            if not sources[0].is_pending or any(isinstance(e.values, Chain) for e in self.book.fills_at(place)):
                self._overwrite(place)
            if not sources[0].is_pending:
                func(*args, **kwargs)
            self.book.forget(place)
            self._share(sources, values, source, target)
            if self.book.is_exposed(place):
                self.read_place(place)
            return target
        self.read(source)
        self._overwrite(place)
        for tensor in (source, target):
            self.journal.note_fills(tensor, self.pending)
        func(*args, **kwargs)
        self.journal.keep(func, args, kwargs, target, [target])
        self.book.wrote(place, f"`copy_` at {where()}", False)
        return target

    def waits(self, tensor: torch.Tensor) -> bool:
        """Tells whether fills of a tensor's memory wait."""
        place = self.book.place_of(tensor)
        return place is not None and bool(self.book.pending(place))

    def _sources(self, tensor: torch.Tensor) -> list[PendingFill]:
        """Returns the fills that give a tensor its values, all of them; none where there is more to it."""
        place = self.book.place_of(tensor)
        entries = None if place is None else self.book.all_of(place)
        if place is None or not entries:
            return []
        is_one = entries[0].place.geometry == place.geometry or (len(entries) == 1 and entries[0].reshape(place))
        if not is_one and not place.is_filled_by([entry.place for entry in entries]):
            return []
        mixed = any(entry.is_pending != entries[0].is_pending or entry.place.dtype != place.dtype for entry in entries)
        return [] if mixed or any(isinstance(entry.values, Chain) for entry in entries) else entries

    def _can_hold(
        self, sources: list[PendingFill], values: list[Any], source: torch.Tensor, copy: torch.Tensor
    ) -> bool:
        """Tells whether a copy can wait for the same draws (or has been made with them)."""
        place = self.book.place_of(source)
        has_parts = any(place is None or entry.place.geometry != place.geometry for entry in sources)
        if None in values or (has_parts and source.stride() != copy.stride()):
            return False
        if not sources[0].is_pending:
            return True
        return all(
            entry.scope.backends.is_contract(copy.device) and _can(entry.scope, copy, after)
            for entry, after in zip(sources, values)
        )

    def _copied(
        self,
        tensor: torch.Tensor,
        sources: list[PendingFill],
        values: list[Any],
        empty: Callable[[], torch.Tensor],
        now: Callable[[], torch.Tensor],
        by: str = "",
    ) -> Any:
        """Returns a copy: with values where the source has them, else an empty one that waits for the same draws.

        ``by`` is what changes its values for the ledger; "": nothing does.
        """
        copy = now() if not sources[0].is_pending else empty()
        if self._can_hold(sources, values, tensor, copy):
            self._share(sources, values, tensor, copy, by)
            return copy
        return copy if not sources[0].is_pending else NOT_HANDLED

    def _share(
        self, sources: list[PendingFill], values: list[Any], source: torch.Tensor, copy: torch.Tensor, by: str = ""
    ) -> None:
        """Notes that a copy has the draws of its source."""
        whole = self.book.place_of(source)
        assert whole is not None, "it has fills"
        for entry, after in zip(sources, values):
            at = entry.place.memory
            part = copy
            if entry.place.geometry != whole.geometry:
                part = copy.as_strided(at.shape, at.steps, copy.storage_offset() + at.first - whole.memory.first)
            place = self.book.place_of(part)
            assert place is not None, "its source has plain memory"
            state = State.PENDING if entry.is_pending else State.RUN
            info = then(entry.info, by) if by else entry.info
            entry.share_with(self.book.add(place, after, entry.scope, entry.rule, info, state=state))


def _can(scope: Scope, tensor: torch.Tensor, values: Distribution) -> bool:
    """Tells whether the backend of a device can give a tensor the values of a distribution."""
    backend = BACKENDS[scope.backends.on(tensor.device)]
    if type(tensor) in PLAIN:  # as nearly all are
        return backend.why_not_fill(Fill("", tensor, values, "", "", tensor.shape)) is None
    return why_not_shards(tensor) is None and backend.why_not_fill(shard_fill("", tensor, values, "", "")) is None

"""What torch's operators mean to fills that wait: which of them ask for a fill, change one, copy one, or read memory.

Whatever is not listed here runs as it is, after the fills of all tensors that it touches have been executed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import CodeType
from typing import Any

import torch

from ..backends import BACKENDS
from ..execution.pending_by_memory import ByMemory
from ..execution.places import Place
from ..execution.scope import Scope
from ..execution.version_counters import tensors_in
from ..execution.writes import PendingFill, State
from ..plans import Constant, Distribution, Normal, Uniform
from ..plans.arithmetic import Chain, Change, in_dtype
from ..shards.dtensor import is_sharded, mesh_of, shard_fill, why_not_shards
from .draws import Seeding, draw, is_random
from .journal import Journal

aten = torch.ops.aten
Operator = Any
Arguments = tuple[Any, ...]
NOT_HANDLED = object()


class Operators:
    """Interprets operators, one outermost call's."""

    def __init__(self, pending: ByMemory, scope: Callable[[], Scope]) -> None:
        self.pending = pending
        self.book = pending.book
        self.journal = Journal()
        """What is computed on tensors without memory."""
        self.seeding = Seeding()
        self._scope = scope
        """Returns the scope of the innermost call that is open, whose seed and backend count for new fills."""

    # --- the way in ---------------------------------------------------------------------------------------------------

    def run(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns what ``func(*args, **kwargs)`` returns; what it writes may wait."""
        handler = HANDLERS.get(func)
        if self.book.protected and (effect := _effect_of(func)).written:
            unprotected = self._unprotected(effect, args, kwargs)
            if unprotected is not None:
                if func not in _FILLS and handler is not _copy_:  # these return nothing but what is not written
                    self.run(func, *unprotected)
                return args[0]
        with self.book.lock:
            if handler is not None:
                result = handler(self, func, args, kwargs)
                if result is not NOT_HANDLED:
                    return result
            effect = _effect_of(func)
            if effect.moves:
                self.book.generation += 1
            is_unnamed = effect.is_random and not self.seeding.is_own_in_fork
            if is_unnamed and effect.written:
                self._must_not_be_strict(func, args)
            if not effect.reads_nothing:
                for tensor in tensors_in((*args, *kwargs.values())):
                    self.read(tensor)
                    self.journal.note_fills(tensor, self.pending)
        result = self.draw(func, args, kwargs) if effect.is_random else func(*args, **kwargs)  # not under the lock
        if not effect.reads_nothing:
            with self.book.lock:
                problem = f"`{func}` draws under a seed of its own" if effect.is_random and not is_unnamed else ""
                is_kept = self.journal.keep(func, args, kwargs, result, self._written(effect, args, kwargs), problem)
                for tensor in tensors_in(self._written(effect, args, kwargs)):
                    self._note_write(func, tensor, is_unnamed)
                if (effect.is_random or is_kept) and not effect.written:
                    for tensor in tensors_in((result,)):
                        self._note_write(func, tensor, is_unnamed)
        return result

    def draw(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Runs an operator that draws, with the generators of the innermost call."""
        generators = None if self.seeding.is_own else self._scope().effective.seed.generators
        return draw(func, args, kwargs, generators)

    def _unprotected(
        self, effect: _Effect, args: Arguments, kwargs: Mapping[str, Any]
    ) -> tuple[Arguments, Mapping[str, Any]] | None:
        """Returns the arguments with copies of the protected tensors that would be written; None if there are none."""
        positional, named, found = list(args), dict(kwargs), False
        for position, name in effect.written:
            values: Any = positional if position < len(args) else named
            key: Any = position if position < len(args) else name
            value = values[key] if position < len(args) else named.get(name)
            if isinstance(value, torch.Tensor) and self._is_protected(value):
                values[key], found = value.clone(), True
        return (tuple(positional), named) if found else None

    def _is_protected(self, tensor: torch.Tensor) -> bool:
        place = self.book.place_of(tensor)
        return place is not None and place.storage_id in self.book.protected

    def run_sharded(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns what an operator makes of a distributed tensor, NOT_HANDLED where torch is to take it apart."""
        with self.book.lock:
            return HANDLERS[func](self, func, args, kwargs) if func in _FILLS and is_sharded(args[0]) else NOT_HANDLED

    def _must_not_be_strict(self, func: Operator, args: Arguments) -> None:
        scope = self._scope().effective
        for tensor in tensors_in(args):
            if scope.strict and scope.backends.is_contract(tensor.device):
                raise RuntimeError(
                    f"strict: `{func}` at {where()} draws into a tensor of shape {tuple(tensor.shape)}, from a "
                    f"generator of torch's and so by order. Without strict it does, and the report lists it"
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
        """Notes that a tensor without memory was made with these values."""
        with self.book.lock:
            self.journal.keep(aten.copy_.default, (tensor, values), {}, tensor, [tensor])
            self._note_write("torch.tensor", tensor, False)

    def expose(self, tensor: torch.Tensor) -> None:
        """Somebody gets the address of the tensor's memory."""
        place = self.book.place_of(tensor)
        if place is not None:
            self.read_place(place)
            self.book.expose(place)

    @staticmethod
    def _written(effect: _Effect, args: Arguments, kwargs: Mapping[str, Any]) -> list[Any]:
        """Returns the arguments that an operator writes."""
        return [args[at] if at < len(args) else kwargs.get(name) for at, name in effect.written]

    def _note_write(self, func: Operator | str, tensor: torch.Tensor, is_random: bool) -> None:
        place = self.book.place_of(tensor)
        if place is not None:
            self.book.wrote(place, f"`{func}` at {where()}", is_random)

    # --- fills --------------------------------------------------------------------------------------------------------

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
        if is_contract and not isinstance(values, Constant) and self.seeding.is_own_in_fork:
            return False
        if device.type == "meta" and tensor.dtype.is_complex and not isinstance(values, Constant):
            return False  # no contract backend can; with memory it would be torch's
        if is_sharded(tensor):
            if not wait:
                return False  # torch takes it apart, and what it does to the part that is here comes by
            scope.seed.ask(mesh_of(tensor), f"{tuple(tensor.shape)} {tensor.dtype} {values!r}")
        for entry in self.book.fills_at(place):
            if isinstance(entry.values, Chain) and not place.covers(entry.place):
                self.read_place(place)
                break
        at = where()
        if wait:
            self.book.add(place, values, scope, at, f"`{what}` at {at}")
            if self.book.is_exposed(place):
                self.read_place(place)
        else:
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
        if self.seeding.is_own_in_fork and _effect_of(func).is_random:
            return NOT_HANDLED
        if not self._scope().effective.backends.is_contract(device) or device.type == "meta":
            result = self.draw(func, args, kwargs) if _effect_of(func).is_random else func(*args, **kwargs)
            self.fill(result, values, str(func), lambda: None)
            return result
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

        return self._copied(tensor, sources, values, lambda: torch.empty_like(tensor, dtype=dtype), now)

    def cast(self, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
        """Returns the copy of a tensor in another dtype, on another device or in another layout."""
        tensor = args[0]
        sources = self._sources(tensor)
        dtype = kwargs.get("dtype") or tensor.dtype
        values = [in_dtype(entry.distribution, tensor.dtype, dtype) for entry in sources]
        if not sources or None in values or kwargs.get("pin_memory"):
            return NOT_HANDLED
        if kwargs.get("layout") not in (None, torch.strided):
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
        """Returns the fills that give a tensor its values, the first all of it; none where there is more to it."""
        place = self.book.place_of(tensor)
        entries = None if place is None else self.book.all_of(place)
        if place is None or not entries:
            return []
        if entries[0].place.geometry != place.geometry and not (len(entries) == 1 and entries[0].reshape(place)):
            return []
        mixed = any(entry.is_pending != entries[0].is_pending or entry.place.dtype != place.dtype for entry in entries)
        return [] if mixed or any(isinstance(entry.values, Chain) for entry in entries) else entries

    def _can_hold(
        self, sources: list[PendingFill], values: list[Any], source: torch.Tensor, copy: torch.Tensor
    ) -> bool:
        """Tells whether a copy can wait for the same draws (or has been made with them)."""
        if None in values or (len(sources) > 1 and source.stride() != copy.stride()):
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
    ) -> Any:
        """Returns a copy: with values where the source has them, else an empty one that waits for the same draws."""
        copy = now() if not sources[0].is_pending else empty()
        if self._can_hold(sources, values, tensor, copy):
            self._share(sources, values, tensor, copy)
            return copy
        return copy if not sources[0].is_pending else NOT_HANDLED

    def _share(self, sources: list[PendingFill], values: list[Any], source: torch.Tensor, copy: torch.Tensor) -> None:
        """Notes that a copy has the draws of its source."""
        start = sources[0].place.memory.first
        for entry, after in zip(sources, values):
            at = entry.place.memory
            part = copy
            if entry is not sources[0]:
                part = copy.as_strided(at.shape, at.steps, copy.storage_offset() + at.first - start)
            place = self.book.place_of(part)
            assert place is not None, "its source has plain memory"
            state = State.PENDING if entry.is_pending else State.RUN
            entry.share_with(self.book.add(place, after, entry.scope, entry.rule, entry.info, state=state))


def _can(scope: Scope, tensor: torch.Tensor, values: Distribution) -> bool:
    """Tells whether the backend of a device can give a tensor the values of a distribution."""
    backend = BACKENDS[scope.backends.on(tensor.device)]
    return why_not_shards(tensor) is None and backend.why_not_fill(shard_fill("", tensor, values, "", "")) is None


def _number(value: Any) -> float | None:
    """Returns a number, or that of a tensor without dimensions on the CPU (which has no fill that waits)."""
    if (
        isinstance(value, torch.Tensor)
        and value.dim() == 0
        and value.device.type == "cpu"
        and type(value) is torch.Tensor
    ):
        value = value.item()
    return value if isinstance(value, (int, float)) else None


# --- the table -------------------------------------------------------------------------------------------------------

Handler = Callable[[Operators, Operator, Arguments, Mapping[str, Any]], Any]
HANDLERS: dict[Operator, Handler] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for operators by name, as far as this torch has them."""

    def register(handler: Handler) -> Handler:
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(aten, packet, None), overload or "default", None)
            if operator is not None:
                HANDLERS[operator] = handler
        return handler

    return register


@cache
def _name_of(func: Operator) -> str:
    """Returns the name of an operator without its namespace and overload, e.g. ``normal_``."""
    return str(func).split(".")[1]


@lru_cache(maxsize=4096, typed=True)  # the layers of a model are alike
def _same_values(values: Callable[..., Distribution], *numbers: float) -> Distribution:
    return values(*numbers)


def _distribution(values: Callable[..., Distribution], numbers: tuple[Any, ...]) -> Distribution:
    """Returns the distribution with these numbers, made once where they are plain floats."""
    # A cache takes -0.0 for 0.0; distributions do not.
    are_plain = all(type(number) is float and number != 0.0 for number in numbers)
    return _same_values(values, *numbers) if are_plain else values(*numbers)


def _filled(
    ops: Operators, values: Callable[..., Distribution], func: Any, args: Any, kwargs: Any, *numbers: Any
) -> Any:
    tensor = args[0]
    if kwargs.get("generator") is not None:  # its owner wants this generator's numbers
        return NOT_HANDLED
    done = ops.fill(
        tensor, lambda: _distribution(values, numbers), _name_of(func), lambda: ops.draw(func, args, kwargs)
    )
    return tensor if done else NOT_HANDLED


@_handles("normal_")
def _normal_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Normal, func, args, kwargs, *(*args[1:], *(0.0, 1.0)[len(args) - 1 :]))


@_handles("uniform_")
def _uniform_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Uniform, func, args, kwargs, *(*args[1:], *(0.0, 1.0)[len(args) - 1 :]))


@_handles("zero_")
def _zero_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return _filled(ops, Constant, func, args, kwargs, 0)


@_handles("fill_.Scalar", "fill_.Tensor")
def _fill_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    value = args[1]
    if isinstance(value, torch.Tensor):
        ops.read(value)
        value = _number(value)
        if value is None:
            return NOT_HANDLED
    return _filled(ops, Constant, func, args, kwargs, value)


_ZERO_LIKE = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}


@_handles("zeros", "ones", "rand", "randn", "full", "normal.float_float")
def _factory(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    name = _name_of(func)
    if name == "normal":
        return ops.created(None, func, args, kwargs, lambda: Normal(*args[:2]))
    if name == "full":
        return ops.created(None, func, args, kwargs, lambda: Constant(args[1]))
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return ops.created(None, func, args, kwargs, lambda: _values_of_factory(name, dtype))


@_handles("zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "new_zeros", "new_ones", "new_full")
def _factory_like(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    name = _name_of(func)
    if name in ("full_like", "new_full"):
        value = args[1 if name == "full_like" else 2]
        return ops.created(args[0], func, args, kwargs, lambda: Constant(value))
    dtype = kwargs.get("dtype") or args[0].dtype
    return ops.created(args[0], func, args, kwargs, lambda: _values_of_factory(name.removesuffix("_like"), dtype))


def _values_of_factory(name: str, dtype: torch.dtype) -> Distribution:
    if name == "rand":
        # torch promises numbers below 1, and rounding to fewer digits could make them 1. Below 1 the numbers of a dtype
        # are eps / 2 apart, so those less than eps / 4 away would be.
        is_narrow = dtype.is_floating_point and dtype.itemsize < 4
        return Uniform(0.0, 1.0 - torch.finfo(dtype).eps / 3 if is_narrow else 1.0)
    if name == "randn":
        return Normal(0.0, 1.0)
    return Constant(_ZERO_LIKE[name])


def _change(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Change | None:
    """Returns the change that an operator stands for; None if its arguments are no numbers."""
    name = _name_of(func).rstrip("_")
    given = args[1:]
    if any(isinstance(value, torch.Tensor) for value in given):
        for value in given:
            if isinstance(value, torch.Tensor):
                ops.read(value)
    numbers = [None if value is None else _number(value) for value in given]
    if any(number is None and value is not None for number, value in zip(numbers, given)):
        return None
    alpha = kwargs.get("alpha", 1)
    if alpha != 1:
        if not isinstance(alpha, (int, float)):
            return None
        numbers[0] = None if numbers[0] is None else numbers[0] * alpha
    if kwargs.keys() - {"alpha"}:
        return None
    if name == "clamp":
        numbers = [*numbers, None, None][:2]
    return Change(name, tuple(numbers))


_IN_PLACE = ("mul_.Tensor", "mul_.Scalar", "div_.Tensor", "div_.Scalar", "add_.Tensor", "add_.Scalar", "sub_.Tensor")


@_handles(*_IN_PLACE, "sub_.Scalar", "erfinv_", "clamp_")
def _changed(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    change = _change(ops, func, args, kwargs)
    return NOT_HANDLED if change is None else ops.changed(args[0], change, func, args, kwargs)


@_handles("mul.Tensor", "div.Tensor", "add.Tensor", "sub.Tensor")
def _changed_copy(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    if not isinstance(args[0], torch.Tensor) or isinstance(args[1], torch.Tensor):
        return NOT_HANDLED
    change = _change(ops, func, args, kwargs)
    return NOT_HANDLED if change is None else ops.changed_copy(args[0], change, func, args, kwargs)


@_handles("clone", "_to_copy")
def _copy(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return ops.cast(func, args, kwargs)


@_handles("copy_")
def _copy_(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    return ops.copy_into(func, args, kwargs)


@_handles("cat", "stack")
def _joined(ops: Operators, func: Operator, args: Arguments, kwargs: Mapping[str, Any]) -> Any:
    """Joins tensors whose fills wait, as copies into an empty one: then each goes by the name that the whole gets."""
    tensors, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not tensors:
        return NOT_HANDLED
    first: torch.Tensor = tensors[0]
    alike = all(
        each.dtype == first.dtype and each.device == first.device and each.is_contiguous() and each.numel()
        for each in tensors
    )
    if not alike or not (first.is_meta or any(map(ops.waits, tensors))):
        return NOT_HANDLED
    shape = func([torch.empty(each.shape, device="meta") for each in tensors], dim).shape
    joined, start = torch.empty(shape, dtype=first.dtype, device=first.device), 0
    for index, each in enumerate(tensors):
        if _name_of(func) == "stack":
            part = joined.select(dim, index)
        else:
            part = joined.narrow(dim, start, each.shape[dim])
            start += each.shape[dim]
        ops.copy_into(aten.copy_.default, (part, each), {})
    return joined


# What gives a tensor values whatever it had.
_FILLS = frozenset(
    operator for operator, handler in HANDLERS.items() if handler in (_normal_, _uniform_, _zero_, _fill_)
)

# --- all other operators ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Effect:
    reads_nothing: bool
    """It makes a view, or a tensor without values."""
    moves: bool
    """It gives a tensor other memory or another shape, and writes no memory."""
    written: tuple[tuple[int, str], ...]
    """Position and name of the arguments that it writes into."""
    is_random: bool


# They look at shapes and dtypes only.
_SHAPES_ONLY = ("empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty")


@cache  # there are a few thousand operators
def _effect_of(func: Operator) -> _Effect:
    schema = func._schema
    written = tuple(
        (position if not argument.kwarg_only else len(schema.arguments), argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    # torch 2.1 has no tag on set_.
    moves = torch.Tag.inplace_view in func.tags or schema.name == "aten::set_"
    if moves:
        written = ()
    is_view = not written and any(result.alias_info is not None for result in schema.returns)
    return _Effect(is_view or schema.name.removeprefix("aten::") in _SHAPES_ONLY, moves, written, is_random(func))


_OWN_AND_TORCH = ("torch", "fastinit", "contextlib")
# Their functions only stand between torch's and those that say what is wanted.
_BETWEEN = ("transformers.initialization", "timm.layers.weight_init", "mmengine.model.weight_init")


def where() -> str:
    """Returns the place in the code that asked for what is running: the innermost that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_between(frame.f_globals.get("__name__", "")):
            return _place_in(frame.f_code, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown place"


@lru_cache(maxsize=4096)  # a constructor asks again and again
def _is_between(module: str) -> bool:
    return module.partition(".")[0] in _OWN_AND_TORCH or module in _BETWEEN


@lru_cache(maxsize=4096)  # the layers of a model are made by the same lines
def _place_in(code: CodeType, line: int) -> str:
    return f"{code.co_filename.rpartition('/')[2]}:{line} in {code.co_name}"

"""The ledger: what wrote every parameter, known from what was written and not from reading parameters back.

fastinit enters its own fills and copies. For code that it cannot see into (a user's ``init_weights``, an initializer
with a ``__call__`` of its own) a sensor tells which memory is written, and the ledger attributes it to that code. Calls
that watch memory (``ByMemory``) are a sensor themselves; for all others there is ``FunctionSensor``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InitAssertionError
from ..logs import is_rank_zero, logger
from ..plans import byte_span
from .hosts import host_of
from .spans import Spans
from .version_counters import tensors_in, version_of

# The attribute that refers to the ledger from every module of a BaseModule tree during ``init_weights``. Drop-in: code
# written for mmengine looks for it.
_ATTRIBUTE = "_params_init_info"

computed_keys: dict[str, Callable[[torch.Tensor], Any]] = {}
"""Further keys of a ``ParameterInfo``, computed from the parameter when read; integrations add their library's."""


class ParameterInfo(dict[str, Any]):
    """``init_info`` of one parameter, and the ``computed_keys``."""

    __slots__ = ("_parameter",)  # there is one for each parameter

    def __init__(self, parameter: torch.Tensor, init_info: str) -> None:
        self["init_info"] = init_info
        self._parameter = parameter

    def __missing__(self, key: str) -> Any:
        return computed_keys[key](self._parameter)


class Ledger(dict[torch.Tensor, ParameterInfo]):
    """Maps every parameter under a root to its ``ParameterInfo``."""

    def __init__(self, parameters: Mapping[torch.Tensor, str], default_info: str) -> None:
        super().__init__((parameter, ParameterInfo(parameter, default_info)) for parameter in parameters)
        self.written: set[torch.Tensor] = set()
        """Parameters that were written since the beginning, by anything."""
        self.is_closed = False
        """The initialization is over; a copy of a module that was made meanwhile may still refer to this ledger."""
        self._frames: list[set[torch.Tensor]] = []
        """What was written and not yet attributed, for each running piece of other code, the innermost last."""
        self._marks: dict[torch.Tensor, _Mark] = {}
        """As they were when last looked at."""
        self._parameters_in: dict[int, Spans[torch.Tensor]] = {}
        """By the address of their storage, the parameters by where they lie."""
        self._is_watched = False
        """Other code has run: marks are kept."""
        self.protected: set[torch.Tensor] = set()
        """Parameters that keep their values whatever running code does to them; their versions may count up."""

    def __deepcopy__(self, memo: object) -> Ledger:
        copied = Ledger({}, "")  # the copy of a module is not being initialized
        copied.is_closed = True
        return copied

    def record(self, tensor: torch.Tensor, info: str) -> None:
        """Notes that ``info`` wrote a tensor; one that is no parameter of the root is not tracked."""
        if tensor in self:
            self[tensor]["init_info"] = info
            self.written.add(tensor)
            if self._is_watched:
                self._settle(tensor)

    def adopt(self, parameters: Iterable[torch.Tensor], info: str) -> None:
        """Takes in parameters that other code has put into the modules."""
        for parameter in parameters:
            if parameter not in self:
                self[parameter] = ParameterInfo(parameter, info)
                self.written.add(parameter)
                if self._is_watched:
                    self._mark(parameter)

    @contextmanager
    def attributing(
        self, module: nn.Module, info: str, sensing: Callable[[Ledger], AbstractContextManager[object]]
    ) -> Iterator[None]:
        """Attributes what the code in the block writes to ``info``, unless something within it claims it first.

        Args:
            module: the one whose parameters may also get other memory (``p.data = ...``) in the block.
            info: what wrote them.
            sensing: returns a context in which ``touched`` is told of what is written.
        """
        if not self._is_watched:
            self._is_watched = True
            for parameter in self:
                self._mark(parameter)
        if self._frames:
            self._attribute_to_outer(module)
        self._frames.append(set())
        try:
            if len(self._frames) > 1:  # nested: a sensor is at work already
                yield
            else:
                with sensing(self):
                    yield
            self.claim(module, info)
            for parameter in tuple(self._frames[-1]):
                self.record(parameter, info)
        finally:
            self._frames.pop()

    def _attribute_to_outer(self, module: nn.Module) -> None:
        """Gives to the running code what it has written so far in a module that other code is about to write."""
        for parameter in module.parameters():
            if parameter in self and parameter not in self.protected and self._marks[parameter] != _mark_of(parameter):
                self._settle(parameter)
                self._frames[-1].add(parameter)

    def claim(self, module: nn.Module, info: str) -> None:
        """Attributes to ``info`` what the running code has written so far in the parameters of ``module``."""
        if self._frames:
            for parameter in module.parameters():
                if (
                    parameter in self
                    and parameter not in self.protected
                    and (parameter in self._frames[-1] or self._marks[parameter] != _mark_of(parameter))
                ):
                    self.record(parameter, info)

    def touched(self, storage: int, start: int, end: int) -> None:
        """Notes that the running code wrote bytes: views, ``.data`` and fused memory share them with parameters.

        Args:
            storage: the address where the memory begins.
            start, end: the addresses of the first byte and of the one behind the last.
        """
        parameters = self._parameters_in.get(storage)
        for parameter in () if parameters is None else parameters.meeting(start, end):
            own_start, own_end = byte_span(parameter)
            if start < own_end and own_start < end:
                self._frames[-1].add(parameter)

    def touched_tensor(self, tensor: torch.Tensor) -> None:
        """As ``touched``."""
        if tensor in self._marks:
            self._frames[-1].add(tensor)
        storage, start, end = _memory_of(tensor)
        if storage:
            self.touched(storage, start, end)

    def _mark(self, parameter: torch.Tensor) -> None:
        self._marks[parameter] = mark = _mark_of(parameter)
        if mark.storage:
            self._parameters_in.setdefault(mark.storage, Spans()).add(mark.start, mark.end, parameter)

    def _settle(self, parameter: torch.Tensor) -> None:
        """Forgets the writes to ``parameter`` so far."""
        for frame in self._frames:
            frame.discard(parameter)
        before, now = self._marks[parameter], _mark_of(parameter)
        if before[1:] == now[1:]:
            self._marks[parameter] = now
            return
        if before.storage:
            self._parameters_in[before.storage].take_within(before.start, before.end, lambda other: other is parameter)
        self._mark(parameter)


class FunctionSensor(TorchFunctionMode):
    """Tells a ledger what the code in a block writes.

    An in-place operation counts up the version of the tensor that it is called on. For a parameter itself and its
    views that is the parameter's own; ``p.data`` has another, so the arguments of every call are looked at. (A
    dispatch mode would see the operators themselves, but its first use imports 800 modules: most of a second.) Writes
    to ``.data`` that torch's Python functions do not see stay unseen: through numpy views, by ``apply_``, in scripted
    functions.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [(tensor, version_of(tensor)) for tensor in tensors_in((*args, *kwargs.values()))]
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # others may watch who asks for addresses
            for tensor, version in tensors:
                if version_of(tensor) != version:
                    self._ledger.touched_tensor(tensor)
        return result


class _Mark(NamedTuple):
    """By what it shows that a parameter was written, or has got other memory."""

    version: int
    storage: int
    """Its address, 0 where there is none to compare."""
    start: int
    """The address of the first byte."""
    end: int


def _mark_of(parameter: torch.Tensor) -> _Mark:
    return _Mark(version_of(parameter), *_memory_of(parameter))


def _memory_of(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Returns the addresses of a tensor's storage, of its first byte, and of the one behind its last.

    Zeros where it has no memory to compare (meta, uninitialized, wrappers).
    """
    try:
        if not (tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested):
            with torch._C.DisableTorchFunction():  # others may watch who asks for addresses
                if storage := tensor.untyped_storage().data_ptr():
                    return storage, *byte_span(tensor)
    except (RuntimeError, ValueError, NotImplementedError):
        pass
    return 0, 0, 0


def ledger_of(module: nn.Module) -> Ledger | None:
    """Returns the ledger attached to ``module``, None if there is none."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Ledger) else None


@contextmanager
def attached(ledger: Ledger, root: nn.Module) -> Iterator[None]:
    """Attaches a ledger to every module under ``root`` for the block; at its end the ledger is closed."""
    modules = list(root.modules())
    for module in modules:
        setattr(module, _ATTRIBUTE, ledger)
    try:
        yield
    finally:
        ledger.is_closed = True
        for module in {*modules, *root.modules()}:  # removed and added modules too
            vars(module).pop(_ATTRIBUTE, None)


def update_init_info(module: nn.Module, init_info: str) -> None:
    """Attributes all writes to parameters of ``module`` since the last attribution to ``init_info``.

    Call it in an ``init_weights`` to set the provenance that is logged. Follows ``mmengine.model.update_init_info``; in
    a tree that another library is initializing (see ``Host``) it updates that library's records.

    Raises:
        AssertionError: ``module`` is not being initialized, or has a parameter that was added since initialization
            began.
    """
    if (host := host_of(module)) is not None:
        host.wrote(module, init_info)
        return
    ledger = ledger_of(module)
    if ledger is None:
        raise InitAssertionError(f"Can not find `{_ATTRIBUTE}` in {module}")
    check_no_new_parameters(module, ledger)
    ledger.claim(module, init_info)


def check_no_new_parameters(module: nn.Module, known: Mapping[torch.Tensor, Any]) -> None:
    """Raises AssertionError if ``module`` has a parameter that was added since initialization began."""
    for name, parameter in module.named_parameters():
        if parameter not in known:
            raise InitAssertionError(
                f"Find a new :obj:`Parameter` named `{name}` during executing the `init_weights` of "
                f"`{type(module).__name__}`. Please do not add or replace parameters during executing the "
                f"`init_weights`. "
            )


def log_ledger(ledger: Ledger, names: Mapping[torch.Tensor, str]) -> None:
    """Logs one line for each parameter at INFO on the logger ``fastinit``, on rank 0 only.

    ``logging.getLogger("fastinit").setLevel("WARNING")`` silences it; a FileHandler writes it to a file.
    """
    if not logger.isEnabledFor(logging.INFO) or not is_rank_zero():
        return
    for parameter, name in names.items():
        if parameter in ledger:
            shape = "uninitialized" if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
            logger.info("%s - %s: %s", name, shape, ledger[parameter]["init_info"])

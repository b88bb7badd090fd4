"""The ledger: what wrote every parameter, known from what was written and not from reading parameters back.

fastinit enters its own fills and copies. For code that it cannot see into (a user's ``init_weights``, an initializer
with a ``__call__`` of its own) a sensor tells which memory is written, and the ledger attributes it to that code. Calls
that watch memory (``ByMemory``) are a sensor themselves; for all others there is ``FunctionSensor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .history import then
from .marks import Marks, memory_of
from .version_counters import tensors_in, version_of

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
        self._marks = Marks()
        self._is_watched = False
        """Other code has run: marks are kept."""
        self.protected: set[torch.Tensor] = set()
        """Parameters that keep their values whatever running code does to them; their versions may count up."""

    def __deepcopy__(self, memo: object) -> Ledger:
        copied = Ledger({}, "")  # the copy of a module is not being initialized
        copied.is_closed = True
        return copied

    def record(self, tensor: torch.Tensor, info: str, *, is_part: bool = False) -> None:
        """Notes that ``info`` wrote a tensor, or a part; one that is no parameter of the root is not tracked."""
        if tensor in self:
            before = self[tensor]["init_info"] if is_part and tensor in self.written else ""
            self[tensor]["init_info"] = then(before, info, is_part=is_part)
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
                    self._marks.renew(parameter)

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
                self._marks.renew(parameter)
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
            if parameter in self and parameter not in self.protected and self._marks.has_changed(parameter):
                self._settle(parameter)
                self._frames[-1].add(parameter)

    def claim(self, module: nn.Module, info: str) -> None:
        """Attributes to ``info`` what the running code has written so far in the parameters of ``module``."""
        if self._frames:
            for parameter in module.parameters():
                if (
                    parameter in self
                    and parameter not in self.protected
                    and (parameter in self._frames[-1] or self._marks.has_changed(parameter))
                ):
                    self.record(parameter, info)

    def touched(self, storage: int, start: int, end: int) -> None:
        """Notes that the running code wrote bytes: views, ``.data`` and fused memory share them with parameters.

        Args:
            storage: the address where the memory begins.
            start, end: the addresses of the first byte and of the one behind the last.
        """
        self._frames[-1].update(self._marks.meeting(storage, start, end))

    def touched_tensor(self, tensor: torch.Tensor) -> None:
        """As ``touched``."""
        if tensor in self._marks:
            self._frames[-1].add(tensor)
        storage, start, end = memory_of(tensor)
        if storage:
            self.touched(storage, start, end)

    def _settle(self, parameter: torch.Tensor) -> None:
        """Forgets the writes to ``parameter`` so far."""
        for frame in self._frames:
            frame.discard(parameter)
        self._marks.renew(parameter)


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

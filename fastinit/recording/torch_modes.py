"""The two modes of torch's by which a thread is watched: one sees every operator, one the functions that are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from ..execution.memory_book import MemoryBook
from ..execution.version_counters import tensors_in
from .callers import asking
from .compilers import NEEDS_IMPORT, import_before, not_traced, set_eval_frame
from .libraries import asks_to_leave_out, asks_to_skip
from .operators import NOT_HANDLED, Operators
from .raw import EXPOSE, READ
from .shortcuts import METHODS, is_ordinary_here


class Watching(Protocol):
    """The watch that a mode belongs to."""

    book: MemoryBook
    operators: Operators

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""

    @property
    def is_idle(self) -> bool:
        """Whether operators are to pass as they are: it is over, or they are fastinit's own."""

    def read_by(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs a function that reads memory unseen."""


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep torch.compile out of the method below, torch would import it first: a second, in each process. It is
        # kept out by the means that it has in torch._C.
        return False

    def __init__(self, watch: Watching) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    @not_traced
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        compiling = set_eval_frame(None)
        try:
            return self._run(func, types, args, kwargs or {})
        finally:
            set_eval_frame(compiling)

    def _run(self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        watch = self.watch
        if NEEDS_IMPORT:
            import_before(func, args, kwargs)
        if watch.is_idle:
            return func(*args, **kwargs)
        if not types:  # plain tensors only, as nearly always
            with torch._C.DisableTorchFunction():
                return watch.operators.run(func, tuple(args), kwargs)
        if any(kind.__name__ == "FakeTensor" for kind in types):
            return func(*args, **kwargs)  # there is no memory behind it
        with torch._C.DisableTorchFunction():
            if any(_is_wrapper(kind) for kind in types):
                result = watch.operators.run_sharded(func, tuple(args), kwargs)
                # It takes itself apart first, and what it is made of comes by here.
                return NotImplemented if result is NOT_HANDLED else result
            return watch.operators.run(func, tuple(args), kwargs)


def _is_wrapper(kind: type) -> bool:
    """Tells whether a kind of tensors has a dispatch of its own."""
    dispatch = getattr(kind, "__torch_dispatch__", None)
    return dispatch is not None and dispatch not in (torch.Tensor.__torch_dispatch__, nn.Parameter.__torch_dispatch__)


_n_dispatchers: Callable[[], int] = torch._C._len_torch_dispatch_stack
_WITHOUT_DISPATCH = torch._C._DisableTorchDispatch
_EMPTY = torch.empty


class Functions(TorchFunctionMode):
    """Sees the ways to a tensor's memory that are no operators."""

    def __init__(self, watch: Watching) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _EMPTY and _n_dispatchers() == 1:
            # To no fill it means anything, and half of a constructor's operators are this one.
            with _WITHOUT_DISPATCH():
                return func(*args, **kwargs) if kwargs else func(*args)
        instead = _INSTEAD.get(func)
        if instead is not None and not self.watch.is_idle:
            result = instead(self.watch, func, args, kwargs or {})
            if result is not NOT_HANDLED:
                return result
        return func(*args, **kwargs) if kwargs else func(*args)


# --- what is done instead of a function ------------------------------------------------------------------------------

_n_functions: Callable[[], int] = torch._C._len_torch_function_stack
_function_mode: Callable[[int], Any] = torch._C._get_function_stack_at
_dispatch_mode: Callable[[int], Any] = torch._C._get_dispatch_stack_at
# The other one is torch.device's, which means nothing to operators on tensors that are there.
_PASSING = (Functions, DeviceContext)


def straight_to() -> Operators | None:
    """Returns what operators of this thread come to; None where another mode or a transform of torch's is before it."""
    if _n_dispatchers() != 1:
        return None
    mode = _dispatch_mode(0)
    if type(mode) is not Dispatch or mode.watch.is_idle or not is_ordinary_here():
        return None
    return None if others_see_functions() else mode.watch.operators


def others_see_functions() -> bool:
    """Tells whether functions of this thread come to a mode of others."""
    n_functions = _n_functions()
    is_ours = n_functions == 1 and type(_function_mode(0)) is Functions  # as nearly always
    return not (is_ours or all(type(_function_mode(at)) in _PASSING for at in range(n_functions)))


def _read(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return watch.read_by(func, args, kwargs)


def _expose(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with watch.book.paused():
        for tensor in tensors_in(args):
            watch.operators.expose(tensor)
    return NOT_HANDLED


def _set_data(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    watch.book.generation += 1
    return NOT_HANDLED


def _is_meta(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return False if asks_to_skip(asking()) else NOT_HANDLED


# What it is told to a library that asks in order to leave something out on the meta device.
_SOME_DEVICE = torch.device("cpu")


def _device(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return _SOME_DEVICE if args[0].is_meta and asks_to_leave_out(asking()) else NOT_HANDLED


def _note(watch: Watching, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    operators = straight_to()
    return args[0] if operators is not None and METHODS[func](operators, *args, **kwargs) else NOT_HANDLED


Instead = Callable[[Watching, Any, Sequence[Any], Mapping[str, Any]], Any]
_INSTEAD: dict[Any, Instead] = {
    **dict.fromkeys(METHODS, _note),
    **dict.fromkeys(EXPOSE, _expose),
    **dict.fromkeys(READ, _read),
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.Tensor.is_meta.__get__: _is_meta,  # type: ignore[attr-defined]
    torch.Tensor.device.__get__: _device,  # type: ignore[attr-defined]
}

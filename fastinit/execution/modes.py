"""Torch's function and dispatch modes, entered so that an interrupt leaves none behind.

A signal's handler may raise anywhere, within ``__enter__`` and ``__exit__`` too. So what ends a block here is done by
name and not by position, and a second time if the first was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch as dispatch


@contextmanager
def entered(mode: Any) -> Iterator[None]:
    """Enters a mode for the block."""
    try:
        mode.__enter__()
        yield
    finally:
        try:
            leave(mode)
        finally:
            leave(mode)


def leave(mode: Any) -> None:
    """Leaves a mode, if it is entered; others that were entered since stay."""
    is_function = isinstance(mode, overrides.TorchFunctionMode)
    stack = _function_stack() if is_function else _dispatch_stack()
    if not any(each is mode for each in stack):
        return
    torchs: Any = overrides if is_function else dispatch
    above = [torchs._pop_mode() for _ in stack[[id(each) for each in stack].index(id(mode)) + 1 :]]
    try:
        mode.__exit__(None, None, None)
    except IndexError:  # of its own books, which an interrupt has left half done
        torchs._pop_mode()
    for each in reversed(above):
        torchs._push_mode(each)


def entered_modes() -> list[Any]:
    """Returns the modes that this thread has entered."""
    return _function_stack() + _dispatch_stack()


def _function_stack() -> list[Any]:
    return [torch._C._get_function_stack_at(at) for at in range(torch._C._len_torch_function_stack())]


def _dispatch_stack() -> list[Any]:
    return [torch._C._get_dispatch_stack_at(at) for at in range(torch._C._len_torch_dispatch_stack())]


def state_of_thread() -> Callable[[], None]:
    """Returns what gives this thread the state back that it has now: gradients, functions of subclasses."""
    with_gradients = torch.is_grad_enabled()
    restore_functions: Callable[[], object]
    if hasattr(torch._C, "_get_torch_function_state"):
        restore_functions = partial(torch._C._set_torch_function_state, torch._C._get_torch_function_state())  # type: ignore[attr-defined]
    else:  # torch before 2.5: each end of this brings back the state before its begin
        functions = torch._C.DisableTorchFunctionSubclass()
        functions.__enter__()
        restore_functions = partial(functions.__exit__, None, None, None)
        restore_functions()

    def restore() -> None:
        torch.set_grad_enabled(with_gradients)
        restore_functions()

    return restore

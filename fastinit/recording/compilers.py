"""torch.compile in a block that is recorded: it traces the user's code, and not the code that records."""

from __future__ import annotations

import _thread
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import CodeType
from typing import Any, TypeVar

import torch
from torch._C import _dynamo

from ..execution.version_counters import tensors_in

# Not imported from its module: before torch 2.6 that is none yet when only `import torch` has run.
set_eval_frame = _dynamo.eval_frame.set_eval_frame

Function = TypeVar("Function", bound=Callable[..., Any])
_waiting: list[CodeType] = []


def not_traced(function: Function) -> Function:
    """Keeps torch.compile out of a function itself; ``set_eval_frame(None)`` keeps it out of what that calls.

    The compiler is imported when somebody uses it, which takes a second: until then there is nothing to keep out.
    """
    _waiting.append(function.__code__)
    return function


def keep_out() -> None:
    """Keeps the compiler out of these functions, if it has been imported."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None:
        while _waiting:
            compiler.skip_code(_waiting.pop())


NEEDS_IMPORT = torch.__version__ < (2, 11)  # type: ignore[operator]
"""Whether torch may import the compiler in a mode and fail: 2.8 does, 2.11 does not."""
# Operators for which it imports nothing; with a tensor that has nothing but these it takes no second.
_NEED_NO_COMPILER = frozenset(
    ("empty", "empty_like", "empty_strided", "zeros", "ones", "full", "fill_", "zero_", "rand", "uniform_", "detach")
)


def import_before(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Imports the compiler before an operator on the meta device, for which torch may import it.

    Many are written in Python there. Where torch's functions are disabled, as in a mode, that import fails, and leaves
    the compiler half imported. So a thread does it, where they are not; it is none of ``threading``, whose threads are
    watched like the block that starts them.
    """
    if "torch._dynamo" in sys.modules or func.overloadpacket.__name__ in _NEED_NO_COMPILER:
        return
    device = kwargs.get("device")
    if not (torch.device(device).type == "meta" if device else any(each.is_meta for each in tensors_in(args))):
        return
    done = _thread.allocate_lock()

    def run() -> None:
        try:
            import_module("torch._dynamo")
        finally:
            done.release()

    done.acquire()
    _thread.start_new_thread(run, ())
    done.acquire()


def keeping_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a wrapper for ``torch.compile``, which imports the compiler."""

    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        keep_out()
        return result

    return compile

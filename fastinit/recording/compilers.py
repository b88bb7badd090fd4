"""torch.compile in a block that is recorded: it traces the user's code, and not the code that records."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from torch._C import _dynamo

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


def keeping_out(original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a wrapper for ``torch.compile``, which imports the compiler."""

    @functools.wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        keep_out()
        return result

    return compile

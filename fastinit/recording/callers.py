"""Who asked for what is running: the place in the user's code, or the frame."""

from __future__ import annotations

import sys
from functools import lru_cache
from types import CodeType, FrameType

_OWN_AND_TORCH = ("torch", "fastinit", "contextlib")
# Their functions only stand between torch's and those that say what is wanted.
_BETWEEN = ("transformers.initialization", "timm.layers.weight_init", "mmengine.model.weight_init")


def where() -> str:
    """Returns the place in the code that asked for what is running: the innermost that is neither torch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in _known_between and not _is_between(module):
            return _place_in(frame.f_code, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown place"


_known_between: set[str] = set()
"""Modules whose code was found to stand between: a constructor asks of ten frames a fill."""


def _is_between(module: str) -> bool:
    is_between = module.partition(".")[0] in _OWN_AND_TORCH or module in _BETWEEN
    if is_between:
        _known_between.add(module)
    return is_between


@lru_cache(maxsize=4096)  # the layers of a model are made by the same lines
def _place_in(code: CodeType, line: int) -> str:
    return f"{code.co_filename.rpartition('/')[2]}:{line} in {code.co_name}"


def asking() -> FrameType:
    """Returns the frame that asked for what a function mode is told of; what the mode calls first is to call this."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":  # those of other modes, such as torch.device
        frame = frame.f_back  # type: ignore[assignment]
    return frame

"""How much Python code does, counted: for tests of growth, which must not depend on a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fastinit

_PACKAGE = str(Path(fastinit.__file__).parent)


def n_steps(function: Callable[[], object]) -> int:
    """Returns how many instructions of fastinit's bytecode run in a call; loops in comprehensions count, too."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        if event == "call":
            if not frame.f_code.co_filename.startswith(_PACKAGE):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            steps += 1
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it when a trace function is set, at no other time
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return steps

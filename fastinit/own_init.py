"""Whether a model has init of its own that ``materialize`` does not run: methods for it, or lines in constructors."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from .config.trees import has_own_configs
from .execution.scope import Scope
from .recording.libraries import is_pretrained
from .slots import Slot

# Methods with which models initialize themselves; transformers' and mmengine's are run.
_METHODS = ("init_weights", "_init_weights", "initialize_weights", "weights_init")
# How code changes values: in place (`zeros_`, `uniform_`), or behind torch's back.
_CHANGES = re.compile(r"(?!_).*[a-z]_|data|set_value|no_grad")
# What models of transformers inherit: their constructors initialize through it, and `materialize` runs that.
_RUN = "transformers.modeling_utils"
# Constructors call functions that call functions; what lies deeper is seldom init.
_DEPTH = 4
# Of timm: networks that hold the layers of a model, but not the model, whose constructor initialized them.
_FEATURES = "timm.models._features"


def warn_of_own_init(model: nn.Module, rest: Sequence[Slot], scope: Scope, called: str = "materialize") -> None:
    """Warns where a model has code to initialize itself that nobody runs, and parameters that it might be for."""
    if not any(isinstance(slot.tensor, nn.Parameter) for slot in rest):
        return
    what = next(filter(None, (_own_init(module) for module in model.modules())), None)
    if what is not None:
        scope.warn_once(
            called,
            f"{what} is not run: parameters that no rule reaches get the values of their modules' reset_parameters. To "
            f"have those of the model's own constructor, make it under `fastinit.capture()` and give {called} the "
            f"recipe",
        )


def _own_init(module: nn.Module) -> str | None:
    """Returns what initializes a module, or modules within it, and is not run; None if nothing does."""
    if has_own_configs(module):
        return None
    if not is_pretrained(module):
        for name in _METHODS:
            if callable(getattr(module, name, None)):
                return f"`{name}` of {type(module).__name__}"
    if any(each.__module__ == _FEATURES for each in type(module).__mro__):
        return f"init of the model whose layers {type(module).__name__} holds"
    line = changing_line(type(module))  # type: ignore[arg-type]
    return None if line is None else f"init in the constructor of {type(module).__name__} ({line})"


@lru_cache(maxsize=4096)  # bounded: the cache keeps classes alive
def changing_line(kind: type[nn.Module]) -> str | None:
    """Returns where a class's constructor changes values, by the names that it uses; None if it seems not to.

    Its ``reset_parameters`` does not count, which is run, and neither does what torch's own classes do.
    """
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] == "torch" or each is object:
            continue
        constructor = vars(each).get("__init__")
        if isinstance(constructor, FunctionType):
            line = next(_changing_lines(constructor, kind, _DEPTH, set()), None)
            if line is not None:
                return line
    return None


def _changing_lines(function: FunctionType, kind: type, depth: int, seen: set[CodeType]) -> Iterator[str]:
    """Yields the lines of a function, and of those that it names, that change values."""
    for code in _codes(function.__code__):
        if code in seen:
            continue
        seen.add(code)
        line, lines = code.co_firstlineno, dict(dis.findlinestarts(code))
        for instruction in dis.get_instructions(code):
            line = lines.get(instruction.offset) or line
            name = instruction.argval
            is_index = instruction.opname == "STORE_SUBSCR" and {"weight", "bias"} & set(code.co_names)
            if is_index or (_names(instruction) and _CHANGES.fullmatch(name)):
                yield f"{code.co_filename.rpartition('/')[2]}:{line}"
            elif _names(instruction) and depth:
                called = _function(name, function, kind)
                if called is not None:
                    yield from _changing_lines(called, kind, depth - 1, seen)


def _names(instruction: dis.Instruction) -> bool:
    """Tells whether an instruction reads an attribute or a global name."""
    reads = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")
    return instruction.opname in reads and isinstance(instruction.argval, str)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yields a function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _function(name: str, function: FunctionType, kind: type) -> FunctionType | None:
    """Returns the function that a name in another function stands for: a global one, or a method of the class."""
    if name in ("reset_parameters", "forward"):
        return None
    found: Any = function.__globals__.get(name)
    if not isinstance(found, FunctionType):
        found = inspect.getattr_static(kind, name, None)
        found = found.__func__ if isinstance(found, (staticmethod, classmethod)) else found
    if not isinstance(found, FunctionType) or found.__module__ == _RUN:
        return None
    return None if found.__module__.partition(".")[0] in ("torch", "fastinit") else found

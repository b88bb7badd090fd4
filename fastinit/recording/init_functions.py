"""Functions of torch.nn.init that are more than one operator, each recorded as the one fill that it stands for.

``trunc_normal_`` draws again what falls out of bounds: no operator of it stands for all of it.

Operators do not show what ``orthogonal_`` is: a draw into a temporary, its QR decomposition and a copy, which differ by
release; ``dirac_`` and ``sparse_`` write element by element. The functions are not told to torch's function
modes, and look up no inner function when they are called (as ``trunc_normal_`` does). Code holds them under any name
(``from torch.nn.init import orthogonal_``, a partial, a table like that of transformers), so that another attribute of
the module would miss most calls. So while blocks are open the function objects themselves have other code, which asks
``watch`` and else runs torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

import torch

from ..config.schemes import truncated_normal
from ..execution.scope import Scope
from ..plans import Dirac, Distribution, Identity, Orthogonal, Sparse, TruncatedNormal
from ..shards.dtensor import is_sharded
from .operators import Operators

Number = Callable[[torch.Tensor], Any]


class Asked(NamedTuple):
    """What a call of such a function asks for."""

    tensor: Any
    make: Callable[..., Distribution]
    numbers: tuple[Any, ...]
    generator: Any

    def distribution(self, number: Number) -> Distribution:
        """Returns the distribution of the values.

        Args:
            number: returns the number that a tensor is known to be, None for any other.

        Raises:
            TypeError, ValueError, RuntimeError: there is none with these numbers.
        """
        return self.make(*(number(each) if isinstance(each, torch.Tensor) else each for each in self.numbers))


def _orthogonal(tensor: Any, gain: Any = 1, generator: Any = None) -> Asked:
    return Asked(tensor, Orthogonal, (gain, 0), generator)


def _eye(tensor: Any) -> Asked:
    return Asked(tensor, Identity, (), None)


def _dirac(tensor: Any, groups: Any = 1) -> Asked:
    return Asked(tensor, Dirac, (groups,), None)


def _sparse(tensor: Any, sparsity: Any, std: Any = 0.01, generator: Any = None) -> Asked:
    return Asked(tensor, Sparse, (sparsity, std), generator)


_ASKED: dict[str, Callable[..., Asked]] = {
    "orthogonal_": _orthogonal,
    "eye_": _eye,
    "dirac_": _dirac,
    "sparse_": _sparse,
}


def is_torchs(function: Any) -> TypeGuard[FunctionType]:
    """Tells whether a function is torch's own and not one that another library has put in its place."""
    return isinstance(function, FunctionType) and function.__globals__ is vars(torch.nn.init)


FUNCTIONS: dict[str, FunctionType] = {
    name: function for name in _ASKED if is_torchs(function := getattr(torch.nn.init, name))
}
"""The functions as all code holds them."""


def with_code(function: FunctionType, code: CodeType) -> FunctionType:
    """Returns a function that differs from another one in its code."""
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


ORIGINALS: dict[str, FunctionType] = {
    name: with_code(function, function.__code__) for name, function in FUNCTIONS.items()
}
"""What they do without a block, in functions of their own."""


def _template(*args: Any, **kwargs: Any) -> Any:
    import sys  # it runs with the globals of torch.nn.init

    return sys.modules["fastinit.recording.watch"].init_function("NAME", args, kwargs)


def code_for(name: str, original: CodeType) -> CodeType:
    """Returns the code that a function has while blocks are open, in the place of its own."""
    template = _template.__code__
    constants = tuple(name if each == "NAME" else each for each in template.co_consts)
    return template.replace(co_name=name, co_consts=constants)


# By the number of arguments.
_CALLING: dict[int, Callable[..., Any]] = {}


def _template_of(function: Callable[..., Any]) -> Callable[..., Any]:
    _CALLING[function.__code__.co_argcount] = function
    return function


@_template_of
def _calling_1(a: Any) -> Any:
    function: Any = "FUNCTION"
    return function(a)


@_template_of
def _calling_2(a: Any, b: Any) -> Any:
    function: Any = "FUNCTION"
    return function(a, b)


@_template_of
def _calling_3(a: Any, b: Any, c: Any) -> Any:
    function: Any = "FUNCTION"
    return function(a, b, c)


@_template_of
def _calling_4(a: Any, b: Any, c: Any, d: Any) -> Any:
    function: Any = "FUNCTION"
    return function(a, b, c, d)


@_template_of
def _calling_5(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    function: Any = "FUNCTION"
    return function(a, b, c, d, e)


def code_calling(function: Callable[..., Any], original: CodeType) -> CodeType:
    """Returns code, in the place of a function's own, that hands all its arguments to another function by position."""
    template = _CALLING[original.co_argcount].__code__
    constants = tuple(function if each == "FUNCTION" else each for each in template.co_consts)
    names = (*original.co_varnames[: original.co_argcount], "function")
    source = dict(co_filename=original.co_filename, co_firstlineno=original.co_firstlineno)  # torch.jit looks it up
    return template.replace(co_name=original.co_name, co_consts=constants, co_varnames=names, **source)  # type: ignore[arg-type]


class InitFunctions:
    """Notes what such functions ask for, in one outermost call."""

    def __init__(self, operators: Operators, scope: Callable[[], Scope]) -> None:
        self._operators = operators
        self._book = operators.book
        self._scope = scope

    def truncated_normal(self, original: Callable[..., torch.Tensor], tensor: torch.Tensor, *numbers: float) -> bool:
        """Notes a truncated normal; returns False where torch's function is to run as it is."""
        waits = self._scope().effective.backends.is_contract(tensor.device)
        distribution = truncated_normal if waits else TruncatedNormal  # the former warns, as torch's function does
        return self._noted(tensor, lambda: distribution(*numbers), "trunc_normal_", lambda: original(tensor, *numbers))

    def matrix(self, name: str, asked: Asked, now: Callable[[], object]) -> bool:
        """Notes the values of another function; returns False where torch's is to run as it is."""
        tensor = asked.tensor
        if asked.generator is not None or not isinstance(tensor, torch.Tensor) or type(tensor).__name__ == "FakeTensor":
            return False
        if is_sharded(tensor) and not self._is_named(tensor):
            return False

        def draw() -> None:
            with torch._C._EnableTorchFunction():  # torch's code asks for the default device
                now()

        return self._noted(tensor, lambda: asked.distribution(self._operators.scalars.number), name, draw)

    def _is_named(self, tensor: torch.Tensor) -> bool:
        """Tells whether a distributed tensor is a parameter or buffer: of a view of one it is not known what it is."""
        with self._book.paused():
            if (place := self._book.place_of(tensor)) is None:
                return False
            owner = self._operators.pending.owner_of(place, self._scope().effective)
        return owner is not None and owner.tensor.shape == tensor.shape and owner.place.geometry == place.geometry

    def _noted(
        self, tensor: torch.Tensor, distribution: Callable[[], Distribution], name: str, now: Callable[[], object]
    ) -> bool:
        """Notes a fill, which waits or is done ``now``; returns whether it could."""
        scope = self._scope().effective

        def draw() -> None:
            with self._drawing(scope, tensor.device):
                now()

        with self._book.paused(), torch.no_grad():
            noted = self._operators.fill(tensor, distribution, name, draw)
            if noted and scope.backends.is_contract(tensor.device):
                torch.autograd.graph.increment_version(tensor)
        return noted

    def _drawing(self, scope: Scope, device: torch.device) -> AbstractContextManager[None]:
        """Returns a context in which torch's functions draw with the generators of a call."""
        generators = None if self._operators.seeding.is_own else scope.seed.generators
        return nullcontext() if generators is None else generators.next_draw(device)


def truncated_normals(
    recording: Callable[[], InitFunctions | None], original: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    """Returns what stands in for ``torch.nn.init._no_grad_trunc_normal_`` while blocks are open.

    Args:
        recording: returns what notes the calls of the code that runs, None where it is not recorded.
        original: torch's.
    """

    @functools.wraps(original)
    def function(
        tensor: torch.Tensor, mean: float, std: float, a: float, b: float, generator: Any = None, **others: Any
    ) -> torch.Tensor:
        notes = recording() if generator is None and not others else None
        if notes is not None and notes.truncated_normal(original, tensor, mean, std, a, b):
            return tensor
        if generator is not None:
            others["generator"] = generator  # an argument since torch 2.2
        return original(tensor, mean, std, a, b, **others)

    return function


def run_init_function(
    notes: InitFunctions | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """Does what a function of ``FUNCTIONS`` is to do: at once, or later.

    Args:
        notes: of the code that has called it, None where that is not recorded.
        name: the function's.
        args, kwargs: its arguments.
    """
    original = ORIGINALS[name]
    if notes is not None:
        try:
            asked = _ASKED[name](*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)  # type: ignore[no-any-return]  # which says what is wrong
        if notes.matrix(name, asked, lambda: original(*args, **kwargs)):
            return asked.tensor  # type: ignore[no-any-return]
    return original(*args, **kwargs)  # type: ignore[no-any-return]

"""Arithmetic as text, such as ``0.02 / sqrt(2 * (i + 1))``: a small closed grammar, its parser and its evaluation.

Nothing of Python is reachable from a text: it has numbers, names, ``shape[k]``, operators and a list of
functions. Length and depth are bounded, all numbers are float64, and evaluation is a loop over a flat list, so that no
text takes noticeable time or memory. The operators, ``sqrt``, ``floor`` and ``ceil`` are exact or rounded correctly by
IEEE 754; the others come from ``reproducible_math``. So a text gives the same bits on every platform.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Union

from . import reproducible_math

LONGEST_TEXT = 400
DEEPEST_NESTING = 32
SHAPE = "shape"


class ExpressionError(Exception):
    """What is wrong with a text, and where; ``number_texts`` turns it into the error that users see."""

    def __init__(self, problem: str, position: int = 0, is_value: bool = False, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        """The end of the problem: what to write instead."""
        self.position = position
        self.is_value = is_value
        """Whether the text is sound, but has no value here."""


class _Function(NamedTuple):
    call: Callable[..., float]
    fewest: int
    most: float
    accepts: Callable[[float], bool] | None = None
    """Tells whether an argument has a value; None: every one has."""
    accepted: str = ""


FUNCTIONS = {
    "sqrt": _Function(math.sqrt, 1, 1, lambda x: x >= 0, "0 or more"),
    "exp": _Function(reproducible_math.exp, 1, 1),
    "log": _Function(reproducible_math.log, 1, 1, lambda x: x > 0, "more than 0"),
    "min": _Function(min, 2, math.inf),
    "max": _Function(max, 2, math.inf),
    "abs": _Function(abs, 1, 1),
    "floor": _Function(lambda x: float(math.floor(x)), 1, 1),
    "ceil": _Function(lambda x: float(math.ceil(x)), 1, 1),
}

_OPERATORS: dict[str, tuple[int, Callable[[float, float], float]]] = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, operator.truediv),
    "//": (2, operator.floordiv),
    "%": (2, operator.mod),
    "**": (4, reproducible_math.power),
}
_SIGNS_BIND = 3  # tighter than a product, looser than a power: -2**2 is -4, as in Python


class _Push(NamedTuple):
    """Puts a number on the stack."""

    position: int
    number: float


class _Look(NamedTuple):
    """Puts the value of a name, or of ``shape[dimension]``, on the stack."""

    position: int
    name: str
    dimension: int | None = None


class _Negate(NamedTuple):
    position: int


class _Operate(NamedTuple):
    position: int
    symbol: str


class _Call(NamedTuple):
    position: int
    name: str
    n_arguments: int


_Step = Union[_Push, _Look, _Negate, _Operate, _Call]


class Expression(NamedTuple):
    """A parsed text: the steps of a stack machine."""

    text: str
    steps: tuple[_Step, ...]

    @property
    def looks(self) -> tuple[tuple[str, int | None], ...]:
        """The names whose values it needs, each once; an index with ``shape``, else None."""
        return tuple(dict.fromkeys((step.name, step.dimension) for step in self.steps if isinstance(step, _Look)))

    @property
    def is_plain_number(self) -> bool:
        """Whether it is a number and no arithmetic."""
        return all(isinstance(step, (_Push, _Negate)) for step in self.steps)

    def value(self, value_of: Callable[[str, int | None], float]) -> float:
        """Returns the value, a finite float64.

        Args:
            value_of: returns the value of a name (and of an index, for ``shape``), or raises an ExpressionError, whose
                position is set here.

        Raises:
            ExpressionError: there is no value.
        """
        stack: list[float] = []
        for step in self.steps:
            if isinstance(step, _Push):
                stack.append(step.number)
            elif isinstance(step, _Look):
                stack.append(_looked_up(step, value_of))
            elif isinstance(step, _Negate):
                stack.append(-stack.pop())
            elif isinstance(step, _Operate):
                right = stack.pop()
                stack.append(_operated(step, stack.pop(), right))
            else:
                arguments = stack[-step.n_arguments :]
                del stack[-step.n_arguments :]
                stack.append(_called(step, arguments))
        return stack.pop()


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Returns a text's expression.

    Raises:
        ExpressionError: the text is not in the grammar.
    """
    return _Parser(text).parsed()


# --- parsing ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""\s*(?: (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
             | (?P<name>[^\W\d]\w*)
             | (?P<sign>\*\*|//|[-+*/%()\[\],]) )""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    """``number``, ``name``, ``sign`` or ``end``."""
    text: str
    position: int

    @property
    def shown(self) -> str:
        return "the text ends" if self.kind == "end" else f"got {self.text!r}"


class _Parser:
    """Parses by operator precedence; emits steps in the order in which they run."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST_TEXT:
            raise ExpressionError(f"it has {len(text):,} characters, and {LONGEST_TEXT} is the most", LONGEST_TEXT)
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.steps: list[_Step] = []

    def parsed(self) -> Expression:
        self._expression(0)
        if self._next.kind != "end":
            raise ExpressionError(f"expected an operator, but {self._next.shown}", self._next.position)
        return Expression(self.text, tuple(self.steps))

    @property
    def _next(self) -> _Token:
        return self.tokens[self.at]

    def _taken(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def _expect(self, sign: str, where: str) -> None:
        if self._next.text != sign:
            raise ExpressionError(f"expected {sign!r} {where}, but {self._next.shown}", self._next.position)
        self.at += 1

    def _expression(self, loosest: int) -> None:
        """Parses an operand and the operators behind it that bind at least as tightly as ``loosest``."""
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            raise ExpressionError(f"it is nested more than {DEEPEST_NESTING} deep", self._next.position)
        self._operand()
        while self._next.text in _OPERATORS and _OPERATORS[self._next.text][0] >= loosest:
            token = self._taken()
            binds = _OPERATORS[token.text][0]
            self._expression(binds if token.text == "**" else binds + 1)
            self.steps.append(_Operate(token.position, token.text))
        self.depth -= 1

    def _operand(self) -> None:
        token = self._taken()
        if token.kind == "number":
            self.steps.append(_Push(token.position, _number(token)))
        elif token.kind == "name":
            self._name(token)
        elif token.text in ("-", "+"):
            self._expression(_SIGNS_BIND)
            if token.text == "-":
                self.steps.append(_Negate(token.position))
        elif token.text == "(":
            self._expression(0)
            self._expect(")", "or an operator")
        else:
            raise ExpressionError(f"expected a number, a name or '(', but {token.shown}", token.position)

    def _name(self, token: _Token) -> None:
        if self._next.text == "(":
            self._call(token)
        elif token.text in FUNCTIONS:
            raise ExpressionError(f"{token.text} is a function: write {token.text}(...)", token.position)
        elif token.text == SHAPE:
            self._expect("[", "and the number of a dimension")
            self.steps.append(_Look(token.position, SHAPE, self._dimension()))
        else:
            self.steps.append(_Look(token.position, token.text))

    def _dimension(self) -> int:
        is_negative = self._next.text == "-"
        token = self._taken() if not is_negative else self.tokens[self.at + 1]
        self.at += is_negative * 2
        if not token.text.isdecimal() or len(token.text) > 3:
            raise ExpressionError(f"expected the number of a dimension, but {token.shown}", token.position)
        self._expect("]", "behind the dimension")
        return -int(token.text) if is_negative else int(token.text)

    def _call(self, token: _Token) -> None:
        if token.text not in FUNCTIONS:
            known = ", ".join(FUNCTIONS)
            hint = f"The functions are {known}"
            raise ExpressionError(f"unknown function {_short(token.text)}. {hint}", token.position, hint=hint)
        function = FUNCTIONS[token.text]
        self._expect("(", "")
        n_arguments = 0
        while True:
            self._expression(0)
            n_arguments += 1
            if self._next.text != ",":
                break
            self.at += 1
        self._expect(")", "or an operator")
        if not function.fewest <= n_arguments <= function.most:
            wanted = "one argument" if function.most == 1 else "two arguments or more"
            raise ExpressionError(f"{token.text} takes {wanted}, but got {n_arguments}", token.position)
        self.steps.append(_Call(token.position, token.text, n_arguments))


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    end = 0
    while text[end:].strip():
        match = _TOKEN.match(text, end)
        if match is None:
            position = end + len(text[end:]) - len(text[end:].lstrip())
            raise ExpressionError(f"{text[position]!r} has no meaning here", position)
        kind = str(match.lastgroup)
        found.append(_Token(kind, match.group(kind), match.start(kind)))
        end = match.end()
    return [*found, _Token("end", "", len(text.rstrip()))]


def _number(token: _Token) -> float:
    number = float(token.text)
    if math.isinf(number):
        raise ExpressionError("the number is too large for a float64", token.position)
    return number


# --- evaluation ------------------------------------------------------------------------------------------------------


def _looked_up(step: _Look, value_of: Callable[[str, int | None], float]) -> float:
    try:
        return value_of(step.name, step.dimension)
    except ExpressionError as fault:
        raise ExpressionError(fault.problem, step.position, fault.is_value, fault.hint) from None


def _operated(step: _Operate, left: float, right: float) -> float:
    try:
        return _finite(_OPERATORS[step.symbol][1](left, right), step.position)
    except ZeroDivisionError:
        what = "a negative power of 0" if step.symbol == "**" else "division by 0"
        raise ExpressionError(what, step.position, True) from None
    except OverflowError:
        raise _too_large(step.position) from None
    except ValueError:
        problem = f"the negative number {left:.6g} has no real power {right:.6g}"
        raise ExpressionError(problem, step.position, True) from None


def _called(step: _Call, arguments: list[float]) -> float:
    function = FUNCTIONS[step.name]
    if function.accepts is not None and not function.accepts(arguments[0]):
        problem = f"the argument of {step.name} must be {function.accepted}, but it is {arguments[0]:.6g}"
        raise ExpressionError(problem, step.position, True)
    try:
        return _finite(function.call(*arguments), step.position)
    except OverflowError:
        raise _too_large(step.position) from None


def _finite(value: float, position: int) -> float:
    if not math.isfinite(value):
        raise _too_large(position)
    return value


def _too_large(position: int) -> ExpressionError:
    return ExpressionError("the result is too large for a float64", position, True)


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")

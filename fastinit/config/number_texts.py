"""Numbers that a config gives as text: which arguments may be such texts, and their values at a parameter.

Every argument of an initializer class that is annotated ``float``, and kept as an attribute of its name, may be
arithmetic over the names that exist at a parameter: ``vars``, the facts of its shape, and the groups that a ``re:``
pattern of ``param`` captured.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property, lru_cache, partial
from typing import Any, NamedTuple

from ..errors import Error, InitTypeError, InitValueError, locating
from ..plans import Constant, Distribution, real_number
from .expressions import FUNCTIONS, SHAPE, Expression, ExpressionError, parse
from .matching import Captured
from .module_fills import Shape

Fans = Callable[[Shape], tuple[int, int]]

_CONSTANTS = {"pi": math.pi, "e": math.e}
_FACTS = ("fan_in", "fan_out", "ndim", "n_elements")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 40
_MOST_SHOWN = 80


def expressions_of(arguments: Mapping[str, Any]) -> dict[str, Expression]:
    """Returns the expressions of those arguments that are texts.

    Raises:
        TypeError: a text is not in the grammar; the message points to the place.
    """
    return {name: _expression(name, value) for name, value in arguments.items() if isinstance(value, str)}


def values_at(place: Place, expressions: Mapping[str, Expression]) -> dict[str, float]:
    """Returns the values of expressions at a parameter.

    Raises:
        TypeError: an expression uses a name that does not exist there.
        ValueError: it has no finite value there.
    """
    values = {}
    for argument, each in expressions.items():
        try:
            values[argument] = each.value(place.value)
        except ExpressionError as fault:
            raise _error(argument, each.text, fault, _shown_values(each, place) if fault.is_value else "") from None
    return values


def check_bias(bias: object) -> None:
    """Raises TypeError unless ``bias`` is a number, or arithmetic as text.

    A text that is only a number is refused, as in mmengine.
    """
    if isinstance(bias, (int, float)):
        return
    if not isinstance(bias, str) or _expression("bias", bias).is_plain_number:
        hint = f"; write {bias.strip()} without quotes" if isinstance(bias, str) else ""
        raise InitTypeError(f"bias must be a number, but got a {type(bias)}", hint=hint)


def checked_variables(variables: Any) -> dict[str, float]:
    """Returns the argument ``vars`` as a dict of finite floats.

    Raises:
        TypeError: it is no dict of names and numbers.
        ValueError: a name is reserved, or a number is not finite.
    """
    if not isinstance(variables, Mapping):
        raise InitTypeError(f"vars must be a dict of names and numbers, but got {variables!r} of {type(variables)}")
    found = {}
    for name, value in variables.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InitTypeError(f"the keys of vars must be names, but it has {name!r}")
        if name in (*_FACTS, SHAPE, *_CONSTANTS, *FUNCTIONS):
            raise InitValueError(f"vars can not define {name!r}, which has a meaning of its own in expressions")
        found[name] = real_number(f"vars[{name!r}]", value)
        if not math.isfinite(found[name]):
            raise InitValueError(f"vars[{name!r}] must be finite, but got {value}")
    return found


class Place(NamedTuple):
    """A parameter, as expressions see it."""

    shape: Shape
    fans: Fans
    captured: Captured = ()
    variables: Mapping[str, float] = {}

    def value(self, name: str, index: int | None) -> float:
        """Returns the value of a name, or of ``shape[index]``.

        Raises:
            ExpressionError: there is none; its position is not set.
        """
        captured = dict(self.captured)
        has_meaning = name in (*_FACTS, SHAPE, *_CONSTANTS)
        if name in captured:
            if has_meaning or name in self.variables:
                raise ExpressionError(
                    f"{name!r} is a group of the pattern and has another meaning, too: rename the group"
                )
            return _captured_number(name, captured[name])
        if name in self.variables:
            return self.variables[name]
        if not has_meaning:
            hint = f"Names here: {self._names()}. In a rule, vars=dict({name}=...) gives it a value"
            raise ExpressionError(f"unknown name {name!r}. {hint}", hint=hint)
        return _CONSTANTS[name] if name in _CONSTANTS else self._fact(name, index)

    def _fact(self, name: str, index: int | None) -> float:
        if index is not None:
            if not -len(self.shape) <= index < len(self.shape):
                raise ExpressionError(f"shape[{index}] does not exist, as the shape is {self.shape}", is_value=True)
            return float(self.shape[index])
        if name == "ndim":
            return float(len(self.shape))
        if name == "n_elements":
            return float(math.prod(self.shape))
        if len(self.shape) < 2:
            raise ExpressionError(f"{name} needs two dimensions or more, but the shape is {self.shape}", is_value=True)
        try:
            return float(self.fans(self.shape)[name == "fan_out"])
        except ValueError as error:
            raise ExpressionError(str(error), is_value=True) from None

    def _names(self) -> str:
        names = (*(name for name, _ in self.captured), *self.variables, *_FACTS, "shape[k]", *_CONSTANTS)
        hint = "" if self.captured else r". A pattern such as param='re:layers\.(?P<i>\d+)\..*' adds its groups"
        return _cut(", ".join(names), 300) + hint


class NumberTexts:
    """An initializer's numbers that are texts, and its distributions at a parameter, by their values there.

    Args:
        initializer: a ``BaseInit``.
        fans: returns fan_in and fan_out of a shape.

    Raises:
        TypeError: a text is not in the grammar; the message begins with the initializer's class.
    """

    def __init__(self, initializer: Any, fans: Fans) -> None:
        self._initializer = initializer
        self._fans = fans
        kind: Any = type(initializer)
        arguments = {name: getattr(initializer, name, None) for name in _number_arguments(kind)}
        with locating(kind.__name__, is_place=False):
            texts = expressions_of(arguments)
        self._bias = {"bias": texts.pop("bias")} if "bias" in texts else {}
        self._texts = texts
        self._found: dict[tuple[Captured, Shape, Shape], Distribution] = {}  # many weights have the same shape
        self._found_biases: dict[Shape, Distribution] = {}
        self._of_shape = cache(initializer.weight_distribution)

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Prefixes errors in the block with the initializer's class, if there are texts, and tells of unused ones."""
        if self._texts or self._bias:
            with locating(type(self._initializer).__name__, is_place=False):
                yield
            return
        try:
            yield
        except (TypeError, ValueError) as error:
            left = _unannotated_texts(self._initializer)
            if not left or (isinstance(error, Error) and error.hint):
                raise
            name, text = left[0]
            raise InitTypeError(
                f"{error}",
                hint=f". {name}={_cut(text, _MOST_SHOWN)!r} is no number to {type(self._initializer).__name__}: an "
                f"argument takes expressions where it is annotated, `{name}: float`, and kept as self.{name}",
                of=error,
            ) from error

    def at(self, captured: Captured = (), fan_shape: Shape | None = None) -> Callable[[Shape], Distribution]:
        """Returns the function from a weight's shape to its distribution.

        It raises TypeError where an expression uses a name that does not exist there, and ValueError where it has no
        finite value.

        Args:
            captured: the groups that expressions may use.
            fan_shape: the shape that has the weight's fans, if it is another.
        """
        if not self._texts and fan_shape is None:
            return self._of_shape  # which nearly all weights of a model are asked for
        return partial(self._found_weight, captured, fan_shape)

    @cached_property
    def _plain_bias(self) -> Distribution:
        return Constant(self._initializer.bias)

    def bias_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of a bias, a constant; raises as that of a weight does."""
        if not self._bias:
            return self._plain_bias
        if shape not in self._found_biases:
            self._found_biases[shape] = Constant(self._values(self._bias, (), shape, shape)["bias"])
        return self._found_biases[shape]

    def _found_weight(self, captured: Captured, fan_shape: Shape | None, shape: Shape) -> Distribution:
        key = captured, fan_shape or shape, shape
        if key not in self._found:
            self._found[key] = self._weight_distribution(*key)
        return self._found[key]

    def _weight_distribution(self, captured: Captured, fan_shape: Shape, shape: Shape) -> Distribution:
        initializer = self._initializer
        if not self._texts:
            return initializer.weight_distribution(fan_shape)  # type: ignore[no-any-return]
        values = self._values(self._texts, captured, fan_shape, shape)
        here = copy.copy(initializer)
        here.__dict__.update(values)
        try:
            return here.weight_distribution(fan_shape)  # type: ignore[no-any-return]
        except Exception:
            numbers = ", ".join(f"{name}={self._texts[name].text!r} is {values[name]:.6g}" for name in values)
            with locating(numbers, is_place=False):
                raise

    def _values(
        self, texts: dict[str, Expression], captured: Captured, fan_shape: Shape, shape: Shape
    ) -> dict[str, float]:
        fans = self._fans if fan_shape == shape else lambda _: self._fans(fan_shape)
        return values_at(Place(shape, fans, captured, self._initializer.vars), texts)


@lru_cache(maxsize=4096)  # bounded: the cache keeps classes alive, and some are made at run time
def _number_arguments(kind: Any) -> tuple[str, ...]:
    """Returns the names of a class's arguments that are annotated ``float``, with those of its bases."""
    names: dict[str, None] = {}
    for each in kind.__mro__:
        if each is not object and "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
            names.update(dict.fromkeys(p.name for p in parameters if _takes_float(p.annotation)))
    return tuple(names)


def _unannotated_texts(initializer: Any) -> list[tuple[str, str]]:
    """Returns names and texts of arguments without an annotation that hold what could be meant as an expression."""
    found: dict[str, str] = {}
    for each in type(initializer).__mro__:
        if each is not object and "__init__" in vars(each):
            for parameter in inspect.signature(vars(each)["__init__"]).parameters.values():
                value = vars(initializer).get(parameter.name)
                if parameter.annotation is parameter.empty and isinstance(value, str) and _is_expression(value):
                    found.setdefault(parameter.name, value)
    return list(found.items())


def _is_expression(text: str) -> bool:
    """Tells whether a text is arithmetic, and neither a number nor a word, which may be the name of a mode."""
    if text.isidentifier():
        return False
    try:
        return not parse(text).is_plain_number
    except ExpressionError:
        return False


def _takes_float(annotation: object) -> bool:
    """Tells whether an annotation, or one of its alternatives (``float | str``), is ``float``."""
    return annotation is float or "float" in str(annotation).replace(" ", "").split("|")


def _expression(argument: str, text: str) -> Expression:
    try:
        return parse(text)
    except ExpressionError as fault:
        raise _error(argument, text, fault) from None


def _captured_number(name: str, text: str | None) -> float:
    if text is None:
        raise ExpressionError(f"the group {name!r} took no part in the match", is_value=True)
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text) or math.isinf(float(text)):
        raise ExpressionError(
            f"the group {name!r} captured {_cut(text, _LONGEST_NUMBER)!r}, which is no number", is_value=True
        )
    return float(text)


# --- messages --------------------------------------------------------------------------------------------------------


def _error(argument: str, text: str, fault: ExpressionError, values: str = "") -> Exception:
    """Returns the error for a fault: what was expected and given, the problem, and a line that points to it."""
    start = max(0, fault.position - _MOST_SHOWN // 2) if len(text) > _MOST_SHOWN else 0
    line = "".join(
        " " if each.isspace() else each if each.isprintable() else "?" for each in text[start:][:_MOST_SHOWN]
    )
    message = (
        f"{argument} must be a number, but got {_cut(text, _MOST_SHOWN)!r}: {fault.problem}{values}\n"
        f"    {line}\n"
        f"    {' ' * (fault.position - start)}^"
    )
    error = InitValueError(message) if fault.is_value else InitTypeError(message)
    error.hint = fault.hint or None  # in the midst of the message
    return error


def _shown_values(expression: Expression, place: Place) -> str:
    """Returns e.g. " (i = 0, fan_in = 64)", the values of the names that an expression uses."""
    shown = []
    for name, index in expression.looks:
        try:
            value = place.value(name, index)
        except ExpressionError:
            continue
        shown.append(f"{name if index is None else f'{name}[{index}]'} = {value:.6g}")
    return f" ({', '.join(shown)})" if shown else ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."

"""Arithmetic as text: the grammar and its values, by themselves. (In configs: test_number_texts.py.)"""

from __future__ import annotations

import contextlib
import math
import random
import string
import tracemalloc
from fractions import Fraction

import pytest

from fastinit.config import expressions, reproducible_math
from fastinit.config.expressions import ExpressionError, parse

NAMES = {"i": 3.0, "fan_in": 64.0, "half": 0.5, "zero": 0.0}
SHAPE = (8.0, 4.0, 2.0)


def value_of(name: str, index: int | None) -> float:
    if name == "shape" and index is not None and -3 <= index < 3:
        return SHAPE[index]
    if name not in NAMES:
        raise ExpressionError(f"unknown name {name!r}")
    return NAMES[name]


def value(text: str) -> float:
    return parse(text).value(value_of)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        ("  1.5e-3 ", 1.5e-3),
        (".5", 0.5),
        ("2.", 2.0),
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("2 - 3 - 4", -5.0),
        ("16 / 4 / 2", 2.0),
        ("7 // 2 % 2", 1.0),
        ("-7 % 4", 1.0),
        ("-7 // 2", -4.0),
        ("2 ** 3 ** 2", 512.0),
        ("-2 ** 2", -4.0),
        ("2 ** -1", 0.5),
        ("2 ** -1 * 8", 4.0),
        ("2 ** -1 ** 2", 0.5),
        ("--1 + +1", 2.0),
        ("3 * -2", -6.0),
        ("i * half", 1.5),
        ("shape[0] + shape[-1]", 10.0),
        ("shape[ - 1 ]", 2.0),
        ("sqrt(fan_in)", 8.0),
        ("min(3, i, 7 - 5)", 2.0),
        ("max(-1, zero)", 0.0),
        ("abs(-2) + floor(1.7) + ceil(1.2)", 5.0),
        ("0.02 /\n  sqrt(2 * (i + 1))", 0.02 / math.sqrt(8)),
        ("exp(log(2))", math.exp(math.log(2))),
        ("floor(1.7)", 1.0),
        ("0 ** 0", 1.0),
        ("(-2) ** 3", -8.0),
        ("1e-300 ** 2", 0.0),
        ("exp(-1e300)", 0.0),
        ("1e300 // 1e-5", 1e300 // 1e-5),
    ],
)
def test_the_value_is_pythons(text: str, expected: float) -> None:
    found = value(text)
    assert found == expected and type(found) is float


def random_text(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(["i", "fan_in", "half", "shape[1]", "2.0", "0.75", ".5", "3e-1", "shape[-1]"])
    inner = [random_text(rng, depth - 1) for _ in range(2)]
    kind = rng.randrange(6)
    if kind == 0:
        return f"({inner[0]})"
    if kind == 1:
        return rng.choice("+-") + inner[0]
    if kind == 2:
        return f"{rng.choice(['sqrt', 'exp', 'log', 'abs', 'floor', 'ceil'])}({inner[0]})"
    if kind == 3:
        return f"{rng.choice(['min', 'max'])}({inner[0]}, {inner[1]})"
    blank = rng.choice(["", " "])
    return f"{inner[0]}{blank}{rng.choice(['+', '-', '*', '/', '//', '%', '**'])}{blank}{inner[1]}"


def pythons_value(text: str) -> float | None:
    """Returns Python's own value of a text that the test made; None if it has none that is finite and real."""
    functions = dict(sqrt=math.sqrt, exp=math.exp, log=math.log, min=min, max=max, abs=abs)
    functions |= dict(floor=lambda x: float(math.floor(x)), ceil=lambda x: float(math.ceil(x)))
    try:
        found = eval(text, {"__builtins__": {}}, {**functions, **NAMES, "shape": SHAPE})
    except (ArithmeticError, ValueError, TypeError):  # TypeError: complex numbers have no order
        return None
    return found if not isinstance(found, complex) and math.isfinite(found) else None


def test_random_expressions_have_pythons_values() -> None:
    rng, n_equal, n_close = random.Random(5), 0, 0
    for _ in range(6000):
        text = random_text(rng, 4)
        expected = pythons_value(text) if len(text) <= expressions.LONGEST_TEXT else None
        if expected is None:
            continue
        if not any(each in text for each in ("exp", "log", "**")):
            assert value(text) == expected, text
            n_equal += 1
        elif not any(each in text for each in ("%", "//", "floor", "ceil")) and "**" not in text:
            assert value(text) == pytest.approx(expected, rel=1e-9, abs=1e-9), text
            n_close += 1
    assert n_equal > 1000 and n_close > 300


def test_a_text_without_pythons_value_has_none() -> None:
    rng, n_refused = random.Random(6), 0
    for _ in range(6000):
        text = random_text(rng, 3)
        if len(text) > expressions.LONGEST_TEXT or pythons_value(text) is not None:
            continue
        with pytest.raises(ExpressionError) as raised:
            value(text)
        assert raised.value.is_value, text
        n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    ("text", "problem", "position"),
    [
        ("", "expected a number, a name or '(', but the text ends", 0),
        ("   ", "expected a number, a name or '(', but the text ends", 0),
        ("1 +", "expected a number, a name or '(', but the text ends", 3),
        ("1 + * 2", "expected a number, a name or '(', but got '*'", 4),
        ("(1 + 2", "expected ')' or an operator, but the text ends", 6),
        ("1 + 2)", "expected an operator, but got ')'", 5),
        ("2 i", "expected an operator, but got 'i'", 2),
        ("2i", "expected an operator, but got 'i'", 1),
        ("1_000", "expected an operator, but got '_000'", 1),
        ("0x10", "expected an operator, but got 'x10'", 1),
        ("1, 2", "expected an operator, but got ','", 1),
        ("1 < 2", "'<' has no meaning here", 2),
        ("i.real", "'.' has no meaning here", 1),
        ("'a'", '"\'" has no meaning here', 0),
        ("1; 2", "';' has no meaning here", 1),
        ("a = 1", "'=' has no meaning here", 2),
        ("i if i else 2", "expected an operator, but got 'if'", 2),
        ("lambda: 1", "':' has no meaning here", 6),
        ("[1, 2]", "expected a number, a name or '(', but got '['", 0),
        ("i[0]", "expected an operator, but got '['", 1),
        ("shape", "expected '[' and the number of a dimension, but the text ends", 5),
        ("shape[i]", "expected the number of a dimension, but got 'i'", 6),
        ("shape[1.0]", "expected the number of a dimension, but got '1.0'", 6),
        ("shape[1000]", "expected the number of a dimension, but got '1000'", 6),
        ("shape[", "expected the number of a dimension, but the text ends", 6),
        ("shape[-", "expected the number of a dimension, but the text ends", 7),
        ("shape[0", "expected ']' behind the dimension, but the text ends", 7),
        ("sqrt", "sqrt is a function: write sqrt(...)", 0),
        ("sqrt()", "expected a number, a name or '(', but got ')'", 5),
        ("1 + sqrt(1, 2)", "sqrt takes one argument, but got 2", 4),
        ("min(1)", "min takes two arguments or more, but got 1", 0),
        ("min(1, 2", "expected ')' or an operator, but the text ends", 8),
        ("eval(1)", "unknown function 'eval'. The functions are sqrt, exp, log, min, max, abs, floor, ceil", 0),
        ("fan_in(1)", "unknown function 'fan_in'. The functions are sqrt, exp, log, min, max, abs, floor, ceil", 0),
        ("1e400", "the number is too large for a float64", 0),
        ("2 * " + "9" * 350, "the number is too large for a float64", 4),
        ("π", "unknown name 'π'", 0),
        ("1 + \x00", "'\\x00' has no meaning here", 4),
        ("٣", "'٣' has no meaning here", 0),
        ("1" + " " * 400, "it has 401 characters, and 400 is the most", 400),
        ("(" * 33 + "1", "it is nested more than 32 deep", 32),
        ("-" * 50 + "1", "it is nested more than 32 deep", 32),
        ("2**" * 50 + "1", "it is nested more than 32 deep", 96),
        ("abs(" * 33 + "1", "it is nested more than 32 deep", 128),
        ("unknown * 2", "unknown name 'unknown'", 0),
        ("2 * __class__", "unknown name '__class__'", 4),
        ("().__class__", "'.' has no meaning here", 2),
        ("__import__('os')", '"\'" has no meaning here', 11),
    ],
)
def test_a_text_outside_the_grammar_is_refused_at_its_place(text: str, problem: str, position: int) -> None:
    with pytest.raises(ExpressionError) as raised:
        value(text)
    error = raised.value
    assert (error.problem, error.position, error.is_value) == (problem, position, False)


@pytest.mark.parametrize(
    ("text", "problem", "position"),
    [
        ("1 / zero", "division by 0", 2),
        ("1 // zero", "division by 0", 2),
        ("1 % zero", "division by 0", 2),
        ("zero ** -1", "a negative power of 0", 5),
        ("10 ** 10 ** 10", "the result is too large for a float64", 3),
        ("9 ** 9 ** 9 ** 9", "the result is too large for a float64", 7),
        ("1e308 * 10", "the result is too large for a float64", 6),
        ("1e308 + 1e308", "the result is too large for a float64", 6),
        ("1e308 // 1e-308", "the result is too large for a float64", 6),
        ("2 + exp(1000)", "the result is too large for a float64", 4),
        ("(-2) ** half", "the negative number -2 has no real power 0.5", 5),
        ("sqrt(-i)", "the argument of sqrt must be 0 or more, but it is -3", 0),
        ("log(zero)", "the argument of log must be more than 0, but it is 0", 0),
    ],
)
def test_a_text_without_a_value_says_where(text: str, problem: str, position: int) -> None:
    with pytest.raises(ExpressionError) as raised:
        value(text)
    error = raised.value
    assert (error.problem, error.position, error.is_value) == (problem, position, True)


def test_a_chain_of_400_characters_is_no_nesting() -> None:
    assert value("+".join(["1"] * 200)) == 200


@pytest.mark.parametrize(
    "text",
    [
        "10**10**10",
        "+".join([".3**.7"] * 57),
        "+".join(["1.0000000001**63.0"] * 21),
        "+".join(["1.0000000001**-1e9"] * 21),
        "+".join(["exp(5e-324)"] * 33),
        "9" * 400,
        "(" * 10**6,
        "1" * 10**6,
        " " * 10**6,
        "+1" * 10**6,
        "a" * 400,
    ],
    ids=lambda text: text[:12],
)
def test_a_hostile_text_takes_no_memory(text: str) -> None:
    tracemalloc.start()
    with contextlib.suppress(ExpressionError):
        value(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_evaluation_takes_no_more_steps_than_a_text_has_characters() -> None:
    rng = random.Random(7)
    for _ in range(500):
        text = random_text(rng, 4)[: expressions.LONGEST_TEXT]
        try:
            assert len(parse(text).steps) <= len(text)
        except ExpressionError:
            continue


PIECES = [
    *string.printable,
    "**",
    "//",
    "shape",
    "[0]",
    "sqrt(",
    "log(",
    "fan_in",
    "i",
    "1e308",
    "5e-324",
    "é",
    "\ud800",
]


def test_random_texts_have_a_value_or_the_one_error() -> None:
    rng, n_values = random.Random(8), 0
    for _ in range(20_000):
        text = "".join(rng.choices(PIECES, k=rng.choice([1, 2, 3, 5, 10, 40])))
        try:
            assert math.isfinite(value(text))
            n_values += 1
        except ExpressionError as error:
            assert error.problem and 0 <= error.position <= len(text)
    assert n_values > 500


# --- the functions that are the same everywhere -----------------------------------------------------------------------
# Known answers: correctly rounded, computed by mpmath with 400 bits.


def test_whole_powers_are_rounded_correctly() -> None:
    rng = random.Random(9)
    for _ in range(3000):
        x, n = rng.choice([rng.uniform(-3, 3), 10 ** rng.uniform(-4, 4)]), rng.randint(-70, 70)
        exact = Fraction(x) ** n
        assert reproducible_math.power(x, float(n)) == exact.numerator / exact.denominator


def test_whole_powers_halfway_between_two_numbers_are_rounded_to_even() -> None:
    for x in range(94_906_267, 94_906_667, 2):  # odd squares of 54 bits
        assert reproducible_math.power(float(x), 2.0) == float(x * x)


@pytest.mark.parametrize("y", [0.5, -0.5, 1 / 3, 1.5, 65.0, 300.0, -1e5, 2.5e7])
def test_other_powers_are_within_one_unit_of_the_c_librarys(y: float) -> None:
    rng = random.Random(10)
    for _ in range(300):
        x = 2 ** rng.uniform(-1000 / max(1, abs(y)), 1000 / max(1, abs(y)))
        expected = math.pow(x, y)
        assert abs(reproducible_math.power(x, y) - expected) <= math.ulp(expected)


@pytest.mark.parametrize(
    ("function", "x", "bits"),
    [
        ("exp", 1.0, "0x1.5bf0a8b145769p+1"),
        ("exp", -0.5, "0x1.368b2fc6f960ap-1"),
        ("exp", 709.7, "0x1.d75ae7a50ee14p+1023"),
        ("exp", -745.1, "0x0.0000000000001p-1022"),
        ("log", 2.0, "0x1.62e42fefa39efp-1"),
        ("log", 10.0, "0x1.26bb1bbb55516p+1"),
        ("log", 5e-324, "-0x1.74385446d71c3p+9"),
    ],
)
def test_exp_and_log_have_known_answers(function: str, x: float, bits: str) -> None:
    assert getattr(reproducible_math, function)(x).hex() == bits


@pytest.mark.parametrize(
    ("x", "y", "bits"),
    [
        (0.65, 11.0, "0x1.1ebee3c5fc100p-7"),
        (512.0, -0.25, "0x1.ae89f995ad3adp-3"),
        (-3.0, 65.0, "-0x1.0408fc1d5cd73p+103"),
        (-1.0, 1e300, "0x1.0000000000000p+0"),
        (1.0000000001, 1e10, "0x1.5bf0aa93f93c0p+1"),
    ],
)
def test_powers_have_known_answers(x: float, y: float, bits: str) -> None:
    assert reproducible_math.power(x, y).hex() == bits

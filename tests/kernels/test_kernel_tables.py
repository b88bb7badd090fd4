"""The Triton kernels' numbers are those of the C++ headers."""

from __future__ import annotations

import kernel_tables
import pytest

UP_TO_DATE = "run `python tools/kernel_tables.py`"


def test_the_kernels_tables_are_generated_from_the_headers() -> None:
    assert kernel_tables.TABLES.read_text() == kernel_tables.generated(kernel_tables.headers()), UP_TO_DATE


@pytest.mark.parametrize(
    ("definition", "in_python"),
    [
        ("constexpr float kNotZero = 0x1p-100f;", "NOT_ZERO = 7.888609052210118e-31\n"),
        ("constexpr float kFirst = 4.2f, kLast = 7.4f;", "FIRST = 4.2\nLAST = 7.4\n"),
        ("FASTINIT_TABLE float kSmall[2] = {-5.87e-05f,\n  1.5f};", "SMALL = (\n    -5.87e-05,\n    1.5,\n)\n"),
        ("FASTINIT_TABLE double kThird[1] = {1.0 / 3};", "THIRD = (\n    1.0 / 3,\n)\n"),
    ],
    ids=["hexadecimal", "two constants", "float table", "quotient"],
)
def test_numbers_keep_their_digits(definition: str, in_python: str) -> None:
    assert kernel_tables.generated(definition + "\n").endswith('"""\n\n' + in_python)


def test_a_functions_own_constant_is_left_out() -> None:
    assert "WIDTH" not in kernel_tables.generated("  constexpr float kWidth = 1.0f;\n")


def test_a_table_shorter_than_declared_is_an_error() -> None:
    with pytest.raises(ValueError, match="kShort has 1 numbers, but is declared with 2"):
        kernel_tables.generated("FASTINIT_TABLE float kShort[2] = {1.0f};\n")


def test_a_table_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="a FASTINIT_TABLE of the headers is not of the form"):
        kernel_tables.generated("FASTINIT_TABLE auto kOdd = make();\n")

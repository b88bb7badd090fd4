"""Writes fastinit/kernels/tables.py, the Triton kernels' copy of the numbers that the C++ headers define.

Run ``python tools/kernel_tables.py`` after a change of a table or a constant in one of them; a test fails until you do.
Decimal digits are copied as they are, so that both languages round the same text.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADERS = [ROOT / "csrc" / "distributions.h", ROOT / "csrc" / "float64.h"]
TABLES = ROOT / "fastinit" / "kernels" / "tables.py"
_TABLE = re.compile(r"^FASTINIT_TABLE (?:float|double) (k\w+)\[(\d+)\] = \{([^}]*)\};", re.MULTILINE)
# At the start of a line: a function's own constants are its own affair. One statement may define several.
_CONSTANTS = re.compile(r"^constexpr (?:float|double|int) (k\w+ = [^;]+);", re.MULTILINE)


def generated(headers: str) -> str:
    """Returns the text of tables.py for the text of the headers.

    Raises:
        ValueError: a table of the headers is not written as this tool reads it, or not as long as it says.
    """
    lines = [
        '"""Numbers of the transforms. Generated from csrc/distributions.h and csrc/float64.h, which explain them.',
        "",
        "Do not edit: change the headers and run ``python tools/kernel_tables.py``.",
        '"""',
        "",
    ]
    for statement in _CONSTANTS.findall(headers):
        for definition in re.split(r",\s*(?=k)", statement):
            name, number = definition.split(" = ")
            lines.append(f"{python_name(name)} = {python_number(number)}")
    tables = _TABLE.findall(headers)
    if len(tables) != headers.count("FASTINIT_TABLE "):
        raise ValueError("a FASTINIT_TABLE of the headers is not of the form `FASTINIT_TABLE float kName[2] = {1, 2};`")
    for name, size, numbers in tables:
        found = [python_number(number) for number in numbers.split(",") if number.strip()]
        if len(found) != int(size):
            raise ValueError(f"{name} has {len(found)} numbers, but is declared with {size}")
        lines += [f"{python_name(name)} = (", *(f"    {number}," for number in found), ")"]
    return "\n".join(lines) + "\n"


def python_name(name: str) -> str:
    """Returns the name in Python: kBendTruncated is BEND_TRUNCATED."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name[1:]).upper()


def python_number(text: str) -> str:
    """Returns a C++ number, or a quotient of two, as Python writes it."""
    text = text.strip()
    if text.startswith("0x"):
        return repr(float.fromhex(text.rstrip("f")))
    return re.sub(r"(?<=[\d.])f\b", "", text)


def headers() -> str:
    """Returns the text of the headers."""
    return "".join(header.read_text() for header in HEADERS)


if __name__ == "__main__":
    TABLES.write_text(generated(headers()))

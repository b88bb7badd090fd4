"""What commands print: text that controls no terminal, tables that fit into one, JSON."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

from ..checkpoint.messages import printable

# Columns of plans that a narrow terminal does without, the first of these first.
_DISPENSABLE = ("device", "backend", "rule", "dtype")
# A name or a distribution that is cut further says nothing.
_LEAST_WIDTH = 16
_CUT = "..."
_LEAST_BOTH_ENDS = 36
_UNITS = ("B", "KB", "MB", "GB", "TB")


def tell(text: str) -> None:
    """Prints a text; names in it come from files, so what would control a terminal is escaped."""
    print(printable(text))


def tell_json(text: str) -> None:
    """Prints JSON, with what would control a terminal as JSON escapes it."""
    print("".join(each if each.isprintable() or each == "\n" else _escaped(each) for each in text))


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def width() -> int | None:
    """Returns how many characters a line may have; None where the output is no terminal, and nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def size(n_bytes: int) -> str:
    """Returns e.g. ``4.2 MB``."""
    number, unit = float(n_bytes), 0
    while number >= 999.5 and unit + 1 < len(_UNITS):
        number, unit = number / 1000, unit + 1
    return f"{n_bytes} B" if unit == 0 else f"{number:.3g} {_UNITS[unit]}"


def table(lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Returns a table of aligned columns, the first line as its head.

    Args:
        lines: the cells.
        right: the columns with numbers.
    """
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def fitted(text: str, n_characters: int | None) -> str:
    """Returns a table of a plan in so many characters a line; what is left out is said below it.

    Columns that say least go first; then names lose their middle, and the others their end.

    Args:
        text: a table whose second line has a row of dashes for each column.
        n_characters: None: any number.
    """
    lines = text.split("\n")
    if n_characters is None or len(lines) < 2 or all(len(line) <= n_characters for line in lines):
        return text
    spans = [match.span() for match in re.finditer(r"-+", lines[1])]
    names = [lines[0][start:end].strip() for start, end in spans]
    widths = [end - start for start, end in spans]
    kept = list(range(len(spans)))
    for name in _DISPENSABLE:
        if name in names and _total(widths, kept) > n_characters:
            kept.remove(names.index(name))
    excess = _total(widths, kept) - n_characters
    while excess > 0:
        widest = max(kept, key=lambda at: widths[at])
        if widths[widest] <= _LEAST_WIDTH:
            break
        widths[widest] -= 1
        excess -= 1
    found = [_line(line, spans, widths, kept, n_characters, is_text=line.startswith(_CUT)) for line in lines]
    left = [name for at, name in enumerate(names) if at not in kept]
    if left:
        found.append(_shortened(f"(left out: {', '.join(left)})", n_characters))
    return "\n".join(found)


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] for at in kept) + 2 * (len(kept) - 1)


def _line(
    line: str,
    spans: Sequence[tuple[int, int]],
    widths: Sequence[int],
    kept: Sequence[int],
    n_characters: int,
    is_text: bool,
) -> str:
    if is_text:
        return _shortened(line, n_characters)
    made = []
    for at in kept:
        cell = line[spans[at][0] : spans[at][1]].ljust(spans[at][1] - spans[at][0])
        if len(cell) > widths[at]:
            is_rule = line.startswith("-")
            cell = "-" * widths[at] if is_rule else _shortened(cell.strip(), widths[at], in_middle=at == 0)
        made.append(cell.ljust(widths[at]))
    return "  ".join(made)[:n_characters].rstrip()


def _shortened(text: str, n_characters: int, in_middle: bool = False) -> str:
    if len(text) <= n_characters:
        return text
    n_left = max(n_characters - len(_CUT), 0)
    tail = 0
    if in_middle:  # the end of a name says what it is; in few characters nothing else does
        tail = n_left * 2 // 3 if n_left >= _LEAST_BOTH_ENDS else n_left
    return text[: n_left - tail] + _CUT + (text[-tail:] if tail else "")


def fitted_lines(text: str, n_characters: int | None) -> str:
    """Returns lines of prose or of lists, those that are too long cut at their end."""
    if n_characters is None:
        return text
    return "\n".join(_shortened(line, n_characters) for line in text.split("\n"))

"""Names and texts from files and servers, made safe to print: one line, no control characters, bounded."""

from __future__ import annotations

from collections.abc import Iterable

# Longer than any parameter's name; a longer text is an attempt to flood the log.
MAX_SHOWN = 200
# Some models have more keys that do not match, but no reader goes through more.
MAX_NAMES = 1000


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    """Returns text from a file or a server made safe to print: one line, no terminal control, bounded length.

    Control characters (which start ANSI escapes), line ends, marks that change the text direction, and
    lone surrogates, which no encoding accepts, are written as in Python's literals.

    Args:
        text: usually a name.
        limit: how many characters of it are shown; the middle of a longer one is left out.

    Example:
        >>> shown("a\\x1b[2Jb\\n")
        'a\\\\x1b[2Jb\\\\n'
    """
    text = str(text)
    if len(text) > limit:
        half = (limit - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text if text.isprintable() else "".join(map(_escaped, text))


def listed(names: Iterable[object], limit: int = MAX_NAMES) -> str:
    """Returns names from a file as one comma-separated text; beyond ``limit`` it only says how many more there are."""
    texts = [shown(name) for name in names]
    more = f" and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def printable(text: str) -> str:
    """Returns a message made safe to print: like ``shown``, but in full and with its line ends."""
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

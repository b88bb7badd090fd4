"""Names and texts from files and servers, made safe to print: one line, no control characters, bounded."""

from __future__ import annotations

from collections.abc import Iterable

# Names of parameters are shorter; a longer text comes from a file or a server that means to flood a log.
MAX_SHOWN = 200
# Models with more keys that do not fit exist, but nobody reads further.
MAX_NAMES = 1000


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    """Returns a text of a file or a server so that it can be printed: one line, no control of the terminal, bounded.

    Control characters (ANSI escapes begin with one), line ends, marks that turn the direction of writing, and
    surrogates that stand alone, which no encoding takes, are written as in Python's literals.

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
    """Returns names of a file, each ``shown``, with commas between them; of more than ``limit`` how many there are."""
    texts = [shown(name) for name in names]
    more = f" and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def printable(text: str) -> str:
    """Returns a whole message so that it can be printed: as ``shown``, but with its line ends and in full."""
    if text.isprintable():
        return text
    return "".join(each if each in "\n\t" else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

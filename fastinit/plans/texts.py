"""Lines of text about many names, for messages, plans and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .items import Copy, Item, LoadResult

# Enough to see what kind of name was left out; the report object has them all.
MAX_NAMES = 12


def names_line(what: str, names: Sequence[str]) -> str:
    """Returns e.g. ``2 parameters that no rule reached: a, b``, of many names only the first.

    Names may come from a file: nothing in them controls a terminal, and none is longer than a line.
    """
    shown = ", ".join(
        name if name.isprintable() and len(name) <= 200 else ascii(name[:200])[1:-1] for name in names[:MAX_NAMES]
    )
    shown += ", ..." if len(names) > MAX_NAMES else ""
    return f"{len(names):,} {what}: {shown}"


def heading(sides: tuple[str, str]) -> str:
    """Returns the first line of a difference, which says what ``a -> b``, "added" and "removed" go from and to."""
    return f"from {sides[0]} to {sides[1]}:"


def nothing_copied(source: str, result: LoadResult) -> str:
    """Returns what a checkpoint and a module have in place of common names."""
    told = [
        names_line(what, names)
        for what, names in (
            ("keys of the checkpoint that nothing is called by", result.unexpected),
            ("names that it lacks", result.missing),
            ("names of another shape", result.mismatched),
        )
        if names
    ]
    return f"nothing is copied from {source}" + (f": {'; '.join(told)}" if told else "")


def notes_of(items: Iterable[Item], unreached: Sequence[str]) -> list[str]:
    """Returns lines about what the rows of a plan do not show: how checkpoints fit, and what no row writes."""
    lines = []
    for copy in (item for item in items if isinstance(item, Copy)):
        told = [] if copy.fit is None else [names_line(what, names) for what, names in _misfits(copy.fit) if names]
        if copy.fit is None and copy.runs_own_code:
            told = ["what fits is up to modules that have loading code or hooks of their own"]
        if told:
            lines.append(f"{copy.source} ({copy.rule}): {'; '.join(told)}")
    return [*lines, names_line("parameters that no row writes", unreached)] if unreached else lines


def _misfits(fit: LoadResult) -> list[tuple[str, Sequence[str]]]:
    return [("missing", fit.missing), ("unexpected", fit.unexpected), ("of another shape", fit.mismatched)]

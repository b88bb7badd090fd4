"""How pictures look: one style for all of them, readable on white and on black; and what to do without matplotlib."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import InitImportError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each has a contrast of at least 3 to white and to a near-black page (#0d1117), so that backgrounds can be left out.
INK = "#7a808a"
LINES = ("#3b82f6", "#e07b00", "#16a37f", "#d6409f")
_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": ["sans-serif"],
    "grid.alpha": 0.25,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "none",
    # Text stays text in SVGs, and their ids are the same at each run.
    "svg.fonttype": "none",
    "svg.hashsalt": "fastinit",
    "text.color": INK,
    # A name between dollars is no formula.
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 7,
    "ytick.color": INK,
    "ytick.labelsize": 7,
}


@contextmanager
def canvas(caller: str, width: float, height: float, path: str | os.PathLike[str] | None) -> Iterator[Figure]:
    """Gives a figure to draw on, and writes it when the block ends. It needs no display.

    Args:
        caller: the function that the user called.
        width, height: in inches.
        path: of the file to write, in the format that its suffix names; None: none.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InitImportError(
            f"{caller} draws with matplotlib, which is not installed: pip install 'torch-fastinit[plot]'"
        ) from error
    style: Any = {**matplotlib.rcParamsDefault, **_STYLE}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if path is not None:
            is_svg = os.fspath(path).lower().endswith(".svg")
            # Without a date, an SVG of the same numbers is the same file.
            figure.savefig(path, dpi=160, metadata={"Date": None} if is_svg else None)


def head(axes: Axes, title: str, below: str) -> None:
    """Writes a title above axes, from the left, and a smaller line under it."""
    axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold", pad=14)
    small = axes.text(0, 1.035, below, transform=axes.transAxes, fontsize=6.5, va="bottom")
    small.set_in_layout(False)  # its length moves no axes


def shortened(text: str, n: int) -> str:
    """Returns a text of at most n characters, with both ends."""
    return text if len(text) <= n else f"{text[: n // 2 - 1]}…{text[len(text) - (n - n // 2) :]}"

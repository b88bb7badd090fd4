"""The picture of what parameters hold: quantiles layer by layer, or a histogram of what is there once."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..drawing import INK, LINES, canvas, head, shortened
from ..errors import InitRuntimeError
from ..plans import Row
from ..shards.dtensor import is_sharded, local_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Elements that are looked at: of a tensor, and of a model of many tensors.
_MOST_OF_ONE, _LEAST_OF_ONE, _MOST_OF_ALL = 8192, 256, 1 << 24
_LEVELS = (0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999)
# Outermost first: pairs of levels, and how opaque what is between them is.
_BANDS = ((0, 6, 0.18), (1, 5, 0.30), (2, 4, 0.55))
_MOST_PANELS, _COLUMNS = 24, 3
# Characters of a line of the caption, and of what is above a panel.
_CAPTION, _TITLE, _BELOW = 38, 42, 60
# The fraction of the golden ratio: multiples of it spread evenly, whatever the width of a matrix is.
_GOLDEN = 0.6180339887498949
_NUMBER = re.compile(r"\d+")
_FLOAT = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass
class _Kind:
    """Tensors whose names differ in nothing but numbers, in the model's order."""

    rows: list[Row] = field(default_factory=list)
    numbers: list[tuple[int, ...]] = field(default_factory=list)
    samples: list[torch.Tensor] = field(default_factory=list)
    """Of each tensor: sampled values; of all but a single one, their quantiles."""

    def title(self) -> str:
        """Returns the pattern of the names: ``layers.{0..31}.weight``."""
        columns = iter(zip(*self.numbers))

        def shown(_: re.Match[str]) -> str:
            values = next(columns)
            low, high = min(values), max(values)
            return f"{low}" if low == high else f"{{{low}..{high}}}"

        return _NUMBER.sub(shown, self.rows[0].parameter)

    def places(self) -> tuple[Sequence[int], str]:
        """Returns where on the x axis the tensors are, and what that is: the number that differs, or the order."""
        differing = [column for column in zip(*self.numbers) if len(set(column)) > 1]
        if len(differing) == 1 and list(differing[0]) == sorted(set(differing[0])):
            return differing[0], "layer"
        return range(len(self.rows)), "in the model's order"

    def below(self) -> str:
        """Returns shape and distribution, or how many they are."""
        shapes = {row.shape for row in self.rows}
        shape = "×".join(map(str, self.rows[0].shape or ())) or "scalar"
        return f"{shape if len(shapes) == 1 else f'{len(shapes)} shapes'}, {self.said()}"

    def said(self) -> str:
        """Returns what the report says of the values; numbers that differ as the first and the last of them."""
        first, last = self.rows[0].description, self.rows[-1].description
        if len({_FLOAT.sub("#", row.description) for row in self.rows}) > 1:
            return f"{len({row.description for row in self.rows})} descriptions"
        ends = iter(_FLOAT.findall(last))

        def shown(match: re.Match[str]) -> str:
            end = next(ends)
            return match[0] if match[0] == end else f"{float(match[0]):.3g}..{float(end):.3g}"

        return _FLOAT.sub(shown, first)

    def constant(self) -> float | None:
        """Returns the one value that all samples have, None where they differ."""
        values = torch.cat([sample.flatten() for sample in self.samples])
        return values[0].item() if bool((values == values[0]).all()) else None


def draw(rows: Iterable[Row], tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str] | None) -> Figure:
    """Draws what tensors hold now, by samples of their elements; only the samples are copied.

    Args:
        rows: of a report; those whose values are replaced later are left out.
        tensors: by the names in the rows; what is not there, or has no memory here, is left out.
        path: of a file to write, or None.

    Raises:
        ImportError: matplotlib is not installed.
        RuntimeError: none of the tensors is there.
    """
    last = {row.parameter: row for row in rows if row.action != "call" and not row.replaced}
    here = {name: memory for name in tensors if name in last and (memory := _memory(tensors[name])) is not None}
    if not here:
        raise InitRuntimeError(
            f"report.plot: none of the {len(last):,} tensors of the report has memory in this model: give it the model "
            f"that was initialized (under the prefix of the call, if it had one)"
        )
    n = min(_MOST_OF_ONE, max(_LEAST_OF_ONE, _MOST_OF_ALL // len(here)))
    kinds: dict[str, _Kind] = {}
    for name in here:
        kind = kinds.setdefault(_NUMBER.sub("#", name), _Kind())
        kind.rows.append(last[name])
        kind.numbers.append(tuple(map(int, _NUMBER.findall(name))))
    for kind in kinds.values():
        for row in kind.rows:
            values = _sampled(here[row.parameter], n)
            kind.samples.append(values if len(kind.rows) == 1 else _quantiles(values))
    constants: dict[float, list[str]] = {}
    varied: list[_Kind] = []
    for kind in kinds.values():
        value = kind.constant()
        if value is None:
            varied.append(kind)
        else:
            constants.setdefault(value, []).append(kind.title())
    shown = varied[:_MOST_PANELS]
    where = "this rank's part of " if any(is_sharded(tensors[name]) for name in here) else ""
    lines = [
        f"{where}{len(here):,} tensors, up to {n:,} sampled elements of each",
        "bands: 0.1–99.9 %, 5–95 % and 25–75 % of the values; line: the median",
        *(f"all samples are {value:g}: {_listed(titles)}" for value, titles in constants.items()),
    ]
    if len(varied) > len(shown):
        lines.append(f"{len(varied) - len(shown)} more kinds of parameters are not shown")
    n_columns = max(1, min(_COLUMNS, len(shown)))
    n_rows = math.ceil(len(shown) / n_columns)
    width = 3.2 * max(2, n_columns)
    text = "\n".join(each for line in lines for each in textwrap.wrap(line, round(_CAPTION * width / 3.2)))
    with canvas("report.plot", width, 2.05 * n_rows + 0.16 * (2 + text.count("\n")), path) as figure:
        grid: Any = figure.subplots(n_rows, n_columns, squeeze=False).flatten() if shown else []
        for axes, kind in zip(grid, shown):
            (_histogram if len(kind.rows) == 1 else _bands)(axes, kind)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=INK, linespacing=1.4)
    return figure


def _listed(titles: Sequence[str]) -> str:
    """Returns names, the first of many."""
    more = f" and {len(titles) - 8} more" if len(titles) > 8 else ""
    return ", ".join(titles[:8]) + more


# --- values ----------------------------------------------------------------------------------------------------------


def _memory(tensor: torch.Tensor) -> torch.Tensor | None:
    """Returns what is here of a tensor, None if nothing is."""
    local = local_part(tensor) if is_sharded(tensor) else tensor
    has_numbers = local.layout == torch.strided and not local.is_quantized
    return None if local.is_meta or not has_numbers or local.numel() == 0 else local.detach()


def _sampled(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """Returns elements as float32 on the CPU: all of a small tensor, else n that are spread evenly over it."""
    if tensor.numel() > n:
        at = (torch.arange(n, dtype=torch.float64) * _GOLDEN).frac().mul(tensor.numel()).long()
        places = []
        for size in reversed(tensor.shape):
            places.append((at % size).to(tensor.device))
            at = at // size
        # Indexing is there for few dtypes of 8 bits.
        is_narrow = tensor.is_floating_point() and tensor.element_size() == 1
        raw = (tensor.view(torch.uint8) if is_narrow else tensor)[tuple(reversed(places))]
        tensor = raw.view(tensor.dtype) if is_narrow else raw
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.to("cpu").to(torch.float32).flatten()


def _quantiles(values: torch.Tensor) -> torch.Tensor:
    """Returns the levels of the finite values, NaN where there are none."""
    finite = values[values.isfinite()]
    if not len(finite):
        return torch.full((len(_LEVELS),), math.nan)
    return torch.quantile(finite, torch.tensor(_LEVELS))


# --- panels ----------------------------------------------------------------------------------------------------------


def _bands(axes: Axes, kind: _Kind) -> None:
    """Draws quantiles over the layers."""
    places, what = kind.places()
    levels: list[Any] = torch.stack(kind.samples).T.tolist()
    for low, high, alpha in _BANDS:
        axes.fill_between(places, levels[low], levels[high], color=LINES[0], alpha=alpha, linewidth=0)
    axes.plot(places, levels[3], color=LINES[0], linewidth=1.3)
    axes.set_xlim(places[0], places[-1])
    axes.locator_params(axis="x", integer=True, nbins=8)
    axes.set_xlabel(what, labelpad=1, fontsize=7)
    _finish(axes, kind)


def _histogram(axes: Axes, kind: _Kind) -> None:
    """Draws how often values are, to the right; the values go up, as in the other panels."""
    (values,) = kind.samples
    finite = values[values.isfinite()]
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        n_bins = min(50, max(8, round(len(finite) ** 0.4)))
        counts = torch.histc(finite, n_bins, low, high)
        edges = torch.linspace(low, high, n_bins + 1).tolist()
        share = (counts / counts.max()).tolist()
        axes.stairs(share, edges, orientation="horizontal", fill=True, color=LINES[0], alpha=0.4)
        axes.stairs(share, edges, orientation="horizontal", color=LINES[0], linewidth=1)
    axes.set_xlim(0, 1.05)
    axes.set_xticks([])
    axes.set_xlabel("how often", labelpad=4, fontsize=7)
    _finish(axes, kind)


def _finish(axes: Axes, kind: _Kind) -> None:
    """Writes what the panel shows, and that values are not finite where some are not."""
    n_bad = sum(bool((~sample.isfinite()).any()) for sample in kind.samples)
    if n_bad:
        text = "values are not finite" if len(kind.rows) == 1 else f"nothing finite in {n_bad} of {len(kind.rows)}"
        axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=7, color=LINES[1])
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    axes.yaxis.get_offset_text().set_fontsize(6.5)
    head(axes, shortened(kind.title(), _TITLE), shortened(kind.below(), _BELOW))

"""Structured fills for the contract backends: matrices that are orthogonal or sparse, identities, Dirac's convolutions.

Random ones are computed from draws of the parameter's own stream, by torch, on the device of the memory. An orthogonal
matrix is the Q of the QR decomposition, with a positive diagonal of R, of a matrix of standard normal float32 numbers;
such a Q is uniform over the orthogonal matrices (Mezzadri 2007). R is the Cholesky factor of A^T A in float64, computed
twice (CholeskyQR2; Yamamoto et al. 2015), so that a rank that holds some rows needs R and draws of A, and nothing from
other ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

import torch

from ..contract.records import Boxes
from ..plans import (
    Box,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Fill,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    Strided,
    Uniform,
    is_structured,
    matrices_of,
    n_bytes_of,
    row_major,
)
from ..plans.pieces import boxes_in
from ..progress import Listener


class DrawFills(Protocol):
    """What runs fills without structure."""

    def __call__(self, fills: Sequence[Fill], advance: Listener | None = None, /) -> int:
        """Runs fills, says how many bytes are done, and returns the number of launches."""


# Elements that are drawn at once: 64 MiB of float32, twice that in float64.
_AT_ONCE = 1 << 24
# Elements of small matrices that are made together: Python's share of the time is then small for 16 of 64 x 64.
_TOGETHER = 1 << 16
# Columns of a Gram matrix that are computed at once, of which what is above the diagonal is enough.
_GRAM_COLUMNS = 512
# One pass is orthogonal to about eps cond(A)^2; the diagonal of R says of cond(A) that it is not small, seldom that it
# is. With twice as many rows as columns cond(A) is below 6 for all but the smallest matrices (Edelman 1988).
_ONE_PASS_RATIO = 100.0
# What the second pass starts from must be so near to orthogonal that it ends at float64's precision.
_NEARLY_ORTHOGONAL = 0.1
_STANDARD = Normal(0.0, 1.0)


def run(fills: Sequence[Fill], draw: DrawFills, advance: Listener | None = None) -> int:
    """Runs fills of one device, in an order that gives what their own order would; returns the number of launches.

    Args:
        fills: of one device.
        draw: runs those without structure, and draws what the others are made of.
        advance: hears how many bytes are done.
    """
    if not any(map(_is_structured, fills)):
        return draw(fills, advance)
    ordered = fills if Boxes.of(fills).meeting() else sorted(fills, key=_is_structured)
    n_launches = 0
    for structured, group in groupby(ordered, key=_is_structured):
        if not structured:
            n_launches += draw(list(group), advance)
            continue
        for fill in group:
            with torch.no_grad():
                n_launches += _Making(fill, draw).run()
            if advance is not None:
                advance(n_bytes_of(fill))
    return n_launches


def _is_structured(fill: Fill) -> bool:
    return is_structured(fill.distribution)


@dataclass
class _Making:
    """One structured fill while it runs."""

    fill: Fill
    draw: DrawFills
    n_launches: int = 0

    def run(self) -> int:
        """Writes all parts of the fill, and returns the number of launches of what they are made from."""
        distribution = self.fill.distribution
        assert is_structured(distribution)
        n_matrices, rows, columns = matrices_of(distribution, self.fill.shape)
        if 0 in (n_matrices, rows, columns):
            return 0
        boxes = [self._within_part(box) for box in self.fill.boxes if box.tensor.numel()]
        if isinstance(distribution, (Identity, Dirac)):
            for box in boxes:
                self._write_pattern(box, distribution, rows, columns)
        elif not boxes:
            return 0
        elif isinstance(distribution, Orthogonal):
            self._orthogonal(boxes, n_matrices, rows, columns)
        elif isinstance(distribution, DeltaOrthogonal):
            self._delta_orthogonal(boxes)
        else:
            self._sparse(boxes, rows, columns, distribution)
        return self.n_launches

    def _within_part(self, box: Box) -> Box:
        """Returns a box with its elements' indices in what is filled, which may be a part of the parameter."""
        numbers = self.fill.numbers
        if numbers is None:
            return box
        indices = box.indices.within(numbers)
        assert indices is not None, "the boxes are of the part"
        return Box(box.tensor, indices.first, indices.steps)

    # --- orthogonal -------------------------------------------------------------------------------------------------

    def _orthogonal(self, boxes: Sequence[Box], n_matrices: int, rows: int, columns: int) -> None:
        n_elements = rows * columns
        parts = sorted((part for box in boxes for part in _within(box, n_elements)), key=itemgetter(0))
        together = max(1, _TOGETHER // n_elements)
        for group, own in groupby(parts, key=lambda part: part[0] // together):
            # All of a group, whichever of them are here, so that the bits do not depend on that.
            n = min(together, n_matrices - group * together)
            source = _Source(self, n, rows, columns, group * together * n_elements, (n_elements, columns, 1))
            here = [box for _, box in own]
            wanted = _rows_of(here, source)
            offset = source.first_index + (wanted.start * columns if n == 1 and not source.is_wide else 0)
            self._write(here, self._made(source, wanted), offset)

    def _delta_orthogonal(self, boxes: Sequence[Box]) -> None:
        shape = self.fill.shape
        n_kernel, centre = _kernel(shape)
        source = _Source(self, 1, shape[0], shape[1], centre, (0, shape[1] * n_kernel, n_kernel))
        whole = self._empty((shape[0], shape[1], n_kernel), self._exact).zero_()
        whole[:, :, centre] = self._made(source, slice(0, source.height))[0]
        self._write(boxes, whole, 0)

    def _made(self, source: _Source, wanted: slice) -> torch.Tensor:
        """Returns orthogonal matrices, of a tall one only the rows that are wanted."""
        n_rows = source.rows if source.is_wide else wanted.stop - wanted.start
        found = self._empty((source.n_matrices, n_rows, source.columns), self._exact)
        tall = found.mT if source.is_wide else found
        gain = self.fill.distribution.gain  # type: ignore[union-attr]
        for part, values in _orthogonal(source, wanted):
            own = slice(max(part.start, wanted.start), min(part.stop, wanted.stop))
            values = values[:, own.start - part.start : own.stop - part.start]
            tall[:, own.start - wanted.start : own.stop - wanted.start] = values.mul_(gain)
        return found

    # --- sparse -----------------------------------------------------------------------------------------------------

    def _sparse(self, boxes: Sequence[Box], rows: int, columns: int, distribution: Sparse) -> None:
        """Writes normal draws, and zeros where the elements of a column have its smallest of other draws.

        Those are behind the parameter's own in its stream, where a number of float64 is made from none that a narrower
        one at another index is made from.
        """
        behind = max(self.fill.tensor.numel(), rows * columns)
        n_zeros = math.ceil(distribution.sparsity * rows)
        whole = self.drawn((rows, columns), 0, (columns, 1), Normal(0.0, distribution.std), self._exact)
        at_once = max(1, _AT_ONCE // rows)
        for start in range(0, columns, at_once):
            n = min(at_once, columns - start)
            ranks = self.drawn((rows, n), start, (columns, 1), Uniform(0.0, 1.0), torch.float64, behind)
            zeros = ranks.argsort(dim=0, stable=True)[:n_zeros]
            whole[:, start : start + n].scatter_(0, zeros, 0.0)
        self._write(boxes, whole, 0)

    def _write(self, boxes: Sequence[Box], values: torch.Tensor, offset: int) -> None:
        """Writes parts from values that lie in order, the first of them the parameter's at an index."""
        for box in boxes:
            box.tensor.data.copy_(values.as_strided(box.tensor.shape, box.steps, box.first_index - offset))

    # --- identities and Dirac's convolutions ------------------------------------------------------------------------

    def _write_pattern(self, box: Box, distribution: Identity | Dirac, rows: int, columns: int) -> None:
        """Writes a part, in pieces, from the row-major index of each element."""
        tensor, first = box.tensor.data, box.first_index
        if tensor.numel() > _AT_ONCE and tensor.dim():
            dim = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
            for half in _halves(box, dim):
                self._write_pattern(half, distribution, rows, columns)
            return
        index = torch.full(tensor.shape, first, dtype=torch.int64, device=tensor.device)
        for dim, (size, step) in enumerate(zip(tensor.shape, box.steps)):
            along = torch.arange(size, dtype=torch.int64, device=tensor.device) * step
            index += along.view([size if each == dim else 1 for each in range(tensor.dim())])
        row, column = index // columns, index % columns
        if isinstance(distribution, Identity):
            tensor.copy_(row == column)
            return
        shape = self.fill.shape
        n_kernel, centre = _kernel(shape)
        channel = row % (shape[0] // distribution.groups)
        tensor.copy_(column == channel * n_kernel + centre)

    # --- draws ------------------------------------------------------------------------------------------------------

    @property
    def _exact(self) -> torch.dtype:
        """The dtype in which values are made: float32, of which narrower parameters get the rounded ones."""
        return torch.float64 if self.fill.tensor.dtype == torch.float64 else torch.float32

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.fill.tensor.device)

    def drawn(
        self,
        shape: Sequence[int],
        first_index: int,
        steps: Sequence[int],
        distribution: Distribution = _STANDARD,
        dtype: torch.dtype = torch.float32,
        behind: int = 0,
    ) -> torch.Tensor:
        """Returns draws of the parameter's stream.

        Args:
            shape: of the tensor that is returned.
            first_index, steps: what of the fill these are draws for: the index of the first, in the part that is
                filled, and the steps along each dimension.
            distribution, dtype: of the draws.
            behind: how much farther behind in the stream the draws are than the fill's own.
        """
        tensor, fill = self._empty(shape, dtype), self.fill
        parts = tuple(self._in_stream(Box(tensor, first_index, tuple(steps)), behind))
        self.n_launches += self.draw(
            [Fill(fill.stream_name, tensor, distribution, fill.rule, fill.info, tuple(shape), parts, "", fill.seed)]
        )
        return tensor

    def _in_stream(self, box: Box, behind: int) -> Iterator[Box]:
        """Yields a box of draws in pieces with indices in the stream, where a part need not be in order."""
        numbers = self.fill.numbers
        if numbers is None:
            yield Box(box.tensor, box.first_index + behind, box.steps)
            return
        # A tensor of the part's shape, in whose memory a step is one in the stream: there the pieces are found.
        part = torch.empty_strided(numbers.shape, numbers.steps, dtype=torch.int8, device="meta")
        order = Strided.of(box.tensor)
        for piece in boxes_in(Box.whole(part), box.indices, order, numbers.shape):
            place = Strided.of(piece.tensor)
            view = box.tensor.as_strided(place.shape, piece.steps, piece.first_index)
            yield Box(view, numbers.first + place.first + behind, place.steps)


class _Source(NamedTuple):
    """Matrices of standard normal numbers, of which orthogonal ones are made; wide ones are seen transposed."""

    making: _Making
    n_matrices: int
    rows: int
    columns: int
    first_index: int
    steps: tuple[int, int, int]
    """From one matrix, row, and column to the next."""

    @property
    def is_wide(self) -> bool:
        """Whether there are fewer rows than columns, so that the rows become orthonormal."""
        return self.rows < self.columns

    @property
    def height(self) -> int:
        """The number of rows of the tall matrix."""
        return max(self.rows, self.columns)

    @property
    def width(self) -> int:
        """The number of columns of the tall matrix."""
        return min(self.rows, self.columns)

    def parts(self) -> list[slice]:
        """Returns the rows of the tall matrix in parts that are drawn at once."""
        n = max(1, _AT_ONCE // (self.n_matrices * self.width))
        return [slice(start, min(start + n, self.height)) for start in range(0, self.height, n)]

    def drawn(self, part: slice) -> torch.Tensor:
        """Returns rows of the tall matrices, in float64."""
        n, dim = part.stop - part.start, 2 if self.is_wide else 1
        shape = [self.n_matrices, self.rows, self.columns]
        shape[dim] = n
        drawn = self.making.drawn(shape, self.first_index + part.start * self.steps[dim], self.steps).double()
        return drawn.mT if self.is_wide else drawn


def _orthogonal(source: _Source, wanted: slice) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields parts of the tall matrices' orthogonal factors: which rows, and their values in float64.

    The parts are those that hold the rows that are wanted, always whole, so that the bits do not depend on what is
    wanted.
    """
    parts = source.parts()
    drawn = source.drawn(parts[0]) if len(parts) == 1 else None  # what fits is drawn once
    first = _factor(
        reduce(torch.Tensor.add_, (_gram(source.drawn(part) if drawn is None else drawn) for part in parts))
    )
    if first is None:  # columns that depend on each other, as far as float64 can tell
        yield from _by_householder(source)
        return
    diagonal = first.diagonal(dim1=-2, dim2=-1)
    spread = (diagonal.max() / diagonal.min()).item()
    needs_one = source.height >= 2 * source.width and spread <= _ONE_PASS_RATIO
    kept: list[tuple[slice, torch.Tensor]] = []
    gram: torch.Tensor | None = None
    for part in parts:
        is_wanted = part.start < wanted.stop and wanted.start < part.stop
        if needs_one and not is_wanted:
            continue
        made = _divided(source.drawn(part) if drawn is None else drawn, first)
        if needs_one:
            yield part, made
            continue
        gram = _gram(made) if gram is None else gram.add_(_gram(made))
        if is_wanted:
            kept.append((part, made))
    if gram is None:
        return
    identity = torch.eye(source.width, dtype=torch.float64, device=gram.device)
    second = _factor(gram) if ((gram.triu() - identity).abs().max() < _NEARLY_ORTHOGONAL).item() else None
    if second is None:
        yield from _by_householder(source)
        return
    for part, made in kept:
        yield part, _divided(made, second)


def _by_householder(source: _Source) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields what ``_orthogonal`` does, by reflections: slower, and right for whatever matrix."""
    rows = slice(0, source.height)
    q, r = torch.linalg.qr(source.drawn(rows))
    yield rows, q.mul_(torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2))


def _gram(tall: torch.Tensor) -> torch.Tensor:
    """Returns A^T A of each matrix, of which not all that is below the diagonal is computed."""
    n = tall.shape[-1]
    if n <= _GRAM_COLUMNS:
        return tall.mT @ tall
    (matrix,), found = tall, tall.new_zeros(1, n, n)  # so wide ones come one by one
    for start in range(0, n, _GRAM_COLUMNS):
        end = min(start + _GRAM_COLUMNS, n)
        torch.mm(matrix[:, :end].mT, matrix[:, start:end], out=found[0, :end, start:end])
    return found


def _factor(gram: torch.Tensor) -> torch.Tensor | None:
    """Returns the upper Cholesky factors, None where one is missing in float64."""
    lower, info = torch.linalg.cholesky_ex(gram.mT)  # reads below the diagonal: what is above it in ``gram``
    return None if info.any().item() else lower.mT


def _divided(tall: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Returns A R^-1."""
    made: torch.Tensor = torch.linalg.solve_triangular(upper, tall, upper=True, left=False)
    return made


# --- parts of memory -----------------------------------------------------------------------------------------------


def _within(box: Box, n_elements: int) -> Iterator[tuple[int, Box]]:
    """Yields parts of a box that lie in one matrix each, with its number."""
    first, last = box.first_index, box.first_index + box.indices.span - 1
    if first // n_elements == last // n_elements:
        yield first // n_elements, box
        return
    dim = max(range(box.tensor.dim()), key=lambda dim: (box.tensor.shape[dim] - 1) * box.steps[dim])
    for half in _halves(box, dim):
        yield from _within(half, n_elements)


def _halves(box: Box, dim: int) -> tuple[Box, Box]:
    n = box.tensor.shape[dim] // 2
    tensor = box.tensor.data
    rest = box.first_index + n * box.steps[dim]
    return (
        Box(tensor.narrow(dim, 0, n), box.first_index, box.steps),
        Box(tensor.narrow(dim, n, tensor.shape[dim] - n), rest, box.steps),
    )


def _rows_of(boxes: Sequence[Box], source: _Source) -> slice:
    """Returns the rows of the tall matrices that hold boxes of them, of small ones all."""
    if source.is_wide or source.n_matrices > 1:  # boxes of rows of a wide one are columns of it
        return slice(0, source.height)
    begin = min(box.first_index for box in boxes) - source.first_index
    end = max(box.first_index + box.indices.span for box in boxes) - source.first_index
    return slice(begin // source.columns, -(-end // source.columns))


def _kernel(shape: Sequence[int]) -> tuple[int, int]:
    """Returns the number of elements of a convolution's kernel, and which of them is its centre, as torch has it."""
    kernel = shape[2:]
    return math.prod(kernel), sum(size // 2 * step for size, step in zip(kernel, row_major(kernel)))

"""Finds where memory first departs from what fills would write: piece by piece, with no second copy of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ..backends import BACKENDS, cpp_backend
from ..plans import Box, Fill, row_major
from ..progress import advance

# The native core draws into its cache and compares there. Elsewhere, elements that are drawn before they are compared:
# of a tensor of which the core has told that it differs, and on a GPU, where one launch after the other has all of it.
_PIECE = 1 << 20
_PIECE_ON_GPU = 1 << 25
# Small tensors in one piece of work.
_MOST_TOGETHER = 256
# Pieces of work that are launched before the first of them is compared.
_AHEAD = 3


class Found(NamedTuple):
    """The first element that is not as it should be."""

    at: int
    """Its row-major index in the whole tensor."""
    expected: Any
    found: Any


@dataclass(frozen=True, eq=False)
class _Piece:
    """Elements of a fill, to be drawn and compared together."""

    fill: Fill
    box: Box
    """The memory that is compared, and which elements of the tensor (and of its numbers) it holds."""

    @property
    def n_elements(self) -> int:
        """How many they are."""
        return self.box.tensor.numel()


def first_differences(
    fills: Iterable[Fill], seed: int | None, backend_on: Callable[[torch.device], str]
) -> dict[str, Found]:
    """Returns by name where memory departs from what fills would write; names without a difference are left out.

    Args:
        fills: of whole tensors, or of what is here of them, of different names, without structure.
        seed: of fills that have none of their own.
        backend_on: returns the name of the contract backend that draws on a device.
    """
    work = _Work(0 if seed is None else seed, backend_on)
    of_core: list[Fill] = []
    others: list[Fill] = []
    for fill in fills:
        (of_core if backend_on(fill.tensor.device) == "cpp" else others).append(fill)
    by_seed = [list(group) for _, group in groupby(of_core, key=lambda fill: fill.seed)]
    pieces = [piece for group in by_seed for piece in work.pieces_that_differ(group)]
    work.compare(pieces)
    for device_fills in (list(group) for _, group in groupby(others, key=lambda fill: fill.tensor.device)):
        work.compare(piece for fill in device_fills for box in fill.boxes for piece in _pieces(fill, box))
        advance(sum(map(_n_bytes, device_fills)))
    return work.found


def note(found: dict[str, Found], name: str, difference: Found | None) -> None:
    """Keeps a difference if it is the first of its tensor."""
    if difference is not None and (name not in found or difference.at < found[name].at):
        found[name] = difference


def _n_bytes(fill: Fill) -> int:
    return sum(box.tensor.nbytes for box in fill.boxes)


def _is_behind(piece: _Piece, found: Found | None) -> bool:
    return found is not None and piece.box.first_index > found.at


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Yields pieces of one device, dtype and seed that are drawn together."""
    batches: dict[tuple[Any, ...], list[_Piece]] = {}
    sizes: dict[tuple[Any, ...], int] = {}
    for piece in pieces:
        tensor = piece.box.tensor
        key = tensor.device, tensor.dtype, piece.fill.seed
        if sizes.get(key, 0) + piece.n_elements > _most(tensor) or len(batches.get(key, ())) >= _MOST_TOGETHER:
            if key in batches:
                yield batches.pop(key)
            sizes[key] = 0
        batches.setdefault(key, []).append(piece)
        sizes[key] = sizes.get(key, 0) + piece.n_elements
    yield from batches.values()


def _most(tensor: torch.Tensor) -> int:
    return _PIECE_ON_GPU if tensor.is_cuda else _PIECE


def _pieces(fill: Fill, box: Box) -> Iterator[_Piece]:
    """Yields the parts of a box, in the order of their first elements."""
    tensor = box.tensor.detach()
    if tensor.numel() == 0:
        return
    most = _most(tensor)
    if tensor.is_contiguous() and box.steps == row_major(tensor.shape):
        flat = tensor.view(-1)
        for start in range(0, len(flat), most):
            yield _Piece(fill, Box(flat[start : start + most], box.first_index + start, (1,)))
        return
    if tensor.numel() <= most:
        yield _Piece(fill, Box(tensor, box.first_index, box.steps))
        return
    rows = max(1, most * len(tensor) // tensor.numel())
    for start in range(0, len(tensor), rows):
        first = box.first_index + start * box.steps[0]
        part = tensor[start : start + rows]
        if part.numel() <= most:
            yield _Piece(fill, Box(part, first, box.steps))
        else:  # one long row
            yield from _pieces(fill, Box(part[0], first, box.steps[1:]))


class _Running(NamedTuple):
    """Pieces that are being drawn."""

    pieces: Sequence[_Piece]
    expected: Sequence[torch.Tensor]
    """What the pieces should hold, once they have been drawn."""
    memory: torch.Tensor
    """That holds it."""


class _Work:
    """Finds differences: the native core says which tensors have one, and pieces of others are drawn and compared."""

    def __init__(self, seed: int, backend_on: Callable[[torch.device], str]) -> None:
        self.found: dict[str, Found] = {}
        self._seed = seed
        self._backend_on = backend_on
        self._free: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}

    def pieces_that_differ(self, fills: Sequence[Fill]) -> Iterator[_Piece]:
        """Yields what is to be compared by pieces of fills of the core that have one seed."""
        for i, at in cpp_backend.differing(fills, self._seed_of(fills[0]), advance).items():
            fill = fills[i]
            if at is not None:
                yield _Piece(fill, Box(fill.tensor.detach().view(-1)[at : at + 1], at, (1,)))
            else:
                for box in fill.boxes:
                    yield from _pieces(fill, box)

    def compare(self, pieces: Iterable[_Piece]) -> None:
        """Draws pieces, of any devices, dtypes and seeds, and notes which differ."""
        running: deque[_Running] = deque()
        for batch in _batches(pieces):
            # Of a tensor that differs, later pieces of a box cannot have an earlier element: not worth drawing.
            left = [piece for piece in batch if not _is_behind(piece, self.found.get(piece.fill.name))]
            if left:
                running.append(self._start(left))
            while len(running) > (_AHEAD if batch[0].box.tensor.is_cuda else 0):
                self._finish(running.popleft())
        while running:
            self._finish(running.popleft())

    def _seed_of(self, fill: Fill) -> int:
        return self._seed if fill.seed is None else fill.seed

    def _start(self, pieces: Sequence[_Piece]) -> _Running:
        """Begins with pieces of one device, dtype and seed; on a GPU it launches their kernel."""
        memory = self._memory(pieces[0].box.tensor, sum(piece.n_elements for piece in pieces))
        fills, start = [], 0
        for piece in pieces:
            fill, box = piece.fill, piece.box
            made = memory[start : start + piece.n_elements].view(box.tensor.shape)
            start += piece.n_elements
            part = (Box(made, box.first_index, box.steps),)
            fills.append(Fill(fill.name, made, fill.distribution, fill.rule, fill.info, fill.shape, part, fill.stream))
        BACKENDS[self._backend_on(memory.device)].run(fills, self._seed_of(pieces[0].fill))
        return _Running(pieces, [fill.tensor for fill in fills], memory)

    def _finish(self, running: _Running) -> None:
        """Waits for pieces, and notes those that differ."""
        for piece, expected in zip(running.pieces, running.expected):
            if not torch.equal(bits(piece.box.tensor), bits(expected)):
                note(self.found, piece.fill.name, difference(piece.box, expected))
        self._free[running.memory.device, running.memory.dtype].append(running.memory)

    def _memory(self, tensor: torch.Tensor, n_elements: int) -> torch.Tensor:
        free = self._free.setdefault((tensor.device, tensor.dtype), [])
        found = next((at for at, memory in enumerate(free) if len(memory) >= n_elements), None)
        if found is not None:
            return free.pop(found)
        return torch.empty(n_elements, dtype=tensor.dtype, device=tensor.device)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor's bits as integers, of which a NaN equals itself and 0 is not -0."""
    if tensor.element_size() > 8:  # complex128, as two numbers each
        return torch.view_as_real(tensor).view(torch.int64)
    return tensor.view(_INTEGERS[tensor.element_size()])


def difference(box: Box, expected: torch.Tensor) -> Found | None:
    """Returns the first element in which a box differs from a tensor of its shape, by its index in the whole tensor."""
    here = box.tensor.detach()
    if here.numel() == 0:
        return None
    differs = bits(here) != bits(expected)
    if differs.dim() > here.dim():
        differs = differs.any(-1)
    at = differs.nonzero()
    if len(at) == 0:
        return None
    steps = torch.tensor(box.steps, dtype=torch.int64, device=at.device)
    indices = box.first_index + (at * steps).sum(1) if here.dim() else torch.zeros(1, dtype=torch.int64)
    first = int(indices.argmin())
    place = tuple(at[first].tolist())
    return Found(int(indices[first]), expected[place].item(), here[place].item())

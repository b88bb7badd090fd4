"""Finds where memory first departs from what fills would write: piece by piece, with no second copy of it."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ..backends import BACKENDS, cpp_backend
from ..plans import Box, Fill, row_major
from ..progress import advance

# Elements that one thread draws before it compares them: few enough for the cache that the thread has, and 0.4 ms of
# work against some 0.06 ms of Python, for which threads wait for each other.
_PIECE = 1 << 20
# The same on a GPU, where one launch after the other has all of it.
_PIECE_ON_GPU = 1 << 25
# Small tensors in one piece of work.
_MOST_TOGETHER = 256
# Pieces of work that wait for each thread: enough to keep it busy.
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
    found: dict[str, Found] = {}
    work = _Work(seed, backend_on)
    running: deque[_Running] = deque()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for batch in _batches(piece for fill in fills for box in fill.boxes for piece in _pieces(fill, box)):
            advance(sum(piece.box.tensor.nbytes for piece in batch))
            # Of a tensor that differs, later pieces of a box cannot have an earlier element: not worth drawing.
            left = [piece for piece in batch if not _is_behind(piece, found.get(piece.fill.name))]
            if left:
                running.append(work.start(left, pool))
            while len(running) > _AHEAD * torch.get_num_threads():
                work.finish(running.popleft(), found)
        while running:
            work.finish(running.popleft(), found)
    return found


def note(found: dict[str, Found], name: str, difference: Found | None) -> None:
    """Keeps a difference if it is the first of its tensor."""
    if difference is not None and (name not in found or difference.at < found[name].at):
        found[name] = difference


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
    """Pieces that are being drawn and compared."""

    pieces: Sequence[_Piece]
    expected: Sequence[torch.Tensor]
    """What the pieces should hold, once they have been drawn."""
    memory: torch.Tensor
    """That holds it."""
    are_equal: Callable[[], Sequence[bool]]
    """Waits, and tells of each piece whether it holds that."""


class _Work:
    """Draws pieces into memory that is used again and again, and compares.

    What runs in other threads knows addresses only: no function of torch, which a block that records would see.
    """

    def __init__(self, seed: int | None, backend_on: Callable[[torch.device], str]) -> None:
        self._seed = 0 if seed is None else seed
        self._backend_on = backend_on
        self._free: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}

    def start(self, pieces: Sequence[_Piece], pool: ThreadPoolExecutor) -> _Running:
        """Begins with pieces of one device, dtype and seed; on a GPU it launches their kernel."""
        memory = self._memory(pieces[0].box.tensor, sum(piece.n_elements for piece in pieces))
        fills, start = [], 0
        for piece in pieces:
            fill, box = piece.fill, piece.box
            made = memory[start : start + piece.n_elements].view(box.tensor.shape)
            start += piece.n_elements
            part = (Box(made, box.first_index, box.steps),)
            fills.append(Fill(fill.name, made, fill.distribution, fill.rule, fill.info, fill.shape, part, fill.stream))
        here, there = [piece.box.tensor for piece in pieces], [fill.tensor for fill in fills]
        own = pieces[0].fill.seed
        seed = self._seed if own is None else own
        name = self._backend_on(memory.device)
        if name != "cpp":
            BACKENDS[name].run(fills, seed)
            return _Running(pieces, there, memory, lambda: list(map(_is_equal, here, there)))
        spans = [(a.data_ptr(), b.data_ptr(), a.nbytes) for a, b in zip(here, there)]
        if _memcmp is None or not all(tensor.is_contiguous() for tensor in here):
            drawn = pool.submit(cpp_backend.prepared(fills, seed))
            return _Running(pieces, there, memory, lambda: (drawn.result(), list(map(_is_equal, here, there)))[1])
        done = pool.submit(_drawn_and_compared, cpp_backend.prepared(fills, seed), spans)
        return _Running(pieces, there, memory, done.result)

    def finish(self, running: _Running, found: dict[str, Found]) -> None:
        """Waits for pieces, and notes those that differ."""
        for piece, expected, is_equal in zip(running.pieces, running.expected, running.are_equal()):
            if not is_equal:
                note(found, piece.fill.name, difference(piece.box, expected))
        self._free[running.memory.device, running.memory.dtype].append(running.memory)

    def _memory(self, tensor: torch.Tensor, n_elements: int) -> torch.Tensor:
        free = self._free.setdefault((tensor.device, tensor.dtype), [])
        found = next((at for at, memory in enumerate(free) if len(memory) >= n_elements), None)
        if found is not None:
            return free.pop(found)
        return torch.empty(n_elements, dtype=tensor.dtype, device=tensor.device)


def _drawn_and_compared(draw: Callable[[], object], spans: Sequence[tuple[int, int, int]]) -> list[bool]:
    assert _memcmp is not None, "the caller has asked"
    draw()
    return [_memcmp(*span) == 0 for span in spans]


def _is_equal(here: torch.Tensor, there: torch.Tensor) -> bool:
    if here.device.type == "cpu" and _memcmp is not None and here.is_contiguous() and there.is_contiguous():
        return _memcmp(here.data_ptr(), there.data_ptr(), here.nbytes) == 0
    return torch.equal(bits(here), bits(there))


def _compare() -> Callable[[int, int, int], int] | None:
    """Returns C's memcmp, which compares several times faster than torch.equal and without the interpreter's lock."""
    with suppress(AttributeError, OSError):
        found = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp  # type: ignore[attr-defined]
        found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
        return found  # type: ignore[no-any-return]
    return None


_memcmp = _compare()
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

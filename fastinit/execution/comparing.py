"""Finds where memory first departs from what fills would write: piece by piece, with no second copy of it."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import local
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
    running: deque[Future[list[tuple[str, Found]]]] = deque()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for batch in _batches(piece for fill in fills for box in fill.boxes for piece in _pieces(fill, box)):
            advance(sum(piece.box.tensor.nbytes for piece in batch))
            # Of a tensor that differs, later pieces of a box cannot have an earlier element: not worth drawing.
            left = [piece for piece in batch if not _is_behind(piece, found.get(piece.fill.name))]
            if left and left[0].box.tensor.is_cuda:  # one launch has all of it
                for name, each in work.differences(left):
                    note(found, name, each)
            elif left:
                running.append(pool.submit(partial(work.differences, left)))
            while len(running) > _AHEAD * torch.get_num_threads():
                _note_all(found, running.popleft())
        while running:
            _note_all(found, running.popleft())
    return found


def _note_all(found: dict[str, Found], done: Future[list[tuple[str, Found]]]) -> None:
    for name, each in done.result():
        note(found, name, each)


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


class _Work:
    """Draws pieces into memory that is used again and again, each thread into its own, and compares."""

    def __init__(self, seed: int | None, backend_on: Callable[[torch.device], str]) -> None:
        self._seed = 0 if seed is None else seed
        self._backend_on = backend_on
        self._own = local()

    def differences(self, pieces: Sequence[_Piece]) -> list[tuple[str, Found]]:
        """Returns name and first difference of the pieces that do not hold their values."""
        memory = self._memory(pieces[0].box.tensor, sum(piece.n_elements for piece in pieces))
        fills, start = [], 0
        for piece in pieces:
            fill, box = piece.fill, piece.box
            made = memory[start : start + piece.n_elements].view(box.tensor.shape)
            start += piece.n_elements
            part = (Box(made, box.first_index, box.steps),)
            fills.append(Fill(fill.name, made, fill.distribution, fill.rule, fill.info, fill.shape, part, fill.stream))
        own = pieces[0].fill.seed
        self._draw(fills, self._seed if own is None else own)
        wrong = [(piece, fill) for piece, fill in zip(pieces, fills) if not _is_equal(piece.box.tensor, fill.tensor)]
        found = [(piece.fill.name, difference(piece.box, fill.tensor)) for piece, fill in wrong]
        return [(name, each) for name, each in found if each is not None]

    def _draw(self, fills: Sequence[Fill], seed: int) -> None:
        name = self._backend_on(fills[0].tensor.device)
        if name == "cpp":
            cpp_backend.run_in_this_thread(fills, seed)
        else:
            BACKENDS[name].run(fills, seed)

    def _memory(self, tensor: torch.Tensor, n_elements: int) -> torch.Tensor:
        kept = vars(self._own).setdefault("memory", {})
        key = tensor.device, tensor.dtype
        if key not in kept or len(kept[key]) < n_elements:
            kept[key] = torch.empty(n_elements, dtype=tensor.dtype, device=tensor.device)
        memory: torch.Tensor = kept[key]
        return memory


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

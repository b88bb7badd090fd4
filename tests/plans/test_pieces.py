"""What a rectangle of a tensor holds of a part of it: compared with torch's own views, element by element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastinit.plans import Box, pieces
from fastinit.plans.geometry import Strided

Case = tuple[tuple[int, ...], list[slice], torch.Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws (shape of a tensor, a rectangle of it, the row-major indices of a part of it as a view)."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    rectangle = []
    for size in shape:
        start = draw(st.integers(0, size))
        rectangle.append(slice(start, draw(st.integers(start, size))))
    part = torch.arange(torch.Size(shape).numel()).view(shape)
    if draw(st.booleans()):
        part = part.flatten()
    for dim, size in enumerate(part.shape):
        start = draw(st.integers(0, size - 1))
        part = part.narrow(dim, start, draw(st.integers(1, size - start)))
        part = part[(slice(None),) * dim + (slice(None, None, draw(st.integers(1, 3))),)]
    factor = draw(st.sampled_from([n for n in range(1, part.shape[0] + 1) if part.shape[0] % n == 0]))
    part = part.unflatten(0, (factor, -1))  # heads
    return shape, rectangle, part.permute(draw(st.permutations(range(part.dim()))))


def filled(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the memory of a rectangle, each element of the part numbered by its position, and what is right."""
    shape, rectangle, view = case
    part = Strided(int(view.flatten()[0]), tuple(view.shape), view.stride())
    expected = torch.full(shape, -1)
    expected.as_strided(part.shape, part.steps, part.first).copy_(torch.arange(view.numel()).view(view.shape))
    memory = torch.full([each.stop - each.start + 2 for each in rectangle], -1)
    local = memory[tuple(slice(1, each.stop - each.start + 1) for each in rectangle)]
    box = Box.at(local, [each.start for each in rectangle], shape)
    for piece in pieces.boxes_in(box, part, Strided.whole(part.shape), shape):
        assert bool((piece.tensor == -1).all()), "an element is in two pieces"
        numbers = piece.indices
        piece.tensor.copy_(torch.arange(view.numel()).as_strided(numbers.shape, numbers.steps, numbers.first))
    assert int((memory != -1).sum()) == int((local != -1).sum()), "a piece lies outside"
    return local, expected[tuple(rectangle)]


@given(cases())
def test_a_rectangle_gets_each_element_of_the_part_that_is_its_own(case: Case) -> None:
    local, expected = filled(case)
    assert torch.equal(local, expected)


def n_pieces(part: torch.Tensor, shape: tuple[int, ...], rows: slice, columns: slice = slice(0, None)) -> int:
    """Returns how many pieces a rectangle has of a part, given as a view of row-major indices."""
    tensor = torch.empty(shape, device="meta")[rows, columns]
    box = Box.at(tensor, [rows.start, columns.start], shape)
    strided = Strided(part.storage_offset(), tuple(part.shape), part.stride())
    return len(list(pieces.boxes_in(box, strided, strided, shape)))


def test_rows_of_every_head_are_one_piece_but_where_the_rectangle_ends_within_a_head() -> None:
    shape = (3 * 64 * 16, 32)
    queries = torch.empty(shape, device="meta").view(64, 3, 16, 32)[:, 0]
    assert n_pieces(queries, shape, slice(0, shape[0])) == 1
    assert n_pieces(queries, shape, slice(0, 48 * 10)) == 1
    assert n_pieces(queries, shape, slice(5, 48 * 10 + 5)) == 3
    assert n_pieces(queries, shape, slice(0, shape[0]), slice(3, 7)) == 1


def test_a_flat_view_is_its_rows_and_two_ends() -> None:
    shape = (100, 32)
    flat = torch.empty(shape, device="meta").flatten()[40:1000]
    assert n_pieces(flat, shape, slice(0, 100)) == 3
    assert n_pieces(flat, shape, slice(2, 20), slice(16, 32)) == 1


def test_a_part_without_a_pattern_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_PIECES", 50)
    shape = (100, 32)
    with pytest.raises(OverflowError, match="more than 50"):
        n_pieces(torch.empty(shape, device="meta").flatten()[::5], shape, slice(0, 100))

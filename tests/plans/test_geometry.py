"""Geometry against torch: which elements views are of, told by views of a tensor of numbers that count up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastinit.plans import Box
from fastinit.plans.geometry import Strided, byte_span, may_overlap, merged, row_major

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)

spans = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple)


@st.composite
def any_strided(draw: st.DrawFn) -> Strided:
    """Elements at any steps, which may be the same ones."""
    shape = draw(shapes)
    return Strided(draw(st.integers(0, 5)), shape, tuple(draw(st.integers(0, 9)) for _ in shape))


@st.composite
def apart(draw: st.DrawFn) -> Strided:
    """The memory of a tensor that does not overlap itself: dimensions in any order, with gaps."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4).map(tuple))
    steps, span = [0] * len(shape), 1
    for dim in draw(st.permutations(range(len(shape)))):
        steps[dim] = span + draw(st.sampled_from([0, 0, 0, 1, 3]))
        span += (shape[dim] - 1) * steps[dim]
    return Strided(draw(st.integers(0, 5)), shape, tuple(steps))


@st.composite
def views(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """A view of a tensor: slices with steps, dimensions exchanged, a diagonal."""
    for dim, size in enumerate(tensor.shape):
        start = draw(st.integers(0, size - 1))
        tensor = tensor.narrow(dim, start, draw(st.integers(1, size - start)))
        tensor = tensor[(slice(None),) * dim + (slice(None, None, draw(st.integers(1, 3))),)]
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.diagonal()
    return tensor.permute(draw(st.permutations(range(tensor.dim()))))


def elements(strided: Strided) -> list[int]:
    """Returns where the elements are, in their order."""
    last = strided.first + sum(max(size - 1, 0) * step for size, step in zip(strided.shape, strided.steps))
    return torch.arange(last + 1).as_strided(strided.shape, strided.steps, strided.first).flatten().tolist()


def counted(memory: Strided) -> torch.Tensor:
    """Returns a tensor with that memory, each element of which is its own row-major index."""
    tensor = torch.empty(memory.first + memory.span, dtype=torch.int64)
    tensor = tensor.as_strided(memory.shape, memory.steps, memory.first)
    return tensor.copy_(torch.arange(memory.numel).view(memory.shape))


@given(any_strided())
def test_the_number_of_elements_is_torchs(strided):
    assert strided.numel == len(elements(strided))


@given(any_strided())
def test_the_span_reaches_from_the_first_element_to_the_last(strided):
    found = elements(strided)
    assert strided.span == (max(found) - min(found) + 1 if found else 0)


@given(any_strided())
def test_the_first_element_is_the_lowest(strided):
    found = elements(strided)
    assert not found or strided.first == min(found) == found[0]


@given(any_strided())
def test_dense_elements_are_all_of_their_span_each_once(strided):
    found = elements(strided)
    assert strided.is_dense == (sorted(found) == list(range(strided.first, strided.first + strided.span)))


@given(any_strided())
def test_elements_in_order_count_up_by_one(strided):
    found = elements(strided)
    assert strided.in_order == (found == list(range(strided.first, strided.first + strided.span)))


@given(apart())
def test_elements_in_order_are_what_torch_calls_contiguous(memory):
    assert memory.in_order == counted(memory).is_contiguous()


@given(any_strided())
def test_views_without_self_overlap_hold_each_element_once(strided):
    found = elements(strided)
    assert strided.overlaps_itself or len(set(found)) == len(found)


@given(apart())
def test_disjoint_layouts_do_not_overlap_themselves(memory):
    assert not memory.overlaps_itself


@given(any_strided())
def test_canonical_steps_lead_to_the_same_elements(strided):
    assert elements(strided.canonical) == elements(strided)


def test_steps_along_dimensions_of_one_element_do_not_tell_canonical_forms_apart():
    assert Strided(2, (3, 1), (1, 7)).canonical == Strided(2, (3, 1), (1, 1))


@given(shapes)
def test_the_whole_of_a_tensor_is_every_index_in_order(shape):
    assert elements(Strided.whole(shape)) == list(range(math.prod(shape)))


@given(shapes)
def test_row_major_steps_are_those_of_a_contiguous_tensor(shape):
    assume(0 not in shape)  # torch takes such a dimension for one of one element
    assert row_major(shape) == torch.empty(shape).stride()


@given(apart(), st.data())
def test_the_memory_of_a_view_is_where_its_elements_are(memory, data):
    tensor = torch.arange(memory.first + memory.span).as_strided(memory.shape, memory.steps, memory.first)
    view = data.draw(views(tensor))
    assert elements(Strided.of(view)) == view.flatten().tolist()


@given(apart(), st.data())
def test_a_view_of_a_tensor_is_found_within_it(memory, data):
    view = data.draw(views(counted(memory)))
    indices = Strided.of(view).within(memory)
    assert indices is not None
    assert elements(indices) == view.flatten().tolist()


@given(apart(), any_strided())
def test_views_found_within_a_tensor_have_the_indices_of_its_elements(memory, part):
    index_of = dict(zip(elements(memory), range(memory.numel)))
    indices = part.within(memory)
    assert indices is None or elements(indices) == [index_of[at] for at in elements(part)]


def test_a_row_of_a_tensor_whose_rows_share_memory_is_no_part_of_it():
    assert Strided(3, (5,), (1,)).within(Strided(3, (2, 5), (0, 1))) is None


def test_all_of_a_tensor_that_overlaps_itself_is_found_within_it():
    expanded = Strided(3, (2, 5), (0, 1))
    assert expanded.within(expanded) == Strided.whole((2, 5))


@given(apart(), st.data())
def test_the_place_of_a_part_is_in_the_canonical_form(memory, data):
    indices = Strided.of(data.draw(views(counted(memory)))).within(memory)
    assert indices == indices.canonical


@given(apart(), st.data())
def test_the_indices_of_a_view_are_laid_out_where_its_elements_are(memory, data):
    view = data.draw(views(counted(memory)))
    here = Strided.of(view).within(memory).laid_out(memory.shape, memory.steps)
    assert here is not None
    assert elements(here._replace(first=here.first + memory.first)) == elements(Strided.of(view))


def test_indices_across_the_rows_of_a_transposed_matrix_are_laid_out_at_no_steps():
    assert Strided(2, (6,), (1,)).laid_out((4, 5), (1, 4)) is None


def test_memory_across_the_rows_of_a_transposed_matrix_is_no_part_of_it():
    assert Strided(2, (6,), (1,)).within(Strided(0, (4, 5), (1, 4))) is None


def test_memory_across_the_rows_of_a_matrix_in_order_is_a_part_of_it():
    assert Strided(2, (6,), (1,)).within(Strided(0, (5, 4), (4, 1))) == Strided(2, (6,), (1,))


def test_memory_across_dimensions_that_run_on_is_a_part_of_the_tensor():
    assert Strided(5, (4,), (5,)).within(Strided(0, (5, 2, 3), (1, 15, 5))) == Strided(1, (4,), (1,))


def test_memory_beyond_a_tensor_is_no_part_of_it():
    assert Strided(2, (6,), (1,)).within(Strided(0, (7,), (1,))) is None


def test_memory_before_a_tensor_is_no_part_of_it():
    assert Strided(0, (2,), (1,)).within(Strided(1, (7,), (1,))) is None


@pytest.mark.parametrize("at", [2, 3])
def test_a_gap_in_a_tensor_is_no_part_of_it(at):
    assert Strided(at, (1,), (1,)).within(Strided(0, (4, 2), (4, 1))) is None


@given(st.integers(0, 9), st.integers(0, 20), st.lists(spans, max_size=5))
def test_remaining_stretches_are_those_outside_all_spans(first, size, taken_out):
    left = Strided(first, (size,), (1,)).minus(taken_out)
    taken = {at for start, stop in taken_out for at in range(start, stop)}
    expected = [at for at in range(first, first + size) if at not in taken]
    assert [at for start, stop in left for at in range(start, stop)] == expected


@given(st.integers(0, 9), st.integers(0, 20), st.lists(spans, max_size=5))
def test_remaining_stretches_are_disjoint_and_not_empty(first, size, taken_out):
    left = Strided(first, (size,), (1,)).minus(taken_out)
    assert all(start < stop for start, stop in left)


@given(any_strided())
def test_merged_loops_visit_the_same_elements_in_the_same_order(strided):
    loops = merged(strided.shape, strided.steps)
    assert elements(Strided(strided.first, *zip(*loops) if loops else ((), ()))) == elements(strided)


@given(apart())
def test_loops_merge_by_all_of_their_steps(memory):
    loops = merged(memory.shape, memory.steps, row_major(memory.shape))
    sizes, steps, index_steps = zip(*loops) if loops else ((), (), ())
    assert elements(Strided(0, sizes, index_steps)) == list(range(memory.numel))
    assert elements(Strided(memory.first, sizes, steps)) == elements(memory)


@given(shapes)
def test_a_tensor_in_order_is_one_loop(shape):
    assert len(merged(shape, row_major(shape))) <= 1 or 0 in shape


@given(any_strided())
def test_elements_that_cannot_overlap_do_not(strided):
    found = elements(strided)
    assert may_overlap(strided.shape, strided.steps) or len(set(found)) == len(found)


@given(apart(), st.data())
def test_the_bytes_of_a_view_reach_from_its_first_to_its_last(memory, data):
    tensor = counted(memory)
    view = data.draw(views(tensor))
    places = [place * view.element_size() for place in elements(Strided.of(view))]
    begin = tensor.untyped_storage().data_ptr()
    assert byte_span(view) == (begin + min(places), begin + max(places) + view.element_size())


def test_a_tensor_without_elements_spans_no_bytes():
    start, stop = byte_span(torch.empty(3, 0))
    assert start == stop


@given(st.lists(st.integers(1, 5), max_size=4).map(tuple), st.data())
def test_a_rectangular_box_has_the_index_that_it_was_made_at(shape, data):
    index = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    assert Box.at(torch.empty((1,) * len(shape)), index, shape).index(shape) == index


@given(apart(), st.data())
def test_a_box_knows_the_index_of_its_first_element(memory, data):
    view = data.draw(views(counted(memory)))
    indices = Strided.of(view).within(memory)
    index = Box(view, indices.first, indices.steps).index(memory.shape)
    assert counted(memory)[index] == view.flatten()[0]


def test_the_box_of_a_whole_tensor_is_all_of_its_indices():
    assert Box.whole(torch.empty(4, 5).t()).indices == Strided.whole((5, 4))


def test_a_box_of_an_empty_tensor_begins_at_its_beginning():
    assert Box.whole(torch.empty(3, 0)).index((3, 0)) == (0, 0)

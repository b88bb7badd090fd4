"""Places: which bytes a view is, what meets and covers what, and what has no plain memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from fastinit.execution.places import Place, storage_of

WHOLE = torch.arange(24.0)


def place(tensor: torch.Tensor) -> Place:
    return Place(tensor, StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]


def test_a_place_knows_its_bytes_in_the_storage() -> None:
    here = place(WHOLE[2:5])
    assert (here.start, here.end) == (8, 20)


def test_the_bytes_of_a_strided_place_reach_to_its_last_element() -> None:
    here = place(WHOLE.view(6, 4)[:, 1])
    assert (here.start, here.end) == (4, 4 * 22) and not here.is_dense


def test_a_transposed_place_is_dense() -> None:
    assert place(WHOLE.view(6, 4).t()).is_dense


def test_neighbours_do_not_meet() -> None:
    first, second = place(WHOLE[:4]), place(WHOLE[4:])
    assert not first.meets(second) and not second.meets(first)


def test_places_that_share_one_element_meet() -> None:
    first, second = place(WHOLE[:5]), place(WHOLE[4:])
    assert first.meets(second) and second.meets(first)


def test_a_dense_place_covers_what_lies_within_its_bytes() -> None:
    assert place(WHOLE[4:12]).covers(place(WHOLE.view(6, 4)[1:3, 1]))


@pytest.mark.parametrize("other", [WHOLE[3:8], WHOLE[8:13]], ids=["earlier", "later"])
def test_a_dense_place_does_not_cover_what_reaches_beyond_it(other: torch.Tensor) -> None:
    assert not place(WHOLE[4:12]).covers(place(other))


def test_a_place_with_gaps_covers_itself_and_not_what_lies_in_its_gaps() -> None:
    column = place(WHOLE.view(6, 4)[:, 1])
    assert column.covers(place(WHOLE.view(6, 4)[:, 1])) and not column.covers(place(WHOLE[6:8]))


def test_the_same_bytes_in_another_dtype_are_another_geometry() -> None:
    assert place(WHOLE).geometry != place(WHOLE.view(torch.int32)).geometry


def test_a_view_of_a_place_is_its_memory() -> None:
    view = place(WHOLE.view(6, 4)[:, 1]).view()
    assert view is not None and view.tolist() == WHOLE.view(6, 4)[:, 1].tolist()


def test_a_view_of_a_stretch_begins_where_the_stretch_does() -> None:
    view = place(WHOLE).view((5, 8))
    assert view is not None and view.tolist() == [5, 6, 7]


def test_a_place_has_no_view_once_its_memory_is_gone() -> None:
    tensor = torch.zeros(3)
    here = place(tensor)
    del tensor
    assert here.view() is None


def test_a_tensor_that_got_other_memory_is_not_of_the_place() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    here = place(parameter)
    assert here.is_of(parameter)
    parameter.data = torch.ones(3)
    assert not here.is_of(parameter)


class Wrapper(torch.Tensor):
    """A tensor that is made of others."""

    def __tensor_flatten__(self) -> None: ...

    def __tensor_unflatten__(self) -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        nn.parameter.UninitializedParameter,
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.zeros(2).as_subclass(Wrapper),
    ],
    ids=["lazy", "sparse", "wrapper"],
)
def test_some_tensors_have_no_plain_memory(make: Callable[[], torch.Tensor]) -> None:
    assert storage_of(make()) is None

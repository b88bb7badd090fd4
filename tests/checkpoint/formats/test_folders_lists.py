"""Lists of contents of folders of torch.distributed.checkpoint, and whether the chunks that they name tile a tensor."""

from __future__ import annotations

import itertools
import math
import pathlib
import pickle
import time

import folders
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import n_steps
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from fastinit.checkpoint.formats import folder_list
from fastinit.checkpoint.formats.tiling import MAX_CUT_DIMENSIONS, why_not_tiled

pytestmark = folders.needs_dcp


# --- tiling ----------------------------------------------------------------------------------------------------------


@st.composite
def tilings(draw):
    """Draws a shape and boxes that tile it: a box is cut in two, again and again, along any dimension."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=0, max_size=3)))
    boxes = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 8)) if shape else 0):
        first, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[dim]))
        for start, length in ((0, at), (at, size[dim] - at)):
            one = tuple(a + start if d == dim else a for d, a in enumerate(first))
            boxes.append((one, tuple(length if d == dim else n for d, n in enumerate(size))))
    return shape, draw(st.permutations(boxes))


def counts(shape, boxes):
    """Returns how often each element lies in a box; None if a box leaves the shape."""
    found = torch.zeros(shape, dtype=torch.int64)
    for first, size in boxes:
        if any(a + n > whole for a, n, whole in zip(first, size, shape)):
            return None
        found[tuple(slice(a, a + n) for a, n in zip(first, size))] += 1
    return found


@given(tilings())
def test_boxes_that_tile_are_found_to(case):
    assert why_not_tiled(*case) is None


@given(tilings(), st.data())
def test_boxes_that_do_not_tile_are_detected(case, data):
    shape, boxes = case
    if not shape:
        return
    boxes = [list(map(list, box)) for box in boxes]
    for _ in range(data.draw(st.integers(1, 3))):  # changed anywhere: it may tile again, as counting tells
        box = data.draw(st.sampled_from(boxes))
        side, dim = data.draw(st.integers(0, 1)), data.draw(st.integers(0, len(shape) - 1))
        box[side][dim] = max(0, box[side][dim] + data.draw(st.integers(-2, 2)))
    counted = counts(shape, boxes)
    assert (why_not_tiled(shape, boxes) is None) == (counted is not None and bool((counted == 1).all()))


@pytest.mark.parametrize(
    ("shape", "boxes", "message"),
    [
        ((4, 4), [], "its 0 chunks hold 0 elements"),
        ((4, 4), [((0, 0), (1, 4))], "its 1 chunks hold 4 elements, and a tensor of 4x4 has 16"),
        ((4, 4), [((0, 0), (4, 4))] * 2, "overlap: they hold 32"),
        ((4, 4), [((0, 0), (2, 4)), ((1, 0), (2, 4))], "overlap, and leave gaps"),
        ((4, 4), [((0, 0), (2, 2)), ((2, 2), (2, 2)), ((0, 2), (2, 2)), ((0, 2), (2, 2))], "overlap, and leave gaps"),
        ((4, 4), [((1, 0), (4, 4))], "does not lie within 4x4"),
        ((4,), [((0, 0), (4, 4))], "has 2 and 2 dimensions, and the tensor 1"),
        ((4,), [((0,), ())], "has 1 and 0 dimensions"),
        ((), [], "hold 0 elements"),
        ((), [((), ())] * 2, "overlap"),
        ((0, 4), [((0, 2), (0, 3))], "does not lie within"),
        ((2**62, 2**62), [((0, 0), (1, 1))], "hold 1 elements"),
    ],
)
def test_errors_say_why_boxes_do_not_tile(shape, boxes, message):
    assert message in why_not_tiled(shape, boxes)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (3,)], ids=str)
def test_whole_tensors_and_empty_ones_are_tiled(shape):
    whole = ((0,) * len(shape), shape)
    assert why_not_tiled(shape, [whole]) is None
    if 0 in shape:
        assert why_not_tiled(shape, []) is None and why_not_tiled(shape, [whole, whole]) is None


def test_cuts_along_more_dimensions_than_meshes_have_are_refused():
    for n in (MAX_CUT_DIMENSIONS, MAX_CUT_DIMENSIONS + 1):
        shape = (2,) * n
        boxes = [(first, (1,) * n) for first in itertools.product((0, 1), repeat=n)]
        assert (why_not_tiled(shape, boxes) is None) == (n == MAX_CUT_DIMENSIONS)


# --- lists -----------------------------------------------------------------------------------------------------------


def listed(tensors, places=None):
    """Returns the pickle of a list: {key: (shape, [(first, shape)])} of float32."""
    entries = {
        key: metadata.TensorStorageMetadata(
            metadata.TensorProperties(torch.float32), torch.Size(shape), [folders.chunk(*box) for box in boxes]
        )
        for key, (shape, boxes) in tensors.items()
    }
    if places is None:
        places = {
            metadata.MetadataIndex(key, first, i): _StorageInfo("a", 0, 4 * math.prod(size))
            for key, (_, boxes) in tensors.items()
            for i, (first, size) in enumerate(boxes)
        }
    return pickle.dumps(metadata.Metadata(entries, None, places, metadata.StorageMeta(pathlib.Path("x"))))


WHOLE = {"w": ((4, 4), [((0, 0), (4, 4))])}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_lists_of_every_protocol_are_read(protocol):
    data = pickle.dumps(pickle.loads(listed(WHOLE)), protocol)
    (entry,) = folder_list.tensors_of(data, "x").values()
    assert entry == (torch.float32, (4, 4), (((0, 0), (4, 4), "a", 0, 64),))


def test_lists_of_older_torch_are_read():
    data = pickle.dumps(pickle.loads(listed(WHOLE)), 2)
    ours, theirs = b"torch.distributed.checkpoint.metadata", b"torch.distributed._shard.sharded_tensor.metadata"
    for name in (b"TensorProperties", b"_MEM_FORMAT_ENCODING"):
        assert ours + b"\n" + name in data
        data = data.replace(ours + b"\n" + name, theirs + b"\n" + name.lstrip(b"_"))
    assert folder_list.tensors_of(data, "x")["w"].shape == (4, 4)


def test_members_of_enums_may_be_written_by_name():
    # As Python 3.11.0 to 3.11.3 did it.
    data = pickle.dumps(pickle.loads(listed(WHOLE)), 2)
    name = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
    at = data.index(name)
    end = data.index(b"R", at + len(name))
    member = name + b"X\x17\x00\x00\x00TORCH_CONTIGUOUS_FORMAT\x86"
    assert folder_list.tensors_of(data[:at] + b"c__builtin__\ngetattr\n" + member + data[end:], "x")["w"].chunks


def test_unused_fields_may_hold_anything():
    contents = pickle.loads(listed(WHOLE))
    contents.storage_meta.checkpoint_id = print  # a path of another library, a planner's own data
    contents.planner_data = {"w": ("model", 0, "w"), "of": pathlib.PurePosixPath("x"), "by": time.time}
    assert list(folder_list.tensors_of(pickle.dumps(contents), "x")) == ["w"]


def of(change):
    def make():
        contents = pickle.loads(listed(WHOLE))
        change(contents, contents.state_dict_metadata["w"], folders.place_of(contents, "w"))
        return pickle.dumps(contents)

    return make


def named(change, name, value):
    return pytest.param(of(change), id=f"{name}={getattr(value, '__name__', repr(value))[:40]}")


def put(name, value):
    return named(lambda contents, entry, place: setattr(contents, name, value), name, value)


def put_entry(name, value):
    return named(lambda contents, entry, place: setattr(entry, name, value), name, value)


def put_place(name, value):
    return named(lambda contents, entry, place: setattr(place, name, value), name, value)


def put_property(name, value):
    return named(lambda contents, entry, place: setattr(entry.properties, name, value), name, value)


ODD = [None, -1, 2**70, "x", 1.5, [1], {}, (), True, b"x", torch.Size([2]), print]


@pytest.mark.parametrize(
    "make",
    [
        *(put("state_dict_metadata", each) for each in (None, [], 3, {3: 3}, {"w": None}, {"w": print}, {"w": {}})),
        *(put("storage_data", each) for each in (None, [], {}, {"w": 3}, {3: _StorageInfo("a", 0, 64)})),
        *(put_entry("chunks", each) for each in [*ODD, [None], [print], (folders.chunk((0, 0), (4, 4)),)]),
        *(put_entry("size", each) for each in [*ODD, torch.Size([5, 4]), torch.Size([4]), (True, 4, 4), (4.0, 4)]),
        *(put_entry("properties", each) for each in ODD),
        *(put_property("dtype", each) for each in [*ODD, torch.float64, torch.strided]),
        *(put_property("layout", each) for each in [None, "x", torch.sparse_coo, print]),
        *(put_property("requires_grad", each) for each in ["x", None]),
        *(put_place("relative_path", each) for each in (None, 3, b"a", ("a",), print)),
        *(put_place("offset", each) for each in (None, -1, "x", 1.5, True, print)),
        *(put_place("length", each) for each in (None, -1, 63, "x", 64.0, print)),
        *(put_place("transform_descriptors", each) for each in (["zstd"], "zstd", 3, print)),
        pytest.param(of(lambda _, entry, __: entry.chunks.append(folders.chunk((0, 0), (4, 4)))), id="chunk twice"),
        pytest.param(of(lambda _, entry, __: entry.chunks.clear()), id="no chunks"),
        pytest.param(of(lambda contents, *_: contents.storage_data.clear()), id="no places"),
        pytest.param(lambda: pickle.dumps([1, 2]), id="a list of numbers"),
        pytest.param(lambda: pickle.dumps(print), id="a function"),
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: listed(WHOLE)[:40], id="cut off"),
        pytest.param(lambda: listed({"w": ((1,) * 65, [((0,) * 65, (1,) * 65)])}), id="65 dimensions"),
    ],
)
def test_malformed_lists_are_refused(make):
    data = make()
    with pytest.raises((ValueError, RuntimeError)) as caught:
        folder_list.tensors_of(data, "x")
    assert 0 < len(str(caught.value)) < 500


def test_each_chunk_has_exactly_one_place():
    first = metadata.MetadataIndex("w", (0, 0), 0)
    other = metadata.MetadataIndex("v", (0, 0), 0)
    data = listed(WHOLE, {first: _StorageInfo("a", 0, 64), other: _StorageInfo("b", 0, 64)})
    with pytest.raises(ValueError, match="'w': its chunk at \\(0, 0\\) has two places"):
        folder_list.tensors_of(data.replace(b"\x01v", b"\x01w"), "x")
    with pytest.raises(ValueError, match="'w': its chunk at \\(0, 0\\) has no place"):
        folder_list.tensors_of(listed(WHOLE, {other: _StorageInfo("a", 0, 64)}), "x")


@pytest.mark.parametrize("kind", ["tensors", "chunks"])
def test_the_steps_to_read_a_list_grow_with_its_length(kind):
    def steps(n):
        if kind == "tensors":
            data = listed({f"layers.{i}.weight": ((4, 4), [((0, 0), (4, 4))]) for i in range(n)})
        else:
            data = listed({"w": ((n, 4), [((i, 0), (1, 4)) for i in range(n)])})
        found = folder_list.tensors_of(data, "x")  # and what is done once in a process
        assert sum(len(entry.chunks) for entry in found.values()) == n
        return n_steps(lambda: folder_list.tensors_of(data, "x"))

    small, large = steps(200), steps(800)
    assert large < 4.5 * small, (small, large)

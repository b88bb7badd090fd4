"""What must not show in the values of the cpp backend: threads, layouts, boxes, processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cpp_core import (
    FLOATS,
    NATIVE,
    NORMAL,
    TRUNCATED,
    UNIFORM,
    fill,
    record,
    words_of,
)
from helpers import same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastinit
from fastinit import plans
from fastinit.contract import records as lowering
from fastinit.contract import streams


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_do_not_depend_on_the_number_of_threads(dtype):
    one = fill(torch.empty(300_007, dtype=dtype), threads=1)
    assert same_bits(fill(torch.empty(300_007, dtype=dtype), threads=7), one)


@st.composite
def layouts(draw):
    """A shape, a box in it, an order of the dimensions in memory, steps, and a dtype."""
    shape = draw(st.lists(st.integers(1, 9), min_size=0, max_size=5))
    offset = [draw(st.integers(0, n - 1)) for n in shape]
    sizes = [draw(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, n - o)) for n, o in zip(shape, offset)]
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in shape]
    return (
        shape,
        offset,
        sizes,
        order,
        steps,
        draw(st.sampled_from(FLOATS)),
        draw(st.sampled_from([NORMAL, UNIFORM, TRUNCATED])),
    )


@given(layouts())
def test_a_box_in_any_layout_holds_the_values_of_its_slice_of_the_whole(layout):
    shape, offset, sizes, order, steps, dtype, distribution = layout
    whole = fill(torch.empty(shape, dtype=dtype), distribution)
    memory = torch.full([sizes[d] * steps[d] for d in order], 77.0, dtype=dtype)
    inverse = [order.index(d) for d in range(len(order))]
    box = memory.permute(inverse)[tuple(slice(0, size * step, step) for size, step in zip(sizes, steps))]
    assert list(box.shape) == sizes
    fill(box, distribution, shape=shape, offset=offset)
    expected = whole[tuple(slice(o, o + n) for o, n in zip(offset, sizes))]
    assert same_bits(box.contiguous(), expected.contiguous())
    box.fill_(77.0)
    assert (memory == 77).all()  # nothing else was written


def test_more_dimensions_than_a_record_has_are_split():
    whole = fill(torch.empty(2, 3, 2, 2, 3, 2, 2, 3))
    scattered = torch.empty(3, 2, 2, 3, 2, 2, 3, 2).permute(7, 6, 5, 4, 3, 2, 1, 0)
    assert len(lowering.lowered([plans.Fill.whole("weight", scattered, NORMAL, "", "")], 0)) > 1
    assert same_bits(fill(scattered).contiguous(), whole)


def test_far_parts_of_a_huge_parameter_need_no_memory_for_the_rest():
    shape, offset = (2**20, 2**16), (2**20 - 1, 2**16 - 64)  # 2^36 elements
    part = fill(torch.empty(1, 64), UNIFORM, shape=shape, offset=offset)
    words = words_of(streams.parameter_key(0, "weight"), 2**36 - 64, 64)
    u = (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    low, high = np.float32(-0.37), np.float32(1.93)
    assert (part.numpy().reshape(-1) == u * (high - low) + low).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_tensors_of_no_elements_or_no_dimensions_are_filled(shape):
    made = nn.ParameterList([nn.Parameter(torch.full(shape, 77.0))])
    fastinit.initialize(made, dict(type="Normal", param="0"), backend="cpp", seed=0)
    assert not (made[0] == 77).any()


def test_slices_of_a_fused_weight_have_the_values_of_the_whole_parameter():
    fused = torch.zeros(30, 40)
    made = nn.ParameterDict({"q": nn.Parameter(fused[:, :15]), "k": nn.Parameter(fused[:, 15:])})
    alone = nn.ParameterDict({"q": nn.Parameter(torch.zeros(30, 15)), "k": nn.Parameter(torch.zeros(30, 25))})
    for each in (made, alone):
        fastinit.initialize(each, dict(type="Normal", param="*"), backend="cpp", seed=0)
    assert torch.equal(made["q"], alone["q"])
    assert torch.equal(made["k"], alone["k"])


def test_fills_run_in_forked_children_and_several_threads():
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    expected = fill(torch.empty(500_000))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=lambda: sender.send(bytes(fill(torch.empty(500_000)).numpy().data)))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == bytes(expected.numpy().data)
    child.join()
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: fill(torch.empty(500_000)), range(8)):
            assert torch.equal(made, expected)


def test_the_record_has_the_same_size_on_both_sides():
    assert lowering.RECORD.itemsize == NATIVE.RECORD_BYTES
    assert (lowering.MAX_DIMS, lowering.MAX_PARAMS) == (NATIVE.MAX_DIMS, NATIVE.MAX_PARAMS)


def test_bad_calls_of_the_core_are_refused():
    for call in (
        lambda: NATIVE.fill(np.zeros(7, np.uint8), 1),
        lambda: NATIVE.fill(np.zeros(0, np.uint8), 0),
        lambda: NATIVE.fill(np.zeros(0, np.uint8), 1, "sse9"),
        lambda: NATIVE.fill(record(torch.empty(64, dtype=torch.float16), "words"), 1),
        lambda: NATIVE.fill_from(record(torch.empty(65)), np.zeros(65, np.uint32)),
        lambda: NATIVE.fill_from(record(torch.empty(64)), np.zeros(128, np.uint32)),
        lambda: NATIVE.fill_from(record(torch.empty(64, dtype=torch.float16)), np.zeros(64, np.uint32)),
    ):
        with pytest.raises(ValueError):
            call()

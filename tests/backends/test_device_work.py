"""The split of records among thread blocks, without a kernel: each element once, however large or small the tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_cases import ALL_DTYPES, BOXES, DTYPES, NORMAL, cases
from gpu_machines import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinit import plans
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering
from fastinit.contract.gpu_work import ROWS, RUN, Trips

# Of both kernels, and so short that small boxes have several.
TRIPS = [Trips(4096, 16384), Trips(2048, 8192), Trips(32, 128)]
CONSTANT = plans.Constant(1)


def records_of(several, seed=0):
    made = [case.made_on("cpu") for case in several]
    return lowering.lowered([fill for _, fill in made], seed), made


def elements(record, piece, trips):
    """Yields (offset in memory, index) of the elements of a piece of work, as csrc/walks_cuda.h and fill.h define them."""
    size, stride, step = (record[field].tolist() for field in ("size", "stride", "index_stride"))
    is_constant = record["distribution"] == lowering.CONSTANT
    per_block = 2 if record["dtype"] == lowering.DOUBLE and not is_constant else 4
    first_index = int(record["first_index"])

    def row(number):
        memory, index = 0, first_index
        for d in range(len(size) - 2, -1, -1):
            number, at = divmod(number, size[d])
            memory, index = memory + at * stride[d], index + at * step[d]
        return memory, index

    if piece["path"] in (RUN, ROWS):
        per_trip = trips.constant_bytes // int(record["element_bytes"]) if is_constant else trips.elements
        assert stride[-1] == step[-1] == 1
        per_unit = max(1, 16 // int(record["element_bytes"]))
        for i in range(int(piece["first"]), int(piece["first"]) + int(piece["n"]) * per_trip):
            number, column = divmod(i, size[-1])
            memory, index = row(number)
            if (i - int(piece["first"])) % per_unit == 0:  # units are 16-byte aligned and begin on a block
                assert (int(record["data"]) + (memory + column) * int(record["element_bytes"])) % 16 == 0
                assert is_constant or (index + column) % per_block == 0
            yield memory + column, index + column
        return
    is_one_row = record["n_elements"] == size[-1]
    for k in range(int(piece["first"]), int(piece["first"]) + int(piece["n"])):
        number, k = (0, k) if is_one_row else divmod(k, int(record["blocks_per_row"]))
        memory, index = row(number)
        if step[-1] != 1:
            yield memory + k * stride[-1], index + k * step[-1]
            continue
        for i in range((index // per_block + k) * per_block, (index // per_block + k + 1) * per_block):
            if 0 <= i - index < size[-1]:
                yield memory + (i - index) * stride[-1], i


def check(several, trips):
    records, _ = records_of(several)
    before = records["first_index"].copy()
    work = device_work.device_work(records, trips)
    is_constant = records["distribution"] == lowering.CONSTANT
    assert (records["first_index"] == before)[~is_constant].all()
    for number, record in enumerate(records):
        found = sorted(pair for piece in work[work["fill"] == number] for pair in elements(record, piece, trips))
        grid = np.indices(record["size"]).reshape(len(record["size"]), -1).T
        memory = (grid * record["stride"]).sum(1)
        assert [offset for offset, _ in found] == sorted(memory.tolist())
        if not is_constant[number]:
            index = (grid * record["index_stride"]).sum(1) + int(record["first_index"])
            assert found == sorted(zip(memory.tolist(), index.tolist()))


@pytest.mark.parametrize("trips", TRIPS)
@settings(max_examples=60, deadline=None)
@given(several=st.lists(cases(), min_size=1, max_size=3))
def test_the_pieces_of_any_boxes_hold_each_element_once(trips, several):
    check(several, trips)


@pytest.mark.parametrize("trips", TRIPS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_pieces_of_whole_tensors_hold_each_element_once(dtype, trips):
    distributions = [CONSTANT, *([NORMAL] if dtype in DTYPES else [])]
    sizes = [1, 5, 2047, 2048, 4096, 4097, 9001]
    check([Case(each, dtype, (n,), start=start) for each in distributions for n in sizes for start in (0, 1)], trips)


@pytest.mark.parametrize("trips", TRIPS)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_the_pieces_of_these_boxes_hold_each_element_once(box, trips):
    size, stride, start, shape, offset = box
    if len(size) > 6:
        return  # it is several records
    place = dict(size=size, stride=stride, start=start, shape=shape, offset=offset)
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    check([Case(each, dtype, **place) for dtype in dtypes for each in (NORMAL, CONSTANT)], trips)


def test_aligned_memory_goes_in_whole_trips_except_its_edges():
    records, _ = records_of([Case(NORMAL, torch.bfloat16, (100_003,), start=5, shape=(200_000,), offset=(45,))])
    work = device_work.device_work(records, TRIPS[0])
    run = work[work["path"] == RUN]
    assert run["n"].sum() == 100_000 // 4096 and run["first"].min() == 3
    records, _ = records_of([Case(NORMAL, torch.float32, (64, 1024), shape=(64, 4096), offset=(0, 1024))])
    work = device_work.device_work(records, TRIPS[0])
    assert set(work["path"]) == {ROWS} and work["n"].sum() == 16


def test_constants_go_in_the_order_of_the_memory_whatever_their_index():
    channels_last = Case(CONSTANT, torch.float32, (64, 32, 8, 8), (2048, 1, 256, 32))
    records, _ = records_of([channels_last])
    assert len(records) == 1 and set(device_work.device_work(records, TRIPS[0])["path"]) == {RUN}


def test_one_huge_tensor_is_many_pieces_and_many_tensors_are_not_many_more():
    records, _ = records_of([Case(NORMAL, size=(64,))])
    records["n_elements"], records["size"][:, -1] = 1 << 34, 1 << 34
    huge = device_work.device_work(records, TRIPS[0])
    assert 20_000 < len(huge) <= (1 << 15) + 3
    assert huge["n"].max() - huge["n"][huge["path"] == RUN].min() <= huge["n"].max()  # equal but for the last
    small = np.repeat(records, 20_000)
    small["n_elements"], small["size"][:, -1] = 4096 * 2 + 5, 4096 * 2 + 5
    many = device_work.device_work(small, TRIPS[0])
    assert np.bincount(many["fill"]).max() <= 3 and len(many) <= 20_000 * 3


def test_boxes_of_more_than_2_to_the_31_blocks_are_cut():
    place = dict(shape=(1 << 20, 1 << 20), index=(0, 4))
    tensor = torch.empty(1, dtype=torch.float32).as_strided((1,), (1,))
    one = tensor.as_strided((1, 1), (1, 1))

    class Wide:  # the shape of a tensor that no memory here holds
        shape, dtype = (1 << 16, 1 << 18), torch.float32

        def __getattr__(self, name):
            return getattr(one, name)

        def stride(self):
            return (1 << 20, 1)

        def numel(self):
            return 1 << 34

    walks = list(lowering._walks(plans.Box.at(Wide(), **place), False))
    assert len(walks) > 1
    total, expected = 0, 0
    for address, index, size, _, _ in walks:
        blocks = np.prod(size[:-1], dtype=object) * (size[-1] // 2 + 2)
        assert blocks < 1 << 31
        assert (address - tensor.data_ptr()) // 4 == expected * (1 << 20)
        assert index == expected * (1 << 20) + 4
        total, expected = total + int(np.prod(size, dtype=object)), expected + size[-2]
    assert total == 1 << 34


def test_no_fills_make_no_work():
    assert len(device_work.device_work(np.zeros(0, lowering.RECORD), TRIPS[0])) == 0

"""The kernels of the GPU backends against those of the CPU, bit for bit: emulated from their PTX, or on a GPU (--device cuda)."""

from __future__ import annotations

import re

import gpu_machines
import known_answers
import needs
import numpy as np
import pytest
import torch
from gpu_cases import ALL_DTYPES, BOXES, DISTRIBUTIONS, DTYPES, NORMAL, cases, in_turn
from gpu_machines import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinit import plans
from fastinit.backends import cpp_backend, triton_backend
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering

# "plain" is the Triton kernel without PTX of ours, which is what GPUs of AMD get. For sm_80 nvcc makes the text that it makes
# for sm_90 (a test below compares them), which is executed once.
TARGETS = {"cuda": ["sm_90", "sm_100"], "triton": ["sm_80", "sm_90", "sm_100", "sm_90-plain"]}


def pytest_generate_tests(metafunc):
    if "machine" in metafunc.fixturenames:
        if metafunc.config.getoption("--device") == "cuda":
            pairs = [(backend, "cuda") for backend in TARGETS]
        else:
            pairs = [(backend, target) for backend, targets in TARGETS.items() for target in targets]
        metafunc.parametrize("machine", pairs, ids=["-".join(pair) for pair in pairs], indirect=True, scope="module")


pytestmark = pytest.mark.gpu_proof


@pytest.fixture(scope="module")
def machine(request):
    return gpu_machines.machine(*request.param)


def constants(n=5000):
    return [Case(plans.Constant(value), dtype, (n,)) for dtype in ALL_DTYPES for value in (0, 1)]


def test_every_distribution_in_every_dtype_has_the_bits_of_the_cpu(machine):
    # Two trips of a main loop, and an odd rest.
    n = 2 * machine.trips.elements + 809
    random = [Case(distribution, dtype, (n,)) for distribution in DISTRIBUTIONS for dtype in DTYPES]
    machine.check([*random, *constants()])


def test_the_known_answers_of_contract_1(machine):
    answers = [answer for answer in known_answers.answers() if answer["dtype"] != "float64"]
    cases = [
        Case(
            known_answers.distribution_of(answer),
            getattr(torch, answer["dtype"]),
            (known_answers.N_ELEMENTS,),
            shape=(1 << 40,),
            offset=(answer["first_index"],),
            name=known_answers.NAME,
        )
        for answer in answers
    ]
    for answer, tensor in zip(answers, machine.check(cases, seed=known_answers.SEED)):
        assert known_answers.first_bytes(tensor) == answer["first_bytes"], answer
        assert known_answers.digest(tensor) == answer["blake2b_128"], answer


def test_sizes_around_a_trip_and_a_block(machine):
    trip = machine.trips.elements
    sizes = [1, 2, 3, 4, 5, 7, 8, 17, trip - 1, trip, trip + 1, 2 * trip + 2]
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2):
        machine.check(
            [Case(NORMAL, dtype, (n,)) for n in sizes] + [Case(plans.Constant(1), dtype, (n,)) for n in sizes]
        )


def test_memory_and_index_may_start_anywhere(machine):
    cases = []
    for start in (0, 1, 2, 3, 4, 5, 8, 11):
        for index in (0, 1, 2, 4, 6, 2**32 - 3, 2**34 + 1, 2**40 + 4):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                offset = dict(start=start, shape=(2**41,), offset=(index,))
                cases.append(Case(NORMAL, dtype, (machine.trips.elements + 13,), **offset))
        cases.append(Case(plans.Constant(3), torch.int16, (20_000,), start=start))
    machine.check(cases)


@pytest.mark.parametrize("name", BOXES)
def test_boxes_and_strides(machine, name):
    size, stride, start, shape, offset = BOXES[name]
    place = dict(size=size, stride=stride, start=start, shape=shape, offset=offset)
    machine.check([Case(*each, **place) for each in in_turn(list(BOXES).index(name))])


def test_rows_of_every_distribution(machine):
    place = dict(size=(40, 256), shape=(40, 1024), offset=(0, 512))
    machine.check([Case(each, dtype, **place) for each in DISTRIBUTIONS for dtype in DTYPES])


# Views that are no rectangle of the parameter: what a step along a dimension adds to its row-major index.
VIEWS = {
    "column": dict(size=(300,), stride=(7,), start=3, steps=(7,), offset=(3,)),
    "stretch": dict(size=(9001,), start=777, steps=(1,), offset=(777,)),
    "diagonal": dict(size=(65,), stride=(66,), steps=(66,), offset=(0,)),
    "transposed": dict(size=(40, 60), stride=(1, 40), steps=(1, 40), offset=(0,)),
    "dimensions exchanged": dict(size=(4, 3, 500), stride=(500, 2000, 1), steps=(500, 2000, 1), offset=(0,)),
    "every third row": dict(size=(30, 200), stride=(600, 1), start=200, steps=(600, 1), offset=(200,)),
    "memory in another order": dict(size=(50, 64), stride=(1, 50), steps=(64, 1), offset=(0,)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_get_the_values_of_the_whole_parameter(machine, name):
    machine.check([Case(*each, **VIEWS[name]) for each in in_turn(list(VIEWS).index(name))])


def test_columns_of_every_distribution(machine):
    machine.check([Case(each, dtype, **VIEWS["column"]) for each in DISTRIBUTIONS for dtype in DTYPES])


def test_blocks_of_every_distribution(machine):
    transposed = dict(size=(37, 21), stride=(1, 37), shape=(37, 99), offset=(0, 3))
    columns = dict(size=(3, 40, 1), shape=(3, 50, 9), offset=(0, 4, 2))
    for place in (transposed, columns):
        machine.check([Case(each, dtype, **place) for each in DISTRIBUTIONS for dtype in DTYPES])


def test_values_far_out_in_both_tails_take_the_rare_branch(machine):
    def all_far_out(records):
        wide = np.isin(records["distribution"], [lowering.TRUNCATED_INSIDE, lowering.TRUNCATED_WIDE])
        records["params"][wide, 4:7] = [1e-7, 2e-7, 1e-20]  # lower, upper, width

    places = [
        dict(size=(2 * machine.trips.elements,)),
        dict(size=(40, 256), shape=(40, 512)),
        dict(size=(99,), start=1),
    ]
    wide = [plans.TruncatedNormal(0, 1, *bounds) for bounds in ((-100, 100), (-1, 3))]
    cases = [Case(each, dtype, **place) for each in wide for dtype in DTYPES for place in places]
    machine.check([Case(wide[0], **place) for place in places])
    machine.check(cases, change=all_far_out)


def test_the_counter_may_overflow_its_lower_half_anywhere(machine):
    trip = machine.trips.elements
    for blocks_before in (0, 1, 2, trip // 4 - 1, trip // 4, trip // 4 + 1, 2 * trip // 4, 3 * trip // 4 + 5):

        def near_overflow(records, blocks_before=blocks_before):
            records["key"][:, 1] = (5 << 32) + (1 << 32) - blocks_before

        cases = [Case(NORMAL, dtype, (4 * trip + 3,)) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
        machine.check(cases, change=near_overflow)

    def at_the_end(records):
        records["key"][:, 1] = 2**64 - 700

    machine.check([Case(NORMAL, size=(2 * trip,)), Case(NORMAL, size=(200, 64), shape=(200, 128))], change=at_the_end)


def test_a_thousand_small_tensors_of_all_kinds_in_one_launch(machine):
    generator = np.random.default_rng(0)
    kinds = [*DISTRIBUTIONS, plans.Constant(1)]
    cases = [
        Case(kinds[i % len(kinds)], DTYPES[i % len(DTYPES)], (int(generator.integers(1, 300)),), name=f"p{i}")
        for i in range(1000)
    ]
    machine.check(cases)


def test_ranges_that_float32_cannot_scale_are_multiplied_twice(machine):
    # 2^-24 of them is below the smallest normal number of float32, or below the smallest of all.
    ranges = [
        plans.Uniform(0, 3e-38),
        plans.Uniform(0, 1.7e-42),
        plans.Uniform(-1e-36, 1.1e-36),
        plans.Uniform(2.0, 2.0),
    ]
    machine.check([Case(each, dtype, (9001,)) for each in ranges for dtype in (torch.float32, torch.bfloat16)])


@pytest.mark.parametrize("std", [1e-8, 1e-38, 3e-6, 6e4, 3e38])
def test_subnormals_and_overflow(machine, std):
    machine.check([Case(plans.Normal(0, std), dtype, (9001,)) for dtype in DTYPES if dtype != torch.float64])


def test_windows_of_tensors_beyond_2_to_the_33_elements(machine):
    needs.EMULATION.check()  # where a window needs no memory around it
    n = (1 << 33) + 3 * machine.trips.elements + 6
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(NORMAL, dtype, (64,), shape=(n,))
        _, fill = case.made_on("cpu")
        records = lowering.lowered([fill], 7)
        data = 1 << 44
        records["data"], records["n_elements"], records["size"][:, -1] = data, n, n
        work = device_work.device_work(records, machine.trips)
        assert len(work) < 100_000
        runs, blocks = (np.flatnonzero(work["path"] == path) for path in (device_work.RUN, device_work.BLOCKS))
        for at in (0, 1 << 31, (1 << 32) - 5000, 1 << 33, n - 1):
            # One trip of the piece that holds `at`; at the end the last trip, and what is left behind it.
            small = work[runs[work["first"][runs] <= at][-1:]].copy()
            first = int(small["first"][0]) + (int(small["n"][0]) - 1 if at == n - 1 else 0) * machine.trips.elements
            small["first"], small["n"], count = first, 1, machine.trips.elements
            if at == n - 1:
                small, count = np.concatenate([small, work[blocks]]), n - first
            window = torch.zeros(count, dtype=dtype)
            memory = machine.memory()
            begin = data + first * dtype.itemsize
            memory.reserve(data, begin - data) if begin > data else None
            memory.add(window, addr=begin)
            machine.launch(records, small, memory)
            expected = torch.empty(count, dtype=dtype)
            box = plans.Box(expected, first, (1,))
            cpp_backend.run([plans.Fill("weight", expected, NORMAL, "", "", (n,), (box,))], 7)
            assert torch.equal(window, expected), (dtype, at)


def test_any_boxes_together(machine):
    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.lists(cases(), min_size=1, max_size=12))
    def check(several):
        machine.check(several)

    check()


def test_a_flipped_bit_of_a_kernel_is_detected(machine):
    def another_key(records):
        if records["data"][0] == base.data_ptr():  # the records of the CPU only
            records["key"][:, 0] ^= np.uint64(1)

    case = Case(NORMAL)
    made_on = case.made_on
    base, fill = made_on("cpu")
    case.made_on = lambda device, first=[True]: (base, fill) if first and first.pop() else made_on(device)
    with pytest.raises(AssertionError, match="bytes differ"):
        machine.check([case], change=another_key)


# --- what is known of the PTX itself ----------------------------------------------------------------------------------


@needs.mark(needs.EMULATION)
def test_no_multiply_and_add_is_left_to_be_fused(machine):
    kernel = machine.kernel
    assert kernel.contractable() == []
    assert kernel.unsupported() == []


def test_what_is_proved_of_the_cuda_kernel_for_sm_90_holds_for_sm_80():
    gpu_machines.skip_without("cuda")
    texts = [gpu_machines.ptx_of("cuda", target)[0] for target in ("sm_80", "sm_90")]
    others = [re.sub(r"^\.target sm_\d+$", "", text, count=1, flags=re.MULTILINE) for text in texts]
    assert others[0] == others[1], "this nvcc makes another kernel for sm_80, which belongs into TARGETS then"


@needs.mark(needs.EMULATION)
def test_every_instruction_was_executed(machine):
    """The tests above reach all of the kernel; run alone, it does so itself."""
    if not unreached(machine):
        return
    test_every_distribution_in_every_dtype_has_the_bits_of_the_cpu(machine)
    test_rows_of_every_distribution(machine)
    test_blocks_of_every_distribution(machine)
    test_values_far_out_in_both_tails_take_the_rare_branch(machine)
    test_memory_and_index_may_start_anywhere(machine)
    for name in BOXES:
        test_boxes_and_strides(machine, name)
    assert unreached(machine) == []


def unreached(machine):
    """Returns what was never executed, but for jumps: guards of loops that are never empty, and of kinds that do not exist."""
    return [line for line in machine.kernel.unreached() if not re.search(r"\bbra\b", line)]


# --- what needs no execution ------------------------------------------------------------------------------------------


def most_shared_bytes():
    """Before 3.8 Triton permutes the bytes of float8 through shared memory, of which a multiprocessor has 100 KiB or more."""
    return 0 if gpu_machines.triton_version() >= (3, 8) else 2048


@pytest.mark.parametrize("target", ["gfx942", "gfx90a"])
def test_the_triton_kernel_compiles_for_amd(target):
    gpu_machines.skip_without("triton")
    # The compiler for AMD of 3.6 fails: no translation of builtin.unrealized_conversion_cast.
    needs.package("triton", 3, 8).check()
    compiled = triton_backend.compiled_for(target)
    assert compiled.metadata.shared == 0
    assert "global_store_dwordx4" in compiled.asm["amdgcn"]
    assert ".vgpr_spill_count: 0" in compiled.asm["amdgcn"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_triton_kernel_needs_no_shared_memory_from_triton_3_8_on(target):
    gpu_machines.skip_without("triton")
    assert triton_backend.compiled_for(target).metadata.shared <= most_shared_bytes()

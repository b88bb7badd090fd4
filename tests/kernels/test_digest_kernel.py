"""The Triton kernel of digests against the formula: its PTX executed on the CPU, or on a GPU (--device cuda)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import digest_answers
import gpu_machines
import needs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx import Memory, Module

from fastinit.backends import digests as backend
from fastinit.backends import gpu_launch, triton_backend
from fastinit.contract import digests, gpu_digest_work
from fastinit.plans import Box

TARGETS = ["sm_80", "sm_90", "sm_100"]
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
N_THREADS = 128

Sums = Callable[[list[Box]], list[int]]
View = Callable[[torch.Tensor], torch.Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sums" in metafunc.fixturenames:
        targets = ["cuda"] if metafunc.config.getoption("--device") == "cuda" else TARGETS
        metafunc.parametrize("sums", targets, indirect=True, scope="module")


pytestmark = pytest.mark.gpu_proof


@cache
def emulated(target: str) -> tuple[Module, int]:
    compiled = triton_backend.compiled_digest_for(target)
    return Module(compiled.asm["ptx"]).kernel(), compiled.metadata.shared


def by_ptx(target: str, boxes: list[Box]) -> list[int]:
    """Returns the sums, by the backend's host side with the CPU as its GPU.

    Reads outside of the boxes and the tables are errors.
    """
    kernel, shared = emulated(target)
    launches = []

    def launch(records: torch.Tensor, work: torch.Tensor, n_pieces: int) -> torch.Tensor:
        launches.append(n_pieces)
        out = torch.zeros(n_pieces, N_THREADS, dtype=torch.int64)
        memory = Memory(track=True)
        storages = [box.tensor.untyped_storage() for box in boxes if box.tensor.numel()]
        for storage in {each.data_ptr(): each for each in storages}.values():
            memory.add(torch.tensor([], dtype=torch.uint8).set_(storage))
        for table in (records, work, out):
            memory.add(table)
        arguments = [each.data_ptr() for each in (records, work, out)] + [0] * (len(kernel.params) - 3)
        kernel.launch((n_pieces,), (N_THREADS,), arguments, memory, shared=shared)
        assert (memory.writes(out.view(-1).view(torch.uint8)) == 1).all(), "not written once"
        return out.sum(1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triton_backend, "digest", launch)
        patched.setattr(gpu_launch, "on_device", lambda device: nullcontext())
        patched.setattr(gpu_launch, "_pinned", lambda n: torch.empty(n, dtype=torch.uint8))
        found = backend._sums_by_triton(boxes)
    assert len(launches) <= 1
    return found


def on_gpu(boxes: list[Box]) -> list[int]:
    moved = []
    for box in boxes:
        tensor = box.tensor
        base = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
        moved.append(
            Box(base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()), box.first_index, box.steps)
        )
    return backend._sums_by_triton(moved)


@pytest.fixture(scope="module")
def sums(request: pytest.FixtureRequest) -> Sums:
    gpu_machines.skip_without("triton")
    return on_gpu if request.param == "cuda" else lambda boxes: by_ptx(request.param, boxes)


def check(sums: Sums, boxes: list[Box]) -> None:
    for box, found, expected in zip(boxes, sums(boxes), map(digests.sum_by_torch, boxes)):
        assert found == expected, box


def numbers(n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def test_the_kernel_gives_the_known_sums(sums: Sums) -> None:
    answers = digest_answers.answers()
    for answer, total in zip(answers, sums([answer.box() for answer in answers])):
        assert f"{total:016x}" == answer.sum, answer


def test_sizes_around_a_unit_a_trip_and_a_piece(sums: Sums) -> None:
    for dtype in DTYPES:
        trip = N_THREADS * 16 // min(dtype.itemsize, 4)
        check(sums, [Box.whole(numbers(n, dtype)) for n in (1, 15, 16, 17, trip - 1, trip, trip + 1, 3 * trip + 5)])


def test_memory_may_start_anywhere(sums: Sums) -> None:
    check(sums, [Box.whole(numbers(3000, dtype)[start:]) for dtype in DTYPES for start in range(18)])


VIEWS = {
    "transposed": lambda x: x.view(80, 60).t(),
    "channels last": lambda x: x.view(6, 10, 10, 8).permute(0, 3, 1, 2),
    "aligned columns": lambda x: x.view(60, 80)[:, 16:48],
    "odd columns": lambda x: x.view(60, 80)[:, 3:40],
    "every third": lambda x: x[5:4000:3],
    "expanded": lambda x: x[:16].expand(7, 16),
    "aligned rows of rows": lambda x: x.view(3, 5, 10, 32)[:, 1:4, 2:9, :16],
    "one element": lambda x: x[17],
    "many dimensions": lambda x: (
        x[:2400].view(2, 2, 2, 3, 5, 4, 5).permute(6, 0, 5, 1, 4, 2, 3)[:, :, :3, :, 1:, :, 1:]
    ),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_has_the_sum_of_the_formula(sums: Sums, view: View) -> None:
    check(sums, [Box.whole(view(numbers(4800, dtype))) for dtype in DTYPES])


@pytest.mark.parametrize("step", [1, 3, (1 << 20) + 1, (1 << 31) + 5, (1 << 32) + 1])
def test_indices_may_pass_multiples_of_two_to_the_32_anywhere(sums: Sums, step: int) -> None:
    boxes = [
        Box(numbers(600, dtype), (1 << 44) - before * max(step % (1 << 32), 1), (step,))
        for dtype in DTYPES
        for before in (1, 2, 7, 16, 133)
    ]
    check(sums, boxes)
    rows = numbers(60 * 80, torch.bfloat16).view(60, 80)
    check(sums, [Box(rows[:, 16:48], (1 << 52) - 1000 * step, (80 * step, step))])


def test_a_thousand_small_tensors_of_all_kinds_in_one_launch(sums: Sums) -> None:
    check(sums, [Box.whole(numbers(int(n), DTYPES[i % 5])) for i, n in enumerate(torch.randint(0, 300, (1000,)))])


@needs.mark(needs.built_for_torch("transformers"))
def test_a_llama_has_the_sums_of_the_cpu(sums: Sums) -> None:
    from ranks_models import llama

    check(sums, [Box.whole(tensor.detach()) for tensor in llama().state_dict().values()])


def test_any_boxes_together(sums: Sums) -> None:
    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.sampled_from(DTYPES), st.permutations(range(3)), st.data()), min_size=1, max_size=6))
    def tried(cases: list[Any]) -> None:
        boxes = []
        for dtype, order, data in cases:
            view = numbers(8 * 16 * 32, dtype).view(8, 16, 32).permute(*order)
            ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in view.shape]
            part = view[tuple(slice(*each) for each in ends)]
            boxes.append(Box.at(part, [start for start, _ in ends], tuple(view.shape)))
        check(sums, boxes)

    tried()


def test_few_pieces_are_long(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_digest_work, "_AT_ONCE", 1)
    monkeypatch.setattr(gpu_digest_work, "_PIECES", 3)
    boxes = [Box.whole(numbers(n, dtype)[1:]) for n in (17, 9001) for dtype in DTYPES]
    records, _ = digests.box_records(boxes, for_gpu=True)
    assert len(gpu_digest_work.digest_work(records)) < 4 * len(records)
    check(sums, boxes)


def test_a_run_goes_in_units_where_its_index_passes_a_multiple_of_two_to_the_32() -> None:
    box = Box(numbers(100_000, torch.bfloat16), (1 << 32) - 1000, (1,))
    records, _ = digests.box_records([box], for_gpu=True)
    work = gpu_digest_work.digest_work(records)
    one_by_one = work[work["path"] == gpu_digest_work.ELEMENTS]["n"].sum()
    assert one_by_one < 200 and (work["n"] > 0).all()


@needs.mark(needs.EMULATION)
@pytest.mark.parametrize("target", TARGETS)
def test_no_instruction_is_left_out_of_the_proof(target: str) -> None:
    gpu_machines.skip_without("triton")
    assert emulated(target)[0].unsupported() == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_units_are_loaded_by_16_bytes_without_shared_memory(target: str) -> None:
    gpu_machines.skip_without("triton")
    compiled = triton_backend.compiled_digest_for(target)
    assert compiled.metadata.shared == 0
    assert compiled.asm["ptx"].count("ld.global.v4.b32") >= 6


@pytest.mark.parametrize("target", ["gfx942", "gfx90a"])
def test_the_kernel_compiles_for_amd(target: str) -> None:
    gpu_machines.skip_without("triton")
    needs.package("triton", 3, 8).check()
    compiled = triton_backend.compiled_digest_for(target)
    assert compiled.metadata.shared == 0
    assert ".vgpr_spill_count: 0" in compiled.asm["amdgcn"]

"""The native core's digests are those of the formula: on every instruction set, on all memory, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cpp_core
import digest_answers
import numpy as np
import pytest
import torch

from fastinit.backends import cpp_backend
from fastinit.backends import digests as backend
from fastinit.contract import digests
from fastinit.plans import Box

View = Callable[[torch.Tensor], torch.Tensor]
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]


def by_core(box: Box, isa: str = "", threads: int = 2) -> int:
    records, _ = digests.box_records([box])
    return int(cpp_core.NATIVE.digest(records.view(np.uint8), threads, isa).sum(dtype=np.uint64))


def numbers(n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 256, (n * dtype.itemsize,), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("isa", cpp_core.ISAS)
def test_the_core_gives_the_known_sums(isa: str) -> None:
    for answer in digest_answers.answers():
        assert f"{by_core(answer.box(), isa):016x}" == answer.sum, answer


# What a box of 4,900 elements in a row may be seen as.
VIEWS = {
    "transposed": lambda x: x.view(70, 70).t(),
    "channels last": lambda x: x.view(7, 10, 10, 7).permute(0, 3, 1, 2),
    "every third": lambda x: x[5:4000:3],
    "columns": lambda x: x.view(70, 70)[:, 3:40],
    "expanded": lambda x: x[:10].expand(7, 10),
    "expanded within": lambda x: x[:10, None, None].expand(10, 3, 1).transpose(0, 1),
    "diagonal": lambda x: x.view(70, 70).diagonal(),
    "overlapping": lambda x: x.unfold(0, 5, 2)[:50],
    "one element": lambda x: x[17],
    "none": lambda x: x[:0],
    "more dimensions than records have": lambda x: (
        x[:2400].view(2, 2, 2, 3, 5, 4, 5).permute(6, 0, 5, 1, 4, 2, 3)[:, :, :3, :, 1:, :, 1:]
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_view_has_the_sum_of_the_formula(view: View, dtype: torch.dtype) -> None:
    box = Box.whole(view(numbers(4900, dtype)))
    expected = digest_answers.formula(box)
    assert [by_core(box, isa) for isa in cpp_core.ISAS] == [expected] * len(cpp_core.ISAS)
    assert digests.sum_by_torch(box) == expected


@pytest.mark.parametrize("isa", cpp_core.ISAS)
@pytest.mark.parametrize("step", [0, 1, 3, (1 << 31) + 5, (1 << 32) + 1, 1 << 40])
def test_indices_may_wrap_around_32_bits_anywhere(isa: str, step: int) -> None:
    for dtype in DTYPES:
        for before in (1, 2, 7, 16, 33):
            box = Box(numbers(100, dtype), (1 << 44) - before * max(step % (1 << 32), 1), (step,))
            assert by_core(box, isa) == digests.sum_by_torch(box), (dtype, before)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_number_of_threads_does_not_show(threads: int) -> None:
    boxes = [Box.whole(numbers(n, torch.bfloat16)) for n in (1, 500_001, 65_536, 1_000_000)]
    records, of_box = digests.box_records(boxes)
    assert of_box.tolist() == [0, 1, 2, 3]
    sums = cpp_core.NATIVE.digest(records.view(np.uint8), threads)
    assert sums.tolist() == [by_core(box, threads=1) for box in boxes]


def test_unaligned_memory_is_read() -> None:
    data = numbers(4004, torch.uint8)
    view = torch.from_numpy(np.frombuffer(data.numpy().tobytes(), np.float32, 1000, offset=1).copy())
    unaligned = torch.frombuffer(bytearray(data.numpy().tobytes()), dtype=torch.float32, count=1000, offset=1)
    assert unaligned.data_ptr() % 4
    assert by_core(Box.whole(unaligned)) == by_core(Box.whole(view))


def test_one_call_of_the_core_sums_many_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [Box.whole(numbers(n, dtype)) for n in (0, 3, 70) for dtype in DTYPES]
    tables: list[Any] = []

    class Core:
        def digest(self, table: Any, *args: Any, **kwargs: Any) -> Any:
            tables.append(table)
            return cpp_core.NATIVE.digest(table, *args, **kwargs)

    monkeypatch.setattr(cpp_backend, "_core", Core)
    assert backend.sums(boxes) == [digest_answers.formula(box) for box in boxes]
    assert len(tables) == 1


def test_without_the_core_the_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [Box.whole(numbers(100, dtype)) for dtype in DTYPES]
    expected = backend.sums(boxes)
    monkeypatch.setattr(cpp_backend, "_native", None)
    assert backend.sums(boxes) == expected


@pytest.mark.parametrize("turned", [torch.conj, lambda x: torch.conj(x).imag], ids=["conjugated", "negated"])
def test_lazily_turned_tensors_count_as_what_they_are(turned: View) -> None:
    box = Box.whole(turned(torch.randn(50, dtype=torch.complex64)))
    assert box.tensor.is_conj() or box.tensor.is_neg()
    resolved = Box.whole(box.tensor.resolve_conj().resolve_neg().clone())
    assert backend.sums([box]) == backend.sums([resolved])


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of a record's"):
        cpp_core.NATIVE.digest(np.zeros(13, np.uint8), 1)

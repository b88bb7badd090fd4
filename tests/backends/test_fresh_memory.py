"""Memory that nobody has touched gets its pages from the native core, by the kind that is cheaper just now."""

from __future__ import annotations

import ctypes
import mmap
import time
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from cpp_core import NATIVE

import fastinit
from fastinit.backends import cpp_backend, fresh_memory

pytestmark = needs.mark(needs.LINUX)

PAGE = mmap.PAGESIZE
BLOCK = 2 << 20


def n_resident(begin: int, end: int) -> int:
    """Returns how many pages of an address range have memory."""
    begin, end = begin // PAGE * PAGE, -(-end // PAGE) * PAGE
    found = (ctypes.c_ubyte * ((end - begin) // PAGE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), found) == 0
    return sum(each & 1 for each in found)


@pytest.fixture
def mapping() -> np.ndarray:
    """16 MiB of memory that nobody has touched."""
    return np.frombuffer(mmap.mmap(-1, 8 * BLOCK), dtype=np.uint8)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_fresh_memory_gets_all_of_its_pages_and_no_others(mapping: np.ndarray, n_threads: int) -> None:
    begin = mapping.ctypes.data + 5 * PAGE
    end = begin + 4 * BLOCK + 300_000
    assert n_resident(mapping.ctypes.data, mapping.ctypes.data + mapping.nbytes) == 0
    NATIVE.back(np.array([[begin, end]], dtype=np.uint64), n_threads)
    assert n_resident(begin, end) == -(-(end - begin) // PAGE)
    assert n_resident(mapping.ctypes.data, begin - 1) == 0
    assert n_resident(end // PAGE * PAGE + PAGE, mapping.ctypes.data + mapping.nbytes) == 0
    assert not mapping.any()


def test_contents_stay(mapping: np.ndarray) -> None:
    mapping[3 * BLOCK + 17 :: 10_000] = 7
    before = mapping.copy()
    begin = mapping.ctypes.data
    NATIVE.back(np.array([[begin, begin + BLOCK], [begin + BLOCK, begin + mapping.nbytes]], dtype=np.uint64), 2)
    assert np.array_equal(mapping, before) and n_resident(begin, begin + 3 * BLOCK) == 3 * BLOCK // PAGE


def test_a_fill_gives_fresh_memory_the_bits_of_any_other(mapping: np.ndarray) -> None:
    fresh = torch.from_numpy(mapping).view(torch.float32)[1 : 3 * BLOCK // 4 + 12_345]
    touched = torch.zeros_like(fresh)
    for tensor in (fresh, touched):
        fastinit.initialize(
            torch.nn.ParameterDict({"w": tensor}), dict(type="Normal", param="w"), backend="cpp", seed=3
        )
    assert torch.equal(fresh.view(torch.int32), touched.view(torch.int32))


def has_flag(flag: str, begin: int, end: int) -> bool:
    """Tells whether a mapping within an address range has a flag of /proc/self/smaps."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if "-" in first and not first.endswith(":"):
            start, stop = (int(part, 16) for part in first.split("-"))
            is_inside = start < end and begin < stop
        elif first == "VmFlags:" and is_inside and flag in others:
            return True
    return False


@needs.mark(needs.HUGE_PAGES)
def test_huge_pages_are_tried_in_fresh_memory_and_not_asked_for_in_touched_one() -> None:
    time.sleep(0.6)  # what earlier calls have found is forgotten
    for is_fresh in (True, False):
        # Not of an allocator, which may have touched memory left.
        memory = np.frombuffer(mmap.mmap(-1, 128 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)
        if not is_fresh:
            np.copyto(memory, 0)
        span = memory.ctypes.data, memory.ctypes.data + memory.nbytes
        NATIVE.back(np.array([span], dtype=np.uint64), 2)
        assert has_flag("hg", *span) is is_fresh


@pytest.mark.parametrize("rows", [[1, 2, 3], [[1, 2, 3]]])
def test_spans_are_rows_of_two_addresses(rows: list[object]) -> None:
    with pytest.raises(ValueError, match="rows of two addresses"):
        NATIVE.back(np.array(rows, dtype=np.uint64), 1)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_both_backends_of_the_cpu_ask_for_pages_of_a_large_tensor(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.empty(3 * BLOCK, dtype=torch.float32)
    asked = []
    if backend == "torch":
        monkeypatch.setattr(fresh_memory, "back", lambda spans, n_threads: asked.extend(spans))
    model = torch.nn.ParameterDict({"w": tensor, "small": torch.empty(10)})
    fastinit.initialize(model, dict(type="Normal", param="*"), backend=backend, seed=0)
    if backend == "torch":
        assert asked == [(model["w"].data_ptr(), model["w"].data_ptr() + tensor.nbytes)]
    assert n_resident(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) >= tensor.nbytes // PAGE


def test_a_view_with_gaps_and_tensors_elsewhere_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(fresh_memory, "back", lambda *args: asked.append(args))
    large = torch.empty(4, 1 << 20)
    for tensor in (large[:, ::2], large.to("meta"), torch.empty(100), large.expand(2, 4, 1 << 20)):
        fresh_memory.back_tensor(tensor)
    assert asked == []
    fresh_memory.back_tensor(large.t())
    assert len(asked) == 1


def test_without_the_native_core_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_backend, "_native", None)
    fresh_memory.back_tensor(torch.empty(1 << 20))


# What a block of 2 MiB costs, in seconds; measured on virtual machines that hand idle memory back (see page_choice.h).
WARM_SMALL, WARM_HUGE, COLD_SMALL, COLD_HUGE = 0.65e-3, 0.33e-3, 2.5e-3, 5.6e-3


def costs(n: int, usual: float, other: float, share: float, seed: int) -> np.ndarray:
    """Returns n costs, each the usual one, or with a probability of ``share`` the other one; 10% apart."""
    random = np.random.default_rng(seed)
    return np.where(random.random(n) < share, other, usual) * random.uniform(0.9, 1.1, n)


def paid(chosen: np.ndarray, small: np.ndarray, huge: np.ndarray) -> float:
    """Returns what the chosen pages cost."""
    return float(np.where(chosen == 1, huge, small).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("share_small", "share_huge"),
    [(0.0, 0.0), (0.02, 0.02), (0.0, 1.0), (0.05, 0.85), (0.3, 0.97)],
    ids=["warm", "warm with cold pages", "cold huge pages", "cold that begins warm", "cold"],
)
def test_the_choice_costs_little_more_than_the_better_kind(share_small: float, share_huge: float, seed: int) -> None:
    n = 1000
    small = costs(n, WARM_SMALL, COLD_SMALL, share_small, seed)
    huge = costs(n, WARM_HUGE, COLD_HUGE, share_huge, seed + 100)
    if share_huge == 0.85:
        huge[:8] = WARM_HUGE  # free lists begin with pages that the host still has
    better = min(small.sum(), huge.sum())
    assert paid(NATIVE.choose_pages(small, huge), small, huge) < 1.2 * better
    assert max(small.sum(), huge.sum()) > 1.2 * better  # one kind for all would be seen


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_follows_when_memory_turns_cold_or_warm(seed: int) -> None:
    n = 1000
    warm = costs(n, WARM_SMALL, COLD_SMALL, 0.01, seed), costs(n, WARM_HUGE, COLD_HUGE, 0.01, seed + 50)
    cold = costs(n, 1e-3, COLD_SMALL, 0.1, seed + 100), costs(n, COLD_HUGE, WARM_HUGE, 0.05, seed + 150)
    for first, second in ((warm, cold), (cold, warm)):
        small, huge = (np.concatenate(both) for both in zip(first, second))
        best = np.minimum(first[0].sum(), first[1].sum()) + np.minimum(second[0].sum(), second[1].sum())
        assert paid(NATIVE.choose_pages(small, huge), small, huge) < 1.25 * best


def test_costs_of_both_kinds_must_have_one_size() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        NATIVE.choose_pages(np.ones(3), np.ones(4))

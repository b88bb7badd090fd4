"""The sum of mixed words: its known answers, and what the mix does not let pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise, permutations
from typing import Any

import digest_answers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from fastinit.contract import digests
from fastinit.plans import Box, TensorDigest

PAGE = (ROOT / "docs" / "digests.md").read_text()
WORD = 1 << 64


def counts(words: np.ndarray) -> np.ndarray:
    """Returns the sums of many rows of words, as tensors of one dimension."""
    rows = torch.from_numpy(words.astype(np.int64))
    index = torch.arange(rows.shape[1]).expand(rows.shape)
    return digests._counts(rows, index.clone()).sum(1).numpy()


@pytest.mark.parametrize("dtype", digest_answers.DTYPES)
def test_operators_of_torch_give_the_known_sums(dtype: str) -> None:
    for answer in digest_answers.answers():
        if answer.dtype == dtype:
            assert f"{digests.sum_by_torch(answer.box()):016x}" == answer.sum, answer


def test_the_digest_of_a_sum_is_known() -> None:
    for answer in digest_answers.answers():
        assert TensorDigest.of(int(answer.sum, 16), answer.dtype, (answer.n,)).hex == answer.digest, answer


def test_the_formula_gives_the_known_sums() -> None:
    for answer in digest_answers.answers():
        if answer.n <= 65:
            assert f"{digest_answers.formula(answer.box()):016x}" == answer.sum, answer


def test_the_code_of_the_page_gives_the_known_digests() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def digest_of" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    known = [answer for answer in digest_answers.answers() if (answer.first, answer.step) == (0, 1)]
    assert len(known) == len(digest_answers.DTYPES) * len(digest_answers.SIZES)
    for answer in known:
        assert names["digest_of"](answer.box().tensor) == answer.digest, answer


# --- boxes ------------------------------------------------------------------------------------------------------------


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[tuple[int, int]]]]:
    """Draws a shape, and intervals that tile each of its dimensions."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))}) for size in shape]
    return shape, [list(pairwise(each)) for each in cuts]


@given(tilings(), st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.complex128]), st.booleans())
def test_the_sums_of_boxes_add_up_whatever_the_boxes(tiling: Any, dtype: torch.dtype, is_turned: bool) -> None:
    shape, intervals = tiling
    whole = torch.randint(0, 200, shape).to(dtype)
    memory = whole.permute(*reversed(range(whole.dim()))).contiguous().permute(*reversed(range(whole.dim())))
    total = 0
    for place in np.ndindex(*map(len, intervals)):
        box = [each[i] for each, i in zip(intervals, place)]
        view = (memory if is_turned else whole)[tuple(slice(*each) for each in box)]
        total += digests.sum_by_torch(Box.at(view, [start for start, _ in box], shape))
    assert total % WORD == digests.sum_by_torch(Box.whole(whole))


def test_large_tensors_are_added_up_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    counted = digests._counts
    monkeypatch.setattr(digests, "_counts", lambda words, index: found.append(words.numel()) or counted(words, index))
    tensor = torch.randn(3, 500, 700).transpose(0, 2)
    total = digests.sum_by_torch(Box.whole(tensor))
    assert max(found) <= digests._CHUNK and sum(found) == tensor.numel()
    assert total == digests.sum_by_torch(Box.whole(tensor.contiguous()))


# --- the mix ----------------------------------------------------------------------------------------------------------


def subsets(n: int, value: int, base: int = 0) -> np.ndarray:
    """Returns all rows of n words in which some are ``base ^ value`` and the others ``base``."""
    return base ^ (((np.arange(1 << n)[:, None] >> np.arange(n)) & 1) * value)


def orders() -> np.ndarray:
    return torch.randn(8).view(torch.int32).numpy().view(np.uint32)[np.array(list(permutations(range(8))))]


FAMILIES = {
    "masks": lambda: subsets(18, 1),
    "ones and zeros in bfloat16": lambda: subsets(18, 0x3F80),
    "signs of ones in float32": lambda: subsets(18, 0x80000000, 0x3F800000),
    "three small integers": lambda: np.stack(np.meshgrid(*[np.arange(64)] * 3), -1).reshape(-1, 3),
    "three multiples of 128": lambda: 128 * np.stack(np.meshgrid(*[np.arange(128)] * 3), -1).reshape(-1, 3),
    "orders of normals": orders,
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_two_of_many_similar_tensors_have_one_sum(family: Callable[[], np.ndarray]) -> None:
    rows = family()
    assert len(np.unique(counts(rows))) == len(rows)


def test_a_mix_of_one_multiplication_is_seen_to_be_too_weak() -> None:
    """The control: its 64-bit sums of these two million tensors meet."""
    words = FAMILIES["three multiples of 128"]()
    index = np.arange(3, dtype=np.uint32)
    u = words.astype(np.uint32) + index * np.uint32(0x9E3779B9)
    u ^= u >> np.uint32(16)
    u *= np.uint32(0x7FEB352D)
    u ^= u >> np.uint32(15)
    multiplier = index * np.uint32(0xD413CCCE) + np.uint32(0xD2511F53)
    sums = (u.astype(np.uint64) * multiplier.astype(np.uint64)).sum(1, dtype=np.uint64)
    assert len(np.unique(sums)) < len(words)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.data())
def test_one_flipped_bit_changes_the_sum(words: list[int], data: st.DataObject) -> None:
    at, bit = data.draw(st.integers(0, len(words) - 1)), data.draw(st.integers(0, 31))
    other = [word ^ (1 << bit if i == at else 0) for i, word in enumerate(words)]
    assert counts(np.array([words]))[0] != counts(np.array([other]))[0]

"""Structured fills of the contract backends: orthogonal and sparse matrices, identities, Dirac's convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import needs
import numpy as np
import pytest
import torch
from helpers import named_fill, same_bits

from fastinit import plans
from fastinit.backends import cpp_backend, structured

pytestmark = needs.mark(needs.CPP)
NORMALS = plans.Normal(0.0, 1.0)
SHAPES = [(1, 1), (5, 5), (7, 3), (3, 7), (40, 1), (1, 40), (64, 64), (130, 70), (8, 3, 5, 2), (600, 600)]


def made(
    shape: Sequence[int], gain: float = 1.0, batch_dims: int = 0, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    return named_fill("w", tuple(shape), plans.Orthogonal(gain, batch_dims), dtype)


def draws(shape: Sequence[int]) -> torch.Tensor:
    return named_fill("w", tuple(shape), NORMALS, torch.float32).double().flatten(1)


def by_householder(matrix: torch.Tensor) -> torch.Tensor:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q, r = torch.linalg.qr(tall)
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q if matrix.shape[0] >= matrix.shape[1] else q.T


def distance_in_ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of float32 numbers."""
    ordered = [
        torch.where(each < 0, -(each & 0x7FFFFFFF), each) for each in (t.view(torch.int32).long() for t in (a, b))
    ]
    return (ordered[0] - ordered[1]).abs()


# --- orthogonal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shorter_side_is_orthonormal(shape: tuple[int, ...]) -> None:
    w = made(shape, gain=3.0).flatten(1)
    w = w if w.shape[0] < w.shape[1] else w.T
    assert (w @ w.T - 9 * torch.eye(len(w))).abs().max() < 1e-13 * math.sqrt(w.shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_orthogonal_factor_of_the_parameters_normal_numbers(shape: tuple[int, ...]) -> None:
    assert (made(shape).flatten(1) - by_householder(draws(shape))).abs().max() < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_rounded_factor(shape: tuple[int, ...]) -> None:
    apart = distance_in_ulps(made(shape, dtype=torch.float32).flatten(1), by_householder(draws(shape)).float())
    assert apart.max() <= 1 and apart.sum() <= max(1, 2e-5 * apart.numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrower_dtypes_get_the_rounded_float32(dtype: torch.dtype) -> None:
    assert same_bits(made((33, 20), 1.5, dtype=dtype), made((33, 20), 1.5, dtype=torch.float32).to(dtype))


def test_stacked_matrices_are_those_of_their_own_draws() -> None:
    shape = (70, 40, 30)  # more than are made together
    stack, numbers = made(shape, batch_dims=1), draws(shape).view(shape)
    for one, own in zip(stack, numbers):
        assert (one - by_householder(own)).abs().max() < 1e-10


def test_stacks_of_stacks_are_stacks() -> None:
    assert torch.equal(made((2, 3, 8, 5), batch_dims=2).view(6, 8, 5), made((6, 8, 5), batch_dims=1))


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (130, 80), (80, 130)])
def test_a_large_matrix_is_made_in_parts(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(shape)
    monkeypatch.setattr(structured, "_AT_ONCE", 90 * min(shape))
    monkeypatch.setattr(structured, "_by_householder", None)  # which would hide a wrong part
    assert (made(shape) - expected).abs().max() < 1e-12


def test_the_columns_of_a_gram_matrix_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made((90, 80))
    monkeypatch.setattr(structured, "_GRAM_COLUMNS", 33)
    assert (made((90, 80)) - expected).abs().max() < 1e-12


def test_threads_change_one_unit_in_the_last_place_at_most() -> None:
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = made((600, 600), dtype=torch.float32)
        torch.set_num_threads(2)
        two = made((600, 600), dtype=torch.float32)
    finally:
        torch.set_num_threads(n_threads)
    assert distance_in_ulps(one, two).max() <= 1


def with_dependent_columns(monkeypatch: pytest.MonkeyPatch, apart: float | None) -> None:
    """Makes the second column the first, but for a small share of its own; None: zeros."""
    drawn = structured._Source.drawn

    def dependent(source: structured._Source, part: slice) -> torch.Tensor:
        found = drawn(source, part).clone()
        found[:, :, 1] = 0 if apart is None else found[:, :, 0] + apart * found[:, :, 1]
        return found

    monkeypatch.setattr(structured._Source, "drawn", dependent)


@pytest.mark.parametrize("apart", [None, 0.0, 1e-9, 3e-8, 1e-7, 1e-5])
@pytest.mark.parametrize("shape", [(20, 20), (60, 20)])
def test_columns_that_nearly_depend_on_each_other_become_orthonormal(
    shape: tuple[int, int], apart: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = draws(shape)
    with_dependent_columns(monkeypatch, apart)
    w = made(shape)
    assert (w.T @ w - torch.eye(20)).abs().max() < 1e-13
    others = [0, *range(2, 20)]
    assert ((w.T @ numbers).diagonal()[others] > 0).all()  # of R


def test_a_first_pass_that_hardly_succeeds_is_not_built_upon(monkeypatch: pytest.MonkeyPatch) -> None:
    for apart in np.geomspace(1e-10, 1e-8, 150):
        with monkeypatch.context() as patch:
            with_dependent_columns(patch, float(apart))
            w = made((60, 60))
        assert (w.T @ w - torch.eye(60)).abs().max() < 1e-13, apart


def haar_p_values(matrices: np.ndarray) -> list[float]:
    """Of orthogonal 2 x 2 matrices: signs of the determinant, angles of the first column, its first entry."""
    from scipy import stats

    determinants = np.linalg.det(matrices)
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    return [
        stats.binomtest(int((determinants > 0).sum()), len(matrices)).pvalue,
        stats.kstest(angles, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue,
        stats.kstest(np.arctan2(matrices[:, 1, 1], matrices[:, 0, 1]), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue,
    ]


def test_matrices_are_uniform_over_all_orthogonal_ones() -> None:
    assert min(haar_p_values(made((4000, 2, 2), batch_dims=1).numpy())) > 1e-4


def test_the_test_of_uniformity_finds_factors_of_plain_householder_reflections() -> None:
    q, _ = torch.linalg.qr(named_fill("w", (4000, 2, 2), NORMALS, torch.float64))
    assert min(haar_p_values(q.numpy())) < 1e-4


def test_entries_are_those_of_points_on_a_sphere() -> None:
    """The square of an entry of a uniform unit vector in n dimensions is beta(1/2, (n - 1)/2)."""
    from scipy import stats

    entries = made((4000, 9, 4), batch_dims=1).numpy()
    for place in ((0, 0), (8, 3), (4, 2)):
        assert stats.kstest(entries[:, place[0], place[1]] ** 2, stats.beta(0.5, 4).cdf).pvalue > 1e-4


# --- parts -----------------------------------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "orthogonal": (plans.Orthogonal(1.5, 0), [(30, 20), (20, 30), (24, 24), (70, 20)]),
    "stacked": (plans.Orthogonal(1.0, 1), [(12, 9, 7), (12, 7, 9), (90, 40, 30)]),
    "delta": (plans.DeltaOrthogonal(2.0), [(12, 8, 3, 3), (8, 8, 4)]),
    "sparse": (plans.Sparse(0.3, 0.5), [(30, 20), (20, 31)]),
    "identity": (plans.Identity(), [(30, 20), (20, 31)]),
    "dirac": (plans.Dirac(2), [(12, 8, 3, 3), (8, 3, 5)]),
}
CASES = [(name, shape) for name, (_, shapes) in DISTRIBUTIONS.items() for shape in shapes]


def in_parts(name: str, shape: tuple[int, ...], boxes: list[plans.Box]) -> None:
    whole = torch.empty(shape)
    fill = plans.Fill("w", whole, DISTRIBUTIONS[name][0], "", "", shape, tuple(boxes))
    assert cpp_backend.why_not_fill(fill) is None
    cpp_backend.run([fill], 0)


@pytest.mark.parametrize("n_parts", [2, 3, 4])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_shards_have_the_bits_of_the_whole(name: str, shape: tuple[int, ...], n_parts: int) -> None:
    expected = named_fill("w", shape, DISTRIBUTIONS[name][0], torch.float32)
    for dim in range(len(shape)):
        at = 0
        for shard in expected.chunk(n_parts, dim):
            here = torch.full(shard.shape, 9.0)
            index = [at if each == dim else 0 for each in range(len(shape))]
            in_parts(name, shape, [plans.Box.at(here, index, shape)])
            assert same_bits(here, shard.contiguous()), (dim, at)
            at += shard.shape[dim]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_stretches_that_cross_rows_and_matrices_have_the_bits_of_the_whole(name: str, shape: tuple[int, ...]) -> None:
    expected = named_fill("w", shape, DISTRIBUTIONS[name][0], torch.float32).flatten()
    n = expected.numel()
    for first, last in ((3, n - 2), (n // 3, n // 2), (n - 1, n)):
        here = torch.full((last - first,), 9.0)
        in_parts(name, shape, [plans.Box(here, first, (1,))])
        assert same_bits(here, expected[first:last].clone())


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_rank_that_holds_nothing_writes_nothing(name: str, shape: tuple[int, ...]) -> None:
    in_parts(name, shape, [])
    in_parts(name, shape, [plans.Box(torch.empty(0), 0, (1,))])


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_memory_in_another_order_gets_the_same_values(name: str, shape: tuple[int, ...]) -> None:
    expected = named_fill("w", shape, DISTRIBUTIONS[name][0], torch.float32)
    permuted = torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))
    spaced = torch.empty(*shape, 2)[..., 0]
    for tensor in (permuted, spaced):
        cpp_backend.run([plans.Fill.whole("w", tensor, DISTRIBUTIONS[name][0], "", "")], 0)
        assert torch.equal(tensor, expected)


# --- the others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.complex64])
@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3), (1, 1)])
def test_identities_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    expected = torch.nn.init.eye_(torch.empty(shape)).to(dtype)  # the first torch has no torch.eye in bfloat16
    assert torch.equal(named_fill("w", shape, plans.Identity(), dtype), expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 4, 3), (8, 4, 3, 5), (4, 8, 2, 2), (8, 2, 3, 3, 3), (8, 8, 1)])
def test_convolutions_that_give_their_input_back_are_those_of_torch(shape: tuple[int, ...], groups: int) -> None:
    expected = torch.nn.init.dirac_(torch.empty(shape), groups)
    assert torch.equal(named_fill("w", shape, plans.Dirac(groups), torch.float32), expected)


def test_a_large_identity_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "_AT_ONCE", 100)
    assert torch.equal(named_fill("w", (70, 33), plans.Identity(), torch.float32), torch.eye(70, 33))


@pytest.mark.parametrize("at_once", [1 << 24, 100])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 1.0])
def test_a_share_of_each_column_is_zero_and_the_rest_normal(
    sparsity: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = named_fill("w", (41, 30), plans.Normal(0.0, 0.5), torch.float32)
    monkeypatch.setattr(structured, "_AT_ONCE", at_once)
    w = named_fill("w", (41, 30), plans.Sparse(sparsity, 0.5), torch.float32)
    zeros = w == 0
    assert (zeros.sum(0) == math.ceil(sparsity * 41)).all()
    assert torch.equal(w[~zeros], expected[~zeros])


def test_zeros_are_at_known_places() -> None:
    """Frozen with contract 1: the smallest draws of each column, from behind the parameter's own."""
    zeros = named_fill("w", (8, 6), plans.Sparse(0.3, 1.0), torch.float32) == 0
    assert [row.nonzero().flatten().tolist() for row in zeros.T] == [
        [0, 2, 3],
        [4, 5, 7],
        [1, 2, 7],
        [1, 4, 7],
        [0, 6, 7],
        [0, 2, 4],
    ]


def test_every_row_is_zero_equally_often() -> None:
    from scipy import stats

    zeros = named_fill("w", (20, 5000), plans.Sparse(0.3, 1.0), torch.float32) == 0
    counts = zeros.sum(1).numpy()
    assert stats.chisquare(counts).pvalue > 1e-4
    together = (zeros[0] & zeros[1]).sum().item()  # of 5000 columns, with chance 6/20 * 5/19
    assert stats.binomtest(together, 5000, 6 / 20 * 5 / 19).pvalue > 1e-4


def test_a_delta_orthogonal_kernel_is_an_orthogonal_matrix_at_its_centre() -> None:
    w = named_fill("w", (9, 6, 3, 4), plans.DeltaOrthogonal(2.0), torch.float64)
    centre = w[:, :, 1, 2]
    assert (centre.T @ centre - 4 * torch.eye(6)).abs().max() < 1e-13
    assert w.count_nonzero() == centre.numel()


@pytest.mark.parametrize("order", [1, -1])
def test_fills_of_the_same_memory_take_effect_in_their_order(order: int) -> None:
    memory = torch.empty(16)
    fills = [
        plans.Fill.whole("a", memory[:8], plans.Constant(7.0), "", ""),
        plans.Fill.whole("b", memory.view(4, 4), plans.Identity(), "", ""),
    ][::order]
    cpp_backend.run(fills, 0)
    expected = torch.eye(4).flatten()
    if order < 0:
        expected[:8] = 7
    assert torch.equal(memory, expected)


def test_a_parameter_counts_one_write() -> None:
    w = torch.nn.Parameter(torch.empty(5, 4))
    before = w._version
    cpp_backend.run([plans.Fill.whole("w", w, plans.Orthogonal(1.0, 0), "", "")], 0)
    assert w._version == before  # the caller counts


@pytest.mark.parametrize(
    ("distribution", "shape", "dtype", "reason"),
    [
        (plans.Orthogonal(1.0, 0), (4,), torch.float32, "needs at least 2 dimensions"),
        (plans.Orthogonal(1.0, 1), (4, 4), torch.float32, "2 dimensions after batch_dims=1"),
        (plans.Orthogonal(1.0, 0), (4, 4), torch.int32, "draws no random numbers into torch.int32"),
        (plans.Orthogonal(math.inf, 0), (4, 4), torch.float32, "is not finite"),
        (plans.Sparse(0.1, 1.0), (4, 4, 4), torch.float32, "needs a matrix"),
        (plans.Identity(), (4,), torch.float32, "needs a matrix"),
        (plans.Dirac(3), (4, 4, 3), torch.float32, "divisible by groups=3"),
        (plans.DeltaOrthogonal(1.0), (3, 4, 3), torch.float32, "as many out channels"),
    ],
)
def test_what_cannot_be_made_is_refused(
    distribution: plans.Distribution, shape: tuple[int, ...], dtype: torch.dtype, reason: str
) -> None:
    fill = plans.Fill.whole("w", torch.empty(shape, dtype=dtype), distribution, "", "")
    assert reason in (cpp_backend.why_not_fill(fill) or "")

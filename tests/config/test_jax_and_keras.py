"""What jax.nn.initializers and keras.initializers give, as ``tools/record_jax_keras.py`` has recorded it, and what ours do.

Fans, standard deviations and bounds are compared as numbers. Distributions are compared by quantiles of a million values
on each side: the share of ours that lies below each of theirs, which 5 standard errors bound. 200 such shares are
compared, so a chance of 2e-4 would fail them all together, once and for all, as seeds are fixed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import needs
import pytest
import torch
from paths import DATA
from torch import nn

import fastinit
from fastinit import plans
from fastinit.config import schemes

Record = dict[str, Any]
HEAD, *RECORDS = [json.loads(line) for line in (DATA / "jax_keras.txt").read_text().splitlines()]
N_ERRORS = 5.0
# The functions as types of ours; the distribution is recorded.
TYPES = {
    **{f"{name}_{kind}": name.capitalize() for name in ("lecun", "glorot", "he") for kind in ("normal", "uniform")},
    **{name + kind: name for name in ("Lecun", "Glorot", "He") for kind in ("Normal", "Uniform")},
}


def records(*functions: str, having: str) -> list[Record]:
    return [each for each in RECORDS if each["function"] in functions and having in each]


def named(each: Record) -> str:
    keys = ("library", "function", "mode", "distribution", "gain", "shape", "of", "a")
    return "-".join(str(each[key]) for key in keys if key in each)


def grouped(found: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns records by what they are of, whatever their shapes."""
    groups: dict[str, list[Record]] = {}
    for each in found:
        groups.setdefault(named({**each, "shape": "all"}), []).append(each)
    return groups


def planned(cfg: dict[str, Any], shape: Sequence[int]) -> plans.Distribution:
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(tuple(shape), device="meta"))
    (item,) = fastinit.plan(module, dict(cfg, param="w")).items
    return item.distribution  # type: ignore[union-attr]


@lru_cache(maxsize=1)
def _drawn(cfg: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(shape, dtype=dtype))
    fastinit.initialize(module, dict(json.loads(cfg), param="w"), backend="cpp", seed=0)
    return module.w.detach()


def drawn(cfg: dict[str, Any], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return _drawn(json.dumps(cfg), tuple(shape), dtype)


# --- numbers ---------------------------------------------------------------------------------------------------------

SCALINGS = records("variance_scaling", "VarianceScaling", *TYPES, having="number")


def cfg_of(each: Record) -> dict[str, Any]:
    cfg = dict(type=TYPES.get(each["function"], "VarianceScaling"), distribution=each["distribution"])
    return cfg | {key: each[key] for key in ("scale", "mode") if key in each}


def number_of(found: plans.Distribution) -> float:
    """Returns the standard deviation or bound of a distribution around 0."""
    if isinstance(found, plans.Uniform):
        assert found.low == -found.high
        return found.high
    assert isinstance(found, (plans.Normal, plans.TruncatedNormal)) and found.mean == 0
    if isinstance(found, plans.TruncatedNormal):
        assert (found.low, found.high) == (-2 * found.std, 2 * found.std)
    return found.std


def axes_of(each: Record) -> dict[str, Any]:
    batch_dims = len(each["batch_axis"])
    assert each["batch_axis"] == list(range(batch_dims))
    return dict(batch_dims=batch_dims, fan_axes=(each["in_axis"], each["out_axis"]))


@pytest.mark.parametrize("library", ["jax", "keras"])
def test_fans_are_those_of_the_library(library: str) -> None:
    found = [each for each in SCALINGS if each["library"] == library]
    assert len({named(each) for each in found}) > 100
    assert not [each for each in found if schemes.fans(each["shape"], **axes_of(each)) != tuple(each["fans"])]


@pytest.mark.parametrize("group", grouped(SCALINGS).values(), ids=grouped(SCALINGS))
def test_standard_deviations_and_bounds_are_those_of_the_library(group: list[Record]) -> None:
    ours = [number_of(planned(cfg_of(each) | axes_of(each), each["shape"])) for each in group]
    assert ours == pytest.approx([each["number"] for each in group], rel=1e-14, abs=0)


@pytest.mark.parametrize("library", ["jax", "keras"])
def test_weights_as_torch_stores_them_need_no_axes(library: str) -> None:
    usual = [each for each in SCALINGS if axes_of(each) == dict(batch_dims=0, fan_axes=(-2, -1))]
    usual = [each for each in usual if each["library"] == library]
    ours = []
    for each in usual:
        *kernel, n_in, n_out = each["shape"]
        ours.append(number_of(planned(cfg_of(each), (n_out, n_in, *kernel))))
    assert len(usual) > 100
    assert ours == pytest.approx([each["number"] for each in usual], rel=1e-14, abs=0)


@pytest.mark.parametrize("each", records("variance_scaling", having="refused"), ids=named)
def test_shapes_without_fans_are_refused_as_jax_refuses_them(each: Record) -> None:
    assert each["refused"] == "ValueError"
    with pytest.raises(ValueError, match="fewer than 2 dimensions"):
        schemes.variance_scaling(each["shape"])


TRUNCATED = records("truncated_normal", "TruncatedNormal", having="number")


def cfg_of_truncated(each: Record) -> dict[str, Any]:
    return dict(
        type="TruncNormal", mean=each["mean"], std=each["number"], a=each["a"], b=each["b"], bounds="sigma"
    )  # fmt: skip


@pytest.mark.parametrize("each", TRUNCATED, ids=named)
def test_bounds_in_sigma_hold_what_the_library_drew(each: Record) -> None:
    found = planned(cfg_of_truncated(each), (2, 2))
    assert isinstance(found, plans.TruncatedNormal)
    low, high = each["ends"]
    assert found.low <= low and high <= found.high
    if each["b"] < 4:  # of a million draws some are near to bounds that are not far out
        assert [low, high] == pytest.approx([found.low, found.high], abs=0.01 * found.std)


# --- distributions ---------------------------------------------------------------------------------------------------


def far_off(ours: torch.Tensor, theirs: Record, n_theirs: int) -> list[str]:
    """Returns at which of their quantiles another share of ours lies below than can be by chance."""
    below = torch.searchsorted(
        ours.double().flatten().sort().values, torch.tensor(theirs["quantiles"], dtype=torch.float64)
    )
    n, found = ours.numel(), []
    for i, count in enumerate(below.tolist(), 1):
        p = i / 16
        error = math.sqrt(p * (1 - p) * (1 / n + 1 / n_theirs))
        if abs(count / n - p) > N_ERRORS * error:
            found.append(f"{count / n} of ours are below their quantile of {p}")
    return found


DRAWN = records("variance_scaling", "VarianceScaling", having="quantiles")
KINDS = ("normal", "uniform", "truncated_normal")


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", DRAWN, ids=named)
def test_values_are_distributed_as_those_of_the_library(each: Record) -> None:
    cfg = dict(type="VarianceScaling", distribution=each["distribution"], fan_axes=[-2, -1])
    assert not far_off(drawn(cfg, each["shape"]), each, HEAD["n"])


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", DRAWN, ids=named)
def test_values_of_the_same_variance_are_told_from_those_of_another_distribution(each: Record) -> None:
    for other in KINDS:
        cfg = dict(type="VarianceScaling", distribution=other, fan_axes=[-2, -1])
        assert other == each["distribution"] or far_off(drawn(cfg, each["shape"]), each, HEAD["n"])


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", TRUNCATED, ids=named)
def test_truncated_normals_are_distributed_as_those_of_the_library(each: Record) -> None:
    assert not far_off(drawn(cfg_of_truncated(each), (1000, 1000)), each, HEAD["n"])


# --- orthogonal matrices ---------------------------------------------------------------------------------------------

MATRICES = records("orthogonal", "Orthogonal", having="singular")
KERNELS = records("delta_orthogonal", having="singular")


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", MATRICES, ids=named)
def test_orthogonal_matrices_have_the_rank_and_the_size_of_the_librarys(each: Record) -> None:
    *others, n_out = each["shape"]
    ours = drawn(dict(type="Orthogonal", gain=each["gain"]), (n_out, *others), torch.float64)
    singular = torch.linalg.svdvals(ours.view(n_out, -1))
    assert [singular.min().item(), singular.max().item()] == pytest.approx(each["singular"], rel=1e-12)
    assert (ours**2).sum().item() == pytest.approx(each["squares"], rel=1e-12)


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", KERNELS, ids=named)
def test_delta_orthogonal_kernels_have_the_matrix_of_jax_at_the_centre_of_torch(each: Record) -> None:
    *kernel, n_in, n_out = each["shape"]
    ours = drawn(dict(type="DeltaOrthogonal", gain=each["gain"]), (n_out, n_in, *kernel), torch.float64)
    at = [sorted(set(found.tolist())) for found in ours.nonzero(as_tuple=True)[2:]]
    assert at == [[size // 2] for size in kernel] and each["kernel"] == [[(size - 1) // 2] for size in kernel]
    singular = torch.linalg.svdvals(ours.flatten(2).sum(2))
    assert [singular.min().item(), singular.max().item()] == pytest.approx(each["singular"], rel=1e-12)
    assert (ours**2).sum().item() == pytest.approx(each["squares"], rel=1e-12)


@pytest.mark.parametrize("each", records("orthogonal", "delta_orthogonal", having="refused"), ids=named)
def test_shapes_that_jax_makes_no_matrices_of_are_refused(each: Record) -> None:
    name = {"orthogonal": "Orthogonal", "delta_orthogonal": "DeltaOrthogonal"}[each["function"]]
    *others, n_out = each["shape"]
    *kernel, n_in = others or [None]
    shape = each["shape"] if n_in is None else (n_out, n_in, *kernel)
    assert each["refused"] == "ValueError"
    with pytest.raises(
        ValueError, match=r"needs (at least 2 dimensions|the weight of a convolution|as many out channels)"
    ):
        planned(dict(type=name), shape)


ENSEMBLES = records("orthogonal", having="of")


def statistic(each: Record, matrices: torch.Tensor) -> torch.Tensor:
    return matrices[:, 0, -1] if each["of"] == "element" else matrices.diagonal(dim1=1, dim2=2).sum(1)


@needs.mark(needs.CPP)
@pytest.mark.parametrize("each", ENSEMBLES, ids=named)
def test_orthogonal_matrices_are_distributed_as_those_of_jax(each: Record) -> None:
    n = HEAD["n_matrices"]
    ours = drawn(dict(type="Orthogonal", batch_dims=1), (n, *each["shape"]))
    assert not far_off(statistic(each, ours), each, n)


def test_matrices_that_are_orthogonal_but_not_uniform_are_told_from_those_of_jax() -> None:
    """The Q of LAPACK's QR, whose R has a diagonal of any sign."""
    n = HEAD["n_matrices"]
    (trace,) = [each for each in ENSEMBLES if each["of"] == "trace"]
    a = torch.randn(n, *trace["shape"], generator=torch.Generator().manual_seed(0))
    assert far_off(statistic(trace, torch.linalg.qr(a).Q), trace, n)

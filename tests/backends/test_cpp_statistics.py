"""Statistics of the cpp backend's values. Seeds are fixed, so a test passes always or never; 1e-4 is the chance that a right
generator fails one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cpp_core import (
    BOUNDS,
    NORMAL,
    UNIFORM,
    fill,
)

from fastinit import plans

SIGNIFICANCE = 1e-4


def p_values(distribution, sample):
    from scipy import stats

    if isinstance(distribution, plans.TruncatedNormal):
        mean, std, low, high = (getattr(distribution, name) for name in ("mean", "std", "low", "high"))
        exact = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    elif isinstance(distribution, plans.Normal):
        exact = stats.norm(distribution.mean, distribution.std)
    else:
        exact = stats.uniform(distribution.low, distribution.high - distribution.low)
    n = len(sample)
    probabilities = exact.cdf(sample)
    counts = np.histogram(probabilities, 256, (0, 1))[0]
    z = stats.norm.ppf(np.clip(probabilities, 1e-15, 1 - 1e-15))
    # The k-th moment of a standard normal and its variance; correlations of neighbours at lags 1 to 4 (one block).
    moments = [
        2 * stats.norm.sf(abs(np.mean(z**k) - m) / math.sqrt(v / n))
        for k, m, v in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]
    ]
    lags = [2 * stats.norm.sf(abs(np.mean(z[lag:] * z[:-lag])) * math.sqrt(n - lag)) for lag in (1, 2, 3, 4)]
    return [stats.kstest(sample, exact.cdf).pvalue, stats.chisquare(counts).pvalue, *moments, *lags]


@pytest.mark.parametrize("distribution", [NORMAL, UNIFORM], ids=plans.describe)
def test_values_have_their_distribution(distribution):
    sample = fill(torch.empty(1 << 20), distribution, seed=11).double().numpy()
    assert min(p_values(distribution, sample)) > SIGNIFICANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [bounds for bounds in BOUNDS if bounds != (3, 3.01)], ids=str)
def test_truncated_normals_have_their_distribution(bounds, dtype):
    distribution = plans.TruncatedNormal(0.0, 1.0, *bounds)
    n = 1 << (18 if dtype == torch.float32 else 16)
    sample = fill(torch.empty(n, dtype=dtype), distribution, seed=12).numpy()
    # A float32 far out stands for all numbers that round to it: without that, the bound itself would be an outlier.
    spread = np.spacing(np.abs(sample)).astype(np.float64) * (np.random.default_rng(3).random(n) - 0.5)
    sample = sample + spread
    for bound, outside in ((bounds[0], sample < bounds[0]), (bounds[1], sample > bounds[1])):
        sample[outside] = 2 * bound - sample[outside]
    assert min(p_values(distribution, sample)) > SIGNIFICANCE
    wider = plans.TruncatedNormal(0.0, 1.2, *bounds)  # the control
    assert min(p_values(wider, sample)) < SIGNIFICANCE


@pytest.mark.parametrize("spoil", ["scale", "shift", "repeat", "shuffle of pairs"])
def test_a_spoiled_sample_is_rejected(spoil):
    sample = fill(torch.empty(1 << 20), NORMAL, seed=11).double().numpy()
    spoiled = {
        "scale": lambda: (sample - 0.25) * 1.005 + 0.25,
        "shift": lambda: sample + 0.01,
        "repeat": lambda: np.where(np.arange(1 << 20) % 64 == 1, np.roll(sample, 1), sample),
        "shuffle of pairs": lambda: np.repeat(sample[::2], 2),
    }[spoil]()
    assert min(p_values(NORMAL, spoiled)) < SIGNIFICANCE


def test_streams_of_similar_names_and_seeds_are_uncorrelated():
    from scipy import stats

    n = 1 << 18
    standard = plans.Normal(0, 1)
    variants = [
        ("layer.0.weight", 0),
        ("layer.1.weight", 0),
        ("layer.0.bias", 0),
        ("layer.0.weight", 1),
        ("layer.0.weight", 2**63),
    ]
    samples = [fill(torch.empty(n), standard, name=name, seed=seed).double().numpy() for name, seed in variants]
    for i, a in enumerate(samples):
        for b in samples[:i]:
            assert 2 * stats.norm.sf(abs(np.mean(a * b)) * math.sqrt(n)) > SIGNIFICANCE
    assert 2 * stats.norm.sf(abs(np.mean(samples[0] * samples[0])) * math.sqrt(n)) < SIGNIFICANCE


def test_tails_reach_beyond_five_sigma_with_the_right_frequency():
    from scipy import stats

    n = 1 << 25
    sample = fill(torch.empty(n), plans.Normal(0, 1), seed=2)
    for sigma in (4.0, 4.5, 5.0):
        expected = 2 * stats.norm.sf(sigma) * n
        found = int((sample.abs() > sigma).sum())
        assert stats.poisson.cdf(found, expected) > SIGNIFICANCE
        assert stats.poisson.sf(found - 1, expected) > SIGNIFICANCE
    assert 5 < float(sample.abs().max()) < 6.8

"""Settings of the whole suite: tests, doctests and the README."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from fastinit import WEIGHT_INITIALIZERS

# Deterministic, so that CI is; no deadline, because the machine is shared.
settings.register_profile(
    "fastinit",
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastinit")


@pytest.fixture(autouse=True)
def fixed_generator():
    """Every test begins with the same state of torch's default generator."""
    torch.manual_seed(20261122)


@pytest.fixture(autouse=True)
def own_registry():
    """What a test or an example registers is gone after it."""
    before, replaceable = WEIGHT_INITIALIZERS.module_dict, set(WEIGHT_INITIALIZERS.replaceable)
    yield
    WEIGHT_INITIALIZERS._entries, WEIGHT_INITIALIZERS.replaceable = before, replaceable

"""Digests of shards, on real processes that run the checks of ranks_digests.py."""

from __future__ import annotations

from functools import lru_cache

import needs
import pytest
import ranks
import ranks_digests

pytestmark = needs.mark(needs.torch_from(2, 6))  # which has fully_shard

outcomes = lru_cache(ranks.outcomes)


@pytest.mark.parametrize(
    ("world", "name"),
    [(world, name) for world in (1, 2, 3, 4) for name, (_, worlds) in ranks_digests.CHECKS.items() if world in worlds],
)
def test_on_several_ranks(world: int, name: str) -> None:
    problem = outcomes(world, "ranks_digests")[name]
    assert not problem, problem

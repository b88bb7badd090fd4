"""Folders that several ranks write and read. Real processes run the checks of folder_ranks.py."""

from __future__ import annotations

from functools import lru_cache

import folder_ranks
import needs
import pytest
import ranks

pytestmark = needs.mark(needs.torch_from(2, 6))  # which has fully_shard

outcomes = lru_cache(ranks.outcomes)


@pytest.mark.parametrize(
    ("world", "name"),
    [(world, name) for world in (1, 2, 3, 4) for name, (_, worlds) in folder_ranks.CHECKS.items() if world in worlds],
)
def test_on_several_ranks(world, name):
    problem = outcomes(world, "folder_ranks")[name]
    assert not problem, problem

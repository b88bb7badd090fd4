"""Agreement: before ranks fill their parts of distributed tensors, they make sure that all do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class _Vote:
    """What one rank is about to do."""

    seed: int
    is_given: bool
    """The user gave the seed; else it was drawn."""
    digest: str
    n_fills: int
    rank: int
    problem: str = ""


def agreed_seed(asked: Mapping[Any, Sequence[str]], seed: int, is_given: bool) -> int:
    """Returns the seed for fills that meshes of ranks execute together, each rank its own part.

    For every mesh, one all-gather along each of its dimensions, of a seed and a digest of that mesh's fills. A seed
    that was drawn is that of the mesh's first rank.

    Args:
        asked: for each mesh its fills, as text.
        seed, is_given: this rank's seed, and whether the user gave it.

    Raises:
        RuntimeError: on all ranks of the mesh: their seeds or fills differ. Nothing has been written.
    """
    # All ranks of a mesh must come to it in the same order. The largest first: its seed holds for what lies within it.
    for mesh in sorted(asked, key=lambda mesh: (-mesh.mesh.numel(), mesh.mesh.flatten().tolist())):
        seed = _agree(mesh, asked[mesh], seed, is_given)
        is_given = True
    return seed


def _agree(mesh: Any, fills: Sequence[str], seed: int, is_given: bool) -> int:
    distributed = torch.distributed
    if distributed.get_backend(mesh.get_group(0)) == "fake":  # one process that plans for many
        return seed
    digest = hashlib.blake2b("\n".join(fills).encode(), digest_size=16).hexdigest()
    vote = _Vote(seed, is_given, digest, len(fills), distributed.get_rank())
    for dimension in range(mesh.ndim):
        group = mesh.get_group(dimension)
        votes: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(votes, vote, group=group)
        first: _Vote = votes[0]
        # A problem is carried through all dimensions: every rank of the mesh comes to know of it, and none waits.
        problem = next((each.problem for each in votes if each.problem), "") or _problem(votes)
        vote = replace(vote, seed=first.seed, is_given=first.is_given, problem=problem)
    if vote.problem:
        raise RuntimeError(f"the ranks of {mesh} do not agree, and nothing has been filled: {vote.problem}")
    return vote.seed


def _problem(votes: Sequence[_Vote]) -> str:
    first = votes[0]
    for other in votes[1:]:
        pair = f"rank {first.rank} and rank {other.rank}"
        if other.is_given != first.is_given or (other.is_given and other.seed != first.seed):
            seeds = [str(each.seed) if each.is_given else "none" for each in (first, other)]
            return f"{pair} were given the seeds {seeds[0]} and {seeds[1]}. Give all the same, or none"
        if other.digest != first.digest:
            return (
                f"{pair} are about to do different fills ({first.n_fills} and {other.n_fills}): their models, configs "
                f"or prefixes differ"
            )
    return ""

"""Agreement: before ranks fill their parts of distributed tensors, they make sure that all do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import torch

from ..errors import InitRuntimeError
from ..plans import names_line

# A drawn seed and problems are passed on among ranks that share a mesh, in the first rounds; in the last they compare.
# Two are enough for the meshes of a grid and for chains of two.
_ROUNDS = 3


class _Vote(NamedTuple):
    """What one rank is about to do."""

    seed: int
    is_given: bool
    """The user gave the seed; else it was drawn."""
    origin: int
    """The rank that drew it."""
    digest: str
    n_fills: int
    n_meshes: int
    """On how many meshes the rank votes."""
    rank: int
    problem: str = ""


def agreed_seed(asked: Mapping[Any, Sequence[str]], seed: int, is_given: bool, problem: str = "") -> int:
    """Returns the seed for fills that meshes of ranks execute together, each rank its own part.

    Every rank of a mesh has one vote, of a seed and a digest of that mesh's fills, by an all-gather along each of its
    dimensions; ranks outside of it have none. A seed that was drawn is that of the lowest rank, also across meshes that
    have ranks in common.

    Args:
        asked: for each mesh its fills, as text; none of them may be a mesh's on one rank and not on another.
        seed, is_given: this rank's seed, and whether the user gave it.
        problem: why this rank fills nothing; the others fail then, and do not wait for it.

    Raises:
        RuntimeError: on all ranks of the mesh: their seeds or fills differ, or one of them has a problem. Nothing has
            been written.
    """
    ours = [mesh for mesh in asked if mesh.get_coordinate() is not None]
    # All ranks must come to their meshes in one order, or they would wait for each other.
    left = sorted(ours, key=lambda mesh: (-mesh.mesh.numel(), mesh.mesh.flatten().tolist()))
    for mesh in left:
        groups_of(mesh, asked[mesh])
    rank = torch.distributed.get_rank() if left else 0
    origin, found, where = rank, problem, left[0] if left else None
    for i in range(_ROUNDS):
        for mesh in tuple(left):
            digest = hashlib.blake2b("\n".join(asked[mesh]).encode(), digest_size=16).hexdigest()
            vote = _Vote(seed, is_given, origin, digest, len(asked[mesh]), len(ours), rank, found)
            result, is_alone = _vote(mesh, vote, asked[mesh], must_be_same=i == _ROUNDS - 1)
            if result.problem and not found:
                found, where = result.problem, mesh
            seed, origin = result.seed, result.origin
            # All ranks of the mesh have heard the same, so all of them leave it.
            if result.problem or is_alone:
                left.remove(mesh)
    if found and not problem:
        raise InitRuntimeError(f"the ranks of {where} do not agree, and nothing has been filled: {found}")
    return seed


Found = TypeVar("Found")


def check_groups(distributed_over: Mapping[Any, Sequence[str]]) -> None:
    """Makes sure that this rank can talk to the others of its meshes.

    Args:
        distributed_over: for each mesh the names of its tensors.

    Raises:
        RuntimeError: the process group of a mesh is gone; it has been destroyed.
    """
    for mesh, names in distributed_over.items():
        if mesh.get_coordinate() is not None:
            groups_of(mesh, names)


def groups_of(mesh: Any, names: Sequence[str]) -> list[Any]:
    """Returns the process groups of a mesh, of which this rank is a part, dimension by dimension.

    Args:
        mesh: the mesh.
        names: its tensors, or what is to be done with them, for the message.

    Raises:
        RuntimeError: they are gone.
    """
    try:
        groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
        for group in (*groups, None):  # the default one has the rank's number
            torch.distributed.get_backend(group)
    except (RuntimeError, ValueError) as error:
        raise InitRuntimeError(
            f"the process group of {mesh} is gone ({error}), so that its ranks cannot agree on what they hold of "
            f"{names_line('tensors', names) if names else 'its tensors'}",
            hint=". Call this before torch.distributed.destroy_process_group()",
        ) from None
    return groups


def merged(meshes: Iterable[Any], found: Found, merge: Callable[[Found, Found], Found]) -> Found:
    """Returns what all ranks of meshes have found; ranks outside of a mesh do not take part in it.

    Args:
        meshes: those of this rank, the same on all ranks of each.
        found: what this rank has found.
        merge: makes one of what two ranks have found; the order does not matter.
    """
    ours = [mesh for mesh in meshes if mesh.get_coordinate() is not None]
    distributed = torch.distributed
    for mesh in sorted(ours, key=lambda mesh: (-mesh.mesh.numel(), mesh.mesh.flatten().tolist())):
        for dimension in range(mesh.ndim):
            group = mesh.get_group(dimension)
            if distributed.get_backend(group) == "fake":
                continue
            each: list[Any] = [None] * distributed.get_world_size(group)
            distributed.all_gather_object(each, found, group=group)
            found = reduce(merge, each)
    return found


def _vote(mesh: Any, vote: _Vote, fills: Sequence[str], *, must_be_same: bool) -> tuple[_Vote, bool]:
    """Returns the vote of a mesh, and whether none of its ranks has another mesh to agree on."""
    distributed = torch.distributed
    groups = groups_of(mesh, fills)
    if distributed.get_backend(groups[0]) == "fake":  # one process that plans for many
        return vote, True
    is_alone = vote.n_meshes == 1
    for group in groups:
        votes: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(votes, (vote, is_alone), group=group)
        is_alone = all(alone for _, alone in votes)
        each = [one for one, _ in votes]
        first = min(each, key=lambda one: one.origin)
        # A problem is carried through all dimensions: every rank of the mesh comes to know of it, and none waits.
        problem = next((one.problem for one in each if one.problem), "") or _problem(each, must_be_same)
        vote = vote._replace(seed=first.seed, origin=first.origin, is_given=each[0].is_given, problem=problem)
    return vote, is_alone


def _problem(votes: Sequence[_Vote], must_be_same: bool) -> str:
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
        if must_be_same and other.seed != first.seed:
            return f"{pair} have meshes through which a drawn seed does not reach all ranks. Give a seed"
    return ""

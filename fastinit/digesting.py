"""``digest()``: what the tensors of a model hold, in a few bytes that are the same wherever and however they lie."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, Union

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from . import checkpoint as checkpoints
from .backends.digests import sums, why_not
from .errors import InitRuntimeError, InitTypeError, check_module
from .execution.collector import uncollected
from .naming import Prefix, Walk, join, renamed, walk, without_wrappers
from .plans import Box, Digest, TensorDigest
from .shards.dtensor import boxes_of, is_sharded, local_part, mesh_of, why_not_shards
from .shards.sums import check_ranks, whole_sums
from .tied_names import without_ties

Digestible = Union[nn.Module, Mapping[str, Any], str, "os.PathLike[str]"]


@torch.no_grad()
def digest(
    source: Digestible, *, non_persistent_buffers: bool = False, tied_names: bool = True, prefix: Prefix = ""
) -> Digest:
    """Returns a digest of each tensor of a model, a state dict or a checkpoint, and one of all of them.

    It depends on names, dtypes, shapes and bits alone, and not on the device, memory format, number of threads or mesh:
    every rank adds up its part of a distributed tensor (``Shard`` and ``Replicate``), and all get the same digest. All
    ranks of a mesh must call it. Bits are compared as they are: -0.0 is not 0.0, and NaNs differ by their payload.

    Two tensors that differ have the same digest once in some 10^19 cases; if they differ in one word of 32 bits, never.
    That is for accidents: who wants to can make values that fit a digest.

    Args:
        source: a module with memory; a mapping of names to tensors; or a path or name of a checkpoint, as for
            ``load_checkpoint``, whose files are mapped where they can be. Tied tensors are stated under each
            of their names, as in ``state_dict()``. What wrappers (``_orig_mod.``, DDP's ``module.``) add to a module's
            names is left out.
        non_persistent_buffers: also state the buffers that are not in ``state_dict()``, such as rotary tables, of
            which ``verify`` can tell nothing.
        tied_names: False: state tied tensors of a module once, under the name that ``fastinit.write``,
            ``save_pretrained`` and safetensors' ``save_model`` keep, so that the model has the digest of such a
            checkpoint. The names of a state dict and of a checkpoint are stated as they are.
        prefix: as for ``initialize``: a part of a model (a pipeline's stage) is stated by its names in the whole.

    Raises:
        TypeError: ``source`` or one of its values is something else.
        FileNotFoundError: there is no such checkpoint.
        RuntimeError: a tensor has no values (meta, lazy, released), is sparse, quantized, nested or another subclass,
            or is placed as ``Partial``; or the ranks do not agree: their tensors are others, or replicas differ.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> _ = fastinit.initialize(model, dict(type="Constant", val=1, bias=0, layer="Linear"))
        >>> print(fastinit.digest(model))
        total 8554c7299f4a86cf63ab34321ab92cc0
        9338b23762e70672 float32[1,2] weight
        0ecebb48877d0638 float32[1] bias
    """
    found = _tensors_of(source, non_persistent_buffers, tied_names)
    tensors = {renamed(name, prefix): tensor for name, tensor in found.items()}
    with uncollected():  # a model has many tensors
        return _digest_of(tensors)


def _digest_of(tensors: Mapping[str, torch.Tensor]) -> Digest:
    problem = _problem(tensors)
    distributed = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    if distributed:
        check_ranks(distributed, problem)
    if problem:
        raise InitRuntimeError(f"digest: {problem}")
    totals = _sums_here(tensors)
    if distributed:
        totals |= whole_sums(distributed, totals)
    return Digest(
        {
            name: TensorDigest.of(totals[name], str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in tensors.items()
        }
    )


def _tensors_of(source: Digestible, non_persistent_buffers: bool, tied_names: bool) -> dict[str, torch.Tensor]:
    """Returns the tensors with their names."""
    if isinstance(source, (str, os.PathLike)):
        request = checkpoints.Request(source)
        source = request.state_dict(request.tree())
    if isinstance(source, Mapping):
        return _of_state_dict(source)
    if not isinstance(source, nn.Module):
        raise InitTypeError(
            f"digest: expected a torch.nn.Module, a mapping of names to tensors or a path, but got {type(source)}"
        )
    check_module(source)
    tensors: dict[str, torch.Tensor] = {}
    places = walk(source)
    for path, module in places:
        left_out = set() if non_persistent_buffers else module._non_persistent_buffers_set
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in left_out:
                tensors[join(path, name)] = tensor
    return tensors if tied_names else _untied(source, places, tensors)


def _untied(model: nn.Module, places: Walk, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors that a checkpoint has. Those that have no digest stay, to be refused by name."""
    plain = {name: tensor for name, tensor in tensors.items() if _why_not(tensor) is None}
    _, dropped = without_ties(plain, places, model, _place)
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


def _of_state_dict(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a state dict, those that are still in a file mapped; without extra states."""
    tensors = OrderedDict(state_dict)
    for name, value in state_dict.items():
        if not isinstance(name, str) or not (isinstance(value, torch.Tensor) or _is_extra_state(name)):
            raise InitTypeError(
                f"digest: expected names with tensors, but got {name!r} with a {type(value).__name__}",
                hint=". Pass the part that holds the weights",
            )
        if _is_extra_state(name):
            del tensors[name]
    checkpoints.map_stored(tensors, set(tensors))
    return {without_wrappers(name): tensor for name, tensor in tensors.items()}


def _is_extra_state(name: str) -> bool:
    """Tells whether a key of a state dict is that of ``get_extra_state``, which returns anything."""
    return name.rpartition(".")[2] == "_extra_state"


def _problem(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns why a digest cannot be made, naming the first tensor; "" if it can."""
    found = [(name, reason) for name, tensor in tensors.items() if (reason := _why_not(tensor)) is not None]
    if not found:
        return ""
    more = f" (and {len(found) - 1:,} more such tensors)" if len(found) > 1 else ""
    return f"{found[0][0]!r} {found[0][1]}{more}"


def _why_not(tensor: Any) -> str | None:
    if is_lazy(tensor):
        return "is lazy: it has neither shape nor values before the first forward"
    if not is_sharded(tensor):
        return why_not(tensor)
    if (reason := why_not_shards(tensor)) is not None:
        return f"has no digest: {reason}"
    if mesh_of(tensor).get_coordinate() is None:
        return f"is distributed over {mesh_of(tensor)}, of which this rank is no part"
    return why_not(local_part(tensor))


def _sums_here(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Returns the sum of what is here of each tensor; tied tensors are read once."""
    boxes: list[Box] = []
    places: dict[object, tuple[int, int]] = {}
    of_name: dict[str, object] = {}
    for name, tensor in tensors.items():
        of_name[name] = place = _place(tensor)
        if place not in places:
            own = boxes_of(tensor) if is_sharded(tensor) else (Box.whole(tensor.detach()),)
            places[place] = len(boxes), len(boxes) + len(own)
            boxes += own
    found = sums(boxes)
    return {name: sum(found[slice(*places[place])]) % (1 << 64) for name, place in of_name.items()}


def _place(tensor: Any) -> Hashable:
    """Returns what two tensors have in common that are one and the same memory."""
    if is_sharded(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj()

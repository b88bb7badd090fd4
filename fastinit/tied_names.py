"""Tied tensors: under which of their names a checkpoint has them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .naming import join


def pretrained_model() -> Any:
    """Returns transformers' class of models, a class without instances where it has not been imported."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return getattr(transformers, "PreTrainedModel", ())


def tied_to_others(root: nn.Module) -> set[tuple[nn.Module, str]]:
    """Returns the places (module, attribute) of parameters that models of transformers tie to others."""
    found: set[tuple[nn.Module, str]] = set()
    for model in root.modules():
        if not isinstance(model, pretrained_model()):
            continue
        # By release: all of them with what they are tied to, or the names of those that are tied.
        names = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ()
        for name in names:
            path, _, attribute = name.rpartition(".")
            try:
                found.add((model.get_submodule(path), attribute))
            except AttributeError:  # a pattern, or a part that this model does not have
                continue
    return found


def without_ties(
    named: Mapping[str, torch.Tensor],
    places: Iterable[tuple[str, nn.Module]],
    root: nn.Module,
    memory_of: Callable[[torch.Tensor], Hashable],
) -> tuple[list[str], dict[str, str]]:
    """Returns the names that a checkpoint has, and those of the same tensors that it has not -> those that it has.

    Of several names the first by alphabet is kept, as by safetensors' ``save_model``; in models of transformers one
    that is not tied to another, as by ``save_pretrained``.

    Args:
        named: the tensors of a model by their names.
        places: paths and modules of the model, as the names have them.
        root: the model.
        memory_of: returns what tensors have in common that are one and the same memory.
    """
    path_of: dict[nn.Module, str] = {}
    for path, module in places:
        path_of.setdefault(module, path)
    tied = {join(path_of[module], name) for module, name in tied_to_others(root) if module in path_of}
    names_of: dict[Hashable, list[str]] = {}
    for name, tensor in named.items():
        if tensor.numel():
            names_of.setdefault(memory_of(tensor), []).append(name)
    dropped: dict[str, str] = {}
    for names in names_of.values():
        keep = min([name for name in names if name not in tied] or names)
        dropped.update({name: keep for name in sorted(names) if name != keep})
    return [name for name in named if name not in dropped], dropped

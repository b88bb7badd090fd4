"""How other libraries initialize a module that stands there: what their modules are asked to do, by their own names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

# PyTorch's convention, and its older form.
_RESETS = ("reset_parameters", "_reset_parameters")


def _pretrained_model() -> Any:
    """Returns transformers' class of models, a class without instances where it has not been imported."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return getattr(transformers, "PreTrainedModel", ())


def initialize_like_its_library(root: nn.Module) -> None:
    """Runs the initialization that a constructor has left out because its model is on the meta device.

    So does that of transformers' models (its ``init_weights`` returns at once there).
    """
    kind = _pretrained_model()
    for module in root.modules():
        if isinstance(module, kind) and hasattr(module, "initialize_weights"):
            is_meta = any(parameter.is_meta for parameter in module.parameters())
            if is_meta and not getattr(module, "_is_hf_initialized", False):
                module.initialize_weights()


def own_code(root: nn.Module) -> dict[nn.Module, list[Callable[[], object]]]:
    """Returns what the modules under a root have to initialize themselves with, in the order in which it is to run.

    That is their ``reset_parameters`` and, in models of transformers, what the innermost model's ``_init_weights``
    makes of each module.
    """
    kind = _pretrained_model()
    found: dict[nn.Module, list[Callable[[], object]]] = {}

    def visit(module: nn.Module, model: Any) -> None:
        if module in found:
            return
        functions = [getattr(module, name) for name in _RESETS if callable(getattr(module, name, None))][:1]
        if isinstance(module, kind):
            model = module
        if model is not None:
            functions.append(_InitWeights(model, module))
        found[module] = functions
        for child in module._modules.values():
            if child is not None:
                visit(child, model)

    visit(root, None)
    return found


class _InitWeights:
    """The part of a transformers model's initialization that is for one module."""

    __name__ = "_init_weights"

    def __init__(self, model: Any, module: nn.Module) -> None:
        self._model = model
        self._module = module

    def __call__(self) -> None:
        self._model._init_weights(self._module)

"""How other libraries initialize a module that stands there: what their modules are asked to do, by their own names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
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


def own_code(module: nn.Module) -> Callable[[], object] | None:
    """Returns what a module fills its own parameters and buffers with, None if it has nothing of the kind."""
    return next((getattr(module, name) for name in _RESETS if callable(getattr(module, name, None))), None)


def models_own_code(root: nn.Module) -> dict[nn.Module, Callable[[], object]]:
    """Returns what models of transformers fill each of their modules with: the innermost model's ``_init_weights``.

    Children come before their parents, which may set what belongs to a child.
    """
    kind = _pretrained_model()
    found: dict[nn.Module, Callable[[], object]] = {}

    def visit(module: nn.Module, model: Any) -> None:
        if isinstance(module, kind):
            model = module
        for child in module._modules.values():
            if child is not None and child not in found:
                visit(child, model)
        if model is not None:
            found[module] = partial(_initialize, model, module)

    visit(root, None)
    return found


def _initialize(model: Any, module: nn.Module) -> None:
    model._init_weights(module)

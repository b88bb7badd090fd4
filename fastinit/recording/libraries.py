"""How other libraries initialize a module that stands there: what their modules are asked to do, by their own names."""

from __future__ import annotations

import functools
import linecache
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn

from ..tied_names import pretrained_model

# PyTorch's convention, and its older form.
_RESETS = ("reset_parameters", "_reset_parameters")
# Functions of torch.nn.init that draw, and do nothing at all to a tensor on the meta device (in some releases).
_SKIP_META = ("orthogonal_", "sparse_", "dirac_", "eye_")


def model_class() -> Any:
    """Returns transformers' class of models whose ``init_weights`` leaves initialization out, None without one."""
    kind = pretrained_model()
    return kind if isinstance(kind, type) and hasattr(kind, "init_weights") else None


def with_what_it_leaves_out(is_recorded: Callable[[], bool]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a wrapper for ``PreTrainedModel.init_weights`` that initializes on the meta device, too.

    transformers leaves it out there, since it would be in vain; what is recorded is not. It has to be done where it is
    left out: code that follows (a tied weight, a new adapter, the user's own initialization) may change the values.

    Args:
        is_recorded: tells whether the code that runs is recorded.
    """
    modeling: Any = sys.modules["transformers.modeling_utils"]
    ties = modeling.PreTrainedModel.tie_weights

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def init_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
            ask = getattr(modeling, "get_torch_context_manager_or_global_device", None)
            # A model that is made to be loaded (its class ties nothing then) is initialized later, but for what is in
            # the checkpoint.
            is_loaded = modeling.PreTrainedModel.tie_weights is not ties
            if ask is not None and not is_loaded and is_recorded() and ask() == torch.device("meta"):
                model.initialize_weights()
            return original(model, *args, **kwargs)

        return init_weights

    return make


def asks_to_skip(frame: FrameType) -> bool:
    """Tells whether torch.nn.init asks if a tensor is on the meta device, to do nothing to it; what it does is kept."""
    return frame.f_code.co_name in _SKIP_META and frame.f_globals.get("__name__") == "torch.nn.init"


def asks_to_leave_out(frame: FrameType) -> bool:
    """Tells whether code of transformers asks for a tensor's device to leave something out on the meta device.

    Its DETR models leave out a copy there, its Mamba models their mixers' init; the line that asks names the device.
    """
    is_model = frame.f_globals.get("__name__", "").startswith("transformers.models.")
    return is_model and '"meta"' in linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def initialize_like_its_library(root: nn.Module) -> None:
    """Runs the initialization that a model of transformers has left out, and that could not be done where it was."""
    kind = pretrained_model()
    for module in root.modules() if kind else ():
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
    kind = pretrained_model()
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


def is_pretrained(module: nn.Module) -> bool:
    """Tells whether a module is a model of transformers, whose init ``models_own_code`` knows."""
    return isinstance(module, pretrained_model())


def _initialize(model: Any, module: nn.Module) -> None:
    model._init_weights(module)

"""What the tests of ``capture`` share: a model to record on, and whether everything was uninstalled."""

from __future__ import annotations

import math
import threading

import needs
import torch
import torch.nn.utils.prune
from torch import nn

import fastinit
from fastinit.recording import watch as watching

cpp = needs.mark(needs.CPP)


class Holder(nn.Module):
    """Two parameters and a buffer whose contents are anything before they are filled."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.full((6, 4), math.nan))
        self.b = nn.Parameter(torch.full((4, 6), math.nan))
        self.register_buffer("c", torch.full((24,), math.nan))


def captured(code, model=None, **kwargs):
    """Runs code on a model under capture; returns the model and the recipe."""
    model = Holder() if model is None else model
    with fastinit.capture(model, **{"backend": "cpp", "seed": 0, **kwargs}) as recipe, torch.no_grad():
        code(model)
    return model, recipe


def is_uninstalled():
    return (
        not watching._is_installed
        and watching.current_watch.get() is None
        and threading.Thread.start.__module__ == "threading"
        and nn.init._no_grad_trunc_normal_.__module__ == "torch.nn.init"
        and nn.init.orthogonal_.__code__.co_filename == nn.init.__file__
        and torch._C._len_torch_function_stack() == 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.nn.modules.module._global_parameter_registration_hooks
    )


def timm_style(tensor, mean, std, a, b):
    low, high = ((1 + math.erf((x - mean) / std / math.sqrt(2))) / 2 for x in (a, b))
    return (
        tensor.uniform_(2 * low - 1, 2 * high - 1).erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(min=a, max=b)
    )

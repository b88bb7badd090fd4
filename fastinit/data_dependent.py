"""Initialization that looks at data: layer-sequential unit variance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .config.module_fills import is_recomputed
from .errors import InitRuntimeError, check_module, warn_user
from .naming import Prefix
from .shards.dtensor import is_sharded
from .weight_init import initialize

_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd)


class ScaledLayer(NamedTuple):
    """What ``lsuv`` did to one layer."""

    name: str
    std_before: float
    """Of the layer's output, with the layers before it scaled already."""
    std_after: float
    factor: float
    """By which the weight was multiplied."""
    n_steps: int


class ScaledLayers(tuple[ScaledLayer, ...]):
    """The layers in the order in which data flows through them; prints as a table."""

    def __str__(self) -> str:
        head = ("layer", "std before", "std after", "weight times", "steps")
        lines = [
            head,
            *((r.name, f"{r.std_before:.4g}", f"{r.std_after:.4g}", f"{r.factor:.4g}", str(r.n_steps)) for r in self),
        ]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)


class _Reached(BaseException):
    """Ends a forward pass at the layer of interest; code of models that catches exceptions does not catch it."""


@torch.no_grad()
def lsuv(
    model: nn.Module,
    batch: Any,
    *,
    layers: Sequence[type[nn.Module]] = _LAYERS,
    orthogonal: bool = True,
    tolerance: float = 0.02,
    max_steps: int = 10,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
) -> ScaledLayers:
    """Scales the weights of a model, layer by layer, until the output of each has variance 1 on a batch.

    First every weight becomes orthogonal and every bias 0. Then, in the order in which data flows, each weight is
    divided by the standard deviation of the layer's output (Mishkin & Matas, "All you need is a good init", ICLR
    2016). The model is in ``eval()`` meanwhile (no dropout, batch norms keep their statistics), without gradients; its
    mode is restored. A layer that is called several times is scaled by its first call.

    Args:
        model: with memory, not sharded.
        batch: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments. A few
            dozen samples of real data.
        layers: classes of the modules to scale, which have a ``weight`` in proportion to which the output is, but for
            a bias.
        orthogonal: whether to start from orthogonal matrices; False: from the weights that are there.
        tolerance: how far from 1 a standard deviation may stay.
        max_steps: how often a layer is scaled at most; one step is enough for a layer without a bias.
        backend, seed, prefix: as for ``fastinit.initialize``, for the orthogonal matrices.

    Returns:
        What was done to each layer.

    Raises:
        TypeError: ``model`` is no module.
        RuntimeError: a layer's output is constant or not finite, a weight is sharded or on the meta device, or no layer
            is reached. The layers before it are scaled already.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> scaled = fastinit.lsuv(model, torch.randn(256, 8), seed=0)
        >>> [layer.name for layer in scaled]
        ['0', '2']
    """
    check_module(model)
    chosen = _chosen(model, tuple(layers))
    if orthogonal:
        _make_orthogonal(model, list(chosen.values()), backend, seed, prefix)
    with _evaluating(model):
        order = _in_order(model, batch, chosen)
        found = [_scaled(model, batch, layer, chosen[layer], tolerance, max_steps) for layer in order]
    if left := [name for layer, name in chosen.items() if layer not in order]:
        warn_user(f"lsuv: the batch does not reach these layers, which are not scaled: {', '.join(left)}")
    if late := [row.name for row in found if abs(row.std_after - 1) > tolerance]:
        warn_user(
            f"lsuv: the standard deviation is not yet 1 within {tolerance} after {max_steps} steps: {', '.join(late)}"
        )
    return ScaledLayers(found)


def _chosen(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[nn.Module, str]:
    """Returns the layers to scale with their names; of those that share a weight the first."""
    found: dict[nn.Module, str] = {}
    seen: set[torch.Tensor] = set()
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        if is_recomputed(module, "weight"):
            warn_user(
                f"lsuv: the weight of {name!r} is computed from other parameters (a parametrization), so it is not "
                f"scaled. Register the parametrization afterwards"
            )
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise InitRuntimeError(f"lsuv: {name!r} of {type(module).__name__} has no tensor `weight` to scale")
        if is_sharded(weight) or weight.is_meta:
            what = "is sharded" if is_sharded(weight) else "is on the meta device"
            raise InitRuntimeError(
                f"lsuv: the weight of {name!r} {what}", hint=": scale the whole model first, with memory"
            )
        if weight not in seen:
            seen.add(weight)
            found[module] = name
    if not found:
        raise InitRuntimeError(
            f"lsuv: {type(model).__name__} has no layer of {', '.join(kind.__name__ for kind in kinds)}"
        )
    return found


def _make_orthogonal(
    model: nn.Module, names: Sequence[str], backend: str | None, seed: int | None, prefix: Prefix
) -> None:
    def of(attribute: str) -> list[str]:
        paths = [f"{name}.{attribute}" if name else attribute for name in names]
        return [path for path in paths if isinstance(_attribute(model, path), torch.Tensor)]

    rules: list[dict[str, Any]] = [dict(type="Orthogonal", param=of("weight"))]
    if biases := of("bias"):
        rules.append(dict(type="Constant", val=0.0, param=biases))
    initialize(model, rules, backend=backend, seed=seed, prefix=prefix)


def _attribute(model: nn.Module, path: str) -> Any:
    where, _, name = path.rpartition(".")
    return getattr(model.get_submodule(where), name, None)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def called(model: nn.Module, batch: Any) -> Any:
    """Returns what a model makes of a batch: a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


def _in_order(model: nn.Module, batch: Any, chosen: Mapping[nn.Module, str]) -> list[nn.Module]:
    """Returns the layers that the batch reaches, in the order of their first calls."""
    order: dict[nn.Module, None] = {}
    hooks = [layer.register_forward_hook(lambda module, _, __: order.setdefault(module)) for layer in chosen]
    try:
        called(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        raise InitRuntimeError("lsuv: the batch reaches none of the layers")
    return list(order)


def _scaled(model: nn.Module, batch: Any, layer: nn.Module, name: str, tolerance: float, max_steps: int) -> ScaledLayer:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    first = std = _std_of(model, batch, layer, name)
    factor, n_steps = 1.0, 0
    while abs(std - 1) > tolerance and n_steps < max_steps:
        weight.mul_(1 / std)
        factor, n_steps = factor / std, n_steps + 1
        std = _std_of(model, batch, layer, name)
    return ScaledLayer(name, first, std, factor, n_steps)


def _std_of(model: nn.Module, batch: Any, layer: nn.Module, name: str) -> float:
    """Returns the standard deviation of a layer's output in its first call."""
    found: list[float] = []

    def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        found.append(output.double().std(correction=0).item())
        raise _Reached

    handle = layer.register_forward_hook(hook)
    try:
        called(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    (std,) = found
    if not (math.isfinite(std) and std > 0):
        raise InitRuntimeError(
            f"lsuv: the output of {name!r} has standard deviation {std} on this batch, so its weight cannot be scaled",
            hint=". Is the batch constant, or an earlier layer's output zero or not finite?",
        )
    return std

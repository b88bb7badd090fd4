"""Fills of a module's own ``weight`` and ``bias``, and of single parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import InitRuntimeError, InitTypeError, locating
from ..execution.scope import Scope
from ..plans import Distribution, Fill, Region, is_structured
from ..shards.dtensor import part_fill, shard_fill
from .parts import Part, blocks_of

Shape = tuple[int, ...]
_DISTRIBUTIONS: tuple[type, ...] = get_args(Distribution)
_MOST_SHOWN = 80


def module_fills(
    module: object,
    weight_distribution: Callable[[Shape], Distribution],
    bias_distribution: Callable[[Shape], Distribution],
    scope: Scope,
    rule: str,
    info: str,
    blocks: Sequence[int] = (),
) -> Iterator[Fill]:
    """Yields the fills of a module's ``weight`` and ``bias``; an attribute that is missing or no tensor is skipped.

    The weight is filled in ``blocks``, as ``parameter_fills`` has them.
    """
    own: Mapping[str, torch.Tensor | None] = module._parameters if isinstance(module, nn.Module) else {}
    for attribute in ("weight", "bias"):
        tensor, recomputed = own.get(attribute), False
        if tensor is None:
            recomputed = isinstance(module, nn.Module) and is_recomputed(module, attribute)
            with undisturbed(module) if recomputed else nullcontext():  # type: ignore[arg-type]
                found = _attribute(module, attribute)
            if not isinstance(found, torch.Tensor):  # None; or a flag, such as the `bias` of nn.LSTM
                continue
            tensor = found
            recomputed = recomputed or (isinstance(module, nn.Module) and _is_computed(module, attribute, tensor))
        name = scope.names.name_of(tensor, module, attribute)
        if recomputed:
            scope.warn_once(
                rule,
                f"{name!r} is computed from other parameters of {type(module).__name__} (a parametrization, weight "
                f"norm or a property), so filling it has no lasting effect. Initialize before registering the "
                f"parametrization, or fill the underlying parameters by a rule with `param`",
            )
        if attribute == "weight":
            yield from parameter_fills(tensor, name, weight_distribution, rule, info, blocks=blocks)
        else:
            yield from parameter_fills(tensor, name, bias_distribution, rule, info)


def _attribute(module: object, name: str) -> object:
    """Returns an attribute, which may be a property of the user's; None if there is none."""
    try:
        return getattr(module, name, None)
    except Exception:
        with locating(f"`{name}` of {type(module).__name__}"):
            raise


def parameter_fills(
    tensor: torch.Tensor,
    name: str,
    distribution: Callable[[Shape], Distribution],
    rule: str,
    info: str,
    part: Part | None = None,
    blocks: Sequence[int] = (),
) -> list[Fill]:
    """Returns the fill of one tensor or of parts of it; errors raised by ``distribution`` name the parameter.

    Args:
        tensor: the parameter.
        name: its name.
        distribution: returns the distribution of values of a shape: the parameter's, or that of each part.
        rule, info: as of the fill.
        part: what of it is filled, None: all.
        blocks: into how many equal parts that is cut along its first dimensions.

    Raises:
        RuntimeError: the tensor is a lazy parameter without a shape.
        TypeError: ``distribution`` returns something other than a distribution of ``fastinit.plans``.
    """
    if nn.parameter.is_lazy(tensor):
        raise InitRuntimeError(
            f"the parameter {name!r} is lazy and has no shape yet",
            place=f"parameter {name!r}",
            hint=": run the model once (a dry forward pass) before initializing it",
        )
    if tensor.is_nested:
        raise InitRuntimeError(
            f"the parameter {name!r} is a nested tensor, which has no single shape to draw values for",
            place=f"parameter {name!r}",
            hint=": make its parts parameters, or fill them with torch.nn.init",
        )
    shape = tuple(tensor.shape)
    regions: list[Region] = []  # none: all of it, as of nearly all
    try:
        if part is not None or blocks:
            region = Region.whole(shape) if part is None else part.of(shape)
            regions = blocks_of(region, blocks) if blocks else [region]
            shape = regions[0].shape
        values = distribution(shape)
        if not isinstance(values, _DISTRIBUTIONS):
            raise InitTypeError(
                f"weight_distribution must return a distribution of fastinit.plans, such as Normal(0, 0.02), but "
                f"returned {_shown(values)}"
            )
    except Exception:  # `locating` is only entered on errors: a model has many parameters
        with locating(f"parameter {name!r}"):
            raise
    if not regions:
        return [shard_fill(name, tensor, values, rule, info)]
    if not is_structured(values):  # values of all blocks are of one distribution, and independent
        regions = [region]
    return [part_fill(name, tensor, each, values, rule, info) for each in regions]


def _shown(value: object) -> str:
    """Returns what a function has returned for a message: of tensors and of long texts not all."""
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return f"a {type(value).__name__}" if len(text) > _MOST_SHOWN or "\n" in text else text


def is_recomputed(module: nn.Module, attribute: str) -> bool:
    """Tells whether an attribute is computed from other parameters, so that writing it has no lasting effect."""
    if attribute in module._parameters:
        return False
    if parametrize.is_parametrized(module, attribute):
        return True
    # Where torch.nn.utils.weight_norm, spectral_norm and prune keep the parameters that they compute it from.
    return any(f"{attribute}{suffix}" in module._parameters for suffix in ("_g", "_orig"))


def _is_computed(module: nn.Module, attribute: str, tensor: torch.Tensor) -> bool:
    """Tells whether a tensor that is no parameter of a module's own was computed: by a property or a hook of it."""
    if tensor.grad_fn is not None and not tensor._is_view():
        return True
    if isinstance(tensor, nn.Parameter) or attribute in module._buffers or attribute in vars(module):
        return False
    storages = {each.untyped_storage()._cdata for each in (*module.parameters(), *module.buffers())}
    return tensor.layout == torch.strided and tensor.untyped_storage()._cdata not in storages


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Reverts the side effects of reading a parametrized attribute: updated buffers and advanced generators."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        yield
    for buffer, before in buffers:
        if not buffer.is_meta and not torch.equal(buffer, before):
            buffer.copy_(before)

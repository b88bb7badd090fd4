"""The initializer classes: what a config's ``type`` builds, and how each becomes items of a plan.

Names, arguments, checks and info texts follow mmengine.model.weight_init; ``param`` and ``batch_dims`` are ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any, Protocol, get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

from .. import checkpoint as checkpoints
from ..errors import locating, warn_user
from ..execution.calls import Step, open_call
from ..execution.scope import Scope
from ..plans import Call, Constant, Distribution, Fill, Item, Normal, TruncatedNormal, Uniform
from ..registry import WEIGHT_INITIALIZERS, imports_allowed
from ..shards.dtensor import shard_fill
from .matching import modules_of_layers, nearest_layers, nearest_parameters, parameters_of_patterns, post_order
from .schemes import bias_init_with_prob, kaiming_std, uniform_bound, xavier_std

Shape = tuple[int, ...]
_DISTRIBUTIONS: tuple[type, ...] = get_args(Distribution)


# --- distributions of a weight, by scheme ----------------------------------------------------------------------------


def xavier(shape: Shape, gain: float = 1, distribution: str = "normal", batch_dims: int = 0) -> Distribution:
    """Returns the Glorot distribution of a weight."""
    check_distribution_name(distribution)
    std = xavier_std(shape, gain, batch_dims)
    return _centred(std, distribution)


def kaiming(
    shape: Shape,
    a: float = 0,
    mode: str = "fan_out",
    nonlinearity: str = "relu",
    distribution: str = "normal",
    batch_dims: int = 0,
) -> Distribution:
    """Returns the He distribution of a weight; one without elements needs no fan, but gets torch's warning."""
    check_distribution_name(distribution)
    if 0 in shape:
        warn_user("Initializing zero-element tensors is a no-op")
        return Normal(0.0, 0.0)
    return _centred(kaiming_std(shape, a, mode, nonlinearity, batch_dims), distribution)


def truncated_normal(mean: float, std: float, a: float, b: float) -> TruncatedNormal:
    """Returns the normal distribution on [a, b]; warns where hardly any of it lies there."""
    found = TruncatedNormal(mean, std, a, b)
    if found.mean < found.low - 2 * found.std or found.mean > found.high + 2 * found.std:
        warn_user(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The distribution of values may be incorrect."
        )
    return found


def check_distribution_name(distribution: str) -> None:
    """Raises AssertionError unless the name is "uniform" or "normal"."""
    if distribution not in ("uniform", "normal"):
        raise AssertionError(f"distribution must be 'uniform' or 'normal', but got {distribution!r}")


def _centred(std: float, distribution: str) -> Distribution:
    if distribution == "normal":
        return Normal(0.0, std)
    bound = uniform_bound(std)
    return Uniform(-bound, bound)


# --- fills of a module -----------------------------------------------------------------------------------------------


def module_fills(
    module: object,
    weight_distribution: Callable[[Shape], Distribution],
    bias_distribution: Callable[[Shape], Distribution],
    scope: Scope,
    rule: str,
    info: str,
) -> Iterator[Fill]:
    """Yields the fills of a module's ``weight`` and ``bias``, as far as it has them and they are tensors."""
    own: Mapping[str, torch.Tensor | None] = module._parameters if isinstance(module, nn.Module) else {}
    for attribute in ("weight", "bias"):
        tensor, recomputed = own.get(attribute), False
        if tensor is None:
            recomputed = isinstance(module, nn.Module) and is_recomputed(module, attribute)
            with undisturbed(module) if recomputed else nullcontext():  # type: ignore[arg-type]
                found = getattr(module, attribute, None)
            if not isinstance(found, torch.Tensor):  # None; or a switch, such as the `bias` of nn.LSTM
                continue
            tensor = found
        name = scope.names.name_of(tensor, module, attribute)
        if recomputed:
            scope.warn_once(
                rule,
                f"{name!r} is computed from other parameters of {type(module).__name__} (a parametrization or weight "
                f"norm): filling it does not last. Initialize before the parametrization is registered, or give the "
                f"parameters under it a rule with `param`",
            )
        distribution = weight_distribution if attribute == "weight" else bias_distribution
        yield parameter_fill(tensor, name, distribution, rule, info)


def parameter_fill(
    tensor: torch.Tensor, name: str, distribution: Callable[[Shape], Distribution], rule: str, info: str
) -> Fill:
    """Returns the fill of a tensor; an error of its numbers names the parameter.

    Raises:
        RuntimeError: the tensor is a lazy parameter without a shape.
    """
    if nn.parameter.is_lazy(tensor):
        raise RuntimeError(
            f"the parameter {name!r} is lazy and has no shape yet: run the model once (a dry forward pass) before "
            f"initializing it"
        )
    shape = tuple(tensor.shape)
    try:
        values = distribution(shape)
        if not isinstance(values, _DISTRIBUTIONS):
            raise TypeError(f"a distribution of fastinit.plans is needed, but weight_distribution returned {values!r}")
    except Exception:  # the context is only made when there is something to tell: there are many parameters
        with locating(f"parameter {name!r}"):
            raise
    return shard_fill(name, tensor, values, rule, info)


def is_recomputed(module: nn.Module, attribute: str) -> bool:
    """Tells whether an attribute is a product of other parameters, which overwrite it sooner or later."""
    if attribute in module._parameters:
        return False
    if parametrize.is_parametrized(module, attribute):
        return True
    # torch.nn.utils.weight_norm, spectral_norm and prune keep what they compute from under these names
    return any(f"{attribute}{suffix}" in module._parameters for suffix in ("_g", "_orig"))


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Takes back what computing a parametrized attribute does besides: buffers that it advances, numbers it draws."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        yield
    for buffer, before in buffers:
        if not buffer.is_meta and not torch.equal(buffer, before):
            buffer.copy_(before)


# --- the classes -----------------------------------------------------------------------------------------------------


class BaseInit:
    """What all initializers but Pretrained share: which modules or parameters they reach, and the bias.

    An own initializer is a subclass with ``weight_distribution(shape)``, which joins the plan like the built-in ones,
    or with a ``__call__(module)`` of its own, which fastinit runs as it is.

    Args:
        bias: the constant that biases get.
        bias_prob: instead of ``bias``: the probability whose logit biases get (classification heads).
        layer: class names of the modules whose ``weight`` and ``bias`` are filled; names of direct base classes count.
        param: globs (or ``re:`` regular expressions) of the parameters that are filled, instead of ``layer``; biases
            are matched as all others are, so ``bias`` and ``bias_prob`` do not go with it.

    Raises:
        TypeError: a ``bias`` that is no number, a ``bias_prob`` that is no float, a ``layer`` or ``param`` that is no
            text or list of texts.
        ValueError: an empty ``layer`` or ``param``, or ``param`` beside one of the others.
    """

    wholemodule = False
    """Every module is reached, whatever its class (set for what an ``override`` names)."""

    def __init__(
        self,
        *,
        bias: float = 0,
        bias_prob: float | None = None,
        layer: str | list[str] | None = None,
        param: str | list[str] | None = None,
    ) -> None:
        if not isinstance(bias, (int, float)):
            raise TypeError(f"bias must be a number, but got a {type(bias)}")
        if bias_prob is not None and not isinstance(bias_prob, float):
            raise TypeError(f"bias_prob type must be float, but got {type(bias_prob)}")
        self.layer = _texts("layer", layer)
        self.param = _texts("param", param)
        if self.param and (self.layer or bias_prob is not None or bias != 0):
            raise ValueError(
                "`param` selects parameters by name and the whole rule applies to each: `layer`, `bias` and "
                "`bias_prob` can not stand beside it. Give biases a rule of their own, "
                "e.g. dict(type='Constant', param='*.bias', val=0)"
            )
        self.bias = bias if bias_prob is None else bias_init_with_prob(bias_prob)

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution that a weight of a shape (in full, unsharded) is filled with."""
        raise NotImplementedError(
            f"{type(self).__name__} has neither a weight_distribution(shape) nor a __call__(module) of its own"
        )

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns what the initializer does to ``module`` and all below it, without doing it."""
        info = self._get_init_info()
        weight_distribution = cache(self.weight_distribution)  # many weights have the same shape
        kind, tree = type(self).__name__, type(module).__name__
        if self.param:
            chosen = parameters_of_patterns(module, self.param)
            if not chosen:
                near = nearest_parameters(module, self.param)
                what = _one_or_all(self.param)
                scope.matches_nothing(
                    rule, kind, f"no parameter of {tree} matches param {what}; nothing is filled.{near}"
                )
            return [
                parameter_fill(tensor, scope.names.name_of(tensor, module, name), weight_distribution, rule, info)
                for tensor, name in chosen.items()
            ]
        modules = post_order(module) if self.wholemodule else modules_of_layers(module, self.layer)
        if not modules and self.layer:
            near = nearest_layers(module, self.layer)
            what = _one_or_all(self.layer)
            scope.matches_nothing(rule, kind, f"no module of {tree} matches layer {what}; nothing is filled.{near}")
        bias_distribution = cache(lambda _: Constant(self.bias))
        fills = [
            fill
            for each in modules
            for fill in module_fills(each, weight_distribution, bias_distribution, scope, rule, info)
        ]
        if modules and not fills:
            kinds = " or ".join(sorted({type(each).__name__ for each in modules}))
            message = f"no {kinds} in {tree} has a tensor `weight` or `bias`; nothing is filled"
            scope.matches_nothing(rule, kind, message)
        return list(fills)

    def __call__(self, module: nn.Module) -> None:
        """Initializes ``module`` and all below it at once."""
        run_initializer(self, module)

    def _numbers(self) -> str:
        return ""

    def _get_init_info(self) -> str:
        numbers = self._numbers()
        if self.param:
            return f"{type(self).__name__}: {numbers}"
        return f"{type(self).__name__}{': ' + numbers if numbers else ''}, bias={self.bias}"


class _FanInit(BaseInit):
    """An initializer whose numbers come from fans.

    Args:
        batch_dims: how many leading dimensions of a weight only stack independent weights (1 for the experts of one
            layer in one tensor): they do not count as fans.
    """

    def __init__(self, *, batch_dims: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(batch_dims, int) or isinstance(batch_dims, bool) or batch_dims < 0:
            raise ValueError(f"batch_dims must be the number of leading dimensions to skip, but got {batch_dims!r}")
        self.batch_dims = batch_dims

    def _get_init_info(self) -> str:
        return super()._get_init_info() + (f", batch_dims={self.batch_dims}" if self.batch_dims else "")


@WEIGHT_INITIALIZERS.register_module(name="Constant")
class ConstantInit(BaseInit):
    """Fills weights with ``val``."""

    def __init__(self, val: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.val = val

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return Constant(self.val)

    def _numbers(self) -> str:
        return f"val={self.val}"


@WEIGHT_INITIALIZERS.register_module(name="Xavier")
class XavierInit(_FanInit):
    """Fills weights by Glorot & Bengio (AISTATS 2010), normal or uniform, std = gain sqrt(2 / (fan_in + fan_out))."""

    def __init__(self, gain: float = 1, distribution: str = "normal", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = gain
        self.distribution = distribution

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return xavier(shape, self.gain, self.distribution, self.batch_dims)

    def _numbers(self) -> str:
        return f"gain={self.gain}, distribution={self.distribution}"


@WEIGHT_INITIALIZERS.register_module(name="Normal")
class NormalInit(BaseInit):
    """Fills weights with draws from the normal distribution."""

    def __init__(self, mean: float = 0, std: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean = mean
        self.std = std

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return Normal(self.mean, self.std)

    def _numbers(self) -> str:
        return f"mean={self.mean}, std={self.std}"


@WEIGHT_INITIALIZERS.register_module(name="TruncNormal")
class TruncNormalInit(BaseInit):
    """Fills weights with draws from the normal distribution on [a, b]; a and b are absolute, not in units of std."""

    def __init__(self, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean = mean
        self.std = std
        self.a = a
        self.b = b

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return truncated_normal(self.mean, self.std, self.a, self.b)

    def _numbers(self) -> str:
        return f"a={self.a}, b={self.b}, mean={self.mean}, std={self.std}"


@WEIGHT_INITIALIZERS.register_module(name="Uniform")
class UniformInit(BaseInit):
    """Fills weights with draws from [a, b)."""

    def __init__(self, a: float = 0, b: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a = a
        self.b = b

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return Uniform(self.a, self.b)

    def _numbers(self) -> str:
        return f"a={self.a}, b={self.b}"


@WEIGHT_INITIALIZERS.register_module(name="Kaiming")
class KaimingInit(_FanInit):
    """Fills weights by He et al. (ICCV 2015), normal or uniform, std = gain(nonlinearity, a) / sqrt(fan)."""

    def __init__(
        self,
        a: float = 0,
        mode: str = "fan_out",
        nonlinearity: str = "relu",
        distribution: str = "normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.a = a
        self.mode = mode
        self.nonlinearity = nonlinearity
        self.distribution = distribution

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of the class for a shape."""
        return kaiming(shape, self.a, self.mode, self.nonlinearity, self.distribution, self.batch_dims)

    def _numbers(self) -> str:
        # The blank in "distribution =" is mmengine's: its users compare these texts.
        return f"a={self.a}, mode={self.mode}, nonlinearity={self.nonlinearity}, distribution ={self.distribution}"


# Caffe's own xavier filler: fan_in alone, uniform; it is Kaiming's rule with a gain of 1, which a=1 gives.
CAFFE2_XAVIER: dict[str, Any] = {
    "a": 1,
    "mode": "fan_in",
    "nonlinearity": "leaky_relu",
    "distribution": "uniform",
}


@WEIGHT_INITIALIZERS.register_module(name="Caffe2Xavier")
class Caffe2XavierInit(KaimingInit):
    """Fills weights as Caffe's xavier filler does: uniform, std = 1 / sqrt(fan_in)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**CAFFE2_XAVIER, **kwargs)


@WEIGHT_INITIALIZERS.register_module(name="Pretrained")
class PretrainedInit:
    """Copies parameters and buffers from a checkpoint, as far as names and shapes agree.

    Args:
        checkpoint: a path (a file of safetensors or ``torch.save``, the index of a sharded checkpoint, a folder), or a
            name with a scheme, such as ``open-mmlab://resnet50_v1c`` or ``hf://org/name``.
        prefix: load only the keys that begin with it (and a dot), without it.
        map_location: with ``assign``, the device of the adopted tensors; copies go to where the parameters are.
        key, revise_keys, strict, assign, dtype, access, weights_only, allow: as for
            ``fastinit.checkpoint.load_checkpoint``; ``revise_keys=None`` strips ``module.``.
    """

    wholemodule = False

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        prefix: str | None = None,
        map_location: Any = "cpu",
        *,
        key: str | None = None,
        revise_keys: Sequence[tuple[str, str]] | None = None,
        strict: bool = False,
        assign: bool = False,
        dtype: torch.dtype | str | None = None,
        access: str = "auto",
        weights_only: bool = True,
        allow: Sequence[Any] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        if not imports_allowed():
            _check_runs_no_code(weights_only, allow)
        reading = checkpoints.Reading(map_location, access, weights_only, tuple(allow))
        self._request = checkpoints.Request(checkpoint, prefix, key, revise_keys, strict, assign, dtype, reading)

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns what will be copied; of the checkpoint only what tells names and shapes is read.

        A plan downloads nothing; whoever executes it does, here, before anything is written.
        """
        copy = checkpoints.plan_copy(
            module,
            self._request,
            names=scope.names,
            offline=scope.checkpoints.is_offline,
            trees=scope.checkpoints.trees,
            rule=rule,
            info=self._get_init_info(),
        )
        if scope.strict and not (copy.entries or copy.unknown or copy.runs_own_code):  # else its log messages tell
            scope.matches_nothing(
                rule, type(self).__name__, f"{copy.source} holds no tensor of {type(module).__name__}"
            )
        return [copy]

    def __call__(self, module: nn.Module) -> None:
        """Loads the checkpoint into ``module`` at once."""
        run_initializer(self, module)

    def _get_init_info(self) -> str:
        return f"{type(self).__name__}: load from {checkpoints.shown_address(self.checkpoint)}"


# --- any initializer -------------------------------------------------------------------------------------------------


class Planned(Protocol):
    """An initializer that tells what it does: one of fastinit's, or a recipe."""

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns what it does to ``module`` and all below it, without doing it."""


def is_planned(initializer: object) -> bool:
    """Tells whether fastinit knows what an initializer does: it plans, and has no ``__call__`` of its own."""
    if not hasattr(initializer, "plan_items"):
        return False
    return not callable(initializer) or type(initializer).__call__ in (BaseInit.__call__, PretrainedInit.__call__)


def items_of(initializer: Any, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
    """Returns the items of an initializer: its own plan, or a ``Call`` of what fastinit cannot see into."""
    if is_planned(initializer):
        return initializer.plan_items(module, scope, rule)  # type: ignore[no-any-return]
    describe = getattr(initializer, "_get_init_info", None)
    info = describe() if callable(describe) else _label(initializer)
    path = scope.names.path_of(module)
    label = f"{_label(initializer)}({path or type(module).__name__})"
    return [Call(module, label, rule, info, lambda: initializer(module))]


def run_initializer(initializer: BaseInit | PretrainedInit, module: nn.Module) -> None:
    """Executes one of fastinit's own initializers on a module, in a call of its own or in the one that is open."""
    with open_call(module) as call:
        items = partial(initializer.plan_items, module, call.scope, type(initializer).__name__)
        with call.pending.own_work():
            steps = [Step(module, items(), items)]
        call.check(steps)
        call.run(steps)


def _check_runs_no_code(weights_only: object, allow: Any) -> None:
    """Raises ValueError if a checkpoint could have code run, or something imported."""
    names = [allow] if isinstance(allow, str) else [each for each in allow if isinstance(each, str)]
    if weights_only is not True or names:
        what = (
            f"allow={names!r} imports what it names" if names else f"weights_only={weights_only!r} runs a file's code"
        )
        raise ValueError(f"{what}, which is not allowed here (allow_imports=False)")


def _label(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _texts(argument: str, value: object) -> list[str]:
    """Returns one text or a list of texts as a list, None as an empty one."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise TypeError(f"{argument} must be a str or a list of str, but got a {type(value)}")
    if not texts:
        raise ValueError(f"{argument} is an empty list, which selects nothing: name something, or leave it out")
    for text in texts:
        if not isinstance(text, str):
            hint = f"; write {text.__name__!r}" if isinstance(text, type) else ""
            raise TypeError(f"{argument} must be a str or a list of str, but it holds {text!r}{hint}")
    return texts


def _one_or_all(texts: list[str]) -> str:
    return repr(texts[0]) if len(texts) == 1 else repr(texts)

"""The initializer classes: what a config's ``type`` builds, and the plan items each returns.

Names, arguments, checks and info texts follow mmengine.model.weight_init; ``param`` and ``batch_dims`` are fastinit's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InitNotImplementedError, InitTypeError, InitValueError, InitZeroDivisionError
from ..execution.scope import Scope
from ..plans import Constant, Distribution, Fill, Item, Normal, Uniform
from ..registry import WEIGHT_INITIALIZERS
from .matching import (
    Captured,
    modules_of_layers,
    nearest_layers,
    nearest_parameters,
    owner_of,
    post_order,
    selected_parameters,
)
from .module_fills import Shape, module_fills, parameter_fills
from .number_texts import NumberTexts, check_bias, checked_variables
from .parts import Part, checked_blocks
from .running import Planned
from .schemes import bias_init_with_prob, fans, kaiming, truncated_normal, xavier


class BaseInit(Planned):
    """Base of all initializers except Pretrained: selects modules or parameters, and sets biases.

    Write your own as a subclass: with a ``weight_distribution(shape)`` it is planned like the built-in ones; with a
    ``__call__(module)`` fastinit runs it unchanged.

    Args:
        bias: the constant for biases.
        bias_prob: instead of ``bias``, the probability whose logit is the constant (classification heads).
        layer: class names of the modules whose ``weight`` and ``bias`` are filled, or the classes, of which the names
            count; names of direct base classes match too.
        param: instead of ``layer``, globs (or ``re:`` regular expressions) of the parameters to fill. Biases are
            matched like any other parameter, so ``bias`` and ``bias_prob`` are not allowed with it. A pattern that ends
            in ``[start:stop]``, or ``[start:stop, start:stop]`` and so on, selects that part of each: fans and other
            facts of the shape are the part's, its values those that the whole parameter has there.
        vars: names and numbers that expressions may use. Each number of an initializer (its arguments of type float)
            may be an expression: arithmetic as text over these names, facts of a parameter's shape, and groups that a
            ``re:`` pattern captured from its name (docs/config.md).
        blocks: how many equal parts a weight consists of along its first dimension, or along each of its first ones: 3
            for the fused weight of query, key and value. Fans and other facts of the shape are those of one part.

    Raises:
        TypeError: ``bias`` is not a number, ``bias_prob`` is not a float, ``layer`` or ``param`` is neither a str
            nor a list of str, or ``vars`` is no dict of names and numbers.
        ValueError: ``layer`` or ``param`` is empty, ``param`` is combined with one of the others, ``bias_prob`` is
            not between 0 and 1 (ZeroDivisionError if it is 0), or a name in ``vars`` is taken.
    """

    wholemodule = False
    """Whether every module is selected, whatever its class; set for the target of an ``override``."""
    _numbers: ClassVar[str] = ""
    """The numbers in the info text, as a format string of the initializer."""
    _fixed: ClassVar[Collection[str]] = ()
    """Arguments of its bases that it sets itself, and does not take."""
    vars: Mapping[str, float] = MappingProxyType({})
    blocks: Sequence[int] = ()

    def __init__(
        self,
        *,
        bias: float | str = 0,
        bias_prob: float | None = None,
        layer: str | type | list[str] | list[type] | list[str | type] | None = None,
        param: str | list[str] | None = None,
        vars: Mapping[str, float] | None = None,
        blocks: int | Sequence[int] = 1,
    ) -> None:
        check_bias(bias)
        if bias_prob is not None and not isinstance(bias_prob, float):
            raise InitTypeError(f"bias_prob type must be float, but got {type(bias_prob)}")
        if bias_prob is not None and not 0 < bias_prob < 1:
            kind = InitZeroDivisionError if bias_prob == 0 else InitValueError  # mmengine's, where it has one
            raise kind(f"bias_prob must be a probability between 0 and 1, without these two, but got {bias_prob}")
        self.layer = _texts("layer", _names_of_classes(layer))
        self.param = _texts("param", param)
        if self.param and (self.layer or bias_prob is not None or bias != 0):
            raise InitValueError(
                "`param` selects parameters by name and the whole rule applies to each: `layer`, `bias` and "
                "`bias_prob` can not be combined with it",
                hint=". Give biases a rule of their own, e.g. dict(type='Constant', param='*.bias', val=0)",
            )
        self.bias = bias if bias_prob is None else bias_init_with_prob(bias_prob)
        if vars is not None:
            self.vars = checked_variables(vars)
        if blocks := checked_blocks(blocks):  # like mmengine's, others have no such attribute of their own
            self.blocks = blocks

    def weight_distribution(self, shape: Shape) -> Distribution:
        """Returns the distribution of a weight's values.

        Args:
            shape: the weight's full shape, unsharded.
        """
        raise InitNotImplementedError(
            f"{type(self).__name__} has neither a weight_distribution(shape) nor a __call__(module) of its own"
        )

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns the fills of ``module`` and everything below it; nothing is written."""
        fills = self._parameter_fills(module, scope, rule) if self.param else self._layer_fills(module, scope, rule)
        return list(fills)

    def _parameter_fills(self, module: nn.Module, scope: Scope, rule: str) -> list[Fill]:
        chosen = selected_parameters(module, self.param)
        if not chosen:
            message = f"no parameter of {type(module).__name__} matches param {_one_or_all(self.param)}"
            near = nearest_parameters(module, self.param)
            scope.matches_nothing(rule, type(self).__name__, f"{message}; it fills nothing.", near)
        info, texts = self._get_init_info(), NumberTexts(self, self._fans)

        def fills_of(tensor: torch.Tensor, name: str, part: Part | None, captured: Captured) -> list[Fill]:
            fan_shape = self._fan_shape(owner_of(module, name), tensor) if self._asks_layers else None
            if fan_shape is not None and part is not None:
                raise InitValueError(
                    f"fan='layer' counts in whole layers, but {name + part.text!r} is a part", hint=": use fan_axes"
                )
            distribution = texts.at(captured, fan_shape)
            full_name = scope.names.name_of(tensor, module, name)
            return parameter_fills(tensor, full_name, distribution, rule, info, part, self.blocks)

        with texts.locating():
            return [fill for each in chosen for fill in fills_of(*each)]

    def _layer_fills(self, module: nn.Module, scope: Scope, rule: str) -> list[Fill]:
        kind, tree = type(self).__name__, type(module).__name__
        modules = post_order(module) if self.wholemodule else modules_of_layers(module, self.layer)
        if not modules and self.layer:
            message = f"no module of {tree} matches layer {_one_or_all(self.layer)}"
            scope.matches_nothing(rule, kind, f"{message}; it fills nothing.", nearest_layers(module, self.layer))
        info, texts = self._get_init_info(), NumberTexts(self, self._fans)

        def fills_of(each: object) -> Iterator[Fill]:
            own = each._parameters.get("weight") if self._asks_layers and isinstance(each, nn.Module) else None
            distribution = texts.at() if own is None else texts.at((), self._fan_shape(each, own))
            return module_fills(each, distribution, texts.bias_distribution, scope, rule, info, self.blocks)

        with texts.locating():
            fills = [fill for each in modules for fill in fills_of(each)]
        if modules and not fills:
            kinds = " or ".join(sorted({type(each).__name__ for each in modules}))
            message = f"no {kinds} in {tree} has a tensor `weight` or `bias`; it fills nothing"
            scope.matches_nothing(rule, kind, message)
        return fills

    @property
    def _asks_layers(self) -> bool:
        """Whether ``_fan_shape`` may return a shape."""
        return False

    def _fan_shape(self, module: object, weight: torch.Tensor) -> Shape | None:
        """Returns the shape that has the fans of a module's weight, None: its own."""
        return None

    def _fans(self, shape: Shape) -> tuple[int, int]:
        """Returns what expressions call fan_in and fan_out."""
        return fans(shape, getattr(self, "batch_dims", 0), getattr(self, "fan_axes", None))

    def _get_init_info(self) -> str:
        numbers = self._numbers.format(self)
        if self.blocks:
            numbers += (", " if numbers else "") + f"blocks={list(self.blocks)}"
        if self.param:
            return f"{type(self).__name__}: {numbers}"
        return f"{type(self).__name__}{': ' + numbers if numbers else ''}, bias={self.bias}"


class FanInit(BaseInit):
    """Base of initializers that scale by fan.

    Args:
        batch_dims: the number of leading dimensions that only stack independent weights and do not count as fans (1
            for the experts of a layer in one tensor).
        fan_axes: (in, out): which dimensions the inputs and the outputs are, where that is not 1 and 0 behind
            ``batch_dims``; (1, 2) for experts of (experts, in, out), with ``batch_dims=1``.
        fan: "torch": dimension 1 is the inputs and dimension 0 the outputs, whatever the layer. "layer": convolutions
            with groups count the outputs of one group, and transposed ones have inputs and outputs the other way round.
    """

    def __init__(
        self, *, batch_dims: int = 0, fan_axes: Sequence[int] | None = None, fan: str = "torch", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if fan not in ("torch", "layer"):
            raise InitValueError(f"fan must be 'torch' or 'layer', but got {fan!r}")
        if fan == "layer" and (batch_dims or fan_axes or self.blocks):
            raise InitValueError(
                "fan='layer' knows the dimensions of a layer: batch_dims and fan_axes can not be combined with it, nor "
                "can blocks"
            )
        self.fan = fan
        if not isinstance(batch_dims, int) or isinstance(batch_dims, bool) or batch_dims < 0:
            raise InitValueError(f"batch_dims must be the number of leading dimensions to skip, but got {batch_dims!r}")
        self.batch_dims = batch_dims
        self.fan_axes = _two_axes(fan_axes)

    def _get_init_info(self) -> str:
        text = super()._get_init_info() + (f", batch_dims={self.batch_dims}" if self.batch_dims else "")
        text += f", fan_axes={self.fan_axes}" if self.fan_axes else ""
        return text + (", fan=layer" if self.fan == "layer" else "")

    @property
    def _asks_layers(self) -> bool:
        return self.fan == "layer"

    def _fan_shape(self, module: object, weight: torch.Tensor) -> Shape | None:
        if not isinstance(module, _ConvNd) or weight is not module._parameters.get("weight"):
            return None
        (first, second, *kernel), groups = module.weight.shape, module.groups
        return (second, first // groups, *kernel) if module.transposed else (first // groups, second, *kernel)


@WEIGHT_INITIALIZERS.register_module(name="Constant")
class ConstantInit(BaseInit):
    """Fills weights with ``val``."""

    _numbers = "val={0.val}"

    def __init__(self, val: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.val = val

    def weight_distribution(self, shape: Shape) -> Distribution:
        return Constant(self.val)


@WEIGHT_INITIALIZERS.register_module(name="Xavier")
class XavierInit(FanInit):
    """Fills weights by Glorot & Bengio (AISTATS 2010): normal or uniform, std = gain * sqrt(2 / (fan_in + fan_out))."""

    _numbers = "gain={0.gain}, distribution={0.distribution}"

    def __init__(self, gain: float = 1, distribution: str = "normal", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain = gain
        self.distribution = distribution

    def weight_distribution(self, shape: Shape) -> Distribution:
        return xavier(shape, self.gain, self.distribution, self.batch_dims, self.fan_axes)


@WEIGHT_INITIALIZERS.register_module(name="Normal")
class NormalInit(BaseInit):
    """Fills weights with draws from the normal distribution."""

    _numbers = "mean={0.mean}, std={0.std}"

    def __init__(self, mean: float = 0, std: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean = mean
        self.std = std

    def weight_distribution(self, shape: Shape) -> Distribution:
        return Normal(self.mean, self.std)


@WEIGHT_INITIALIZERS.register_module(name="TruncNormal")
class TruncNormalInit(BaseInit):
    """Fills weights with draws from the normal distribution on [a, b].

    Args:
        mean, std: of the normal distribution before it is cut.
        a, b: the bounds.
        bounds: "absolute": a and b are values, as in torch.nn.init. "sigma": they are in units of std, from the mean.
    """

    def __init__(
        self, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, bounds: str = "absolute", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if bounds not in ("absolute", "sigma"):
            raise InitValueError(f"bounds must be 'absolute' or 'sigma', but got {bounds!r}")
        self.mean = mean
        self.std = std
        self.a = a
        self.b = b
        self.bounds = bounds

    def weight_distribution(self, shape: Shape) -> Distribution:
        if self.bounds == "absolute":
            return truncated_normal(self.mean, self.std, self.a, self.b)
        return truncated_normal(self.mean, self.std, self.mean + self.a * self.std, self.mean + self.b * self.std)

    @property
    def _numbers(self) -> str:  # type: ignore[override]
        in_sigma = ", bounds=sigma" if self.bounds == "sigma" else ""
        return "a={0.a}, b={0.b}, mean={0.mean}, std={0.std}" + in_sigma  # a format: the numbers may be texts


@WEIGHT_INITIALIZERS.register_module(name="Uniform")
class UniformInit(BaseInit):
    """Fills weights with draws from [a, b), or [a, b] where they are rounded to a dtype narrower than float32."""

    _numbers = "a={0.a}, b={0.b}"

    def __init__(self, a: float = 0, b: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a = a
        self.b = b

    def weight_distribution(self, shape: Shape) -> Distribution:
        return Uniform(self.a, self.b)


@WEIGHT_INITIALIZERS.register_module(name="Kaiming")
class KaimingInit(FanInit):
    """Fills weights by He et al. (ICCV 2015): normal or uniform, std = gain(nonlinearity, a) / sqrt(fan)."""

    # The blank in "distribution =" is mmengine's: its users compare these texts.
    _numbers = "a={0.a}, mode={0.mode}, nonlinearity={0.nonlinearity}, distribution ={0.distribution}"

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
        batch, axes = self.batch_dims, self.fan_axes
        return kaiming(shape, self.a, self.mode, self.nonlinearity, self.distribution, batch, axes)


# Caffe's xavier filler, uniform and by fan_in alone, is Kaiming's rule with gain 1, which is the gain for a=1.
CAFFE2_XAVIER: dict[str, Any] = {
    "a": 1,
    "mode": "fan_in",
    "nonlinearity": "leaky_relu",
    "distribution": "uniform",
}


@WEIGHT_INITIALIZERS.register_module(name="Caffe2Xavier")
class Caffe2XavierInit(KaimingInit):
    """Fills weights as Caffe's xavier filler does: uniform, std = 1 / sqrt(fan_in)."""

    _fixed = CAFFE2_XAVIER.keys()

    def __init__(self, **kwargs: Any) -> None:
        if given := sorted(CAFFE2_XAVIER.keys() & kwargs.keys()):
            raise InitTypeError(f"Caffe2XavierInit is Kaiming with {CAFFE2_XAVIER}, and takes no {', '.join(given)}")
        super().__init__(**CAFFE2_XAVIER, **kwargs)


def _two_axes(axes: Any) -> tuple[int, int] | None:
    if axes is None:
        return None
    if not isinstance(axes, (list, tuple)) or [type(axis) for axis in axes] != [int, int]:
        raise InitValueError(f"fan_axes must be two dimensions, (in, out), but got {axes!r}")
    return axes[0], axes[1]


def _names_of_classes(layer: Any) -> Any:
    """Returns what ``layer`` may be with the names of classes in their place."""
    if isinstance(layer, list):
        return [each.__name__ if isinstance(each, type) else each for each in layer]
    return layer.__name__ if isinstance(layer, type) else layer


def _texts(argument: str, value: object) -> list[str]:
    """Returns a str or a list of str as a list, and None as an empty one."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise InitTypeError(f"{argument} must be a str or a list of str, but got a {type(value)}")
    if not texts:
        raise InitValueError(
            f"{argument} is an empty list, which selects nothing", hint=": name something, or leave it out"
        )
    for text in texts:
        if not isinstance(text, str):
            hint = f"; write {text.__name__!r}" if isinstance(text, type) else ""
            raise InitTypeError(f"{argument} must be a str or a list of str, but it holds {text!r}", hint=hint)
    return texts


def _one_or_all(texts: list[str]) -> str:
    return repr(texts[0]) if len(texts) == 1 else repr(texts)

"""The public API under mmengine's names: ``initialize``, the functional inits and the initializer classes.

``from fastinit.weight_init import ...`` replaces ``from mmengine.model.weight_init import ...``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .config import torch_functions  # noqa: F401  (registers them)
from .config.further_initializers import (
    DeltaOrthogonalInit,
    DiracInit,
    GlorotInit,
    HeInit,
    IdentityInit,
    LecunInit,
    OnesInit,
    OrthogonalInit,
    SparseInit,
    VarianceScalingInit,
    ZerosInit,
)
from .config.initializers import (
    CAFFE2_XAVIER,
    BaseInit,
    Caffe2XavierInit,
    ConstantInit,
    KaimingInit,
    NormalInit,
    TruncNormalInit,
    UniformInit,
    XavierInit,
)
from .config.module_fills import Shape, module_fills, parameter_fills
from .config.number_texts import Place, expressions_of, values_at
from .config.pretrained import PretrainedInit
from .config.rules import Rule, parse, parse_overrides, steps_of
from .config.schemes import bias_init_with_prob, centred, fans, kaiming, truncated_normal, variance_scaling, xavier
from .digesting import digest as digest_of
from .errors import InitTypeError, check_module
from .execution.attached_ledgers import update_init_info
from .execution.calls import open_call
from .execution.defaults import Strict
from .execution.reports import Report
from .naming import Prefix
from .plans import Constant, Distribution, Normal, Uniform
from .recording.recipes import Recipe, tell_what_is_left
from .registry import WEIGHT_INITIALIZERS

__all__ = [
    "WEIGHT_INITIALIZERS",
    "BaseInit",
    "Caffe2XavierInit",
    "ConstantInit",
    "DeltaOrthogonalInit",
    "DiracInit",
    "GlorotInit",
    "HeInit",
    "IdentityInit",
    "KaimingInit",
    "LecunInit",
    "NormalInit",
    "OnesInit",
    "OrthogonalInit",
    "PretrainedInit",
    "SparseInit",
    "TruncNormalInit",
    "UniformInit",
    "VarianceScalingInit",
    "XavierInit",
    "ZerosInit",
    "bias_init_with_prob",
    "caffe2_xavier_init",
    "constant_init",
    "delta_orthogonal_init",
    "dirac_init",
    "identity_init",
    "initialize",
    "kaiming_init",
    "normal_init",
    "orthogonal_init",
    "sparse_init",
    "trunc_normal_",
    "trunc_normal_init",
    "uniform_init",
    "update_init_info",
    "variance_scaling_init",
    "xavier_init",
]


def initialize(
    module: nn.Module,
    init_cfg: Any = None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    digest: bool = False,
) -> Report:
    """Initializes a module by a config, and returns a report.

    Rules apply in order, so a later one wins; all are checked before the first write.

    Args:
        module: any ``nn.Module`` with memory.
        init_cfg: a dict or a list of dicts, each with a ``type`` (Constant, Xavier, Normal, TruncNormal, Uniform,
            Kaiming, Caffe2Xavier, Pretrained, a registered name, an import path, a class), its arguments, and a
            selector: ``layer``, ``param`` or ``override``. It may also be, or the list may hold, initializer objects,
            recipes of ``capture`` (which fill the parameters of the same names) and plans. It has to be there: a
            BaseModule's own config is run by its ``init_weights``.
        backend: a name from ``available_backends()`` or "auto" (GPU tensors: triton, else cuda; CPU: torch). None: the
            value of ``use``, else of the environment variable FASTINIT_BACKEND, else "auto".
        seed: 0 to 2^64 - 1: torch's generators are seeded with it for the call and restored afterwards. None: they
            continue from their current state, and contract backends draw a seed from them.
        prefix: a prefix for the parameters' names if ``module`` is a part of a larger model; or a map from names of
            modules or parameters here to their names there.
        strict: True: a rule without a match, or a checkpoint of which nothing is copied, is an error, not a warning.
            "complete": a parameter that no rule reaches is an error too. None: the value of ``use``, else of the
            environment variable FASTINIT_STRICT (1 or complete), else False.
        digest: the report's ``digest`` is that of the module afterwards (``fastinit.digest``), which reads all of it.

    Raises:
        TypeError, ValueError, KeyError, RuntimeError, AttributeError, AssertionError, ZeroDivisionError: a mistake in
            the config, of mmengine's type for it; the message begins with the place in the config.
        FileNotFoundError: a checkpoint does not exist.

    Follows ``mmengine.model.initialize`` (which returns None).

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 2))
        >>> report = fastinit.initialize(
        ...     model,
        ...     [
        ...         dict(type="Kaiming", layer="Conv2d"),
        ...         dict(type="TruncNormal", param="1.weight", std=0.02),
        ...     ],
        ...     seed=0,
        ... )
        >>> report.unreached
        ('1.bias',)
    """
    check_module(module)
    if init_cfg is None:
        raise InitTypeError(f"init_cfg must be a dict or a list of dict, but got {type(None)}", hint=_own_way(module))
    with open_call(module, backend=backend, seed=seed, prefix=prefix, strict=strict) as call:
        rules = parse(module, init_cfg)
        with call.pending.own_work():
            steps = steps_of(rules, call.scope)
        call.check(steps)
        items = [item for step in steps for item in step.items]
        call.scope.check_complete(items)
        recipe = next((rule for rule in rules if isinstance(rule.initializer, Recipe)), None)
        if recipe is not None:
            tell_what_is_left(recipe.initializer, recipe.where, items, call.scope)
        call.run(steps)
        report = call.report()
    return replace(report, digest=digest_of(module, prefix=prefix)) if digest else report


def _own_way(module: nn.Module) -> str:
    """Returns how a module is initialized without a config that is given."""
    if hasattr(module, "init_weights"):
        return (
            f": what {type(module).__name__} has of its own is run by its init_weights(), with seed and backend by "
            f"`with fastinit.use(seed=..., backend=...):` around the call"
        )
    return ", e.g. dict(type='Xavier', layer='Linear')"


# --- functional inits: one module's own weight and bias --------------------------------------------------------------
# Their numbers may be expressions over the facts of a tensor's shape (docs/config.md).


def constant_init(module: nn.Module, val: float, bias: float = 0) -> None:
    """Fills ``module.weight`` with ``val`` and ``module.bias`` with ``bias``; missing ones are skipped."""
    _fill_module(module, lambda _, val: Constant(val), "constant_init", val=val, bias=bias)


def xavier_init(module: nn.Module, gain: float = 1, bias: float = 0, distribution: str = "normal") -> None:
    """Fills ``module.weight`` by Glorot & Bengio (AISTATS 2010) and ``module.bias`` with ``bias``."""
    centred(distribution)  # raises if the name is unknown
    _fill_module(module, partial(xavier, distribution=distribution), "xavier_init", gain=gain, bias=bias)


def normal_init(module: nn.Module, mean: float = 0, std: float = 1, bias: float = 0) -> None:
    """Fills ``module.weight`` with normal draws and ``module.bias`` with ``bias``."""
    _fill_module(module, lambda _, mean, std: Normal(mean, std), "normal_init", mean=mean, std=std, bias=bias)


def trunc_normal_init(
    module: nn.Module, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, bias: float = 0
) -> None:
    """Fills ``module.weight`` with normal draws truncated to [a, b] (absolute) and ``module.bias`` with ``bias``."""
    numbers = dict(mean=mean, std=std, a=a, b=b)
    _fill_module(module, lambda _, **given: truncated_normal(**given), "trunc_normal_init", **numbers, bias=bias)


def uniform_init(module: nn.Module, a: float = 0, b: float = 1, bias: float = 0) -> None:
    """Fills ``module.weight`` with draws from [a, b) (see ``UniformInit``) and ``module.bias`` with ``bias``."""
    _fill_module(module, lambda _, a, b: Uniform(a, b), "uniform_init", a=a, b=b, bias=bias)


def kaiming_init(
    module: nn.Module,
    a: float = 0,
    mode: str = "fan_out",
    nonlinearity: str = "relu",
    bias: float = 0,
    distribution: str = "normal",
) -> None:
    """Fills ``module.weight`` by He et al. (ICCV 2015) and ``module.bias`` with ``bias``."""
    centred(distribution)  # raises if the name is unknown
    weight = partial(kaiming, mode=mode, nonlinearity=nonlinearity, distribution=distribution)
    _fill_module(module, weight, "kaiming_init", a=a, bias=bias)


def caffe2_xavier_init(module: nn.Module, bias: float = 0) -> None:
    """Fills ``module.weight`` like Caffe's xavier filler and ``module.bias`` with ``bias``."""
    kaiming_init(module, **CAFFE2_XAVIER, bias=bias)


def variance_scaling_init(
    module: nn.Module,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    bias: float = 0,
) -> None:
    """Fills ``module.weight`` as ``VarianceScalingInit`` does, and ``module.bias`` with ``bias``."""

    def weight(shape: Shape, scale: float) -> Distribution:
        return variance_scaling(shape, scale, mode, distribution)

    _fill_module(module, weight, "variance_scaling_init", scale=scale, bias=bias)


def identity_init(module: nn.Module, bias: float = 0) -> None:
    """Fills ``module.weight``, a matrix, with 1 on the diagonal and 0 elsewhere, and ``module.bias`` with ``bias``."""
    _fill_module(module, IdentityInit().weight_distribution, "identity_init", bias=bias)


def dirac_init(module: nn.Module, groups: int = 1, bias: float = 0) -> None:
    """Fills the weight of a convolution so that it gives its input back, and ``module.bias`` with ``bias``."""
    _fill_module(module, DiracInit(groups).weight_distribution, "dirac_init", bias=bias)


def sparse_init(module: nn.Module, sparsity: float, std: float = 0.01, bias: float = 0) -> None:
    """Fills ``module.weight`` with normal draws and zeros (see ``SparseInit``), ``module.bias`` with ``bias``."""

    def weight(shape: Shape, sparsity: float, std: float) -> Distribution:
        return SparseInit(sparsity, std).weight_distribution(shape)

    _fill_module(module, weight, "sparse_init", sparsity=sparsity, std=std, bias=bias)


def orthogonal_init(module: nn.Module, gain: float = 1, bias: float = 0) -> None:
    """Fills ``module.weight`` with an orthogonal matrix (see ``OrthogonalInit``), and ``module.bias`` with ``bias``."""

    def weight(shape: Shape, gain: float) -> Distribution:
        return OrthogonalInit(gain).weight_distribution(shape)

    _fill_module(module, weight, "orthogonal_init", gain=gain, bias=bias)


def delta_orthogonal_init(module: nn.Module, gain: float = 1, bias: float = 0) -> None:
    """Fills the weight of a convolution as ``DeltaOrthogonalInit`` does, and ``module.bias`` with ``bias``."""

    def weight(shape: Shape, gain: float) -> Distribution:
        return DeltaOrthogonalInit(gain).weight_distribution(shape)

    _fill_module(module, weight, "delta_orthogonal_init", gain=gain, bias=bias)


def trunc_normal_(
    tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> torch.Tensor:
    """Fills a tensor with normal draws truncated to [a, b] (absolute bounds), and returns it.

    Raises:
        ZeroDivisionError: ``std`` is 0.
        RuntimeError: ``std`` < 0 or a > b.
    """
    with open_call(None, devices={tensor.device}) as call:
        with call.pending.own_work():
            name = call.scope.names.name_of(tensor, None, "")
            fills = parameter_fills(tensor, name, lambda _: truncated_normal(mean, std, a, b), "trunc_normal_", "")
        call.fill(fills)
    return tensor


def _fill_module(module: nn.Module, weight: Callable[..., Distribution], called: str, **numbers: Any) -> None:
    """Fills a module's own weight and bias.

    Args:
        module: it, or anything that has a ``weight`` or ``bias``.
        weight: from a weight's shape, and the numbers besides ``bias`` by name, to its distribution.
        called: the function that the user called.
        numbers: the function's arguments that are numbers, or texts for them.
    """
    expressions = expressions_of(numbers)
    bias = {"bias": expressions.pop("bias")} if "bias" in expressions else {}
    given = {name: value for name, value in numbers.items() if name != "bias"}

    def weight_distribution(shape: Shape) -> Distribution:
        return weight(shape, **{**given, **values_at(Place(shape, fans), expressions)})

    def bias_distribution(shape: Shape) -> Distribution:
        return Constant(values_at(Place(shape, fans), bias).get("bias", numbers["bias"]))

    tensors = (getattr(module, "weight", None), getattr(module, "bias", None))
    with open_call(None, devices={each.device for each in tensors if isinstance(each, torch.Tensor)}) as call:
        with call.pending.own_work():
            fills = list(module_fills(module, weight_distribution, bias_distribution, call.scope, called, ""))
        call.fill(fills)


# --- names that mmengine's module has, too, for code that imports them -----------------------------------------------


def _initialize(module: nn.Module, cfg: Any, wholemodule: bool = False) -> None:
    """Initializes a module by one dict without ``override``; ``wholemodule``: all of it, whatever ``layer`` says."""
    initializer = WEIGHT_INITIALIZERS.build(cfg)
    initializer.wholemodule = wholemodule
    initialize(module, initializer)


def _initialize_override(module: nn.Module, override: Any, cfg: dict[str, Any]) -> None:
    """Initializes attributes of a module by an ``override``; entries that only have a name take ``cfg``."""
    check_module(module)
    with open_call(module) as call:
        main = Rule("init_cfg", None, module, after_children=False)
        steps = steps_of(parse_overrides(main, cfg, override, "override"), call.scope)
        call.check(steps)
        call.run(steps)


def _get_bases_name(m: object) -> list[str]:
    """Returns the names of the direct base classes, which ``layer`` matches as well as the class's own."""
    return [base.__name__ for base in type(m).__bases__]


def _no_grad_trunc_normal_(tensor: torch.Tensor, mean: float, std: float, a: float, b: float) -> torch.Tensor:
    """Does what ``trunc_normal_`` does."""
    return trunc_normal_(tensor, mean, std, a, b)

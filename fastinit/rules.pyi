"""Types of rules. Generated from the initializers' signatures: run ``python tools/rule_types.py``, do not edit."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, Union

import torch
from typing_extensions import Required, TypedDict

Number: TypeAlias = Union[float, str]
Layers: TypeAlias = Union[str, type, list[str], list[type], list[Union[str, type]]]
Names: TypeAlias = Union[str, list[str]]
_Mode: TypeAlias = Literal["fan_in", "fan_out"]
_ScalingMode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
_ScalingDistribution: TypeAlias = Literal["normal", "uniform", "truncated_normal"]
_Nonlinearity: TypeAlias = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
    "elu",
    "gelu",
    "gelu_tanh",
    "mish",
    "silu",
    "swish",
]
_Axes: TypeAlias = Union[tuple[int, int], list[int]]
_P = ParamSpec("_P")

class Selectors(TypedDict, total=False):
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]

class Override(TypedDict, total=False):
    name: Required[str]
    type: Any
    val: Any
    bias: Any
    bias_prob: Any
    vars: Any
    blocks: Any
    gain: Any
    distribution: Any
    batch_dims: Any
    fan_axes: Any
    fan: Any
    mean: Any
    std: Any
    a: Any
    b: Any
    bounds: Any
    mode: Any
    nonlinearity: Any
    checkpoint: Any
    prefix: Any
    map_location: Any
    key: Any
    revise_keys: Any
    strict: Any
    assign: Any
    dtype: Any
    access: Any
    weights_only: Any
    allow: Any
    scale: Any
    groups: Any
    sparsity: Any

class ConstantRule(TypedDict, total=False):
    type: Required[Literal["Constant"]]
    val: Required[Number]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class XavierRule(TypedDict, total=False):
    type: Required[Literal["Xavier"]]
    gain: Number
    distribution: Literal["normal", "uniform"]
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class NormalRule(TypedDict, total=False):
    type: Required[Literal["Normal"]]
    mean: Number
    std: Number
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class TruncNormalRule(TypedDict, total=False):
    type: Required[Literal["TruncNormal"]]
    mean: Number
    std: Number
    a: Number
    b: Number
    bounds: Literal["absolute", "sigma"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class UniformRule(TypedDict, total=False):
    type: Required[Literal["Uniform"]]
    a: Number
    b: Number
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class KaimingRule(TypedDict, total=False):
    type: Required[Literal["Kaiming"]]
    a: Number
    mode: _Mode
    nonlinearity: _Nonlinearity
    distribution: Literal["normal", "uniform"]
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class Caffe2XavierRule(TypedDict, total=False):
    type: Required[Literal["Caffe2Xavier"]]
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class PretrainedRule(TypedDict, total=False):
    type: Required[Literal["Pretrained"]]
    checkpoint: Required[str | os.PathLike[str]]
    prefix: str | None
    map_location: Any
    key: str | None
    revise_keys: Sequence[tuple[str, str]] | None
    strict: bool
    assign: bool
    dtype: torch.dtype | str | None
    access: Literal["auto", "map", "read"]
    weights_only: bool
    allow: Sequence[Any]
    override: Override | list[Override] | None

class ZerosRule(TypedDict, total=False):
    type: Required[Literal["Zeros"]]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class OnesRule(TypedDict, total=False):
    type: Required[Literal["Ones"]]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class VarianceScalingRule(TypedDict, total=False):
    type: Required[Literal["VarianceScaling"]]
    scale: Number
    mode: _ScalingMode
    distribution: _ScalingDistribution
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class LecunRule(TypedDict, total=False):
    type: Required[Literal["Lecun"]]
    distribution: _ScalingDistribution
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class GlorotRule(TypedDict, total=False):
    type: Required[Literal["Glorot"]]
    distribution: _ScalingDistribution
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class HeRule(TypedDict, total=False):
    type: Required[Literal["He"]]
    distribution: _ScalingDistribution
    batch_dims: int
    fan_axes: _Axes | None
    fan: Literal["torch", "layer"]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class IdentityRule(TypedDict, total=False):
    type: Required[Literal["Identity"]]
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class DiracRule(TypedDict, total=False):
    type: Required[Literal["Dirac"]]
    groups: int
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class SparseRule(TypedDict, total=False):
    type: Required[Literal["Sparse"]]
    sparsity: Required[Number]
    std: Number
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class OrthogonalRule(TypedDict, total=False):
    type: Required[Literal["Orthogonal"]]
    gain: Number
    batch_dims: int
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

class DeltaOrthogonalRule(TypedDict, total=False):
    type: Required[Literal["DeltaOrthogonal"]]
    gain: Number
    bias: Number
    bias_prob: float | None
    layer: Layers | None
    param: Names | None
    vars: Mapping[str, float] | None
    blocks: int | Sequence[int]
    override: Override | list[Override] | None

def Constant(
    *,
    val: Number,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> ConstantRule:
    """Fills weights with ``val``."""

def Xavier(
    *,
    gain: Number = 1,
    distribution: Literal["normal", "uniform"] = "normal",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> XavierRule:
    """Fills weights by Glorot & Bengio (AISTATS 2010): normal or uniform, std = gain * sqrt(2 / (fan_in + fan_out))."""

def Normal(
    *,
    mean: Number = 0,
    std: Number = 1,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> NormalRule:
    """Fills weights with draws from the normal distribution."""

def TruncNormal(
    *,
    mean: Number = 0,
    std: Number = 1,
    a: Number = -2,
    b: Number = 2,
    bounds: Literal["absolute", "sigma"] = "absolute",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> TruncNormalRule:
    """Fills weights with draws from the normal distribution on [a, b]."""

def Uniform(
    *,
    a: Number = 0,
    b: Number = 1,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> UniformRule:
    """Fills weights with draws from [a, b), or [a, b] where they are rounded to a dtype narrower than float32."""

def Kaiming(
    *,
    a: Number = 0,
    mode: _Mode = "fan_out",
    nonlinearity: _Nonlinearity = "relu",
    distribution: Literal["normal", "uniform"] = "normal",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> KaimingRule:
    """Fills weights by He et al. (ICCV 2015): normal or uniform, std = gain(nonlinearity, a) / sqrt(fan)."""

def Caffe2Xavier(
    *,
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> Caffe2XavierRule:
    """Fills weights as Caffe's xavier filler does: uniform, std = 1 / sqrt(fan_in)."""

def Pretrained(
    *,
    checkpoint: str | os.PathLike[str],
    prefix: str | None = None,
    map_location: Any = "cpu",
    key: str | None = None,
    revise_keys: Sequence[tuple[str, str]] | None = None,
    strict: bool = False,
    assign: bool = False,
    dtype: torch.dtype | str | None = None,
    access: Literal["auto", "map", "read"] = "auto",
    weights_only: bool = True,
    allow: Sequence[Any] = (),
    override: Override | list[Override] | None = None,
) -> PretrainedRule:
    """Copies the parameters and buffers of a checkpoint whose names and shapes match the module's."""

def Zeros(
    *,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> ZerosRule:
    """Fills weights with 0."""

def Ones(
    *,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> OnesRule:
    """Fills weights with 1."""

def VarianceScaling(
    *,
    scale: Number = 1.0,
    mode: _ScalingMode = "fan_in",
    distribution: _ScalingDistribution = "truncated_normal",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> VarianceScalingRule:
    """Fills weights with mean 0 and variance scale / fan, as ``jax.nn.initializers.variance_scaling`` does."""

def Lecun(
    *,
    distribution: _ScalingDistribution = "truncated_normal",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> LecunRule:
    """Fills weights with variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp")."""

def Glorot(
    *,
    distribution: _ScalingDistribution = "uniform",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> GlorotRule:
    """Fills weights with variance 2 / (fan_in + fan_out) (Glorot & Bengio, AISTATS 2010), as Keras and JAX do."""

def He(
    *,
    distribution: _ScalingDistribution = "truncated_normal",
    batch_dims: int = 0,
    fan_axes: _Axes | None = None,
    fan: Literal["torch", "layer"] = "torch",
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> HeRule:
    """Fills weights with variance 2 / fan_in (He et al., ICCV 2015), as Keras and JAX do."""

def Identity(
    *,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> IdentityRule:
    """Fills matrices with 1 on the diagonal and 0 elsewhere, as ``torch.nn.init.eye_`` does."""

def Dirac(
    *,
    groups: int = 1,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> DiracRule:
    """Fills weights of convolutions so that they give their input back, as ``torch.nn.init.dirac_`` does."""

def Sparse(
    *,
    sparsity: Number,
    std: Number = 0.01,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> SparseRule:
    """Fills matrices with normal draws, of which a share in each column is 0 (Martens, ICML 2010)."""

def Orthogonal(
    *,
    gain: Number = 1,
    batch_dims: int = 0,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> OrthogonalRule:
    """Fills weights with random orthogonal matrices (Saxe et al., ICLR 2014), as ``torch.nn.init.orthogonal_`` does."""

def DeltaOrthogonal(
    *,
    gain: Number = 1,
    bias: Number = 0,
    bias_prob: float | None = None,
    layer: Layers | None = None,
    param: Names | None = None,
    vars: Mapping[str, float] | None = None,
    blocks: int | Sequence[int] = 1,
    override: Override | list[Override] | None = None,
) -> DeltaOrthogonalRule:
    """Fills weights of convolutions with 0, and their centre with an orthogonal matrix (Xiao et al., ICML 2018)."""

Rule: TypeAlias = Union[
    ConstantRule,
    XavierRule,
    NormalRule,
    TruncNormalRule,
    UniformRule,
    KaimingRule,
    Caffe2XavierRule,
    PretrainedRule,
    ZerosRule,
    OnesRule,
    VarianceScalingRule,
    LecunRule,
    GlorotRule,
    HeRule,
    IdentityRule,
    DiracRule,
    SparseRule,
    OrthogonalRule,
    DeltaOrthogonalRule,
]
Config: TypeAlias = Union[Rule, list[Rule]]

def override(name: str, rule: Rule | Mapping[str, Any] | None = None) -> Override:
    """Returns an entry for the ``override`` of a rule: what fills everything below an attribute."""

def rule(kind: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs) -> dict[str, Any]:
    """Returns the rule for an initializer class of your own; its arguments are compared with its signature."""

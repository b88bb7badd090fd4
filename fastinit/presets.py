"""Configs of published initializations: functions that return lists of rules, to be printed, edited and kept as JSON.

A preset fits the parameter names of the models that its docstring names. It has a rule for each of their parameters,
and none that would match nothing, so ``strict="complete"`` finds what a model of yours has besides. Numbers that
depend on the place are arithmetic as text (docs/config.md). Later rules count.

Example:
    >>> from fastinit import presets
    >>> for rule in presets.gpt2(n_layers=12)[:2]:
    ...     print(rule)
    {'type': 'Normal', 'param': 're:(.*\\\\.)?(wte|wpe|c_attn|q_attn|c_fc|lm_head|score)\\\\.weight', 'std': 0.02}
    {'type': 'Normal', 'param': 're:(.*\\\\.)?(c_proj)\\\\.weight', 'std': 'std / sqrt(2 * n_layers)', \
'vars': {'std': 0.02, 'n_layers': 12}}
"""

from __future__ import annotations

import copy
import math
from typing import Any

from .errors import InitValueError

Config = list[dict[str, Any]]

OLMO_METHODS = ("normal", "normalized", "llama", "llama_depth", "fan_in")
VIT_MODES = ("", "jax")

_BIAS = r"re:(.*[._])?bias"
_NORM = r"re:(.*\.)?(ln_\w+|\w*norm\w*)[._]weight"
_RESIDUAL = "v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj"
# The largest number of float8_e4m3fnuz, the narrowest of torch's float8 formats with four bits of exponent.
_LARGEST_IN_FLOAT8 = 240.0


def gpt2(n_layers: int, std: float = 0.02) -> Config:
    """Returns GPT-2's: normal with one std, and std / sqrt(2 n_layers) where a block writes to the residual stream.

    For the names of transformers' ``GPT2`` models and of nanoGPT, whose numbers these are. Biases are 0. OpenAI's
    TensorFlow code differs: 0.01 for ``wpe``, and no scaling.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3; transformers,
    ``GPT2PreTrainedModel._init_weights``; nanoGPT, model.py.

    Args:
        n_layers: the number of blocks.
        std: the standard deviation.
    """
    numbers = _std_and_layers(std, n_layers)
    return [
        _rule("Normal", _weights("wte|wpe|c_attn|q_attn|c_fc|lm_head|score"), std=numbers["std"]),
        _rule("Normal", _weights("c_proj"), std="std / sqrt(2 * n_layers)", vars=numbers),
        *_biases_and_norms(),
    ]


def megatron(n_layers: int, std: float = 0.02) -> Config:
    """Returns Megatron-LM's: as ``gpt2``, for the names of Megatron Core, and of transformers' GPT-NeoX and Llama.

    Source: NVIDIA/Megatron-LM, ``init_method_normal`` and ``scaled_init_method_normal`` (megatron/core/utils.py) as
    ``TransformerConfig`` uses them; Shoeybi et al., "Megatron-LM" (2019), section 4.2.

    Args:
        n_layers: the number of layers of the whole model, not of a pipeline stage.
        std: ``init_method_std``.
    """
    numbers = _std_and_layers(std, n_layers)
    embeddings = r"word_embeddings|position_embeddings|tokentype_embeddings|embed_in|embed_tokens"
    inputs = r"linear_qkv|linear_q|linear_kv|query_key_value|q_proj|k_proj|v_proj"
    first = r"linear_fc1|dense_h_to_4h|gate_proj|up_proj|router"
    outputs = r"linear_proj|(self_|inter_)?attention\.dense|o_proj|linear_fc2|dense_4h_to_h|down_proj"
    grouped = r"\.weight\d*"  # the experts of TEGroupedLinear are weight0, weight1, ...
    return [
        _rule(
            "Normal",
            _weights(f"{embeddings}|{inputs}|{first}|output_layer|embed_out|lm_head", grouped),
            std=numbers["std"],
        ),
        _rule("Normal", _weights(outputs, grouped), std="std / sqrt(2 * n_layers)", vars=numbers),
        *_biases_and_norms(),
    ]


def llama(dim: int | None = None, *, n_layers: int | None = None, std: float = 0.02) -> Config:
    """Returns Llama's as torchtitan starts it: the output projections and w3 scaled by depth, embeddings with std 1.

    For the names of torchtitan's Llama 3 and of transformers' models of that kind (Llama, Mistral, Qwen). Weights are
    truncated at -2 and 2, a hundred standard deviations; the output layer has std dim^-0.5 and is truncated at three.
    If it shares its weight with the embeddings, that weight starts as the output layer does, as in torchtitan.

    Source: pytorch/torchtitan, torchtitan/models/llama3 (of 2026-08: ``_depth_init`` and its neighbours in
    __init__.py; before that, ``init_weights`` in model/model.py).

    Args:
        dim: the width of the model, by which the output layer goes. None: it goes by its own shape.
        n_layers: None: layer i is scaled by 1 / sqrt(2 (i + 1)). A number: all are by 1 / sqrt(2 n_layers), as
            torchtitan did with ``depth_init=False``.
        std: the standard deviation before scaling.
    """
    scaled, numbers = _scaled_by_depth(std, n_layers)
    head: float | str = "fan_in ** -0.5" if dim is None else _whole("dim", dim) ** -0.5
    return [
        _rule("Normal", _weights("tok_embeddings|embed_tokens"), std=1.0),
        _rule("TruncNormal", _weights("wq|wk|wv|wqkv|w1|q_proj|k_proj|v_proj|gate_proj"), std=numbers["std"]),
        _rule("TruncNormal", _in_layers("wo|w2|w3|o_proj|up_proj|down_proj"), std=scaled, vars=numbers),
        _three_sigma(_weights("output|lm_head"), head),
        *_biases_and_norms(),
    ]


def olmo(method: str, n_layers: int | None = None, std: float = 0.02, embedding_std: float | None = None) -> Config:
    """Returns OLMo's, one of five methods; all weights but embeddings are truncated at three standard deviations.

    For the names of OLMo-core's dense models and of transformers' OLMo. If the output layer shares its weight with
    the embeddings, that weight starts as the embeddings do, as in OLMo-core. The parameters that only nGPT has
    (``sq``, ``sk``, ``sz``, ``attn_alpha``, ``mlp_alpha``) are not in it, nor is its normalization of the matrices.

    - "normal": std everywhere.
    - "llama": std / sqrt(2 n_layers) for w_out, w2 and w3; embeddings normal with 1; output layer d_model^-0.5.
    - "llama_depth": as "llama", with the layer's own number, counted from 1, in place of n_layers.
    - "normalized": d_model^-0.5, for w_out and w2 divided by sqrt(2 n_layers); embeddings normal.
    - "fan_in": fan_in^-0.5; embeddings normal with 1.

    Source: allenai/OLMo-core, ``InitMethod`` (src/olmo_core/nn/transformer/init.py, of 2026-06) and ``init_weights``
    of its attention.

    Args:
        method: one of ``OLMO_METHODS``.
        n_layers: the number of blocks, needed for "llama" and "normalized"; the other methods do not use it.
        std: ``init_std``; "normalized" and "fan_in" do not use it.
        embedding_std: instead of the method's own (``embedding_init_std``; 1 / ``embed_scale`` for "fan_in").

    Raises:
        ValueError: an unknown method, or one that needs ``n_layers`` without it.
    """
    _choice("method", method, OLMO_METHODS)
    if method in ("llama", "normalized") and n_layers is None:
        raise InitValueError(f"method {method!r} divides by the square root of 2 n_layers", hint=": give n_layers")
    first: float | str = "fan_in ** -0.5" if method in ("normalized", "fan_in") else "std"
    scaled, numbers = _scaled_by_depth(std, None if method == "llama_depth" else n_layers)
    if method in ("normal", "fan_in"):
        scaled = str(first)
    elif method == "normalized":  # of w_out and w2 the rows are d_model
        scaled = "fan_out ** -0.5 / sqrt(2 * n_layers)"
    of_embeddings: dict[str, float | str] = {"normal": numbers["std"], "normalized": "fan_in ** -0.5"}
    embedding = of_embeddings.get(method, 1.0)
    if embedding_std is not None:
        embedding = _positive("embedding_std", embedding_std)
    up = "w3|up_proj"
    inputs, outputs = "w_q|w_k|w_v|w_qkv|w_g|w1|q_proj|k_proj|v_proj|gate_proj", r"attention\.w_out|w2|o_proj|down_proj"
    inputs, outputs = (inputs, f"{up}|{outputs}") if method.startswith("llama") else (f"{up}|{inputs}", outputs)
    embeddings = _weights("embeddings|embed_tokens")
    return [
        _three_sigma(_weights(inputs), first, vars=numbers),
        _three_sigma(_in_layers(outputs), scaled, vars=numbers),
        _three_sigma(_weights(r"lm_head(\.w_out)?"), numbers["std"] if method == "normal" else "fan_in ** -0.5"),
        _three_sigma(embeddings, embedding) if method == "normal" else _rule("Normal", embeddings, std=embedding),
        *_biases_and_norms(),
    ]


def nanochat(n_embd: int, gates: bool = True) -> Config:
    """Returns nanochat's: uniform matrices with std n_embd^-0.5, and projections into the residual stream that are 0.

    For its own names. The embedding is normal with std 0.8, the output layer with 0.001, and ``c_fc`` is 0.4 times as
    wide as the other matrices. Not in it are ``resid_lambdas`` and ``x0_lambdas``, which are no draws: in layer i of n
    they are 1.15 - 0.1 i / (n - 1) and 0.2 - 0.15 i / (n - 1).

    Source: karpathy/nanochat, ``GPT.init_weights`` (nanochat/gpt.py, of 2026-07).

    Args:
        n_embd: the width of the model.
        gates: False: the model is one from before value embeddings, their gates, and smear and backout.
    """
    numbers = {"n_embd": _whole("n_embd", n_embd)}
    matrices = r"c_q|c_k|c_v|value_embeds\.\d+" if gates else "c_q|c_k|c_v"
    zeros = [_weights("c_proj"), "smear_lambda"] if gates else [_weights("c_proj")]
    rules = [
        _rule("Normal", _weights("wte"), std=0.8),
        _rule("Normal", _weights("lm_head"), std=0.001),
        _rule("Uniform", _weights(matrices), a="-sqrt(3 / n_embd)", b="sqrt(3 / n_embd)", vars=numbers),
        _rule("Uniform", _weights("c_fc"), a="-0.4 * sqrt(3 / n_embd)", b="0.4 * sqrt(3 / n_embd)", vars=numbers),
        _rule("Zeros", zeros),
    ]
    if gates:
        rules.append(_rule("Uniform", _weights("smear_gate|ve_gate"), a=0.0, b=0.02))
        rules.append(_rule("Constant", "backout_lambda", val=0.2))
    return rules


def vit(
    mode: str = "", head_bias: float = 0.0, *, patch_elements: int = 3 * 16 * 16, class_token: bool = True
) -> Config:
    """Returns the vision transformer's of timm, as it does by default, or with ``weight_init="jax"``.

    For timm's ``VisionTransformer`` with a classifier and without layer scale. "": Linear truncated normal with
    std 0.02, and torch's own for the convolution of the patches. "jax", as in Google's code: Xavier uniform, biases of
    MLPs normal with std 1e-6, the convolution Lecun's truncated normal, the head 0.

    Source: huggingface/pytorch-image-models (timm 1.0), ``init_weights``, ``init_weights_vit_timm`` and
    ``init_weights_vit_jax`` of timm/models/vision_transformer.py.

    Args:
        mode: one of ``VIT_MODES``.
        head_bias: in mode "jax", the bias of the head; -log(number of classes) is timm's ``weight_init="jax_nlhb"``.
        patch_elements: in mode "", channels * height * width of a patch: the bias of the convolution goes by it.
        class_token: whether the model has ``cls_token`` or ``reg_token``; mode "jax" need not know.
    """
    _choice("mode", mode, VIT_MODES)
    elements, bias = _whole("patch_elements", patch_elements), _finite("head_bias", head_bias)
    linear, tokens = _weights(r"qkv|attn\.proj|fc1|fc2"), ["cls_token", "reg_token"]
    start = [_rule("TruncNormal", "pos_embed", std=0.02), *_biases_and_norms()]
    if mode == "jax":
        return [
            *start,
            _rule("Xavier", linear, distribution="uniform"),
            _rule("Lecun", _weights(r"patch_embed\.proj")),
            _rule("Normal", [*tokens, r"re:(.*\.)?mlp\.(.*\.)?bias"], std=1e-6),
            _rule("Zeros", "head.weight"),
            _rule("Constant", "head.bias", val=bias),
        ]
    return [
        *start,
        _rule("TruncNormal", [linear, "head.weight"], std=0.02),
        _rule("Uniform", _weights(r"patch_embed\.proj"), a="-fan_in ** -0.5", b="fan_in ** -0.5"),
        _rule("Uniform", "patch_embed.proj.bias", a=-(elements**-0.5), b=elements**-0.5),
        *([_rule("Normal", tokens, std=1e-6)] if class_token else []),
    ]


def deepnorm(n_layers: int, decoder_layers: int | None = None) -> Config:
    """Returns DeepNorm's: Xavier normal, with gain beta < 1 for v_proj, out_proj, fc1 and fc2.

    For the names of fairseq, torchscale and transformers' BART and OPT. The model itself must multiply its residuals by
    alpha = (2 n_layers)^0.25 before each layer norm; with an encoder of N and a decoder of M layers, by 0.81 (N^4
    M)^(1/16) in the encoder and (3 M)^0.25 in the decoder. Embeddings and the output layer are normal with std
    dim^-0.5, of which the paper says nothing, as in torchscale.

    Source: Wang et al., "DeepNet: Scaling Transformers to 1,000 Layers" (2022), figure 2; microsoft/torchscale.

    Args:
        n_layers: the number of layers, all in an encoder or all in a decoder.
        decoder_layers: the number of layers of the decoder, if ``n_layers`` is that of the encoder before it.
    """
    embeddings = "embed_tokens|embed_positions|shared|output_projection|lm_head"
    rules = [
        _rule("Normal", _weights(embeddings), std="fan_in ** -0.5"),
        _rule("Xavier", _weights("q_proj|k_proj")),
    ]
    numbers = {"n": _whole("n_layers", n_layers)}
    if decoder_layers is None:
        rules.append(_rule("Xavier", _weights(_RESIDUAL), gain="(8 * n) ** -0.25", vars=numbers))
    else:
        numbers["m"] = _whole("decoder_layers", decoder_layers)
        rules.append(_rule("Xavier", _residual("encoder"), gain="0.87 * (n ** 4 * m) ** (-1 / 16)", vars=numbers))
        rules.append(_rule("Xavier", _residual("decoder"), gain="(12 * m) ** -0.25", vars=numbers))
    return [*rules, *_biases_and_norms()]


def t_fixup(encoder_layers: int, decoder_layers: int) -> Config:
    """Returns T-Fixup's, for a transformer without layer norms: Xavier uniform, scaled down by depth.

    For the names of fairseq and transformers' BART. Token embeddings are normal with std dim^-0.5 (9 M)^-0.25; the
    values, output projections and MLPs are scaled by 0.67 N^-0.25 in the encoder and (9 M)^-0.25 in the decoder.

    Source: Huang et al., "Improving Transformer Optimization Through Better Initialization" (ICML 2020),
    where N = M. That a standard deviation is meant by N(0, d^-1/2), and uniform by Xavier, is from fairseq.

    Args:
        encoder_layers: N, the number of layers of the encoder.
        decoder_layers: M, that of the decoder.
    """
    numbers = {"n": _whole("encoder_layers", encoder_layers), "m": _whole("decoder_layers", decoder_layers)}
    uniform: dict[str, Any] = {"distribution": "uniform", "vars": numbers}
    embedding = "fan_in ** -0.5 * (9 * m) ** -0.25"
    return [
        _rule("Xavier", _weights("q_proj|k_proj|output_projection|lm_head"), distribution="uniform"),
        _rule("Xavier", _residual("encoder"), gain="0.67 * n ** -0.25", **uniform),
        _rule("Xavier", _residual("decoder"), gain="(9 * m) ** -0.25", **uniform),
        _rule("Normal", _weights("embed_tokens|shared"), std=embedding, vars=numbers),
        _rule("Zeros", _BIAS),
    ]


def lora(gaussian: bool = False, embeddings: bool = False) -> Config:
    """Returns LoRA's: A random, B zero, so that the adapted model starts as the model without adapters.

    For the names of peft and loralib; all other parameters stay as they are. (Hu et al., "LoRA" (2021), section 4.1,
    has a Gaussian without a number.)

    Source: huggingface/peft, ``LoraLayer.reset_lora_parameters`` (peft/tuners/lora/layer.py).

    Args:
        gaussian: A is normal with std 1 / rank, peft's ``init_lora_weights="gaussian"``. False: uniform within
            fan_in^-0.5, as in torch's linear layers, which is peft's default.
        embeddings: whether there are adapters of embeddings, whose A is 0 and whose B is normal with std 1.
    """
    a = r"re:(.*\.)?lora_[Aa](\.[^.]+)?(\.weight)?"
    uniform = _rule("Kaiming", a, a=5**0.5, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform")
    return [
        _rule("Normal", a, std="1 / shape[0]") if gaussian else uniform,
        _rule("Zeros", [r"re:(.*\.)?lora_[Bb](\.[^.]+){0,2}", r"re:(.*\.)?lora_embedding_A(\.[^.]+)?"]),
        *([_rule("Normal", r"re:(.*\.)?lora_embedding_B(\.[^.]+)?", std=1.0)] if embeddings else []),
    ]


def dummy(limit: float = 1e-3, param: str | list[str] = "*") -> Config:
    """Returns what stands for weights in measurements of serving: small uniform numbers, finite in every dtype.

    The default is vLLM's ``load_format="dummy"``. In float8_e4m3fn, whose smallest number is 0.002, most of its values
    are 0; ``limit=1`` fills the format. vLLM also fills the floating-point buffers of the state dict.

    Source: vllm-project/vllm, ``initialize_dummy_weights`` (vllm/model_executor/model_loader/weight_utils.py).

    Args:
        limit: values are within [-limit, limit]; at most 240, which every float8 format of torch has.
        param: the parameters to fill, as in a rule. Leave out the integer ones of quantized models.
    """
    if (number := _positive("limit", limit)) > _LARGEST_IN_FLOAT8:
        raise InitValueError(f"limit must be at most {_LARGEST_IN_FLOAT8:g}, to be finite in float8; got {number:g}")
    return [_rule("Uniform", param, a=-number, b=number)]


# --- rules -----------------------------------------------------------------------------------------------------------


def _rule(kind: str, param: str | list[str], **numbers: Any) -> dict[str, Any]:
    return copy.deepcopy({"type": kind, "param": param, **numbers})  # who edits one rule changes no other


def _three_sigma(param: str, std: float | str, **more: Any) -> dict[str, Any]:
    return _rule("TruncNormal", param, std=std, a=-3.0, b=3.0, bounds="sigma", **more)


def _weights(names: str, ending: str = r"\.weight") -> str:
    return rf"re:(.*\.)?({names}){ending}"


def _in_layers(names: str) -> str:
    """Returns the pattern of weights in the layers of a model; the group ``layer`` has the layer's number, from 0."""
    return rf"re:(.*\.)?(layers|blocks)\.(?P<layer>\d+)\.(.*\.)?({names})\.weight"


def _residual(stack: str) -> str:
    return _weights(rf"{stack}\.(.*\.)?({_RESIDUAL})")


def _biases_and_norms() -> Config:
    """Returns the rules for biases, 0, and the weights of norms, 1.

    The first has the norms' weights, too, so that it matches something in a model without biases.
    """
    return [_rule("Zeros", [_BIAS, _NORM]), _rule("Ones", _NORM)]


def _std_and_layers(std: float, n_layers: int) -> dict[str, float]:
    return {"std": _positive("std", std), "n_layers": _whole("n_layers", n_layers)}


def _scaled_by_depth(std: float, n_layers: int | None) -> tuple[str, dict[str, float]]:
    """Returns the expression of a scaled std, by the number of layers or (None) by the layer's own, and its vars."""
    if n_layers is None:
        return "std / sqrt(2 * (layer + 1))", {"std": _positive("std", std)}
    return "std / sqrt(2 * n_layers)", _std_and_layers(std, n_layers)


# --- arguments -------------------------------------------------------------------------------------------------------


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InitValueError(f"{name} must be a whole number of at least 1, but got {value!r}")
    return value


def _finite(name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise InitValueError(f"{name} must be a finite number, but got {value!r}")
    return float(value)


def _positive(name: str, value: object) -> float:
    if not (number := _finite(name, value)) > 0:
        raise InitValueError(f"{name} must be more than 0, but got {value!r}")
    return number


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InitValueError(f"{name} must be {' or '.join(map(repr, allowed))}, but got {value!r}")

"""Configs with which known models start, as plain lists of dicts: to print, edit, keep as JSON, and pass on.

Each follows the code or paper that its docstring names. Parameters are selected by the names that transformers, timm,
peft and torchtitan give them; a rule for names that a model has not does nothing but warn: take out what does not fit.
"""

from __future__ import annotations

import math
from typing import Any

InitCfg = list[dict[str, Any]]

# As transformers, torchtitan and the Llama code call them.
_ATTENTION_IN = r"(q_proj|k_proj|v_proj|wq|wk|wv|wqkv|qkv_proj)"
_ATTENTION_OUT = r"(o_proj|wo)"
_FEED_FORWARD_GATE = r"(gate_proj|w1)"
_FEED_FORWARD_REST = r"(up_proj|down_proj|w3|w2)"
_IN_LAYER = r"re:(.*\.)?layers\.(?P<i>\d+)\..*"


def gpt2(n_layers: int, std: float = 0.02) -> InitCfg:
    """Returns the config of GPT-2, with the names of transformers' GPT2LMHeadModel.

    Normal weights and embeddings with ``std``; the projections back into the residual stream with std / sqrt(2
    n_layers), as there are two of them a layer (Radford et al. 2019, section 2.3; transformers' ``_init_weights``).
    Megatron-LM scales the same two, from its ``--init-method-std``.

    Args:
        n_layers: the number of layers.
        std: the standard deviation of the others.

    Raises:
        ValueError: ``n_layers`` is no number of layers.
    """
    return [
        dict(type="Normal", std=std, param=["*.wte.weight", "*.wpe.weight"]),
        dict(type="Normal", std=std, layer="Conv1D"),
        dict(type="Normal", std=std / math.sqrt(2 * _layers(n_layers)), param="*.c_proj.weight"),
        dict(type="Ones", layer="LayerNorm"),
    ]


def llama(dim: int) -> InitCfg:
    """Returns the config with which torchtitan starts Llama 3, for its names and those of transformers.

    Weights are normal with std 0.02, cut at -2 and 2; those that lead out of attention and feed-forward with 0.02 /
    sqrt(2 (i + 1)) in layer i, which are the ones that torchtitan 0.3 scales by depth (wo, w2, w3). Embeddings are
    standard normal; the head has std 1 / sqrt(dim), cut at three of it.

    Args:
        dim: the width of the model, the columns of its head.
    """
    std = _layers(dim, "dim") ** -0.5
    depth = "0.02 / sqrt(2 * (i + 1))"
    same = rf"{_IN_LAYER}\.({_ATTENTION_IN}|{_FEED_FORWARD_GATE})\.weight"
    scaled = rf"{_IN_LAYER}\.({_ATTENTION_OUT}|{_FEED_FORWARD_REST})\.weight"
    return [
        dict(type="Normal", std=1.0, param=r"re:(.*\.)?(embed_tokens|tok_embeddings)\.weight"),
        dict(type="TruncNormal", std=0.02, param=same),
        dict(type="TruncNormal", std=depth, param=scaled),
        dict(type="Constant", val=1.0, param=r"re:(.*\.)?(\w*norm)\.weight"),
        dict(type="TruncNormal", std=std, a=-3, b=3, bounds="sigma", param=r"re:(.*\.)?(lm_head|output)\.weight"),
    ]


def vit(mode: str = "", head_bias: float = 0.0) -> InitCfg:
    """Returns the config of timm's VisionTransformer (``init_weights_vit_timm`` and ``_jax``), for its names.

    Args:
        mode: "" for timm's own: normal with std 0.02, cut at -2 and 2. "jax" for that of the original code: Xavier,
            uniform; a head of zeros with ``head_bias``; biases of the feed-forward layers with std 1e-6.
        head_bias: in mode "jax", the bias of the head; -log(number of classes) is timm's "nlhb".

    Raises:
        ValueError: an unknown mode.
    """
    shared: InitCfg = [
        dict(type="TruncNormal", std=0.02, param="pos_embed"),
        dict(type="Normal", std=1e-6, param="cls_token"),
        dict(type="Ones", layer="LayerNorm"),
    ]
    if mode == "":
        return [*shared, dict(type="TruncNormal", std=0.02, layer="Linear")]
    if mode != "jax":
        raise ValueError(f"mode must be '' or 'jax', but got {mode!r}")
    return [
        *shared,
        dict(type="Lecun", layer="Conv2d"),
        dict(type="Xavier", distribution="uniform", layer="Linear"),
        dict(type="Normal", std=1e-6, param="*.mlp.*.bias"),
        dict(type="Zeros", param="head.weight"),
        dict(type="Constant", val=head_bias, param="head.bias"),
    ]


def deepnorm(n_layers: int) -> InitCfg:
    """Returns the config of DeepNorm for an encoder or a decoder alone (Wang et al. 2022, figure 2).

    Xavier, normal; with gain (8 n_layers)^-1/4 for the feed-forward layers, the values and the projection out of
    attention, and 1 for queries and keys. The residual stream has to be multiplied by (2 n_layers)^1/4 in the model.

    Args:
        n_layers: the number of layers.

    Raises:
        ValueError: ``n_layers`` is no number of layers.
    """
    gain = (8 * _layers(n_layers)) ** -0.25
    return [
        dict(type="Xavier", param=["*.q_proj.weight", "*.k_proj.weight"]),
        dict(
            type="Xavier",
            gain=gain,
            param=r"re:(.*\.)?(v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)\.weight",
        ),
    ]


def lora(gaussian: bool = False) -> InitCfg:
    """Returns the config of LoRA's adapters, with peft's names: A is random and B is 0 (Hu et al. 2021, section 4.1).

    Args:
        gaussian: A is normal with std 1 / rank, as peft's ``init_lora_weights="gaussian"``. False: uniform, as in a
            linear layer of torch, which is peft's default.
    """
    a: dict[str, Any] = dict(type="torch.nn.init.kaiming_uniform_", a=math.sqrt(5))
    if gaussian:
        a = dict(type="Normal", std="1 / shape[0]")
    return [dict(a, param="*.lora_A.*.weight"), dict(type="Zeros", param="*.lora_B.*.weight")]


def dummy(limit: float = 1e-3) -> InitCfg:
    """Returns a config that fills every parameter with small uniform values: finite in any dtype, float8 included.

    To measure serving without a checkpoint, as vLLM's ``load_format="dummy"``.

    Args:
        limit: values are from -limit to limit.
    """
    return [dict(type="Uniform", a=-limit, b=limit, param="*")]


def _layers(n: object, what: str = "n_layers") -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, but got {n!r}")
    return n

"""The small models that the sweep makes: of transformers, timm, torchvision, diffusers, peft and torch itself.

A library has a function that yields names, and one that returns what makes a model anew. Both import the library, so
that a sweep runs with what is installed. A model that does not shrink is left out with a reason.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

Make = Callable[[], nn.Module]
MOST_ELEMENTS = 30_000_000
"""A sweep makes each model a dozen times."""


class UnshrunkError(Exception):
    """A model cannot be made in a small size; the sweep leaves it out with this reason."""


def small(make: Make) -> Make:
    """Returns ``make``, if the model that it makes is small.

    Raises:
        UnshrunkError: it has more than ``MOST_ELEMENTS`` elements.
    """
    try:
        with torch.device("meta"):
            model = make()
    except Exception:  # not on meta, so its size shows only when it is made
        model = make()
    n = sum(parameter.numel() for parameter in model.parameters())
    if n > MOST_ELEMENTS:
        raise UnshrunkError(f"{n:,} parameters")
    return make


# --- transformers -----------------------------------------------------------------------------------------------------

# What an architecture is made as: the first of these that it has.
HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_MASKED_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING",
    "MODEL_FOR_CTC_MAPPING",
    "MODEL_FOR_PRETRAINING_MAPPING",
    "MODEL_MAPPING",
)
# By the end of a number's name: how large it may be.
SIZES: Sequence[tuple[str, int]] = [
    (r"num_experts_per_tok|experts_per_token|moe_topk|top_?k\w*", 2),
    (r"\w*experts\w*|n_group|num_\w*groups", 4),
    (r"\w*(key_value|kv)_heads|n_kv_heads?", 2),
    (r"\w*heads?|num_\w*heads", 4),
    (r"head_dim|d_kv|kv_channels|\w*_head_dim|\w*head_size", 16),
    (r"\w*intermediate_size\w*|\w*ffn_dim\w*|d_ff|n_inner|\w*ffn_size|\w*mlp_dim|ffn_hidden_size", 96),
    (r"\w*hidden_size\w*|d_model|n_embd|\w*embed_dim|dim|\w*hidden_dim\w*|\w*embedding_size|\w*projection_dim", 64),
    (r"\w*layers?|n_layer|num_\w*blocks\w*|depth", 2),
    (r"\w*vocab_size\w*", 128),
    (r"\w*(max|n)_\w*positions?\w*|\w*max_seq\w*|seq_length|n_ctx|max_\w*length", 64),
    (r"image_size|img_size|input_size", 64),
]
# Later attempts shrink less: sizes depend on each other in many ways.
ATTEMPTS: Sequence[str] = (".*", r".*(layer|block|depth|vocab|expert).*", r".*(layer|depth|vocab).*", r"$^")


def transformers_models() -> Iterator[str]:
    """Yields the architectures."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    yield from sorted(MODEL_MAPPING_NAMES)


def transformers_model(name: str) -> Make:
    """Returns what makes an architecture, with as small a configuration as it takes.

    Raises:
        UnshrunkError: no attempt gave a small model.
    """
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    for head in HEADS:
        mapping = getattr(modeling_auto, head, {})
        if kind in mapping:
            model = mapping[kind]
            break
    else:
        raise UnshrunkError("no model class")
    classes: list[Any] = list(model) if isinstance(model, (tuple, list)) else [model]
    reasons = []
    for pattern in ATTEMPTS:
        try:
            config = kind()
            shrink(config, pattern)
            make = partial(classes[0]._from_config, config)
            with torch.device("meta"):
                n = sum(each.numel() for each in make().parameters())
            if n > MOST_ELEMENTS:
                raise UnshrunkError(f"{n:,} parameters")
            make()
        except Exception as error:  # the library's, for sizes that do not go together
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        return make
    raise UnshrunkError(reasons[0].replace("\n", " ")[:200])


def shrink(config: Any, pattern: str) -> None:
    """Shrinks the numbers of a configuration, and of those within it, whose names match a pattern."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrink(value, pattern)
            continue
        changed = shrunk(name, value) if re.fullmatch(pattern, name) else value
        if changed != value:
            try:
                setattr(config, name, changed)
            except Exception:  # computed, or checked against others: it stays
                continue
    n_words = getattr(config, "vocab_size", None)
    for name, value in list(vars(config).items()):
        if name.endswith("token_id") and isinstance(value, int) and isinstance(n_words, int) and value >= n_words:
            setattr(config, name, n_words - 1)


def shrunk(name: str, value: Any) -> Any:
    """Returns a smaller value of a configuration's field, or the same."""
    if isinstance(value, (list, tuple)) and value:
        if name in ("layer_types", "mlp_layer_types", "layers_block_type", "block_types"):
            return value[:2]
        if all(isinstance(each, int) and not isinstance(each, bool) for each in value):
            if name in ("depths", "num_blocks"):
                return type(value)(min(each, 1) for each in value)
            if "image" in name or "img" in name:
                return type(value)(min(each, 64) for each in value)
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    for words, most in SIZES:
        if re.fullmatch(words, name):
            return min(value, most)
    return value


# --- timm and torchvision ---------------------------------------------------------------------------------------------


def timm_models() -> Iterator[str]:
    """Yields a small model of each of timm's modules."""
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            yield min(names, key=lambda name: (not re.search("nano|atto|femto|pico|tiny|test|_xxs|_t0", name), name))


def timm_model(name: str) -> Make:
    """Returns what makes a model of timm."""
    import timm

    return small(partial(timm.create_model, name, pretrained=False))


def torchvision_models() -> Iterator[str]:
    """Yields torchvision's models, one of each module."""
    from torchvision.models import get_model_builder, list_models

    seen = set()
    for name in list_models():
        module = get_model_builder(name).__module__
        if module not in seen:
            seen.add(module)
            yield name


def torchvision_model(name: str) -> Make:
    """Returns what makes a model of torchvision."""
    from torchvision.models import get_model

    options: dict[str, Any] = (
        {"weights_backbone": None} if re.search("rcnn|retina|fcos|ssd|fcn|deeplab|lraspp", name) else {}
    )
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return small(partial(get_model, name, weights=None, **options))


# --- diffusers --------------------------------------------------------------------------------------------------------

_CHANNELS = dict(block_out_channels=(32, 64), norm_num_groups=8)
_DOWN_UP = dict(down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
_ENCODER = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **_CHANNELS)
_CROSS = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=32, attention_head_dim=8)
_HEADS: dict[str, int] = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2)
DIFFUSERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": dict(sample_size=32, attention_head_dim=8, **_CHANNELS, **_DOWN_UP),
    "UNet2DConditionModel": dict(
        sample_size=32, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **_CROSS, **_CHANNELS
    ),
    "ControlNetModel": dict(conditioning_embedding_out_channels=(16, 32), **_CROSS, **_CHANNELS),
    "UNet1DModel": dict(block_out_channels=(32, 32, 64), norm_num_groups=8),
    "AutoencoderKL": dict(**_ENCODER),
    "VQModel": dict(num_vq_embeddings=64, **_ENCODER),
    "AsymmetricAutoencoderKL": dict(
        **{key: value for key, value in _ENCODER.items() if key != "block_out_channels"},
        down_block_out_channels=(32, 64),
        up_block_out_channels=(32, 64),
    ),
    "DiTTransformer2DModel": dict(sample_size=16, norm_num_groups=8, **_HEADS),
    "PixArtTransformer2DModel": dict(sample_size=16, cross_attention_dim=32, caption_channels=32, **_HEADS),
    "SD3Transformer2DModel": dict(
        sample_size=32, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, **_HEADS
    ),
    "FluxTransformer2DModel": dict(
        num_single_layers=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), **_HEADS
    ),
    "CogVideoXTransformer3DModel": dict(text_embed_dim=32, time_embed_dim=32, **_HEADS),
    "PriorTransformer": dict(embedding_dim=32, **_HEADS),
    "Transformer2DModel": dict(in_channels=32, norm_num_groups=8, **_HEADS),
    "HunyuanDiT2DModel": dict(sample_size=16, hidden_size=32, cross_attention_dim=32, **_HEADS),
}


def diffusers_model(name: str) -> Make:
    """Returns what makes a model of diffusers."""
    import diffusers

    return small(partial(getattr(diffusers, name), **DIFFUSERS[name]))


# --- peft -------------------------------------------------------------------------------------------------------------

_TARGETS = dict(target_modules=["q_proj", "v_proj"])
_FEED_FORWARD = dict(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"lora, init_lora_weights={init}": ("LoraConfig", dict(r=4, init_lora_weights=init, **_TARGETS))
        for init in (True, False, "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_2")
    },
    "lora, use_dora": ("LoraConfig", dict(r=4, use_dora=True, **_TARGETS)),
    "lora, use_rslora": ("LoraConfig", dict(r=4, use_rslora=True, **_TARGETS)),
    "lora of an embedding": ("LoraConfig", dict(r=4, target_modules=["embed_tokens"])),
    "lora, modules_to_save": ("LoraConfig", dict(r=4, modules_to_save=["lm_head"], **_TARGETS)),
    "ia3": ("IA3Config", dict(**_FEED_FORWARD)),
    "adalora": ("AdaLoraConfig", dict(init_r=6, target_r=4, total_step=10, **_TARGETS)),
    "loha": ("LoHaConfig", dict(r=4, **_TARGETS)),
    "lokr": ("LoKrConfig", dict(r=4, **_TARGETS)),
    "vera": ("VeraConfig", dict(r=4, **_TARGETS)),
    "oft": ("OFTConfig", dict(oft_block_size=8, r=0, **_TARGETS)),
    "boft": ("BOFTConfig", dict(boft_block_size=4, **_TARGETS)),
    "hra": ("HRAConfig", dict(r=4, **_TARGETS)),
    "fourierft": ("FourierFTConfig", dict(n_frequency=16, **_TARGETS)),
    "vblora": ("VBLoRAConfig", dict(r=4, num_vectors=16, vector_length=8, topk=2, **_TARGETS)),
    "ln tuning": ("LNTuningConfig", dict(target_modules=["input_layernorm"])),
    "prompt tuning": ("PromptTuningConfig", dict(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prefix tuning": ("PrefixTuningConfig", dict(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "p-tuning": (
        "PromptEncoderConfig",
        dict(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
    ),
}


def peft_model(name: str) -> Make:
    """Returns what makes a small Llama with one of peft's adapters."""
    import peft
    import transformers

    llama: Any = transformers.LlamaForCausalLM
    kind, options = PEFT[name]
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )

    def make() -> nn.Module:
        adapter = getattr(peft, kind)(**options)  # anew: peft changes it
        model: nn.Module = peft.get_peft_model(llama._from_config(config), adapter)
        return model

    return make


# --- torch ------------------------------------------------------------------------------------------------------------


def _parametrized(kind: str) -> nn.Module:
    return getattr(nn.utils.parametrizations, kind)(nn.Linear(24, 24))  # type: ignore[no-any-return]


TORCH: dict[str, Make] = {
    "Transformer": partial(nn.Transformer, 32, 4, 1, 1, 64),
    "MultiheadAttention": partial(nn.MultiheadAttention, 32, 4, add_bias_kv=True),
    "MultiheadAttention, kdim": partial(nn.MultiheadAttention, 32, 4, kdim=16, vdim=24),
    "LSTM": partial(nn.LSTM, 24, 32, 2, bidirectional=True, proj_size=16),
    "GRU": partial(nn.GRU, 24, 32, 2),
    "Embedding, padding": partial(nn.Embedding, 100, 32, padding_idx=3),
    "EmbeddingBag": partial(nn.EmbeddingBag, 100, 32, padding_idx=3),
    "Bilinear": partial(nn.Bilinear, 16, 24, 32),
    "AdaptiveLogSoftmaxWithLoss": partial(nn.AdaptiveLogSoftmaxWithLoss, 32, 100, [20, 50]),
    "ConvTranspose3d": partial(nn.ConvTranspose3d, 8, 16, 3),
    "BatchNorm2d": partial(nn.BatchNorm2d, 32),
    "PReLU": partial(nn.PReLU, 8),
    "orthogonal": partial(_parametrized, "orthogonal"),
    "weight_norm": partial(_parametrized, "weight_norm"),
    "spectral_norm": partial(_parametrized, "spectral_norm"),
}

Names = Callable[[], Iterator[str]]
LIBRARIES: dict[str, tuple[Names, Callable[[str], Make]]] = {
    "torch": (lambda: iter(TORCH), TORCH.__getitem__),
    "transformers": (transformers_models, transformers_model),
    "peft": (lambda: iter(PEFT), peft_model),
    "diffusers": (lambda: iter(DIFFUSERS), diffusers_model),
    "timm": (timm_models, timm_model),
    "torchvision": (torchvision_models, torchvision_model),
}


def version_of(library: str) -> str:
    """Returns a library's version, "" if it is not installed."""
    try:
        module = importlib.import_module(library)
    except ImportError:
        return ""
    return str(module.__version__)

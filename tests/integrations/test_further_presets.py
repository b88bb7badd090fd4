"""Presets of models that are built deep, wide or for images: nanochat, timm's vision transformer, DeepNorm, T-Fixup."""

from __future__ import annotations

import math

import needs
import pytest
import torch
from helpers import differing_kind, tensors
from torch import nn

import fastinit
from fastinit import presets


def values_of(model, config):
    """Returns the values of each parameter's last fill, by name."""
    rows = fastinit.plan(model, config, strict=True).rows
    return {row.parameter: dict(row.values) for row in rows if not row.replaced}


def uniform(low, high):
    return dict(kind="uniform", low=pytest.approx(low, rel=1e-15), high=pytest.approx(high, rel=1e-15))


# --- nanochat ---------------------------------------------------------------------------------------------------------


class Nanochat(nn.Module):
    """nanochat's GPT by its parameters, with fewer heads of keys than of queries."""

    def __init__(self, width=64, narrow=32, gates=True):
        super().__init__()
        blocks = nn.ModuleList()
        for _ in range(2):
            of = {
                name: nn.Linear(width, out, bias=False)
                for name, out in (("c_q", width), ("c_k", narrow), ("c_v", narrow))
            }
            attn = nn.ModuleDict(of | dict(c_proj=nn.Linear(width, width, bias=False)))
            mlp = nn.ModuleDict(dict(c_fc=nn.Linear(width, 4 * width, bias=False)))
            mlp["c_proj"] = nn.Linear(4 * width, width, bias=False)
            blocks.append(nn.ModuleDict(dict(attn=attn, mlp=mlp)))
        self.transformer = nn.ModuleDict(dict(wte=nn.Embedding(128, width), h=blocks))
        self.lm_head = nn.Linear(width, 128, bias=False)
        if gates:
            blocks[1]["attn"]["ve_gate"] = nn.Linear(12, 2, bias=False)
            self.smear_gate = nn.Linear(24, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.ones(1))
            self.backout_lambda = nn.Parameter(torch.ones(1))
            self.value_embeds = nn.ModuleDict({"1": nn.Embedding(128, narrow)})


def test_nanochat_is_the_rule_of_its_code():
    model = Nanochat()
    fastinit.initialize(model, presets.nanochat(64), strict="complete", seed=0)
    found = values_of(model, presets.nanochat(64))
    bound = 3**0.5 * 64**-0.5
    matrix = uniform(-bound, bound)
    gate = uniform(0.0, 0.02)
    narrower = uniform(-0.4 * bound, 0.4 * bound)
    block = "transformer.h.1."
    assert found["transformer.wte.weight"] == dict(kind="normal", mean=0.0, std=0.8)
    assert found["lm_head.weight"] == dict(kind="normal", mean=0.0, std=0.001)
    for name in ("attn.c_q", "attn.c_k", "attn.c_v"):
        assert found[f"{block}{name}.weight"] == matrix
    assert found["value_embeds.1.weight"] == matrix
    assert found[f"{block}mlp.c_fc.weight"] == narrower
    assert found[f"{block}attn.c_proj.weight"] == found[f"{block}mlp.c_proj.weight"] == dict(kind="constant", value=0.0)
    assert found["smear_gate.weight"] == found[f"{block}attn.ve_gate.weight"] == gate
    assert [found["smear_lambda"]["value"], found["backout_lambda"]["value"]] == [0.0, 0.2]


def test_nanochat_without_gates_is_complete():
    fastinit.initialize(Nanochat(gates=False), presets.nanochat(64, gates=False), strict="complete", seed=0)


# --- timm's vision transformer ----------------------------------------------------------------------------------------


def timm_vit(**options):
    needs.built_for_torch("timm").check()  # it imports torchvision
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=40, **options)


VITS = {
    "timm": (dict(), presets.vit(patch_elements=3 * 8 * 8)),
    "timm, no class token": (
        dict(class_token=False, global_pool="avg"),
        presets.vit(patch_elements=3 * 8 * 8, class_token=False),
    ),
    "timm, registers": (dict(reg_tokens=4), presets.vit(patch_elements=3 * 8 * 8)),
    "jax": (dict(weight_init="jax"), presets.vit("jax")),
    "jax_nlhb": (dict(weight_init="jax_nlhb"), presets.vit("jax", head_bias=-math.log(40))),
}


@pytest.mark.parametrize("name", VITS)
def test_vit_is_the_init_of_timm(name):
    options, config = VITS[name]
    model = timm_vit(**options)
    theirs = tensors(model)
    fastinit.initialize(model, config, strict="complete", seed=0)
    ours = tensors(model)
    assert {key: why for key in theirs if (why := differing_kind(theirs[key], ours[key]))} == {}


def test_vit_of_the_other_mode_is_told_from_the_init_of_timm():
    model = timm_vit(weight_init="jax")
    theirs = tensors(model)
    fastinit.initialize(model, presets.vit(patch_elements=3 * 8 * 8), seed=0)
    ours = tensors(model)
    found = {key for key in theirs if differing_kind(theirs[key], ours[key])}
    linear = {f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert linear | {"head.weight", "patch_embed.proj.weight", "patch_embed.proj.bias"} <= found


class Vit(nn.Module):
    """timm's vision transformer by the names of its parameters, for machines without timm."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.pos_embed = (nn.Parameter(torch.empty(1, n, 64)) for n in (1, 17))
        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, 64, 8, 8)))
        block = dict(norm1=nn.LayerNorm(64), attn=nn.ModuleDict(dict(qkv=nn.Linear(64, 192), proj=nn.Linear(64, 64))))
        mlp = nn.ModuleDict(dict(fc1=nn.Linear(64, 256), fc2=nn.Linear(256, 64)))
        self.blocks = nn.ModuleList([nn.ModuleDict(block | dict(norm2=nn.LayerNorm(64), mlp=mlp))])
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 40)


def test_vit_has_the_numbers_of_timm():
    fastinit.initialize(Vit(), presets.vit(patch_elements=192), strict="complete", seed=0)
    found = values_of(Vit(), presets.vit(patch_elements=192))
    cut = dict(kind="trunc_normal", mean=0.0, std=0.02, low=-2.0, high=2.0)
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight", "head.weight"):
        assert found[name] == cut
    torchs = uniform(-(192**-0.5), 192**-0.5)
    assert found["patch_embed.proj.weight"] == torchs and found["patch_embed.proj.bias"] == torchs
    assert found["cls_token"] == dict(kind="normal", mean=0.0, std=1e-6)
    assert found["blocks.0.mlp.fc1.bias"] == found["head.bias"] == dict(kind="constant", value=0.0)


def test_vit_has_the_numbers_of_jax():
    fastinit.initialize(Vit(), presets.vit("jax", head_bias=-3), strict="complete", seed=0)
    found = values_of(Vit(), presets.vit("jax", head_bias=-3))
    assert found["blocks.0.attn.qkv.weight"]["high"] == pytest.approx(math.sqrt(6 / (64 + 192)), rel=1e-15)
    assert found["patch_embed.proj.weight"]["std"] == pytest.approx(192**-0.5 / 0.87962566103423978, rel=1e-15)
    assert found["blocks.0.mlp.fc1.bias"] == dict(kind="normal", mean=0.0, std=1e-6)
    assert found["blocks.0.attn.proj.bias"] == found["head.weight"] == dict(kind="constant", value=0.0)
    assert found["head.bias"] == dict(kind="constant", value=-3.0)


# --- DeepNorm and T-Fixup ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))


class Layer(nn.Module):
    """A layer of fairseq by its parameters."""

    def __init__(self, decodes, norms, width=64):
        super().__init__()
        self.self_attn = Attention(width)
        if decodes:
            self.encoder_attn = Attention(width)
        self.fc1, self.fc2 = nn.Linear(width, 192), nn.Linear(192, width)
        if norms:
            self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)


def stack(n, decodes=False, norms=True):
    layers = nn.ModuleList([Layer(decodes, norms) for _ in range(n)])
    return nn.ModuleDict(dict(embed_tokens=nn.Embedding(100, 64), layers=layers))


def both(encoder, decoder, norms):
    return nn.ModuleDict(dict(encoder=stack(encoder, norms=norms), decoder=stack(decoder, True, norms)))


def gains(model, config):
    """Returns how much each matrix's standard deviation is Xavier's, by name."""
    found = {}
    for name, values in values_of(model, config).items():
        shape = model.get_parameter(name).shape
        if len(shape) == 2 and "embed" not in name:
            std = values["std"] if values["kind"] == "normal" else values["high"] / 3**0.5
            found[name] = std / math.sqrt(2 / sum(shape))
    return found


def assert_gains(found, of_encoder, of_decoder):
    assert len(found) > 20
    for name, gain in found.items():
        scaled = name.split(".")[-2] in ("v_proj", "out_proj", "fc1", "fc2")
        expected = (of_encoder if name.startswith("encoder.") else of_decoder) if scaled else 1
        assert gain == pytest.approx(expected, rel=1e-12), name


def test_deepnorm_of_one_stack_has_the_gain_of_the_paper():
    model = stack(4)
    fastinit.initialize(model, presets.deepnorm(4), strict="complete", seed=0)
    assert_gains(gains(model, presets.deepnorm(4)), None, (8 * 4) ** -0.25)


def test_deepnorm_of_two_stacks_has_the_gains_of_the_paper():
    model = both(4, 2, norms=True)
    fastinit.initialize(model, presets.deepnorm(4, 2), strict="complete", seed=0)
    assert_gains(gains(model, presets.deepnorm(4, 2)), 0.87 * (4**4 * 2) ** -0.0625, (12 * 2) ** -0.25)
    assert values_of(model, presets.deepnorm(4, 2))["encoder.embed_tokens.weight"]["std"] == 0.125


def test_t_fixup_has_the_gains_of_the_paper():
    model = both(4, 2, norms=False)
    fastinit.initialize(model, presets.t_fixup(4, 2), strict="complete", seed=0)
    found = values_of(model, presets.t_fixup(4, 2))
    assert_gains(gains(model, presets.t_fixup(4, 2)), 0.67 * 4**-0.25, (9 * 2) ** -0.25)
    assert {found[name]["kind"] for name in gains(model, presets.t_fixup(4, 2))} == {"uniform"}
    embedding = pytest.approx(0.125 * (9 * 2) ** -0.25, rel=1e-12)
    assert found["encoder.embed_tokens.weight"]["std"] == found["decoder.embed_tokens.weight"]["std"] == embedding

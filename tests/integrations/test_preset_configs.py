"""Presets start models of other libraries as those libraries do, and models of their names by the published rule."""

from __future__ import annotations

import copy
import json
import math

import needs
import pytest
import torch
from helpers import differing_kind, tensors
from torch import nn

import fastinit
from fastinit import presets

transformers = needs.module("transformers")

SIZES = dict(hidden_size=64, intermediate_size=160, num_attention_heads=2, num_hidden_layers=3, vocab_size=200)
ENCODER_DECODER = dict(
    d_model=64, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=200
) | dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=3, n_head=2, n_embd=64, vocab_size=500, n_positions=64)
    )


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**ENCODER_DECODER))


MODELS = {
    "gpt2": (gpt2, presets.gpt2(3)),
    "megatron, GPT-NeoX": (
        lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES)),
        presets.megatron(3),
    ),
    "megatron, Llama": (llama, presets.megatron(3)),
    "llama": (llama, presets.llama()),
    "llama, all layers alike": (llama, presets.llama(n_layers=3)),
    "llama, Qwen3": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=32)),
        presets.llama(),
    ),
    "llama, biases": (lambda: llama(attention_bias=True), presets.llama()),
    **{
        f"olmo, {method}": (
            lambda: transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SIZES)),
            presets.olmo(method, n_layers=3),
        )
        for method in presets.OLMO_METHODS
    },
    "deepnorm": (bart, presets.deepnorm(3, 2)),
    "deepnorm, a decoder": (
        lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=64, ffn_dim=96, num_attention_heads=2, num_hidden_layers=2, vocab_size=200,
                max_position_embeddings=64, word_embed_proj_dim=64,
            )
        ),
        presets.deepnorm(2),
    ),
    "dummy": (gpt2, presets.dummy()),
}  # fmt: skip


def planned(model, config):
    """Returns the description of each parameter's last fill, by name."""
    return {
        row.parameter: row.description for row in fastinit.plan(model, config, strict=True).rows if not row.replaced
    }


def stds(model, config):
    """Returns the standard deviation that each parameter is drawn with, by name; None where it is constant."""
    rows = [row for row in fastinit.plan(model, config, strict=True).rows if not row.replaced]
    return {row.parameter: row.values.get("std") for row in rows}


def differences(theirs, ours):
    return {name: why for name, tensor in theirs.items() if (why := differing_kind(tensor, ours[name]))}


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_has_a_rule_and_each_rule_a_parameter(name):
    make, config = MODELS[name]
    fastinit.initialize(make(), config, strict="complete", seed=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_config_survives_json(name):
    make, config = MODELS[name]
    again = json.loads(json.dumps(config))
    assert again == config
    assert fastinit.plan(make(), again).to_json() == fastinit.plan(make(), config).to_json()


def test_an_edited_rule_changes_no_other():
    config = presets.deepnorm(3, 2)
    untouched = copy.deepcopy(config)
    config[2]["vars"]["n"] = 100
    config[-2]["param"].append("extra")
    assert [a == b for a, b in zip(config, untouched)] == [True, True, False, True, False, True]
    assert presets.deepnorm(3, 2) == untouched


# --- GPT-2 and Megatron ----------------------------------------------------------------------------------------------


def test_gpt2_is_the_init_of_transformers():
    model = gpt2()
    theirs = tensors(model)
    fastinit.initialize(model, presets.gpt2(3), strict="complete", seed=0)
    assert differences(theirs, tensors(model)) == {}


def test_gpt2_for_another_depth_is_told_from_the_init_of_transformers():
    model = gpt2()
    theirs = tensors(model)
    fastinit.initialize(model, presets.gpt2(6), strict="complete", seed=0)
    found = differences(theirs, tensors(model))
    assert set(found.values()) == {"spreads"} and {name.split(".")[-2] for name in found} == {"c_proj"}


def tree(shapes):
    """Returns a module with parameters of these names and shapes."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, nn.Parameter(torch.empty(shape)))
    return root


def test_megatron_scales_what_writes_to_the_residual_stream():
    block = "decoder.layers.0."
    plain = {
        "embedding.word_embeddings.weight": (32, 8),
        "embedding.position_embeddings.weight": (32, 8),
        f"{block}self_attention.linear_qkv.weight": (24, 8),
        f"{block}mlp.linear_fc1.weight": (32, 8),
        f"{block}mlp.router.weight": (4, 8),
        f"{block}mlp.experts.linear_fc1.weight0": (32, 8),
        "output_layer.weight": (32, 8),
    }
    scaled = {
        f"{block}self_attention.linear_proj.weight": (8, 8),
        f"{block}mlp.linear_fc2.weight": (8, 32),
        f"{block}mlp.experts.linear_fc2.weight0": (8, 32),
        f"{block}mlp.experts.local_experts.0.linear_fc2.weight": (8, 32),
    }
    constant = {
        f"{block}self_attention.linear_qkv.bias": (24,),
        f"{block}self_attention.linear_qkv.layer_norm_weight": (8,),
        f"{block}self_attention.linear_qkv.layer_norm_bias": (8,),
        "decoder.final_layernorm.weight": (8,),
    }
    model = tree(plain | scaled | constant)
    fastinit.initialize(model, presets.megatron(8, std=0.01), strict="complete", seed=0)
    found = stds(model, presets.megatron(8, std=0.01))
    assert {found[name] for name in plain} == {0.01} and {found[name] for name in scaled} == {0.01 / 4}
    values = {name: float(tensor.detach()[0]) for name, tensor in model.named_parameters() if name in constant}
    assert values == {name: float(name.endswith("weight")) for name in constant}


# --- Llama and OLMo ---------------------------------------------------------------------------------------------------


def torchtitan_names(tied=False, n_layers=2):
    shapes = {"tok_embeddings.weight": (200, 64), "norm.weight": (64,), "output.weight": (200, 64)}
    for i in range(n_layers):
        shapes |= {f"layers.{i}.attention.{w}.weight": (64, 64) for w in ("wq", "wk", "wv", "wo")}
        shapes |= {f"layers.{i}.feed_forward.{w}.weight": (160, 64) for w in ("w1", "w3")}
        shapes |= {f"layers.{i}.feed_forward.w2.weight": (64, 160)}
        shapes |= {f"layers.{i}.{norm}.weight": (64,) for norm in ("attention_norm", "ffn_norm")}
    model = tree(shapes)
    if tied:
        model.tok_embeddings.weight = model.output.weight
    return model


@torch.no_grad()
def by_the_rule_of_torchtitan(model, depth_init=True):
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        depth = int(parts[1]) + 1 if depth_init and parts[0] == "layers" else 2
        if "norm" in parts[-2]:
            parameter.fill_(1)
        elif parts[0] == "output":
            nn.init.trunc_normal_(parameter, std=64**-0.5, a=-3 * 64**-0.5, b=3 * 64**-0.5)
        elif parts[0] == "tok_embeddings":
            nn.init.normal_(parameter)
        else:
            scale = (2 * depth) ** 0.5 if parts[-2] in ("wo", "w2", "w3") else 1
            nn.init.trunc_normal_(parameter, std=0.02 / scale)
    return tensors(model)


@pytest.mark.parametrize("depth_init", [True, False])
def test_llama_is_the_rule_of_torchtitan(depth_init):
    model = torchtitan_names()
    theirs = by_the_rule_of_torchtitan(model, depth_init)
    fastinit.initialize(model, presets.llama(n_layers=None if depth_init else 2), strict="complete", seed=0)
    assert differences(theirs, tensors(model)) == {}


def test_llama_has_the_bounds_of_torchtitan():
    found = planned(torchtitan_names(), presets.llama())
    assert found["layers.1.attention.wo.weight"] == "trunc_normal(mean=0, std=0.01, low=-2, high=2)"
    assert found["output.weight"] == "trunc_normal(mean=0, std=0.125, low=-0.375, high=0.375)"


def test_llama_with_a_width_goes_by_it():
    assert stds(torchtitan_names(), presets.llama(100))["output.weight"] == 0.1


def test_llama_starts_shared_embeddings_as_the_output_layer():
    model = torchtitan_names(tied=True)
    fastinit.initialize(model, presets.llama(), strict="complete", seed=0)
    assert 0.1 < model.tok_embeddings.weight.std() < 0.15


def test_the_plan_of_a_llama_as_json_is_this():
    rows = json.loads(fastinit.plan(torchtitan_names(n_layers=1), presets.llama()).to_json(history=True))["rows"]
    scaled = 0.02 / math.sqrt(2)
    cut, ones = dict(kind="trunc_normal", mean=0.0), dict(kind="constant", value=1.0)
    w1, w2 = dict(cut, std=0.02, low=-2.0, high=2.0), dict(cut, std=scaled, low=-2.0, high=2.0)
    assert [(row["parameter"], row["values"]) for row in rows if not row["replaced"]] == [
        ("tok_embeddings.weight", dict(kind="normal", mean=0.0, std=1.0)),
        ("layers.0.attention.wq.weight", w1),
        ("layers.0.attention.wk.weight", w1),
        ("layers.0.attention.wv.weight", w1),
        ("layers.0.feed_forward.w1.weight", w1),
        ("layers.0.attention.wo.weight", w2),
        ("layers.0.feed_forward.w3.weight", w2),
        ("layers.0.feed_forward.w2.weight", w2),
        ("output.weight", dict(cut, std=0.125, low=-0.375, high=0.375)),
        ("norm.weight", ones),
        ("layers.0.attention_norm.weight", ones),
        ("layers.0.ffn_norm.weight", ones),
    ]


def olmo_names(tied=False):
    shapes = {"embeddings.weight": (256, 64), "lm_head.norm.weight": (64,), "lm_head.w_out.weight": (256, 64)}
    for i in range(2):
        shapes |= {f"blocks.{i}.attention.{w}.weight": (64, 64) for w in ("w_q", "w_k", "w_v")}
        shapes |= {f"blocks.{i}.attention.w_out.weight": (64, 64), f"blocks.{i}.attention.q_norm.weight": (64,)}
        shapes |= {f"blocks.{i}.feed_forward.{w}.weight": (256, 64) for w in ("w1", "w3")}
        shapes |= {f"blocks.{i}.feed_forward.w2.weight": (64, 256), f"blocks.{i}.feed_forward_norm.weight": (64,)}
    model = tree(shapes)
    if tied:
        model.lm_head.w_out.weight = model.embeddings.weight
    return model


# Of layer 1 of 2 (the second): what w_q, w_out, w1, w3, w2, the output layer and the embeddings are drawn with. The
# width is 64, and 256 in the MLP.
OLMO = {
    "normal": (0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02),
    "llama": (0.02, 0.01, 0.02, 0.01, 0.01, 0.125, 1.0),
    "llama_depth": (0.02, 0.01, 0.02, 0.01, 0.01, 0.125, 1.0),
    "normalized": (0.125, 0.0625, 0.125, 0.125, 0.0625, 0.125, 0.125),
    "fan_in": (0.125, 0.125, 0.125, 0.125, 0.0625, 0.125, 1.0),
}
OLMO_WEIGHTS = ("attention.w_q", "attention.w_out", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2")


@pytest.mark.parametrize("method", presets.OLMO_METHODS)
def test_olmo_is_the_rule_of_olmo_core(method):
    config = presets.olmo(method, n_layers=2)
    fastinit.initialize(olmo_names(), config, strict="complete", seed=0)
    found = stds(olmo_names(), config)
    names = [*(f"blocks.1.{weight}.weight" for weight in OLMO_WEIGHTS), "lm_head.w_out.weight", "embeddings.weight"]
    assert tuple(found[name] for name in names) == OLMO[method]
    first = {"llama_depth": 0.02 / math.sqrt(2)}.get(method, OLMO[method][1])  # of the first layer
    assert found["blocks.0.attention.w_out.weight"] == pytest.approx(first, rel=1e-15)


@pytest.mark.parametrize("method", presets.OLMO_METHODS)
def test_olmo_truncates_at_three_sigma_what_olmo_core_does(method):
    rows = fastinit.plan(olmo_names(), presets.olmo(method, n_layers=2)).rows
    kinds = {row.parameter: row.values for row in rows if "std" in row.values}
    cut = {name for name, values in kinds.items() if "high" in values}
    assert all(kinds[name]["high"] == pytest.approx(3 * kinds[name]["std"], rel=1e-15) for name in cut)
    assert set(kinds) - cut == (set() if method == "normal" else {"embeddings.weight"})


def test_olmo_starts_a_shared_output_layer_as_the_embeddings():
    assert stds(olmo_names(tied=True), presets.olmo("llama_depth"))["embeddings.weight"] == 1


@pytest.mark.parametrize("method", presets.OLMO_METHODS)
def test_olmo_takes_another_std_for_embeddings(method):
    config = presets.olmo(method, n_layers=2, embedding_std=0.5)
    assert stds(olmo_names(), config)["embeddings.weight"] == 0.5


# --- LoRA and dummy weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [False, True])
def test_lora_with_embeddings_is_the_init_of_peft(gaussian):
    peft = needs.module("peft")
    options = dict(r=16, target_modules=["q_proj", "down_proj", "embed_tokens"], lora_bias=False)
    model = peft.get_peft_model(llama(), peft.LoraConfig(**options, init_lora_weights="gaussian" if gaussian else True))
    before = tensors(model)
    adapters = {name for name in dict(model.named_parameters()) if "lora_" in name}
    report = fastinit.initialize(model, presets.lora(gaussian, embeddings=True), strict=True, seed=0)
    after = tensors(model)
    assert len(adapters) == 14 and not adapters & set(report.unreached)
    assert differences(before, after) == {}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in adapters if "lora_A" in name or "embedding_B" in name}


def test_lora_reaches_the_names_of_loralib_and_the_biases_of_b():
    model = tree({"q.lora_A": (16, 64), "q.lora_B": (64, 16), "v.lora_B.default.bias": (64,), "q.weight": (64, 64)})
    assert stds(model, presets.lora(gaussian=True)) == {
        "q.lora_A": 1 / 16,
        "q.lora_B": None,
        "v.lora_B.default.bias": None,
    }


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@needs.mark(needs.CPP)
@pytest.mark.parametrize("bound", [1e-3, 1.0, 240.0])
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_dummy_weights_are_finite_in_float8(dtype, bound):
    model = nn.Linear(64, 256, dtype=torch.float32).requires_grad_(False).to(dtype)
    fastinit.initialize(model, presets.dummy(bound), backend="cpp", strict="complete", seed=0)
    values = model.weight.float()
    assert values.isfinite().all() and values.abs().max() <= bound * 2.5 and values.std() > 0


def test_dummy_weights_are_uniform_within_the_bounds_of_vllm():
    assert set(planned(gpt2(), presets.dummy()).values()) == {"uniform(low=-0.001, high=0.001)"}


# --- arguments --------------------------------------------------------------------------------------------------------

WRONG = [
    (lambda: presets.gpt2("12"), "n_layers must be a whole number of at least 1, but got '12'"),
    (lambda: presets.gpt2(12, std=0), "std must be more than 0, but got 0"),
    (lambda: presets.megatron(12, std=math.inf), "std must be a finite number, but got inf"),
    (lambda: presets.llama(n_layers=1.5), "n_layers must be a whole number"),
    (lambda: presets.llama(std="0.02"), "std must be a finite number, but got '0.02'"),
    (lambda: presets.olmo("lama"), "method must be 'normal' or 'normalized' or .*but got 'lama'"),
    (lambda: presets.olmo("llama"), "method 'llama' divides.*give n_layers"),
    (lambda: presets.olmo("normalized"), "give n_layers"),
    (lambda: presets.olmo("normal", embedding_std=-1), "embedding_std must be more than 0"),
    (lambda: presets.nanochat(0), "n_embd must be a whole number of at least 1"),
    (lambda: presets.vit(patch_elements=0), "patch_elements must be a whole number of at least 1"),
    (lambda: presets.vit("jax", head_bias=math.nan), "head_bias must be a finite number, but got nan"),
    (lambda: presets.deepnorm(2, 0), "decoder_layers must be a whole number of at least 1"),
    (lambda: presets.t_fixup(6, None), "decoder_layers must be a whole number of at least 1"),
    (lambda: presets.dummy(448), "limit must be at most 240"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_a_wrong_argument_is_named(index):
    make, message = WRONG[index]
    with pytest.raises(ValueError, match=message):
        make()

"""Presets: models start as with the code that each preset follows."""

from __future__ import annotations

import json
import math
from typing import Any

import needs
import pytest
import torch
from helpers import differing_kind
from torch import nn

import fastinit
from fastinit import presets

pytestmark = needs.mark(needs.CPP)


def started(model: nn.Module, cfg: Any, **options: Any) -> dict[str, torch.Tensor]:
    fastinit.initialize(model, cfg, backend="cpp", seed=0, **options)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def spread(tensor: torch.Tensor, std: float) -> bool:
    return abs(tensor.std().item() / std - 1) < 6 / math.sqrt(2 * tensor.numel())


def test_gpt2_is_that_of_transformers() -> None:
    transformers = needs.module("transformers")
    config = transformers.GPT2Config(n_embd=96, n_layer=3, n_head=4, vocab_size=200, n_positions=32)
    expected = dict(transformers.GPT2LMHeadModel(config).named_parameters())
    made = started(transformers.GPT2LMHeadModel(config), presets.gpt2(3), strict="complete")
    assert {name: found for name, tensor in made.items() if (found := differing_kind(expected[name], tensor))} == {}


def test_llama_is_that_of_torchtitan() -> None:
    """Against the numbers of torchtitan 0.3's llama3, on transformers' model."""
    transformers = needs.module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=200, intermediate_size=128
    )
    made = started(transformers.LlamaForCausalLM(config), presets.llama(96), strict="complete")
    for name, tensor in made.items():
        kind, layer = name.split(".")[-2], int(name.split(".")[2]) if ".layers." in name else 0
        if "norm" in kind:
            assert (tensor == 1).all(), name
        elif kind == "embed_tokens":
            assert spread(tensor, 1.0)
        elif kind == "lm_head":
            assert tensor.abs().max() <= 3 * 96**-0.5 and spread(tensor, 0.98658 * 96**-0.5)  # of one cut at 3 sigma
        elif kind in ("o_proj", "up_proj", "down_proj"):
            assert spread(tensor, 0.02 / math.sqrt(2 * (layer + 1))), name
        else:
            assert kind in ("q_proj", "k_proj", "v_proj", "gate_proj") and spread(tensor, 0.02), name


def test_llama_knows_the_names_of_torchtitan() -> None:
    def layer(*names: str) -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Linear(200, 100, bias=False) for name in names})

    def norm() -> nn.LayerNorm:  # it has the parameter of nn.RMSNorm, which torch has since 2.4 only
        return nn.LayerNorm(9, bias=False)

    def block() -> nn.ModuleDict:
        return nn.ModuleDict(dict(attention=layer("wqkv", "wo"), feed_forward=layer("w1", "w2", "w3"), ffn_norm=norm()))

    layers = nn.ModuleDict({"0": block(), "1": block()})  # as torchtitan's, which are in no list
    model = nn.ModuleDict(dict(layers=layers, norm=norm(), **layer("tok_embeddings", "lm_head")))
    made = started(model, presets.llama(100), strict="complete")
    by_depth = [0.02 / math.sqrt(2), 0.01]
    for name, tensor in made.items():
        kind = name.split(".")[-2]
        if "norm" in kind:
            assert (tensor == 1).all()
        elif kind in ("tok_embeddings", "lm_head"):
            assert spread(tensor, 1.0 if kind == "tok_embeddings" else 0.98658 * 0.1)
        else:
            assert spread(tensor, 0.02 if kind in ("wqkv", "w1") else by_depth[int(name.split(".")[1])]), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["", "jax"])
def test_vit_is_that_of_timm(mode: str) -> None:
    needs.built_for_torch("timm").check()
    import timm

    def make() -> Any:
        return timm.create_model(
            "vit_tiny_patch16_224", depth=2, num_classes=10, weight_init="jax_nlhb" if mode == "jax" else ""
        )

    expected = dict(make().named_parameters())
    made = started(make(), presets.vit(mode, head_bias=-math.log(10)))
    assert {name: found for name, tensor in made.items() if (found := differing_kind(expected[name], tensor))} == {}


@pytest.mark.parametrize("gaussian", [False, True])
def test_lora_is_that_of_peft(gaussian: bool) -> None:
    transformers, peft = needs.module("transformers"), needs.module("peft")
    config = transformers.LlamaConfig(
        hidden_size=96, num_hidden_layers=1, num_attention_heads=4, vocab_size=200, intermediate_size=128
    )

    def make() -> Any:
        kind: Any = "gaussian" if gaussian else True
        settings = peft.LoraConfig(r=8, target_modules=["q_proj", "down_proj"], init_lora_weights=kind)
        return peft.get_peft_model(transformers.LlamaForCausalLM(config), settings)

    expected = {name: tensor for name, tensor in make().named_parameters() if "lora_" in name}
    model = make()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    made = started(model, presets.lora(gaussian))
    assert len(expected) == 4
    assert {name: found for name, tensor in expected.items() if (found := differing_kind(tensor, made[name]))} == {}


def test_deepnorm_scales_all_but_queries_and_keys() -> None:
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    model = nn.ModuleDict({"layer": nn.ModuleDict({name: nn.Linear(300, 300) for name in names})})
    made = started(model, presets.deepnorm(2))
    xavier = math.sqrt(2 / 600)
    for name in names:
        gain = 1 if name in ("q_proj", "k_proj") else 16**-0.25
        assert spread(made[f"layer.{name}.weight"], gain * xavier), name


def test_dummy_values_are_finite_in_float8() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(torch.float8_e4m3fn)
    for tensor in started(model, presets.dummy(0.0625), strict="complete").values():
        values = tensor.float()
        assert values.isfinite().all() and values.abs().max() <= 0.0625 and values.std() > 0.01


@pytest.mark.parametrize(
    "cfg",
    [presets.gpt2(2), presets.llama(8), presets.vit(), presets.vit("jax"), presets.deepnorm(2), presets.lora(True)],
)
def test_a_preset_is_json(cfg: Any) -> None:
    assert json.loads(json.dumps(cfg)) == cfg


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: presets.gpt2(0), "n_layers must be a whole number of at least 1, but got 0"),
        (lambda: presets.llama(1.5), "dim must be a whole number"),  # type: ignore[arg-type]
        (lambda: presets.vit("flax"), "mode must be '' or 'jax', but got 'flax'"),
        (lambda: presets.deepnorm(True), "n_layers must be"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

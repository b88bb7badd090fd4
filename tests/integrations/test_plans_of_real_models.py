"""Plans of models of transformers, and of presets for them, give the same bits after they were in a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
import torch
from lock_files import agree
from torch import nn

import fastinit
from fastinit import Plan, presets

transformers = needs.module("transformers")
pytestmark = needs.mark(needs.CPP)

SIZES = dict(hidden_size=64, intermediate_size=96, num_attention_heads=2, num_hidden_layers=2, vocab_size=200)
ENCODER_DECODER = dict(
    d_model=64, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=200
) | dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)
T5 = dict(d_model=64, d_kv=32, d_ff=96, num_layers=2, num_heads=2, vocab_size=200)
GPT2 = dict(n_layer=2, n_head=2, n_embd=64, vocab_size=500, n_positions=64, bos_token_id=0, eos_token_id=0)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "llama, tied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=100)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8)),
    "bart": lambda: transformers.BartModel(transformers.BartConfig(**ENCODER_DECODER)),
    "t5": lambda: transformers.T5Model(transformers.T5Config(**T5)),
}
PRESETS = {
    "gpt2": ("gpt2", presets.gpt2(2)),
    "megatron": ("llama", presets.megatron(2)),
    "llama": ("llama", presets.llama(n_layers=2)),
    "olmo": ("llama", presets.olmo("llama_depth", n_layers=2)),
}


def through_a_file(plan: Plan, folder: Path) -> Plan:
    plan.save(folder / "plan.json")
    loaded = Plan.load(folder / "plan.json")
    loaded.save(folder / "again.json")
    assert (folder / "plan.json").read_bytes() == (folder / "again.json").read_bytes()
    return loaded


@pytest.mark.parametrize("name", MODELS)
def test_constructors_give_the_same_bits_from_a_file(name: str, tmp_path: Path) -> None:
    make = MODELS[name]
    plan = through_a_file(fastinit.plan(make, backend="cpp", seed=3), tmp_path)
    with torch.device("meta"):
        model = make()
    fastinit.materialize(model, plan)
    assert agree(model, fastinit.build(make, backend="cpp", seed=3))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_the_same_bits_from_a_file(name: str, tmp_path: Path) -> None:
    make, cfg = MODELS[PRESETS[name][0]], PRESETS[name][1]
    plan = through_a_file(fastinit.plan(make(), cfg, backend="cpp", seed=3), tmp_path)
    model, expected = make(), make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.initialize(model, plan)
    fastinit.initialize(expected, cfg, backend="cpp", seed=3)
    written = {row.parameter for row in plan.rows}
    ours, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    assert written and all(torch.equal(ours[each], theirs[each]) for each in written)


def test_parts_by_rules_give_the_same_bits_from_a_file(tmp_path: Path) -> None:
    import llama

    plan = through_a_file(fastinit.plan(llama.on_meta(), llama.CONFIG, backend="cpp", seed=7), tmp_path)
    models = [llama.on_meta().to_empty(device="cpu") for _ in range(2)]
    fastinit.initialize(models[0], plan)
    fastinit.initialize(models[1], llama.CONFIG, backend="cpp", seed=7)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    found = fastinit.verify(models[0], plan)
    assert not found.differs and not found.unverified

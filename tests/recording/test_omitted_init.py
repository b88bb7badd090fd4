"""What transformers leaves out on the meta device is recorded where it is left out."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit

transformers = needs.module("transformers")
peft = needs.module("peft")
transformers.logging.set_verbosity_error()

pytestmark = needs.mark(needs.CPP)
SMALL: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
LLAMA = transformers.LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2)
BERT = transformers.BertConfig(**SMALL, intermediate_size=48, is_decoder=False)
CAMEMBERT = transformers.CamembertConfig(**SMALL, intermediate_size=48)  # whose head comes first
OPT = transformers.OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=16, word_embed_proj_dim=32)
MODERNBERT = transformers.ModernBertConfig(
    **SMALL, intermediate_size=48, initializer_cutoff_factor=2.0, pad_token_id=0, bos_token_id=1, eos_token_id=2
)


def llama() -> Any:
    return transformers.LlamaForCausalLM._from_config(LLAMA)


def with_a_zero_head() -> Any:
    model = llama()
    nn.init.zeros_(model.lm_head.weight)
    return model


def with_adapters(kind: Any = True) -> Any:
    return peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=kind))


def encoder_decoder() -> Any:
    decoder = transformers.BertConfig(**SMALL, intermediate_size=48, is_decoder=True, add_cross_attention=True)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(BERT, decoder)
    return transformers.EncoderDecoderModel(both)


MODELS = {
    "a zero head": with_a_zero_head,
    "adapters": with_adapters,
    "gaussian adapters": lambda: with_adapters("gaussian"),
    "BERT": lambda: transformers.BertForMaskedLM._from_config(BERT),
    "CamemBERT": lambda: transformers.CamembertForMaskedLM._from_config(CAMEMBERT),
    "OPT": lambda: transformers.OPTForCausalLM._from_config(OPT),
    "encoder and decoder": encoder_decoder,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_of_the_meta_device_gives_what_build_gives(name: str) -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        made = MODELS[name]()
    fastinit.materialize(made, recipe=recipe, backend="cpp", seed=0)
    expected = fastinit.build(MODELS[name], backend="cpp", seed=0).state_dict()
    different = [key for key, value in made.state_dict().items() if not same_bits(value, expected[key])]
    assert not different


def test_adapters_add_nothing_at_first() -> None:
    with fastinit.capture() as recipe, torch.device("meta"):
        made = with_adapters()
    fastinit.materialize(made, recipe=recipe, backend="cpp", seed=0)
    assert all((value == 0).all() for key, value in made.state_dict().items() if "lora_B" in key)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize(("name", "row"), [("BERT", 0), ("CamemBERT", 1), ("OPT", 1)])
def test_the_padding_row_of_tied_weights_is_zero_without_a_recipe(name: str, row: int, backend: str) -> None:
    with torch.device("meta"):
        made = MODELS[name]()
    fastinit.materialize(made, backend=backend, seed=0)
    weight = made.get_input_embeddings().weight
    assert (weight[row] == 0).all() and (weight[row + 1] != 0).any()
    assert made.get_output_embeddings().weight is weight


def test_a_tied_weight_keeps_the_init_of_its_holder_without_a_recipe() -> None:
    """ModernBERT's decoder has another limit than the embedding whose weight it shares, and comes later."""
    plain = transformers.ModernBertForMaskedLM._from_config(MODERNBERT)
    with torch.device("meta"):
        made = transformers.ModernBertForMaskedLM._from_config(MODERNBERT)
    fastinit.materialize(made, backend="cpp", seed=0)
    weight, of_the_head = made.get_input_embeddings().weight, made.head.dense.weight
    assert made.decoder.weight is weight and plain.get_input_embeddings().weight.abs().max() > 0.03
    assert 0.03 < weight.abs().max() <= 0.04 and of_the_head.abs().max() < 0.03


@pytest.mark.parametrize("name", ["BERT", "CamemBERT", "OPT"])
def test_an_init_of_transformers_that_is_run_is_not_said_to_be_missing(name: str) -> None:
    with torch.device("meta"):
        made = MODELS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastinit.materialize(made, backend="cpp", seed=0)


def test_the_class_is_as_it_was_after_the_block() -> None:
    before = transformers.PreTrainedModel.init_weights
    with fastinit.capture():
        assert transformers.PreTrainedModel.init_weights is not before
    assert transformers.PreTrainedModel.init_weights is before


def test_outside_of_a_block_nothing_is_initialized_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(transformers.PreTrainedModel, "initialize_weights", called.append)
    with torch.device("meta"):
        llama()
    assert called == []


@needs.mark(needs.torch_from(2, 11))  # 2.8 cannot import its own compiler below torch.device("meta")
def test_transformers_may_be_imported_in_the_block() -> None:
    code = """
import torch, fastinit
with fastinit.capture() as recipe, torch.device("meta"):
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, intermediate_size=48)
    model = LlamaForCausalLM._from_config(config)
    torch.nn.init.zeros_(model.lm_head.weight)
fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
print(model.lm_head.weight.abs().sum().item(), round(model.model.embed_tokens.weight.std().item(), 2))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0.0 0.02\n", done.stderr


def test_a_model_that_is_loaded_gets_its_own_values_in_a_block(tmp_path: Any) -> None:
    saved = fastinit.build(llama, backend="cpp", seed=3)
    del saved.model.norm.weight  # one that the checkpoint lacks
    saved.model.norm.register_parameter("other", nn.Parameter(torch.zeros(2)))
    saved.save_pretrained(tmp_path)
    with fastinit.capture(backend="cpp", seed=0):
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, saved.lm_head.weight)
    assert (loaded.model.norm.weight == 1).all()

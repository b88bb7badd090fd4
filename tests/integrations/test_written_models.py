"""Checkpoints from nothing of models of transformers and timm, as their own tools write and read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from helpers import assert_same_tensors
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP, needs.built_for_torch("transformers"), needs.package("safetensors"))
SMALL = dict(num_hidden_layers=2, num_attention_heads=4, vocab_size=100)


def llama(**how: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=128, pad_token_id=0, **SMALL, **how))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = dict(bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100, **ids))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(hidden_size=32, intermediate_size=64, **SMALL))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors*")}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [llama, bert])
def test_shards_are_those_that_save_pretrained_writes(
    make: Callable[[], Any], dtype: torch.dtype | None, tmp_path: Path
) -> None:
    fastinit.build(make, backend="cpp", seed=3, dtype=dtype).save_pretrained(tmp_path / "theirs", max_shard_size="5GB")
    fastinit.write(make, tmp_path / "ours", seed=3, dtype=dtype)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs") and files_of(tmp_path / "ours")


def test_tied_weights_have_the_names_that_save_pretrained_writes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fastinit.build(gpt2, backend="cpp", seed=3).save_pretrained(tmp_path / "theirs")
    fastinit.write(gpt2, tmp_path / "ours", seed=3)
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in ("ours", "theirs"))
    assert_same_tensors(dict(sorted(ours.items())), dict(sorted(theirs.items())))


@pytest.mark.parametrize("size", ["5GB", "50KB"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_from_pretrained_gives_the_built_model(make: Callable[[], Any], size: str, tmp_path: Path) -> None:
    expected = fastinit.build(make, backend="cpp", seed=3)
    expected.config.save_pretrained(tmp_path)
    fastinit.write(make, tmp_path, seed=3, max_shard_size=size)
    found = type(expected).from_pretrained(tmp_path)
    assert_same_tensors(dict(found.state_dict()), dict(expected.state_dict()))


@pytest.mark.parametrize("size", ["5GB", "50KB"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_pretrained_gives_the_built_model(make: Callable[[], Any], size: str, tmp_path: Path) -> None:
    expected = fastinit.build(make, backend="cpp", seed=3)
    fastinit.write(make, tmp_path, seed=3, max_shard_size=size)
    found = make()
    fastinit.initialize(found, dict(type="Pretrained", checkpoint=str(tmp_path)))
    assert_same_tensors(dict(found.state_dict()), dict(expected.state_dict()))


def test_a_model_on_the_meta_device_gets_its_librarys_init(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = llama()
    (file,) = fastinit.write(model, tmp_path, seed=3)
    fastinit.materialize(model, backend="cpp", seed=3)
    assert_same_tensors(load_file(file), dict(sorted(model.state_dict().items())))


@needs.mark(needs.built_for_torch("timm"))
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_models_of_timm_are_written_as_they_are_built(name: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save

    def make() -> nn.Module:
        return timm.create_model(name, num_classes=7)

    (file,) = fastinit.write(make, tmp_path, seed=3)
    state = fastinit.build(make, backend="cpp", seed=3).state_dict()
    assert file.read_bytes() == save({name: each.contiguous() for name, each in state.items()}, {"format": "pt"})

"""Models that checks on several ranks cut: a Llama by FSDP2 and tensor parallelism."""

from __future__ import annotations

import torch
from ranks import gathered, must_equal

import fastinit
from fastinit.shards import dtensor as sharding


def llama():
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=130,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def fsdp(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def tensor_parallel(model, mesh):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for layer in model.model.layers:
        parallelize_module(
            layer.mlp,
            mesh,
            {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()},
        )


def from_meta(mesh, shard, recipe=True):
    """Makes a model of transformers the way that large ones are made, and compares it with what one process builds."""
    built = fastinit.build(llama, backend="cpp", seed=3)
    with fastinit.capture() as recorded, torch.device("meta"):
        model = llama()
    shard(model)
    assert any(sharding.is_sharded(p) for p in model.parameters())
    report = fastinit.materialize(model, recipe=recorded if recipe else None, backend="cpp", seed=3)
    assert report.unkeyed == ()
    assert report.unreached == ()
    must_equal(model, dict([*built.named_parameters(), *built.named_buffers()]))
    tokens = torch.arange(2, 14).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(gathered(model(tokens).logits), built(tokens).logits, rtol=1e-4, atol=1e-4)
    return report

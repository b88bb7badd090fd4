"""Checks on several ranks: checkpoints go into shards."""

from __future__ import annotations

import tempfile

import torch
from ranks import check, gathered, mesh_of, must_equal, raises
from ranks_models import fsdp, llama, tensor_parallel
from torch import distributed

import fastinit


@check(2, 3)
def checkpoints_load_into_shards(rank, world):
    from safetensors.torch import save_file

    mesh = mesh_of(world)
    box = [None]
    if rank == 0:
        box = [tempfile.mkdtemp()]
        torch.manual_seed(0)
        source = llama()
        torch.save(source.state_dict(), f"{box[0]}/zip.pth")
        save_file({k: v.contiguous() for k, v in source.state_dict().items()}, f"{box[0]}/one.safetensors")
        source.save_pretrained(f"{box[0]}/index", max_shard_size="60KB")
    distributed.broadcast_object_list(box)
    torch.manual_seed(0)
    source = llama()
    for name in ("zip.pth", "one.safetensors", "index"):
        for access in ("map", "read"):
            model = llama()
            if access == "map":
                fsdp(model, mesh)
            else:
                tensor_parallel(model, mesh)
            cfg = dict(type="Pretrained", checkpoint=f"{box[0]}/{name}", access=access)
            report = fastinit.initialize(model, cfg)
            assert not report.checkpoints[0].result.missing
            must_equal(model, dict(source.named_parameters()))
    with torch.device("meta"):
        model = llama()
    fsdp(model, mesh)
    fastinit.materialize(model, dict(type="Pretrained", checkpoint=f"{box[0]}/one.safetensors"), backend="cpp")
    must_equal(model, dict([*source.named_parameters(), *source.named_buffers()]))
    raises(
        RuntimeError,
        "assign=True",
        lambda: fastinit.initialize(
            model, dict(type="Pretrained", checkpoint=f"{box[0]}/one.safetensors", assign=True)
        ),
    )


@check(2, 3)
def folders_of_torch_distributed_checkpoint_load_into_shards(rank, world):
    from torch.distributed import checkpoint

    box = [tempfile.mkdtemp() if rank == 0 else None]
    distributed.broadcast_object_list(box)
    source, model = llama(), llama()
    for each in (source, model):
        fsdp(each, mesh_of(world))
    fastinit.initialize(source, dict(type="Normal", param="*"), backend="cpp", seed=9)
    checkpoint.save({"model": source.state_dict()}, checkpoint_id=box[0])
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=box[0], prefix="model"))
    must_equal(model, {name: gathered(tensor) for name, tensor in source.named_parameters()})
    plain = llama()  # and into a model that is whole
    fastinit.initialize(plain, dict(type="Pretrained", checkpoint=box[0], prefix="model"))
    must_equal(model, dict(plain.named_parameters()))

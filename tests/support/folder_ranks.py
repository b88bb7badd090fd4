"""What the tests of folders do on several ranks; ranks.py runs it. The folders are written by torch's own writer."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import folders
import ranks
import torch
from ranks import gathered, mesh_of, must_equal, raises, same
from torch import distributed, nn

import fastinit
from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.formats import distributed_folder
from fastinit.shards import dtensor as sharding

CHECKS = {}
check = partial(ranks.check, checks=CHECKS)


class Net(nn.Module):
    """Sizes that no number of ranks divides, some smaller than the mesh."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(10, 7)
        self.norm = nn.LayerNorm(7)
        self.down = nn.Linear(7, 3, dtype=torch.bfloat16)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.tensor(5))


def made(seed):
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        model.steps.fill_(seed)
    return model


def whole(model):
    return model


def sharded(mesh, model):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.up, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def tensor_parallel(mesh, model):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def both(mesh, model):
    return sharded(mesh["dp"], tensor_parallel(mesh["tp"], model))


def ways(world):
    """Returns ways to lay a model out over the ranks."""
    line = mesh_of(world)
    found = {"whole": whole, "sharded": partial(sharded, line), "parallel": partial(tensor_parallel, line)}
    if world == 4:
        found |= {"both": partial(both, mesh_of(2, 2)), "replicated": partial(sharded, mesh_of(2, 2))}
    return found


@contextmanager
def a_folder(rank):
    """Yields a path that all ranks know, which is gone afterwards."""
    box = [tempfile.mkdtemp() if rank == 0 else None]
    distributed.broadcast_object_list(box)
    yield Path(box[0])
    distributed.barrier()
    if rank == 0:
        shutil.rmtree(box[0])


def save(path, state_dict):
    from torch.distributed import checkpoint

    with folders.quietly():
        checkpoint.save(state_dict, checkpoint_id=path)


@check(1, 2, 3, 4)
def a_folder_saved_in_one_layout_loads_into_every_other(rank, world):
    from torch.distributed import checkpoint

    expected = dict([*made(3).named_parameters(), *made(3).named_buffers()])
    for how, lay_out in ways(world).items():
        with a_folder(rank) as path:
            save(path, {"model": lay_out(made(3)).state_dict()})
            for into, lay_out_other in ways(world).items():
                model = lay_out_other(made(4))
                report = fastinit.initialize(
                    model, dict(type="Pretrained", checkpoint=path, prefix="model", strict=True)
                )
                assert len(report.checkpoints[0].result.copied) == 8, (how, into, report.checkpoints[0].result)
                must_equal(model, expected)
                theirs = lay_out_other(made(5))
                state = {"model": theirs.state_dict()}
                with folders.quietly():
                    checkpoint.load(state, checkpoint_id=path)
                for name, tensor in model.state_dict().items():
                    other = state["model"][name]
                    local = sharding.local_part if sharding.is_sharded(tensor) else torch.Tensor.detach
                    assert same(local(tensor).detach(), local(other).detach()), (how, into, name)


@check(2, 4)
def a_dtype_is_asked_for_on_the_way_into_shards(rank, world):
    with a_folder(rank) as path:
        save(path, sharded(mesh_of(world), made(3)).state_dict())
        for lay_out in ways(world).values():
            model = lay_out(made(4))
            load_checkpoint(model, path, dtype="float16", strict=True, logger="silent")
            must_equal(model, {"up.weight": made(3).up.weight.half().float()})


@check(2)
def an_optimizer_lies_beside_the_model(rank, world):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model = sharded(mesh_of(world), made(3).float())
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state, of_optimizer = get_state_dict(model, optimizer)
    with a_folder(rank) as path:
        save(path, {"model": state, "optim": of_optimizer, "step": 3})
        plain = made(4).float()
        load_checkpoint(plain, path, prefix="model", strict=True, logger="silent")
        must_equal(plain, {name: gathered(tensor) for name, tensor in model.named_parameters()})
        tree = fastinit.checkpoint.CheckpointLoader.load_checkpoint(str(path), logger="silent")
        assert tree["optim.state.up.weight.exp_avg"].shape == (7, 10)


@check(2)
def meta_models_get_their_shards_from_a_folder(rank, world):
    with a_folder(rank) as path:
        save(path, sharded(mesh_of(world), made(3)).state_dict())
        with torch.device("meta"):
            model = Net()
        sharded(mesh_of(world), model)
        fastinit.materialize(model, dict(type="Pretrained", checkpoint=path, strict=True), backend="torch")
        must_equal(model, dict([*made(3).named_parameters(), *made(3).named_buffers()]))


def digest(model):
    parts = [sharding.local_part(each) if sharding.is_sharded(each) else each for each in model.state_dict().values()]
    return hashlib.sha256(
        b"".join(each.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for each in parts)
    ).digest()


@check(2, 4)
def damage_in_one_ranks_file_is_an_error_on_all_of_them_before_they_write(rank, world):
    for damage in ("gone", "cut", "other"):
        for strict in (False, True):
            with a_folder(rank) as path:
                save(path, sharded(mesh_of(world), made(3)).state_dict())
                file = path / f"__{world - 1}_0.distcp"
                if rank == 0:
                    if damage == "gone":
                        file.unlink()
                    elif damage == "cut":
                        os.truncate(file, 100)
                    else:
                        file.write_bytes(b"P" * file.stat().st_size)
                distributed.barrier()
                for lay_out in ways(world).values():
                    model = lay_out(made(4))
                    before = digest(model)
                    kind = OSError if damage == "gone" else RuntimeError
                    raises(kind, f"{path}", lambda: load_checkpoint(model, path, strict=strict, logger="silent"))
                    assert digest(model) == before, (damage, strict)


@check(2)
def in_large_folders_each_rank_looks_at_what_it_needs(rank, world):
    looked_at = []
    find = distributed_folder.saved_tensor.find

    def noting(file, *args):
        looked_at.append(file.path.name)
        return find(file, *args)

    distributed_folder.saved_tensor.find = noting
    most = distributed_folder._MAX_CHUNKS_FOR_EACH_RANK
    try:
        with a_folder(rank) as path:
            save(path, sharded(mesh_of(world), made(3)).state_dict())
            for limit, files in ((most, world), (1, 1)):
                looked_at.clear()
                distributed_folder._MAX_CHUNKS_FOR_EACH_RANK = limit
                model = nn.Module()
                model.up = sharded(mesh_of(world), made(4)).up
                load_checkpoint(model, path, logger="silent")
                must_equal(model, {"up.weight": made(3).up.weight})
                assert len(set(looked_at)) == files, looked_at
    finally:
        distributed_folder.saved_tensor.find, distributed_folder._MAX_CHUNKS_FOR_EACH_RANK = find, most


@check(2)
def summands_are_not_read_into(rank, world):
    from torch.distributed.tensor import DTensor, Partial

    with a_folder(rank) as path:
        save(path, {"weight": torch.ones(3)})
        model = nn.Module()
        model.weight = nn.Parameter(DTensor.from_local(torch.zeros(3), mesh_of(world), [Partial()]))
        raises(RuntimeError, "summand", lambda: load_checkpoint(model, path, strict=True, logger="silent"))
        assert not sharding.local_part(model.weight).any()

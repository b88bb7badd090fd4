"""Checks on several ranks: plans from files, and what ``verify`` finds on shards."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch
from ranks import check, mesh_of, must_equal, raises
from ranks_models import fsdp, llama, tensor_parallel
from torch import nn

import fastinit
from fastinit import Plan
from fastinit.shards import dtensor as sharding

CFG = [
    dict(type="Normal", std=0.3, param="*.weight"),
    dict(type="TruncNormal", std=0.02, layer="Embedding"),
    dict(type="Constant", val=1, param="*norm*"),
]


def kept(plan):
    """Returns a plan that was in a file."""
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder) / "plan.json")
        return Plan.load(Path(folder) / "plan.json")


def whole():
    """Returns a model that one process has initialized, and the plan from a file."""
    model = llama()
    plan = kept(fastinit.plan(model, CFG, backend="cpp", seed=5))
    fastinit.initialize(model, plan)
    return model, plan


@check(1, 2, 3, 4)
def a_plan_from_a_file_fits_every_mesh(rank, world):
    plain, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, plan)
    must_equal(model, dict(plain.named_parameters()))


@check(2, 3)
def a_plan_of_a_sharded_model_is_that_of_the_whole(rank, world):
    _, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    assert not plan.diff(kept(fastinit.plan(model, CFG, backend="cpp", seed=5)))


PARTS = [
    dict(type="Normal", std=0.3, param="*.weight"),
    dict(type="Xavier", param="*.q_proj.weight[8:24]"),
    dict(type="Kaiming", param="*.k_proj.weight[:, 3:5]"),
    dict(type="Xavier", param="*.o_proj.weight", blocks=[2, 2]),
    dict(type="Zeros", param="*embed_tokens.weight[5:6]"),
]


@check(1, 2, 3, 4)
def a_plan_of_parts_of_a_sharded_model_is_kept_as_that_of_the_whole(rank, world):
    plain = llama()
    plan = fastinit.plan(plain, PARTS, backend="cpp", seed=5)
    fastinit.initialize(plain, plan)
    model = llama()
    fsdp(model, mesh_of(world))
    on_mesh = fastinit.plan(model, PARTS, backend="cpp", seed=5)
    assert on_mesh._text(True) == plan._text(True) and not on_mesh.diff(plan)
    for source in (on_mesh, kept(on_mesh)):
        fastinit.initialize(model, dict(type="Zeros", param="*"))
        fastinit.initialize(model, source)
        must_equal(model, dict(plain.named_parameters()))


@check(1, 2)
def a_plan_of_a_sharded_model_is_written_as_that_of_the_whole(rank, world):
    model = llama()
    fsdp(model, mesh_of(world))
    with tempfile.TemporaryDirectory() as folder:  # any rank may write by itself
        sources = (fastinit.plan(each, PARTS, backend="cpp", seed=5) for each in (llama(), model))
        one, other = (fastinit.write(source, f"{folder}/{at}")[0] for at, source in enumerate(sources))
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 10_000
        raises(RuntimeError, "or its plan, write(fastinit.plan(", lambda: fastinit.write(model, folder, PARTS, seed=5))


@check(2)
def ranks_with_different_plans_are_told(rank, world):
    _, plan = whole()
    other = kept(fastinit.plan(llama(), CFG, backend="cpp", seed=6))
    model = llama()
    fsdp(model, mesh_of(world))
    raises(
        RuntimeError, "were given the seeds 5 and 6", lambda: fastinit.initialize(model, plan if rank == 0 else other)
    )


@check(2)
def a_rank_whose_plan_does_not_fit_fails_all(rank, world):
    _, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    if rank == 1:
        model.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    raises(RuntimeError, "parameters of the model that the plan lacks: extra", lambda: fastinit.initialize(model, plan))


@check(1, 2, 3, 4)
def shards_are_verified(rank, world):
    _, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, plan)
    found = fastinit.verify(model, plan)
    assert not found.differs and len(found.held) == len(list(model.parameters())), found


@check(4)
def shards_of_two_kinds_are_verified(rank, world):
    mesh = mesh_of(2, 2)
    _, plan = whole()
    model = llama()
    tensor_parallel(model, mesh["tp"])
    fsdp(model, mesh["dp"])
    fastinit.initialize(model, plan)
    assert not fastinit.verify(model, plan).differs
    tensor = model.model.layers[0].mlp.down_proj.weight
    local = sharding.local_part(tensor)
    if rank == 3:
        with torch.no_grad():
            local[-1, -1] += 1
    found = fastinit.verify(model, plan)
    assert [(each.name, each.index) for each in found.differs] == [
        ("model.layers.0.mlp.down_proj.weight", tuple(size - 1 for size in tensor.shape))
    ], found


@check(2, 3)
def all_ranks_find_what_one_holds_wrongly(rank, world):
    _, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, plan)
    tensor = model.model.layers[1].mlp.up_proj.weight
    (box,) = sharding.boxes_of(tensor)
    if rank >= world - 2:  # two ranks: the first of both counts
        with torch.no_grad():
            box.tensor[1, 7] += 1
    first = [None] * world
    torch.distributed.all_gather_object(first, box.index(tensor.shape)[0])
    found = fastinit.verify(model, plan)
    (each,) = found.differs
    assert (each.name, each.index) == ("model.layers.1.mlp.up_proj.weight", (first[world - 2] + 1, 7)), found


@check(2)
def a_rank_that_cannot_verify_fails_all(rank, world):
    _, plan = whole()
    model = llama()
    fsdp(model, mesh_of(world))
    if rank == 1:
        model.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    raises(RuntimeError, "parameters of the model that the plan lacks: extra", lambda: fastinit.verify(model, plan))


@check(2)
def orthogonal_shards_and_copies_are_verified(rank, world):
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        source = llama()
        name = Path(folder) / "net.pth"
        torch.save(source.state_dict(), name)
        cfg = [dict(type="Pretrained", checkpoint=str(name)), dict(type="Orthogonal", param="*up_proj.weight")]
        model = llama()
        fsdp(model, mesh_of(world))
        plan = kept(fastinit.plan(llama(), cfg, backend="cpp", seed=5))
        fastinit.initialize(model, plan)
        found = fastinit.verify(model, plan)
        tables = {name for name, _ in model.named_buffers()}
        assert found and set(found.unverified) == tables, found
        with torch.no_grad():
            sharding.local_part(model.lm_head.weight)[0, 3] += 1
        # FSDP has hooks for loading, so that what differs may be their doing.
        assert set(fastinit.verify(model, plan).unverified) == {"lm_head.weight", *tables}


@check(2, 4)
def masters_of_shards_are_shards(rank, world):
    plain, plan = whole()
    model = llama().bfloat16()
    fsdp(model, mesh_of(world))
    masters = fastinit.redraw(model, plan, dtype=torch.float32)
    assert all(sharding.is_sharded(each) and each.dtype == torch.float32 for each in masters.values())
    holder = nn.Module()
    for name, each in masters.items():
        holder.register_parameter(name.replace(".", "_"), nn.Parameter(each))
    must_equal(holder, {name.replace(".", "_"): each for name, each in plain.named_parameters()})


@check(2)
def a_report_draws_what_is_here_of_shards(rank, world):
    if importlib.util.find_spec("matplotlib") is None:
        return
    model = llama()
    fsdp(model, mesh_of(world))
    figure = fastinit.initialize(model, CFG, backend="cpp", seed=5).plot(model)
    drawn = {axes.get_title("left"): axes for axes in figure.axes if axes.axison}
    n_here = sum(sharding.local_part(each).numel() > 0 for each in model.parameters())
    assert figure.get_supxlabel().startswith(f"this rank's part of {n_here} tensors")
    median = next(each for name, each in drawn.items() if "q_proj" in name).lines[0].get_ydata()
    here = [sharding.local_part(layer.self_attn.q_proj.weight).detach().quantile(0.5) for layer in model.model.layers]
    assert len(median) == 2 and all(abs(one - other) < 1e-6 for one, other in zip(median, here)), (median, here)

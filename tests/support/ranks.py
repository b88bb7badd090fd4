"""Runs checks on several ranks: real processes over gloo. Each check raises if something is wrong."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from fastinit.shards import dtensor as sharding

sys.path.insert(0, str(Path(__file__).parents[2]))

CHECKS = {}
# What nearly every rank imports, which takes longer than most checks.
IMPORTED = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"]


def check(*worlds, checks=CHECKS):
    """Registers a check for numbers of ranks."""

    def register(function):
        checks[function.__name__] = function, worlds
        return function

    return register


def run(rank, world, file, results, module):
    """One rank: runs every check that is for the number of ranks, and puts what went wrong into a queue."""
    torch.set_num_threads(1)
    # A rank that waits in vain fails the check, instead of stopping all of them.
    limit = timedelta(seconds=100)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=limit)
    for name, (function, worlds) in importlib.import_module(module).CHECKS.items():
        if world in worlds:
            problem = ""
            try:
                function(rank, world)
            except BaseException:
                problem = traceback.format_exc()
            problems = [None] * world
            distributed.all_gather_object(problems, problem)
            if rank == 0:
                found = [f"rank {i}: {text}" for i, text in enumerate(problems) if text]
                results.put((name, "\n".join(found)))
    distributed.destroy_process_group()


def starter():
    """Returns the context of multiprocessing that starts ranks: as copies of a process that has only imported something."""
    if "forkserver" not in torch.multiprocessing.get_all_start_methods():
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def outcomes(world, module="shard_ranks"):
    """Returns check -> "" or what went wrong, on a number of ranks; the checks are those of a module."""
    context = starter()
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "group")
        ranks = [context.Process(target=run, args=(rank, world, file, results, module)) for rank in range(world)]
        for each in ranks:
            each.start()
        found = {}
        checks = importlib.import_module(module).CHECKS
        expected = [name for name, (_, worlds) in checks.items() if world in worlds]
        for _ in expected:
            try:
                name, problem = results.get(timeout=300)
            except Exception:
                break
            found[name] = problem
        for each in ranks:
            each.join(20)
            each.kill()
    return {name: found.get(name, "it did not end") for name in expected}


def same(a, b):
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def gathered(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if sharding.is_sharded(tensor) else tensor


def must_equal(model, expected):
    """Compares a model, gathered, with what one process made."""
    for name, tensor in expected.items():
        mine = dict([*model.named_parameters(), *model.named_buffers()])[name]
        assert same(gathered(mine), tensor.detach()), f"{name}: {gathered(mine)} and {tensor}"


def mesh_of(*shape):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp", "pp")[: len(shape)])


def empty(mesh, placements, shape, dtype=torch.float32):
    """Returns a distributed tensor whose parts hold anything."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local, _ = compute_local_shape_and_global_offset(shape, mesh, placements)
    like = torch.empty(shape, device="meta")
    return DTensor.from_local(
        torch.full(local, 7.0).to(dtype), mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def raises(kind, text, function):
    try:
        function()
    except kind as error:
        assert text in str(error), str(error)
    else:
        raise AssertionError(f"no error that says {text!r}")

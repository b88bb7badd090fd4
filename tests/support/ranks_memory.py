"""What a rank needs of memory, on ranks that have done nothing else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ranks
import torch
from torch import distributed, nn

import fastinit
from fastinit.shards import dtensor as sharding


class Wide(nn.Module):
    """Sixteen layers of 16.8 MB."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(16))


def peak():
    """Returns the most bytes of memory that the process has had at a time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(rank, world, file, way, results):
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)

    def make(kind):
        if way == "shards":
            with fastinit.capture() as recipe, torch.device("meta"):
                model = kind()
            fully_shard(model)
            fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
            return model
        model = fastinit.build(kind, backend="cpp", seed=0)
        fully_shard(model)
        return model

    make(lambda: nn.Linear(64, 64))  # what is imported at first use
    Path("/proc/self/clear_refs").write_text("5")  # what it needed before does not count as its peak
    before = peak()
    model = make(Wide)
    growth = peak() - before
    here = sum(sharding.local_part(parameter).nbytes for parameter in model.parameters())
    results.put((growth, here))
    distributed.barrier()
    distributed.destroy_process_group()


def memory(world, way):
    """Returns (growth of peak memory, bytes of the parts that are here) of each of new ranks."""
    context = ranks.starter()
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, os.path.join(folder, "group"), way, results)
        started = [context.Process(target=measure, args=(rank, *arguments)) for rank in range(world)]
        for each in started:
            each.start()
        found = [results.get(timeout=120) for _ in started]
        for each in started:
            each.join(20)
            each.kill()
    return found

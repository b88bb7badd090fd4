"""Sharded weights: today's ways against ``materialize``, on real ranks; and plans for 1,024 ranks.

On ranks (gloo, one thread each): the whole model on every rank, then ``fully_shard``; the whole model on rank 0, sent
to all; and ours. Checked first: our shards, gathered, have the bits of one process. Bytes are the loopback device's
counts. Plans: one process plays several of 1,024 ranks, a mesh of 16 x 64 (torch's fake process group). Checked first:
the parts of all ranks tile every parameter. Writes ``results/bench_shards.csv`` and ``bench_shard_plans.csv``. Run with
``make bench``.
"""

from __future__ import annotations

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fresh
import machine
import torch
import transformers
from tables import write
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers.models.llama import modeling_llama  # noqa: F401  (transformers imports it at first use)

import fastinit
from fastinit.contract import records as lowering
from fastinit.shards import dtensor as sharding

ROUNDS = 3
# Its methods are untyped.
_quiet: Any = transformers.logging.set_verbosity_error
AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM


def config(layers: int = 17, width: int = 1536, inner: int = 4096) -> Any:
    """Returns the config of a Llama-like model, 580 million parameters."""
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=32000,
        tie_word_embeddings=False,
    )


def shard(model: Any) -> None:
    """Shards layer by layer, as FSDP2 is used."""
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)


def everywhere(made: Any) -> Any:
    """The whole model on every rank, each of which keeps its part."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made)
    shard(model)
    return model


def from_rank_0(made: Any) -> Any:
    """The whole model on rank 0, which sends the parts to all."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: dict[str, Any] = {}
    if distributed.get_rank() == 0:
        torch.manual_seed(0)
        state = AutoModelForCausalLM.from_config(made).state_dict()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    shard(model)
    model.to_empty(device="cpu")
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


def ours(made: Any) -> Any:
    """Each rank fills its own part."""
    with fastinit.capture() as recipe, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    shard(model)
    fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
    return model


WAYS: dict[str, Callable[[Any], Any]] = {
    "whole on every rank, fully_shard": everywhere,
    "whole on rank 0, sent to all": from_rank_0,
    "materialize, cpp": ours,
}


def _sent() -> int:
    """Returns the bytes that went over the loopback device."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def _resident() -> int:
    """Returns the bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _rank(rank: int, world: int, file: str, way: str, is_check: bool, results: Any) -> None:
    torch.set_num_threads(1)
    _quiet()
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    if is_check:
        made = config(2, 128, 200)
        model, whole = ours(made), fastinit.build(AutoModelForCausalLM.from_config, made, backend="cpp", seed=0)
        gathered = {name: tensor.full_tensor() for name, tensor in model.named_parameters()}
        results.put(all(torch.equal(gathered[name], tensor) for name, tensor in whole.named_parameters()))
        return
    WAYS[way](config(1, 128, 200))  # imports at first use, and connections between the ranks
    distributed.barrier()
    before, sent, began = _resident(), _sent(), time.perf_counter()
    model = WAYS[way](config())
    distributed.barrier()
    seconds = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e9
    here = sum(sharding.local_part(parameter).nbytes for parameter in model.parameters())
    results.put((seconds, peak, (_sent() - sent) / 1e9, here / 1e9))
    distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(world: int, way: str, is_check: bool = False) -> list[Any]:
    """Returns the measurements of several new processes."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, f"{folder}/group", way, is_check, results)
        ranks = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(world)]
        for each in ranks:
            each.start()
        found = [results.get(timeout=600) for _ in ranks]
        for each in ranks:
            each.join()
    return found


def _touch(n_bytes: int) -> None:
    """Warms up free memory, in huge pages too: a virtual machine may have returned it to its host."""
    context = torch.multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=fresh.touch, args=(sender, n_bytes))
    process.start()
    receiver.recv()
    process.join()


def measure_ranks() -> list[dict[str, Any]]:
    """Returns the rows of the first table."""
    rows: list[dict[str, Any]] = []
    n_parameters = 579_768_832
    for world in (2, 4):
        if not all(on_ranks(world, "", is_check=True)):
            raise SystemExit(f"{world} ranks: the shards are not those of one process")
        found: dict[str, list[list[Any]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                _touch(5 * n_parameters * (world if way.endswith("fully_shard") else 2))
                found[way].append(on_ranks(world, way))
        first = 0.0
        for way, rounds in found.items():
            seconds = statistics.median(max(each[0] for each in ranks) for ranks in rounds)
            first = first or seconds
            rows.append(
                {
                    "ranks": world,
                    "way": way,
                    "seconds": f"{seconds:.2f}",
                    "largest peak of a rank, GB": f"{max(each[1] for ranks in rounds for each in ranks):.2f}",
                    "shards of a rank, GB": f"{rounds[0][0][3]:.2f}",
                    "sent, GB": f"{statistics.median(max(each[2] for each in ranks) for ranks in rounds):.2f}",
                    "times faster": f"{first / seconds:.1f}",
                }
            )
            print(rows[-1], flush=True)
    return rows


# --- plans for 1,024 ranks -------------------------------------------------------------------------------------------


def llama_405b(mesh: Any) -> nn.Module:
    """Returns Llama-3.1-405B's parameters on the meta device: tensor parallel over 64, FSDP2 over 16."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            transformers.LlamaConfig(
                hidden_size=16384,
                intermediate_size=53248,
                num_hidden_layers=126,
                num_attention_heads=128,
                num_key_value_heads=8,
                vocab_size=128256,
                dtype="bfloat16",
                tie_word_embeddings=False,
            )
        )
    columns, rows = ColwiseParallel(), RowwiseParallel()
    plan: dict[str, Any] = {f"self_attn.{name}_proj": columns for name in "qkv"} | {"self_attn.o_proj": rows}
    plan |= {"mlp.gate_proj": columns, "mlp.up_proj": columns, "mlp.down_proj": rows}
    for layer in model.model.layers:
        parallelize_module(layer, mesh["tp"], plan)
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return model  # type: ignore[no-any-return]


def experts(mesh: Any) -> nn.Module:
    """Returns 20,000 experts' weights of 2,048 x 768, each sharded over both dimensions of the mesh."""
    model = nn.Module()
    for i in range(20_000):
        local = [len(range(*part[0])) if part else 0 for part in _parts((2048, 768), mesh, [Shard(0), Shard(1)])]
        tensor = DTensor.from_local(
            torch.empty(local, dtype=torch.bfloat16, device="meta"),
            mesh,
            [Shard(0), Shard(1)],
            run_check=False,
            shape=torch.Size((2048, 768)),
            stride=(768, 1),
        )
        model.register_parameter(f"expert_{i}", nn.Parameter(tensor))
    return model


def _parts(shape: tuple[int, ...], mesh: Any, placements: list[Any]) -> list[tuple[sharding.Interval, ...]]:
    return sharding.parts_of(shape, tuple(mesh.shape), placements, tuple(mesh.get_coordinate()))


CONFIG = [
    dict(type="Normal", std=0.02, param="*"),
    dict(type="Constant", val=1, param="*norm*"),
]


def must_tile(model: nn.Module, mesh: Any) -> None:
    """Raises SystemExit unless the parts of all ranks hold every element of every parameter once."""
    parameters: list[Any] = list(model.parameters())
    kinds = {(tuple(p.shape), tuple(p._spec.mesh.shape), tuple(p._spec.placements)) for p in parameters}
    for shape, mesh_shape, placements in kinds:
        total = 0
        for number in range(torch.Size(mesh_shape).numel()):
            coordinate = [int(i) for i in torch.unravel_index(torch.tensor(number), mesh_shape)]
            parts = sharding.parts_of(shape, mesh_shape, placements, coordinate)
            total += torch.Size([sum(end - start for start, end in each) for each in parts]).numel()
        # Each dimension is split into disjoint parts, so different offsets are disjoint, and volumes decide the rest.
        if total != torch.Size(shape).numel():
            raise SystemExit(f"{shape}, {placements}: the parts have {total} elements")


def measure_plans() -> list[dict[str, Any]]:
    """Returns the rows of the second table."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rows = []
    for name, make in (("Llama 405B, bfloat16", llama_405b), ("20,000 experts, bfloat16", experts)):
        seconds: list[tuple[float, float]] = []
        for rank in (0, 1, 517, 1023):
            distributed.init_process_group("fake", rank=rank, world_size=1024, store=FakeStore())
            mesh = init_device_mesh("cpu", (16, 64), mesh_dim_names=("dp", "tp"))
            model = make(mesh)
            if rank == 0:
                must_tile(model, mesh)
            began = time.perf_counter()
            plan = fastinit.plan(model, CONFIG, backend="cpp", seed=0)
            planned = time.perf_counter()
            last = {id(fill.tensor): fill for fill in plan.items}  # type: ignore[union-attr]
            records = lowering.lowered(list(last.values()), 0)  # type: ignore[arg-type]
            seconds.append((planned - began, time.perf_counter() - planned))
            n_bytes = int((records["n_elements"] * records["element_bytes"]).sum())
            distributed.destroy_process_group()
        plan_s, lowered_s = (statistics.median(each[i] for each in seconds) for i in (0, 1))
        rows.append(
            {
                "model": name,
                "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e9:.0f} G in {len(last):,} tensors",
                "mesh": "16 x 64",
                "plan, s": f"{plan_s:.2f}",
                "records for kernels, s": f"{lowered_s:.2f}",
                "to write on rank 1023, MB": f"{n_bytes / 1e6:.0f}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measures both, and writes the tables."""
    _quiet()
    write("bench_shard_plans.csv", measure_plans())
    write("bench_shards.csv", measure_ranks())


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()

"""Steps of the GPU day that use fastinit as its users do: whole models, shards, graphs, torch.compile."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_day_device import DEVICE, GPU, backends, seconds_of, sync
from gpu_day_step import check, exit_code, found, going_on
from gpu_workloads import NORMAL, ONE, SEED, Spec, must_have_the_contracts_bits
from torch import nn

import fastinit

# Llama 3 8B; its initializer_range is gpu_workloads' standard deviation, 0.02.
LLAMA: dict[str, Any] = dict(
    **dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32),
    **dict(num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False),
)
SMALL: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4
)
SMALL["vocab_size"] = 512


def model() -> None:
    """Makes a whole Llama 8B in bfloat16, with the library's own init and with ours; twice, as the first is cold."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**{**LLAMA, **({} if GPU else SMALL)})
    make: Any = partial(AutoModelForCausalLM.from_config, config, dtype=torch.bfloat16)

    def own() -> Any:
        with torch.device(DEVICE):
            return make()

    def built(backend: str) -> Any:
        # In a function, because build would take from_config's keyword dtype.
        return fastinit.build(lambda: make(), device=DEVICE, backend=backend, seed=SEED)

    def captured(backend: str) -> Any:
        with fastinit.capture() as recipe, torch.device("meta"):
            found_model = make()
        fastinit.materialize(found_model, recipe=recipe, device=DEVICE, backend=backend, seed=SEED)
        return found_model

    timed_model("transformers under torch.device", own, is_ours=False)
    for backend in backends():
        timed_model(f"build, {backend}", partial(built, backend), is_ours=True)
    timed_model(f"capture on meta and materialize, {backends()[0]}", partial(captured, backends()[0]), is_ours=True)


def timed_model(what: str, way: Callable[[], Any], is_ours: bool) -> None:
    """Makes a model twice, and records seconds and peak memory; ours must have the contract's bits."""
    with going_on(what):
        seconds = []
        for _ in range(2):
            made, one, peak_gb = made_once(way)
            seconds.append(one)
            if is_ours:
                must_be_as_configured(what, made)
            n = sum(parameter.numel() for parameter in made.parameters())
            del made
        times = " then ".join(f"{each:.3f} s" for each in seconds)
        numbers = dict(parameters=n, cold_s=seconds[0], warm_s=seconds[1], peak_gb=peak_gb)
        found(f"{what}: {n:,} parameters, {times}" + (f", peak {peak_gb:.1f} GB" if GPU else ""), **numbers)


def made_once(way: Callable[[], Any]) -> tuple[Any, float, float]:
    """Returns a model, the seconds that it took, and the GPU's peak memory in GB, starting from none."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    models: list[Any] = []
    _, seconds = seconds_of(lambda: models.append(way()))
    return models[0], seconds, torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0


def must_be_as_configured(what: str, made: nn.Module) -> None:
    """Raises SystemExit unless windows of all matrices hold cpp's normals, and norms are ones."""
    named = {name: parameter.detach() for name, parameter in made.named_parameters()}
    specs = [Spec(name, tuple(each.shape), NORMAL if each.dim() > 1 else ONE) for name, each in named.items()]
    must_have_the_contracts_bits(what, specs, list(named.values()))


def shard() -> None:
    """Compares shards of FSDP2 and DTensor, as rank 2 of a fake group of four, with the whole tensors."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    rank, world = 2, 4
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = init_device_mesh(DEVICE.type, (world,))
    if GPU:
        torch.cuda.set_device(0)  # the mesh may have set the rank's
    for backend in backends():
        with going_on(f"{backend}: FSDP2"):
            fsdp(backend, mesh, rank, world)
        with going_on(f"{backend}: DTensor"):
            columns(backend, mesh, rank, world)
    sys.stdout.flush()
    os._exit(exit_code())  # a group with fake ranks cannot be torn down


RULES = [dict(type="TruncNormal", std=0.02, layer="Linear"), dict(type="Constant", val=1, layer="LayerNorm")]


def net() -> nn.Sequential:
    """Returns layers whose rows do not divide by four, in two dtypes."""
    return nn.Sequential(nn.Linear(96, 130), nn.LayerNorm(130), nn.Linear(130, 64, dtype=torch.bfloat16))


def fsdp(backend: str, mesh: Any, rank: int, world: int) -> None:
    """Materializes a model that FSDP2 sharded on meta, and compares this rank's shards."""
    from torch.distributed.fsdp import fully_shard

    whole = net()
    fastinit.initialize(whole, RULES, seed=5, backend="cpp")
    with torch.device("meta"):
        sharded = net()
    for layer in [*sharded, sharded]:
        fully_shard(layer, mesh=mesh)
    report = fastinit.materialize(sharded, RULES, device=DEVICE, backend=backend, seed=5)
    sync()
    wrong_names = []
    for (name, parameter), right in zip(sharded.named_parameters(), whole.parameters()):
        chunks = torch.chunk(right.detach(), world)
        expected = chunks[rank] if rank < len(chunks) else right.detach()[:0]
        local = parameter.to_local()  # type: ignore[attr-defined]
        if not torch.equal(local.detach().cpu(), expected):
            wrong_names.append(name)
    n = len(list(whole.parameters()))
    text = f"{backend}: FSDP2, rank {rank} of {world}: {len(wrong_names)} of {n} shards wrong {', '.join(wrong_names)}"
    check(
        not wrong_names,
        f"{text.strip()}, {report.launches} launch(es)",
        wrong=len(wrong_names),
        launches=report.launches,
    )


def columns(backend: str, mesh: Any, rank: int, world: int) -> None:
    """Initializes a weight with sharded columns, and compares this rank's."""
    from torch.distributed.tensor import Shard, distribute_tensor

    rule = dict(type="Normal", std=1, layer="Linear")
    whole, sharded = nn.Linear(64, 64), nn.Linear(64, 64, device=DEVICE)
    fastinit.initialize(whole, rule, seed=5, backend="cpp")
    tensor = distribute_tensor(sharded.weight.detach(), mesh, [Shard(1)], src_data_rank=None)
    sharded.weight = nn.Parameter(tensor)
    fastinit.initialize(sharded, rule, seed=5, backend=backend)
    sync()
    local = sharded.weight.to_local()  # type: ignore[attr-defined]
    good = torch.equal(local.detach().cpu(), whole.weight.detach().chunk(world, 1)[rank])
    check(good, f"{backend}: DTensor, Shard(1): this rank's columns equal the whole's: {good}")


RULE = dict(type="Normal", std=0.5, layer="Linear")


def odd() -> None:
    """Checks what users do around an initialization."""
    ways = [through_compile, saved_for_backward, in_inference_mode, under_a_default_device]
    if GPU:
        ways += [in_a_graph, before_a_replay]
    for backend in backends():
        for way in ways:
            with going_on(f"{backend}: {way.__name__}"):
                way(backend)
    if GPU:
        with going_on("auto in a graph"):
            in_a_graph("auto")


def must_equal_cpp(what: str, layer: nn.Linear, seed: int) -> None:
    """Checks that a layer has the weights that cpp gives it."""
    right = nn.Linear(layer.in_features, layer.out_features, device="cpu")
    fastinit.initialize(right, RULE, backend="cpp", seed=seed)
    good = torch.equal(layer.weight.detach().cpu(), right.weight.detach())
    check(good, f"{what}: the bits are cpp's: {good}")


def in_a_graph(backend: str) -> None:
    """Checks that a capturing stream is refused, by auto too: a replay would read a table that was freed."""
    layer, refusal = nn.Linear(64, 64, device=DEVICE), ""
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        try:
            fastinit.initialize(layer, RULE, backend=backend, seed=0)
        except RuntimeError as error:
            refusal = str(error)
        torch.empty(1, device=DEVICE).zero_()  # an empty graph warns
    check("capture" in refusal, f"{backend} in the capture of a graph: {refusal[:120] or 'NOT refused'}")


def before_a_replay(backend: str) -> None:
    """Checks that an earlier graph sees the new weights."""
    layer, x = nn.Linear(64, 64, device=DEVICE), torch.randn(8, 64, device=DEVICE)
    fastinit.initialize(layer, RULE, backend=backend, seed=0)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        y = layer(x)
    fastinit.initialize(layer, RULE, backend=backend, seed=1)
    graph.replay()
    sync()
    good = torch.allclose(y, layer(x))
    check(good, f"{backend}: a graph's replay sees new weights: {good}")


def through_compile(backend: str) -> None:
    """Checks that a compiled module gets the weights of the module it wraps."""
    layer = nn.Linear(64, 64, device=DEVICE)
    fastinit.initialize(layer, RULE, backend=backend, seed=0)
    compiled: Any = torch.compile(layer, backend="eager")
    compiled(torch.randn(4, 64, device=DEVICE))
    fastinit.initialize(compiled, RULE, backend=backend, seed=1)
    must_equal_cpp(f"{backend}: through torch.compile", layer, 1)


def saved_for_backward(backend: str) -> None:
    """Checks that autograd notices a write to a saved weight."""
    layer = nn.Linear(4, 4, device=DEVICE)
    y = (layer.weight * layer.weight).sum()
    fastinit.initialize(layer, RULE, backend=backend, seed=0)
    refused = False
    try:
        y.backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        refused = True
    check(refused, f"{backend}: backward over a weight that was initialized since is refused: {refused}")


def in_inference_mode(backend: str) -> None:
    """Checks inference tensors, which have no version counter."""
    with torch.inference_mode():
        layer = nn.Linear(64, 64, device=DEVICE)
        fastinit.initialize(layer, RULE, backend=backend, seed=2)
        must_equal_cpp(f"{backend}: in inference mode", layer, 2)


def under_a_default_device(backend: str) -> None:
    """Checks that the tables of a launch are made on the CPU, whatever the default device."""
    torch.set_default_device(DEVICE)
    try:
        layer = nn.Linear(300, 300)
        fastinit.initialize(layer, RULE, backend=backend, seed=3)
        must_equal_cpp(f"{backend}: under set_default_device", layer, 3)
    finally:
        torch.set_default_device("cpu")

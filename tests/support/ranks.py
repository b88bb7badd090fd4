"""What the tests of shards do on several ranks: real processes over gloo. Each check raises if something is wrong."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.shards import dtensor as sharding

CHECKS = {}


def check(*worlds, checks=CHECKS):
    """Registers a check for numbers of ranks."""

    def register(function):
        checks[function.__name__] = function, worlds
        return function

    return register


def run(rank, world, file, results, module):
    """One rank: runs every check that is for the number of ranks, and puts what went wrong into a queue."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
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


def outcomes(world, module="ranks"):
    """Returns check -> "" or what went wrong, on a number of ranks; the checks are those of a module."""
    context = torch.multiprocessing.get_context("spawn")
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


# --- helpers ---------------------------------------------------------------------------------------------------------


def same(a, b):
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def whole(name, shape, distribution, dtype=torch.float32, seed=0):
    tensor = torch.empty(shape, dtype=dtype)
    cpp_backend.run([plans.Fill.whole(name, tensor, distribution, "", "")], seed)
    return tensor


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


DISTRIBUTIONS = {
    "Normal": (dict(type="Normal", mean=1, std=2), plans.Normal(1, 2)),
    "Uniform": (dict(type="Uniform", a=-3, b=5), plans.Uniform(-3, 5)),
    "TruncNormal": (dict(type="TruncNormal", std=0.5, a=-1, b=1), plans.TruncatedNormal(0, 0.5, -1, 1)),
    "tail": (dict(type="TruncNormal", a=2, b=9), plans.TruncatedNormal(0, 1, 2, 9)),
    "Constant": (dict(type="Constant", val=3), plans.Constant(3)),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def shapes_and_placements(mesh):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    one = [Shard(0), Shard(1), Shard(-1), Replicate()]
    shapes = [(8, 12), (7, 5), (1, 3), (3, 1), (2, 3, 5)]
    if mesh.ndim == 1:
        return [(shape, [p]) for shape in shapes for p in one] + [((13,), [Shard(0)]), ((), [Replicate()])]
    two = [
        (Shard(0), Shard(1)),
        (Shard(0), Shard(0)),
        (Replicate(), Shard(0)),
        (Shard(1), Replicate()),
        (Shard(1), Shard(0)),
    ]
    strided = [
        (_StridedShard(0, split_factor=mesh.size(1)), Shard(0)),
        (_StridedShard(1, split_factor=mesh.size(1)), Shard(1)),
    ]
    return [(shape, list(p)) for shape in shapes for p in two] + [((8, 12), list(p)) for p in strided]


# --- the checks ------------------------------------------------------------------------------------------------------


def each_fill_is_that_of_one_process(mesh):
    module = nn.Module()
    expected = {}
    rules = []
    for i, (shape, placements) in enumerate(shapes_and_placements(mesh)):
        for kind, (cfg, distribution) in DISTRIBUTIONS.items():
            dtype = DTYPES[(i + len(expected)) % 4]
            name = f"p{i}_{kind}"
            module.register_parameter(name, nn.Parameter(empty(mesh, placements, shape, dtype)))
            expected[name] = whole(name, shape, distribution, dtype)
            rules.append(dict(cfg, param=name))
    plan = fastinit.plan(module, rules, backend="cpp", seed=0)
    assert [row.shape for row in plan.rows] == [tuple(t.shape) for t in expected.values()]
    report = fastinit.initialize(module, rules, backend="cpp", seed=0)
    assert report.launches == {"cpu": 1} and report.unreached == ()
    must_equal(module, expected)


@check(1, 2, 3, 4)
def every_distribution_dtype_and_placement_on_a_line_of_ranks(rank, world):
    each_fill_is_that_of_one_process(mesh_of(world))


@check(4)
def every_distribution_dtype_and_placement_on_a_square_of_ranks(rank, world):
    each_fill_is_that_of_one_process(mesh_of(2, 2))


@check(2, 3, 4)
def fans_are_those_of_the_whole(rank, world):
    from torch.distributed.tensor import Shard

    module = nn.Module()
    module.weight = nn.Parameter(empty(mesh_of(world), [Shard(0)], (12, 6)))
    fastinit.initialize(module, dict(type="Xavier", param="weight"), backend="cpp", seed=0)
    must_equal(module, {"weight": whole("weight", (12, 6), plans.Normal(0, (2 / 18) ** 0.5))})


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
    assert report.unkeyed == () and report.unreached == ()
    must_equal(model, dict([*built.named_parameters(), *built.named_buffers()]))
    tokens = torch.arange(2, 14).view(1, -1)
    with torch.no_grad():
        torch.testing.assert_close(gathered(model(tokens).logits), built(tokens).logits, rtol=1e-4, atol=1e-4)
    return report


@check(1, 2, 3, 4)
def a_model_of_transformers_from_the_meta_device_through_fsdp2(rank, world):
    mesh = mesh_of(world)
    for recipe in (True, False):
        report = from_meta(mesh, lambda model: fsdp(model, mesh), recipe)
        assert report.launches == {"cpu": 1}


@check(4)
def fsdp2_and_tensor_parallel_on_one_mesh(rank, world):
    mesh = mesh_of(2, 2)

    def shard(model):
        tensor_parallel(model, mesh["tp"])
        fsdp(model, mesh["dp"])

    for recipe in (True, False):
        from_meta(mesh, shard, recipe)


@check(4)
def replicated_groups_of_shards(rank, world):
    mesh = mesh_of(2, 2)
    from_meta(mesh, lambda model: fsdp(model, mesh))


@check(2, 4)
def a_model_that_has_memory_is_initialized_in_its_parts(rank, world):
    cfg = [
        dict(type="Normal", std=0.3, param="*.weight"),
        dict(type="TruncNormal", std=0.02, layer="Embedding"),
        dict(type="Constant", val=1, param="*norm*"),
    ]
    model, plain = llama(), llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, cfg, backend="cpp", seed=5)
    fastinit.initialize(plain, cfg, backend="cpp", seed=5)
    must_equal(model, dict(plain.named_parameters()))


@check(2, 3)
def a_tree_of_base_modules(rank, world):
    from torch.distributed.fsdp import fully_shard

    class Head(fastinit.BaseModule):
        def __init__(self):
            super().__init__(dict(type="Normal", std=0.1, layer="Linear"))
            self.cls, self.reg = nn.Linear(8, 6), nn.Linear(8, 4)

        def init_weights(self):
            super().init_weights()
            nn.init.trunc_normal_(self.reg.weight, std=0.02)
            self.cls.weight.data.mul_(0.5)
            fastinit.constant_init(self.reg, 3, bias=2) if False else nn.init.constant_(self.reg.bias, 2)

    def tree():
        return fastinit.Sequential(nn.Linear(8, 8), Head(), init_cfg=dict(type="Xavier", layer="Linear"))

    model, plain = tree(), tree()
    for part in (model[1], model):
        fully_shard(part, mesh=mesh_of(world))
    for each in (model, plain):
        with fastinit.use(backend="cpp", seed=1):
            each.init_weights()
    assert model.last_init_report.unkeyed == plain.last_init_report.unkeyed == ()
    must_equal(model, dict(plain.named_parameters()))
    assert (gathered(model[1].reg.bias) == 2).all()


@check(2, 4)
def init_code_is_captured_after_sharding_too(rank, world):
    model, plain = llama(), llama()
    fsdp(model, mesh_of(world))

    def code(m):
        for name, parameter in m.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.normal_(parameter, 1, 0.1)
        nn.init.trunc_normal_(m.lm_head.weight, std=0.02)
        m.model.embed_tokens.weight.data.mul_(2).add_(1)
        m.model.norm.weight.data.zero_()

    for each in (model, plain):
        with fastinit.capture(each, backend="cpp", seed=2) as recipe, torch.no_grad():
            code(each)
        assert recipe.report.unkeyed == () and recipe.report.launches == {"cpu": 1}
    must_equal(model, dict(plain.named_parameters()))


@check(2)
def models_whose_parameters_carry_their_init_functions(rank, world):
    """As torchtitan's do: made and cut on the meta device, given memory, then initialized parameter by parameter."""
    from torch.distributed.fsdp import fully_shard

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm = nn.Linear(8, 12), nn.LayerNorm(12)
            self.param_init = {"up.weight": lambda p: nn.init.trunc_normal_(p, std=0.02), "up.bias": nn.init.zeros_}
            self.param_init |= {"norm.weight": nn.init.ones_, "norm.bias": nn.init.zeros_}

        def init_states(self):
            for name, parameter in self.named_parameters():
                self.param_init[name](parameter)

    with torch.device("meta"):
        model, plain = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())
    for part in (*model, model):
        fully_shard(part)
    for each in (model, plain):
        each.to_empty(device="cpu")
        with fastinit.capture(each, backend="cpp", seed=3) as recipe, torch.no_grad():
            for block in each:
                block.init_states()
        assert recipe.report.unreached == recipe.report.unkeyed == ()
    must_equal(model, dict(plain.named_parameters()))


@check(2)
def a_recipe_is_done_to_shards_that_have_memory(rank, world):
    with fastinit.capture() as recipe, torch.device("meta"):
        whole = llama()
    assert set(recipe.fills) == {name for name, _ in whole.named_parameters()}
    model = llama()
    fsdp(model, mesh_of(world))
    fastinit.initialize(model, recipe, backend="cpp", seed=3)
    must_equal(model, dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters()))


@check(2, 3)
def parts_of_parameters_are_drawn_where_they_lie(rank, world):
    from torch.distributed.fsdp import fully_shard

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(6, 15)
            for i in range(3):
                nn.init.xavier_normal_(self.qkv.weight[5 * i : 5 * i + 5])
            nn.init.uniform_(self.qkv.weight[3:13, 1:4], 2, 3)
            nn.init.normal_(self.qkv.bias[7:])
            self.table = nn.Embedding(12, 4, padding_idx=10)  # a row within the last rank's

    built = fastinit.build(Fused, backend="cpp", seed=0)
    with fastinit.capture() as recorded, torch.device("meta"):
        plain = Fused()
    fastinit.materialize(plain, recipe=recorded, backend="cpp", seed=0)
    must_equal(plain, dict(built.named_parameters()))
    for recipe in (True, False):
        with fastinit.capture() as recorded, torch.device("meta"):
            model = Fused()
        fully_shard(model, mesh=mesh_of(world))
        if recipe:
            fastinit.materialize(model, recipe=recorded, backend="cpp", seed=0)
        else:
            model.to_empty(device="cpu")
            fastinit.initialize(model, recorded, backend="cpp", seed=0)
        must_equal(model, dict(built.named_parameters()))


@check(2)
def a_model_that_is_bound_may_be_cut_in_the_block(rank, world):
    with fastinit.capture(backend="cpp", seed=3, strict=True) as recipe:
        model = llama()
        recipe.bind(model)
        fsdp(model, mesh_of(world))
    must_equal(model, dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters()))


@check(2)
def lightning_cuts_models_that_then_get_their_weights(rank, world):
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy

    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="localhost", MASTER_PORT="0"
    )

    def parallelize(model, mesh):
        fsdp(model, mesh["data_parallel"])
        return model

    fabric = Fabric(accelerator="cpu", devices=world, strategy=ModelParallelStrategy(parallelize_fn=parallelize))
    fabric.launch()
    with fastinit.capture() as recipe, fabric.init_module(empty_init=True):
        model = llama()
    model = fabric.setup(model)
    assert sharding.is_sharded(next(model.parameters()))
    fastinit.initialize(model, recipe, backend="cpp", seed=3)
    built = dict(fastinit.build(llama, backend="cpp", seed=3).named_parameters())
    for name, parameter in model.module.named_parameters():
        assert same(gathered(parameter), built[name].detach()), name


@check(2, 3, 4)
def ranks_agree_on_a_seed_or_get_an_error(rank, world):
    from torch.distributed.tensor import Shard

    def make(**parts):
        module = nn.Module()
        module.weight = nn.Parameter(empty(mesh_of(world), [Shard(0)], (9, 4)))
        return module

    cfg = dict(type="Normal", param="weight")
    torch.manual_seed(rank)  # as loops over ranks do
    drawn = make()
    report = fastinit.initialize(drawn, cfg, backend="cpp")
    torch.manual_seed(0)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    assert report.seed == seed
    must_equal(drawn, {"weight": whole("weight", (9, 4), plans.Normal(0, 1), seed=seed)})

    other = make()
    before = gathered(other.weight).clone()
    raises(RuntimeError, "were given the seeds", lambda: fastinit.initialize(other, cfg, backend="cpp", seed=rank % 2))
    raises(
        RuntimeError,
        "were given the seeds",
        lambda: fastinit.initialize(other, cfg, backend="cpp", seed=0 if rank else None),
    )
    std = dict(cfg, std=1 + (rank == world - 1))
    raises(RuntimeError, "different fills", lambda: fastinit.initialize(other, std, backend="cpp", seed=0))

    def captured():
        with fastinit.capture(other, backend="cpp", seed=rank % 2):
            nn.init.normal_(other.weight)

    raises(RuntimeError, "were given the seeds", captured)
    assert same(gathered(other.weight), before)
    with fastinit.use(backend="cpp", seed=4):
        fastinit.initialize(other, cfg)
    must_equal(other, {"weight": whole("weight", (9, 4), plans.Normal(0, 1), seed=4)})


@check(4)
def a_square_of_ranks_disagrees_everywhere_or_nowhere(rank, world):
    from torch.distributed.tensor import Shard

    module = nn.Module()
    module.weight = nn.Parameter(empty(mesh_of(2, 2), [Shard(0), Shard(1)], (8, 8)))
    for odd in range(4):
        seed = 1 if rank == odd else 0
        raises(
            RuntimeError,
            "do not agree",
            lambda: fastinit.initialize(module, dict(type="Normal", param="weight"), backend="cpp", seed=seed),
        )


@check(2)
def a_call_on_one_rank_alone_does_not_wait_for_others(rank, world):
    if rank == 0:
        fastinit.initialize(nn.Linear(3, 3), dict(type="Normal", layer="Linear"), backend="cpp")
        fastinit.build(nn.Linear, 3, 3, backend="cpp")


@check(2)
def what_cannot_be_filled_is_refused_by_name(rank, world):
    from torch.distributed.tensor import DTensor, Partial, Shard

    mesh = mesh_of(world)
    module = nn.Module()
    module.sum = nn.Parameter(DTensor.from_local(torch.zeros(3), mesh, [Partial()], run_check=False))
    for call in (fastinit.plan, fastinit.initialize):
        raises(
            RuntimeError,
            "'sum'",
            lambda call=call: call(module, dict(type="Normal", param="sum"), backend="cpp", seed=0),
        )
        raises(
            RuntimeError, "a summand", lambda call=call: call(module, dict(type="Normal", param="sum"), backend="cpp")
        )
    module = nn.Module()
    module.odd = nn.Parameter(
        DTensor.from_local(torch.zeros(5 + rank, 2), mesh, [Shard(0)], run_check=False, shape=(20, 2), stride=(2, 1))
    )
    raises(
        RuntimeError,
        "its part here has shape",
        lambda: fastinit.initialize(module, dict(type="Normal", param="odd"), backend="cpp", seed=0),
    )


@check(2)
def on_torch_its_own_numbers_are_drawn(rank, world):
    from torch.distributed.tensor import Shard

    module, plain = nn.Module(), nn.Module()
    module.weight, plain.weight = (nn.Parameter(empty(mesh_of(world), [Shard(0)], (6, 4))) for _ in range(2))
    fastinit.initialize(module, dict(type="Normal", std=2, param="weight"), backend="torch", seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    nn.init.normal_(plain.weight, 0, 2)
    torch.set_rng_state(state)
    assert same(module.weight.to_local().detach(), plain.weight.to_local().detach())
    fastinit.initialize(module, dict(type="Constant", val=2, param="weight"), backend="torch")
    assert (gathered(module.weight) == 2).all()


@check(2, 3)
def a_checkpoint_goes_into_shards(rank, world):
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
def a_folder_of_torch_distributed_checkpoint_goes_into_shards(rank, world):
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


@check(2)
def flattened_parameters_are_refused_with_the_way_out(rank, world):
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(0)
    for kwargs in (dict(), dict(use_orig_params=True)):
        model = FullyShardedDataParallel(nn.Sequential(nn.Linear(4, 4)), device_id=torch.device("cpu"), **kwargs)
        cfg = dict(type="Normal", layer="Linear")
        raises(RuntimeError, "fully_shard", lambda: fastinit.initialize(model, cfg, backend="cpp", seed=0))
        raises(RuntimeError, "fully_shard", lambda: fastinit.plan(model, cfg))


@check(2)
def wrappers_are_looked_through(rank, world):
    model, plain = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    wrapped = nn.parallel.DistributedDataParallel(model)
    for each in (wrapped, plain):
        fastinit.initialize(each, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    must_equal(model, dict(plain.named_parameters()))


# --- memory, on ranks that have done nothing else --------------------------------------------------------------------


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
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, os.path.join(folder, "group"), way, results)
        ranks = [context.Process(target=measure, args=(rank, *arguments)) for rank in range(world)]
        for each in ranks:
            each.start()
        found = [results.get(timeout=120) for _ in ranks]
        for each in ranks:
            each.join(20)
            each.kill()
    return found

"""Checks on several ranks: fills of shards are those of one process."""

from __future__ import annotations

import llama
import torch
from helpers import named_fill
from ranks import check, empty, gathered, mesh_of, must_equal, raises, same
from torch import nn

import fastinit
from fastinit import plans
from fastinit.shards import dtensor as sharding

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


def each_fill_is_that_of_one_process(mesh):
    module = nn.Module()
    expected = {}
    rules = []
    for i, (shape, placements) in enumerate(shapes_and_placements(mesh)):
        for kind, (cfg, distribution) in DISTRIBUTIONS.items():
            dtype = DTYPES[(i + len(expected)) % 4]
            name = f"p{i}_{kind}"
            module.register_parameter(name, nn.Parameter(empty(mesh, placements, shape, dtype)))
            expected[name] = named_fill(name, shape, distribution, dtype)
            rules.append(dict(cfg, param=name))
    plan = fastinit.plan(module, rules, backend="cpp", seed=0)
    assert [row.shape for row in plan.rows] == [tuple(t.shape) for t in expected.values()]
    report = fastinit.initialize(module, rules, backend="cpp", seed=0)
    assert report.launches == {"cpu": 1}
    assert report.unreached == ()
    must_equal(module, expected)


@check(1, 2, 3, 4)
def fills_match_one_process_on_a_line_of_ranks(rank, world):
    each_fill_is_that_of_one_process(mesh_of(world))


@check(4)
def fills_match_one_process_on_a_square_of_ranks(rank, world):
    each_fill_is_that_of_one_process(mesh_of(2, 2))


STRUCTURED = {
    "orthogonal": (dict(type="Orthogonal", gain=2), plans.Orthogonal(2.0, 0), (14, 9)),
    "wide": (dict(type="Orthogonal"), plans.Orthogonal(1.0, 0), (9, 14)),
    "experts": (dict(type="Orthogonal", batch_dims=1), plans.Orthogonal(1.0, 1), (5, 8, 6)),
    "sparse": (dict(type="Sparse", sparsity=0.3, std=1), plans.Sparse(0.3, 1.0), (14, 9)),
    "identity": (dict(type="Identity"), plans.Identity(), (14, 9)),
    "dirac": (dict(type="Dirac", groups=2), plans.Dirac(2), (8, 5, 3)),
    "delta": (dict(type="DeltaOrthogonal"), plans.DeltaOrthogonal(1.0), (8, 5, 3)),
}


@check(1, 2, 3, 4)
def matrices_are_those_of_one_process(rank, world):
    from torch.distributed.tensor import Shard

    module, expected, rules = nn.Module(), {}, []
    for kind, (cfg, distribution, shape) in STRUCTURED.items():
        for dim in range(len(shape)):
            name = f"{kind}{dim}"
            dtype = (torch.float32, torch.bfloat16)[dim % 2]
            module.register_parameter(name, nn.Parameter(empty(mesh_of(world), [Shard(dim)], shape, dtype)))
            expected[name] = named_fill(name, shape, distribution, dtype)
            rules.append(dict(cfg, param=name))
    fastinit.initialize(module, rules, backend="cpp", seed=0)
    must_equal(module, expected)
    raises(
        RuntimeError,
        "of whole tensors only, not of shards: a contract backend does",
        lambda: fastinit.initialize(module, dict(type="Orthogonal", param="wide0"), backend="torch", seed=0),
    )


@check(2, 4)
def a_shard_holds_what_values_gives_for_its_box(rank, world):
    mesh = mesh_of(world)
    module, rules = nn.Module(), {}
    for i, (shape, placements) in enumerate(shapes_and_placements(mesh)):
        for kind, (cfg, _) in DISTRIBUTIONS.items():
            rules[f"p{i}_{kind}"] = cfg
            module.register_parameter(f"p{i}_{kind}", nn.Parameter(empty(mesh, placements, shape, torch.bfloat16)))
    fastinit.initialize(module, [dict(cfg, param=name) for name, cfg in rules.items()], backend="cpp", seed=3)
    for name, tensor in module.named_parameters():
        box = tuple(slice(*(each[0] if each else (0, 0))) for each in sharding.intervals_of(tensor))
        found = fastinit.values(
            name, tensor.shape, rules[name], seed=3, dtype=torch.bfloat16, box=box, backend="cpp", device="cpu"
        )
        assert same(found, sharding.local_part(tensor).detach()), name


PARTS = {
    "rows": dict(type="Normal", param="rows[3:11]"),
    "columns": dict(type="Uniform", param="columns[:, 2:7]"),
    "constant": dict(type="Constant", val=3, param="constant[5:6, 1:]"),
    "orthogonal": dict(type="Orthogonal", gain=2, param="orthogonal[1:13, 2:]"),
    "blocks": dict(type="Orthogonal", param="blocks", blocks=[2, 3]),
    "sparse": dict(type="Sparse", sparsity=0.4, std=1, param="sparse[2:12]"),
    "identity": dict(type="Identity", param="identity[4:, 3:8]"),
}


def parts_are_those_of_one_process(mesh, placements):
    module, whole = nn.Module(), nn.Module()
    for name in PARTS:
        for made, weight in ((module, empty(mesh, placements, (14, 9))), (whole, torch.empty(14, 9))):
            made.register_parameter(name, nn.Parameter(weight))
    rules = [dict(type="Normal", param="*"), *PARTS.values()]
    fastinit.initialize(whole, rules, backend="cpp", seed=0)
    report = fastinit.initialize(module, rules, backend="cpp", seed=0)
    assert report.unreached == ()
    must_equal(module, dict(whole.named_parameters()))
    for only_part in (rules[1:], rules[4:5]):  # of which others say what stands beside it
        assert "orthogonal" in fastinit.initialize(module, only_part, backend="cpp", seed=0).unreached
        must_equal(module, dict(whole.named_parameters()))
    raises(
        RuntimeError,
        "torch's generators cannot draw part of a distributed tensor",
        lambda: fastinit.initialize(module, PARTS["rows"], backend="torch", seed=0),
    )


@check(1, 2, 3, 4)
def parts_of_shards_are_those_of_one_process(rank, world):
    from torch.distributed.tensor import Replicate, Shard

    for placement in (Shard(0), Shard(1), Replicate()):
        parts_are_those_of_one_process(mesh_of(world), [placement])


@check(4)
def parts_of_shards_are_those_of_one_process_on_a_square_of_ranks(rank, world):
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    parts_are_those_of_one_process(mesh_of(2, 2), [Shard(0), Shard(1)])
    parts_are_those_of_one_process(mesh_of(2, 2), [_StridedShard(0, split_factor=2), Shard(0)])


@check(1, 2, 3, 4)
def a_llama_of_all_rules_is_that_of_one_process(rank, world):
    from torch.distributed.tensor import Shard

    whole, sharded = llama.Llama(), llama.Llama()
    for i, (name, parameter) in enumerate(whole.named_parameters()):
        path, _, attribute = name.rpartition(".")
        placement = Shard(i % parameter.dim())
        made = nn.Parameter(empty(mesh_of(world), [placement], tuple(parameter.shape)))
        setattr(sharded.get_submodule(path), attribute, made)
    for model in (whole, sharded):
        report = fastinit.initialize(model, llama.CONFIG, backend="cpp", seed=7, strict="complete")
        assert report.unreached == ()
    must_equal(sharded, dict(whole.named_parameters()))


@check(2, 3, 4)
def fans_are_those_of_the_whole_parameter(rank, world):
    from torch.distributed.tensor import Shard

    module = nn.Module()
    module.weight = nn.Parameter(empty(mesh_of(world), [Shard(0)], (12, 6)))
    fastinit.initialize(module, dict(type="Xavier", param="weight"), backend="cpp", seed=0)
    must_equal(module, {"weight": named_fill("weight", (12, 6), plans.Normal(0, (2 / 18) ** 0.5))})


@check(2)
def unsupported_distributed_tensors_are_refused_by_name(rank, world):
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
def the_torch_backend_draws_torchs_own_numbers(rank, world):
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

"""``capture``: what init code asks for is recorded and run as one plan, and whatever else it does stays right."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import threading

import needs
import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from helpers import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.recording import operators
from fastinit.recording import watch as watching

cpp = needs.mark(needs.CPP)


class Holder(nn.Module):
    """Two parameters and a buffer whose contents are anything before they are filled."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.full((6, 4), math.nan))
        self.b = nn.Parameter(torch.full((4, 6), math.nan))
        self.register_buffer("c", torch.full((24,), math.nan))


def named_fill(name, shape, distribution, dtype=torch.float32, seed=0):
    """What the contract gives a parameter."""
    tensor = torch.empty(shape, dtype=dtype)
    cpp_backend.run([plans.Fill.whole(name, tensor, distribution, "", "")], seed)
    return tensor


def captured(code, model=None, **kwargs):
    """Runs code on a model under capture; returns the model and the recipe."""
    model = Holder() if model is None else model
    with fastinit.capture(model, **{"backend": "cpp", "seed": 0, **kwargs}) as recipe, torch.no_grad():
        code(model)
    return model, recipe


def is_uninstalled():
    return (
        watching._installed == 0
        and watching.current_watch.get() is None
        and threading.Thread.start.__module__ == "threading"
        and nn.init._no_grad_trunc_normal_.__module__ == "torch.nn.init"
        and torch._C._len_torch_function_stack() == 0
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.nn.modules.module._global_parameter_registration_hooks
    )


# --- the numbers -----------------------------------------------------------------------------------------------------


@cpp
def test_a_constructor_fills_its_parameters_once_by_name_and_in_one_launch():
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Embedding(10, 32, padding_idx=3))
        nn.init.trunc_normal_(model[0].weight, std=0.02)
    assert same_bits(model[0].weight, named_fill("0.weight", (32, 64), plans.TruncatedNormal(0, 0.02, -2, 2)))
    assert same_bits(model[0].bias, named_fill("0.bias", (32,), plans.Uniform(-1 / 8, 1 / 8)))
    expected = named_fill("2.weight", (10, 32), plans.Normal(0, 1))
    expected[3] = 0
    assert same_bits(model[2].weight, expected) and (model[1].weight == 1).all()
    report = recipe.report
    assert report.launches == {"cpu": 1} and report.unkeyed == report.unreached == () and report.seed == 0
    assert report.numbers == "contract 1" and "1 launch on cpu" in report.summary()
    assert report.provenance["0.weight"].startswith("`trunc_normal_` at test_capture.py:")
    assert [(row.parameter, row.description) for row in report.rows][-1] == (
        "0.weight",
        "trunc_normal(mean=0, std=0.02, low=-2, high=2)",
    )
    assert is_uninstalled()


@cpp
def test_the_values_do_not_depend_on_how_a_model_was_built_nor_on_its_dtype():
    def make(**kwargs):
        return nn.Sequential(nn.Linear(8, 8, **kwargs), nn.Linear(8, 8, **kwargs))

    plain = fastinit.build(make, backend="cpp", seed=5)
    half = fastinit.build(make, backend="cpp", seed=5, dtype=torch.bfloat16)
    other = fastinit.build(lambda: nn.Sequential(*reversed([nn.Linear(8, 8), nn.Linear(8, 8)])), backend="cpp", seed=5)
    cast = fastinit.build(lambda: make().to(torch.bfloat16), backend="cpp", seed=5)
    with torch.device("meta"):
        meta = make()
    fastinit.materialize(meta, backend="cpp", seed=5)
    for name, tensor in plain.state_dict().items():
        assert same_bits(other.state_dict()[name], tensor) and same_bits(meta.state_dict()[name], tensor)
        assert same_bits(half.state_dict()[name], tensor.to(torch.bfloat16))
        assert same_bits(cast.state_dict()[name], tensor.to(torch.bfloat16))


@cpp
@pytest.mark.parametrize(
    ("view", "index"),
    [
        (lambda w: w[2], [8, 9, 10, 11]),
        (lambda w: w[1:3], range(4, 12)),
        (lambda w: w[:, 1], [1, 5, 9, 13, 17, 21]),
        (lambda w: w[::2, 1:3], [1, 2, 9, 10, 17, 18]),
        (lambda w: w.t()[1], [1, 5, 9, 13, 17, 21]),
        (lambda w: w.view(2, 3, 4)[1], range(12, 24)),
        (lambda w: w.view(3, 2, 4).transpose(0, 1)[0], [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]),
        (lambda w: w.unsqueeze(1)[2:4, 0], range(8, 16)),
        (lambda w: w.chunk(3)[1], range(8, 16)),
        (lambda w: w.detach().diagonal(), [0, 5, 10, 15]),
    ],
    ids=range(10),
)
def test_a_view_gets_the_numbers_that_its_elements_have_in_the_whole(view, index):
    model, recipe = captured(lambda m: view(m.a).normal_(1, 2))
    whole = named_fill("a", (6, 4), plans.Normal(1, 2)).flatten()
    expected = torch.full((24,), math.nan)
    expected[list(index)] = whole[list(index)]
    assert torch.equal(torch.nan_to_num(model.a.flatten(), 7.0), torch.nan_to_num(expected, 7.0))
    assert recipe.report.unkeyed == () and recipe.report.n_bytes == 4 * len(list(index))


@cpp
def test_fused_weights_are_filled_slice_by_slice_in_one_launch():
    def code(m):
        nn.init.xavier_uniform_(m.a[:2])
        nn.init.normal_(m.a[2:4], std=0.5)
        m.a[4:].fill_(3)
        m.b.normal_()
        m.b[1].zero_()
        m.b[2:].uniform_()
        m.b[2][3:].fill_(7)

    model, recipe = captured(code)
    bound = math.sqrt(6 / 6)
    assert same_bits(model.a[:2], named_fill("a", (6, 4), plans.Uniform(-bound, bound))[:2])
    assert same_bits(model.a[2:4], named_fill("a", (6, 4), plans.Normal(0, 0.5))[2:4]) and (model.a[4:] == 3).all()
    expected = named_fill("b", (4, 6), plans.Normal(0, 1))
    expected[1], expected[2:] = 0, named_fill("b", (4, 6), plans.Uniform(0, 1))[2:]
    expected[2][3:] = 7
    assert same_bits(model.b, expected)
    assert recipe.report.launches == {"cpu": 1} and recipe.report.unkeyed == ()


@cpp
def test_a_dense_layout_that_is_not_row_major_has_the_same_numbers():
    model = nn.Module()
    model.w = nn.Parameter(torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last))
    captured(lambda m: (m.w.normal_(), m.w[1:3].uniform_()), model)
    expected = named_fill("w", (4, 3, 2, 2), plans.Normal(0, 1))
    expected[1:3] = named_fill("w", (4, 3, 2, 2), plans.Uniform(0, 1))[1:3]
    assert same_bits(model.w.contiguous(), expected)


@cpp
@pytest.mark.parametrize(
    ("code", "distribution"),
    [
        (lambda w: w.normal_().mul_(0.02), plans.Normal(0, 0.02)),
        (lambda w: w.normal_(1, 2).mul_(3).add_(1), plans.Normal(4, 6)),
        (lambda w: w.normal_().div_(math.sqrt(8)), plans.Normal(0, 1 / math.sqrt(8))),
        (lambda w: w.uniform_().mul_(2).sub_(1), plans.Uniform(-1, 1)),
        (lambda w: w.uniform_().add_(1, alpha=3), plans.Uniform(3, 4)),
        (lambda w: w.uniform_().mul_(torch.tensor(2.0)), plans.Uniform(0, 2)),
        (lambda w: w.copy_(torch.randn(6, 4) * 0.02), plans.Normal(0, 0.02)),
        (lambda w: w.copy_(2 * torch.rand(6, 4) - 1), plans.Uniform(-1, 1)),
        (lambda w: w.copy_(torch.normal(1.0, 0.5, (6, 4))), plans.Normal(1, 0.5)),
        (lambda w: w.copy_(torch.randn_like(w) / 4), plans.Normal(0, 0.25)),
        (lambda w: nn.init.trunc_normal_(w, std=1.0).mul_(0.02).add_(1), plans.TruncatedNormal(1, 0.02, 0.96, 1.04)),
        (lambda w: w.zero_().add_(0.3).mul_(3), plans.Constant(torch.tensor(0.3).mul_(3).item())),
        (lambda w: w.fill_(torch.tensor(5.0)), plans.Constant(5.0)),
        (lambda w: w.copy_(torch.full((6, 4), 2.0) ** 1), None),
    ],
    ids=range(14),
)
def test_scaling_and_shifting_change_the_numbers_of_the_draw(code, distribution):
    model, recipe = captured(lambda m: code(m.a))
    (fill,) = recipe.fills.get("a", (None,))
    if distribution is None:
        assert fill is None and "copy_" in recipe.unknown["a"] and (model.a == 2).all()
        return
    assert fill.distribution == distribution and recipe.report.launches == {"cpu": 1} and not recipe.report.unkeyed
    assert same_bits(model.a, named_fill("a", (6, 4), distribution))


@cpp
@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(-1),
        lambda w: w.mul_(0),
        lambda w: w.neg_(),
        lambda w: w.pow_(2),
        lambda w: w.mul_(torch.arange(4.0)),
        lambda w: w.add_(w.mean()),
        lambda w: w.clamp_(-0.5, 0.5),
        lambda w: w.mul_(math.inf),
        lambda w: w[:, 1].mul_(3),
        lambda w: w.erfinv_(),
        lambda w: w.add_(1).erfinv_(),
        lambda w: w.mul_(0.5).erfinv_().mul_(2).cos_(),
    ],
    ids=range(12),
)
def test_what_cannot_be_folded_is_done_to_the_values(change):
    model, _ = captured(lambda m: change(m.a.uniform_()))
    expected = named_fill("a", (6, 4), plans.Uniform(0, 1))
    change(expected)
    torch.testing.assert_close(model.a.detach(), expected, equal_nan=True, rtol=1e-6, atol=1e-7)


def timm_style(tensor, mean, std, a, b):
    low, high = ((1 + math.erf((x - mean) / std / math.sqrt(2))) / 2 for x in (a, b))
    return (
        tensor.uniform_(2 * low - 1, 2 * high - 1).erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(min=a, max=b)
    )


@cpp
@pytest.mark.parametrize(
    "numbers", [(0, 0.02, -2, 2), (0.5, 0.3, -0.1, 1.1), (0, 1, -2, 2), (0, 1, 1, 8), (0, 0.029, -2, 2)], ids=str
)
def test_truncated_normals_are_recognized_however_a_library_draws_them(numbers):
    mean, std, a, b = numbers
    expected = named_fill("a", (6, 4), plans.TruncatedNormal(mean, std, a, b))
    mmengine_style = needs.module("mmengine.model.weight_init").trunc_normal_
    draws = [
        lambda w: nn.init.trunc_normal_(w, mean, std, a, b),
        lambda w: timm_style(w, mean, std, a, b),
        lambda w: mmengine_style(w, mean, std, a, b),
        lambda w: fastinit.trunc_normal_(w, mean, std, a, b),
    ]
    for draw in draws:
        model, recipe = captured(lambda m: draw(m.a))
        assert same_bits(model.a, expected) and recipe.report.launches == {"cpu": 1} and not recipe.report.unkeyed


@cpp
def test_a_chain_that_is_no_truncated_normal_in_the_end_is_executed_as_written():
    def code(w, other):
        w.uniform_(-0.9, 0.9).erfinv_().mul_(2)
        other.copy_(w.t())
        w.clamp_(-0.1, 0.2)

    model, _ = captured(lambda m: code(m.a, m.b))
    expected, transposed = named_fill("a", (6, 4), plans.Uniform(-0.9, 0.9)), torch.empty(4, 6)
    expected.erfinv_().mul_(2)
    transposed.copy_(expected.t())
    assert torch.equal(model.a, expected.clamp_(-0.1, 0.2)) and torch.equal(model.b, transposed)
    # Clamped to other bounds than those that it was drawn for.
    model, recipe = captured(lambda m: m.a.uniform_(-0.9, 0.9).erfinv_().mul_(2).clamp_(-0.1, 0.2))
    assert torch.equal(model.a, expected) and "a" in recipe.unknown
    # One that is left unfinished, and one whose half is overwritten meanwhile.
    model, _ = captured(lambda m: (m.a.uniform_(0, 0.5).erfinv_(), m.b.uniform_(0, 0.5).erfinv_(), m.b[1].fill_(9)))
    assert torch.equal(model.a, named_fill("a", (6, 4), plans.Uniform(0, 0.5)).erfinv_())
    expected = named_fill("b", (4, 6), plans.Uniform(0, 0.5)).erfinv_()
    expected[1] = 9
    assert torch.equal(model.b, expected)


# --- copies ----------------------------------------------------------------------------------------------------------


@cpp
def test_copies_share_a_draw_and_are_called_by_the_first_name_that_holds_it():
    def make():
        layer = nn.Linear(4, 4)
        return nn.ModuleList([copy.deepcopy(layer), copy.deepcopy(layer), nn.Linear(4, 4)])

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = make()
    bound = plans.Uniform(-0.5, 0.5)
    assert same_bits(model[0].weight, named_fill("0.weight", (4, 4), bound))
    assert same_bits(model[1].weight, model[0].weight) and model[1].weight is not model[0].weight
    assert same_bits(model[2].weight, named_fill("2.weight", (4, 4), bound))
    assert recipe.report.launches == {"cpu": 1} and recipe.report.unkeyed == ()
    assert recipe.fills["1.weight"][0].key == "0.weight" and "the values of 0.weight" in str(recipe.report)


@cpp
def test_a_copy_of_a_fill_with_a_part_in_it_and_casts_of_it_stay_unread():
    def make():
        table = nn.Embedding(6, 4, padding_idx=2)
        return nn.ModuleList([copy.deepcopy(table), copy.deepcopy(table).to(torch.bfloat16)])

    model = fastinit.build(make, backend="cpp", seed=0, strict=True)
    expected = named_fill("0.weight", (6, 4), plans.Normal(0, 1))
    expected[2] = 0
    assert same_bits(model[0].weight, expected) and same_bits(model[1].weight, expected.to(torch.bfloat16))


@cpp
def test_casts_that_change_the_numbers_read_them():
    seen = {}

    def code(m):
        m.a.normal_()
        seen["double"] = m.a.double()
        m.b.data.copy_(nn.init.trunc_normal_(torch.empty(4, 6), std=1, a=-1.1, b=1.1))
        seen["half"] = m.b.bfloat16()
        m.c.copy_(torch.rand(24, dtype=torch.float64))

    model, recipe = captured(code)
    assert torch.equal(seen["double"], model.a.double()) and torch.equal(seen["half"], model.b.bfloat16())
    assert torch.equal(model.a, named_fill("a", (6, 4), plans.Normal(0, 1)))
    assert (model.c < 1).all() and "c" in recipe.unknown and len(recipe.report.unkeyed) == 1


@cpp
def test_casts_that_round_twice_or_out_of_bounds_read_the_numbers():
    with fastinit.capture(backend="cpp", seed=0):
        double = torch.randn(4096, dtype=torch.float64)
        half = torch.rand(4096, dtype=torch.bfloat16)
        narrow = nn.init.trunc_normal_(torch.empty(1 << 16), std=1.0, a=-0.01102, b=0.01102)
        casts = double.bfloat16(), half.half(), narrow.bfloat16()
    assert torch.equal(casts[0], double.bfloat16()) and torch.equal(casts[1], half.half())
    assert torch.equal(casts[2], narrow.bfloat16()) and casts[2].float().max() > 0.01102


@cpp
def test_copying_between_parameters_and_overwriting_the_source_keeps_what_was_copied():
    def code(m):
        m.a.normal_()
        m.b.copy_(m.a.view(4, 6))
        m.c.copy_(m.a.flatten())
        m.a.zero_()
        m.a.data.add_(1)

    model, recipe = captured(code)
    assert (model.a == 1).all() and torch.equal(model.b.flatten(), model.c) and model.b.std() > 0.5
    assert recipe.report.unkeyed == ()


# --- everything else stays right -------------------------------------------------------------------------------------

READS = {
    "mean": lambda t: t.mean().item(),
    "item": lambda t: t[0, 0].item(),
    "float": lambda t: float(t[0, 0]),
    "bool": lambda t: bool((t > 0)[0, 0]),
    "tolist": lambda t: t.tolist(),
    "repr": lambda t: repr(t),
    "format": lambda t: f"{t[1, 1]:.4f}",
    "numpy": lambda t: t.detach().numpy().copy().tolist(),
    "asarray": lambda t: np.asarray(t.detach()).tolist(),
    "dlpack": lambda t: np.from_dlpack(t.detach()).tolist(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t.detach())).tolist(),
    "save": lambda t: (lambda f: (torch.save(t, f), f.seek(0), torch.load(f).tolist())[-1])(io.BytesIO()),
    "storage": lambda t: list(t.detach().untyped_storage())[:8],
    "deepcopy": lambda t: copy.deepcopy(t.detach()).tolist(),
    "cat": lambda t: torch.cat([t, t]).tolist(),
    "foreach": lambda t: torch._foreach_norm([t])[0].item(),
    "stack of lists": lambda t: torch.stack([t, t])[1].tolist(),
    "matmul": lambda t: (t @ t.t()).tolist(),
    "backward": lambda t: torch.autograd.grad((t**3).sum(), t)[0].tolist(),
    "equal": lambda t: torch.equal(t, torch.zeros_like(t)),
    "unique": lambda t: t.unique().tolist(),
    "iterate": lambda t: [row[0].item() for row in t],
    "script": lambda t: torch.jit.script(_twice)(t).tolist(),
}


def _twice(x: torch.Tensor):
    return x * x.abs()


@cpp
@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("draw", [lambda t: t.normal_(), lambda t: t.fill_(3)], ids=["normal", "constant"])
@pytest.mark.filterwarnings("ignore")
def test_whoever_reads_a_parameter_in_the_block_sees_its_final_values(read, draw):
    model, seen = Holder(), []
    with fastinit.capture(model, backend="cpp", seed=0) as recipe:
        draw(model.a.data)
        seen.append(read(model.a))
        model.b.data.normal_()
    assert seen == [read(model.a)] and not model.a.isnan().any()
    assert recipe.report.unkeyed == () and len(recipe.fills) == 2


@cpp
def test_memory_whose_address_is_known_is_filled_at_once():
    model, seen = Holder(), []
    array = np.zeros(24, np.float32)
    model.from_numpy = nn.Parameter(torch.from_numpy(array))
    with fastinit.capture(model, backend="cpp", seed=0), torch.no_grad():
        view = model.a.numpy()
        pointer = model.b.data_ptr()
        model.a.normal_()
        model.b.fill_(4)
        model.from_numpy.uniform_()
        if not hasattr(torch.UntypedStorage, "resizable"):  # torch 2.1 does not tell whose memory it is
            model.from_numpy.mean().item()
        import ctypes

        seen += [view.copy(), ctypes.c_float.from_address(pointer).value, array.copy()]
    assert np.array_equal(seen[0], model.a.detach().numpy()) and seen[1] == 4
    assert np.array_equal(seen[2], model.from_numpy.detach().numpy()) and seen[2].std() > 0.1
    assert same_bits(model.a, named_fill("a", (6, 4), plans.Normal(0, 1)))


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
def test_operators_that_are_not_known_write_what_they_write(backend):
    def code(m):
        m.a.normal_()
        m.b.normal_()
        m.c.uniform_()
        torch.mul(m.a, 0, out=m.b.view(6, 4))
        torch.arange(24, out=m.c)
        m.a[torch.tensor([1, 3])] = 5
        m.a.index_fill_(1, torch.tensor([0]), 6)
        m.c.masked_fill_(m.c > 20, -1)
        torch._foreach_add_([m.b], 2)
        m.c.data[:2].copy_(m.b.data.flatten()[:2])

    model, recipe = captured(code, backend=backend)
    assert (model.b == 2).all() and model.c.tolist() == [2, 2, *range(2, 21), -1, -1, -1]
    assert (model.a[1, 1:] == 5).all() and (model.a[:, 0] == 6).all() and model.a[0, 1:].std() > 0
    assert set(recipe.unknown) == {"a", "b", "c"} and recipe.report.unreached == ()


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def parametrized(m):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    nn.init.normal_(layer.parametrizations.weight.original1, std=0.3)
    layer.weight = torch.ones(3, 4)
    m.normed = layer
    m.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    m.old = torch.nn.utils.weight_norm(nn.Linear(3, 3))
    m.pruned = nn.Linear(3, 3)
    torch.nn.utils.prune.l1_unstructured(m.pruned, "weight", 2)


def quantized_and_lazy(m):
    m.lazy = nn.LazyLinear(3)
    m.lazy(torch.ones(2, 4))
    m.quantized = nn.Module()
    m.quantized.register_buffer("table", torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8))
    m.quantized.register_buffer("sparse", torch.rand(3, 3).to_sparse())


def inference(m):
    with torch.inference_mode():
        table = torch.zeros(3).normal_()
        table.mul_(2)
    m.register_buffer("table", table.clone())


def generators(m):
    generator = torch.Generator().manual_seed(3)
    m.a.data.normal_(generator=generator)
    m.b.data.uniform_(generator=generator)
    nn.init.trunc_normal_(m.c, std=0.1)


CODES = {
    "orthogonal": lambda m: (nn.init.orthogonal_(m.a), nn.init.orthogonal_(m.b, gain=2)),
    "eye": lambda m: (nn.init.eye_(m.a), nn.init.normal_(m.b)),
    "sparse": lambda m: nn.init.sparse_(m.a, 0.5),
    "dirac": lambda m: setattr(m, "d", nn.Parameter(nn.init.dirac_(torch.empty(4, 4, 3)))),
    "trunc_normal": lambda m: (nn.init.trunc_normal_(m.a, std=0.02), nn.init.trunc_normal_(m.b, a=1, b=9)),
    "timm": lambda m: timm_style(m.a.data, 0, 0.02, -2, 2),
    "tied": lambda m: setattr(m, "tied", m.a) or nn.init.xavier_normal_(m.tied),
    "data": lambda m: setattr(m.a, "data", torch.randn(6, 4) * 3) or m.a.data.add_(1),
    "swapped": lambda m: setattr(m, "a", nn.Parameter(m.b.detach().normal_().clone())),
    "function": lambda m: Scale.apply(m.a.detach().normal_()),
    "parametrized": parametrized,
    "quantized": quantized_and_lazy,
    "inference": inference,
    "modules": lambda m: m.add_module(
        "parts",
        nn.Sequential(
            nn.LSTM(3, 4, num_layers=2, bidirectional=True),
            nn.MultiheadAttention(8, 2, kdim=3, vdim=5),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2),
            nn.Bilinear(2, 3, 4),
            nn.BatchNorm1d(3),
            nn.PReLU(),
            nn.EmbeddingBag(5, 3, padding_idx=1),
            nn.ConvTranspose2d(2, 3, 3, groups=1),
        ),
    ),
    "generator": generators,
    "complex": lambda m: setattr(m, "z", nn.Parameter(torch.randn(3, dtype=torch.complex64))),
    "bernoulli": lambda m: (m.a.data.bernoulli_(0.5), m.b.data.exponential_(), torch.randperm(5)),
    "integers": lambda m: m.register_buffer("steps", torch.zeros(3, dtype=torch.long).add_(2) * 3),
    "hooks": lambda m: m.apply(lambda each: [nn.init.normal_(p) for p in each.parameters(recurse=False)]),
}
warns = pytest.mark.filterwarnings("ignore")


@warns
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("make", [Holder, lambda: None], ids=["known", "found"])
def test_on_torch_everything_is_as_without_capture_bit_for_bit(code, make):
    def run():
        torch.manual_seed(11)
        model = make()
        if model is None:
            model = Holder()
        code(model)
        return model, torch.get_rng_state()

    plain, state = run()
    known = make()
    with fastinit.capture(backend="torch") as recipe:
        model, after = run()
    assert torch.equal(state, after) and list(plain.state_dict()) == list(model.state_dict())
    for name, tensor in plain.state_dict().items():
        other = model.state_dict()[name]
        if tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex():
            assert same_bits(tensor, other), name
        else:
            assert torch.equal(
                tensor.to_dense() if tensor.is_sparse else tensor, other.to_dense() if other.is_sparse else other
            )
    assert recipe.report.launches == {} and recipe.report.unkeyed == () and (known is None or is_uninstalled())


@cpp
@warns
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_on_a_contract_backend_all_kinds_of_init_code_give_values_of_the_same_kind(code):
    torch.manual_seed(11)
    plain = Holder()
    code(plain)
    model = Holder()
    torch.manual_seed(11)
    with fastinit.capture(model, backend="cpp", seed=0):
        code(model)
    assert list(plain.state_dict()) == list(model.state_dict()) and is_uninstalled()
    for name, tensor in plain.state_dict().items():
        other = model.state_dict()[name]
        assert (tensor.shape, tensor.dtype, tensor.layout) == (other.shape, other.dtype, other.layout)
        if tensor.layout == torch.strided and not tensor.is_quantized:
            assert torch.equal(tensor.isnan(), other.isnan()), name
            if tensor.is_floating_point() and not tensor.isnan().any():
                # Constants are equal, and draws differ but are of a size.
                spread = tensor.double().std() if tensor.numel() > 1 else torch.tensor(0.0)
                assert torch.equal(tensor, other) or (spread > 0) or "parametrizations" in name, name
                assert tensor.abs().max() / 30 <= other.abs().max() <= 30 * tensor.abs().max(), name


@cpp
def test_orthogonal_matrices_are_orthogonal_and_listed_as_drawn_by_order():
    model, recipe = captured(lambda m: (nn.init.orthogonal_(m.a), nn.init.normal_(m.b)))
    torch.testing.assert_close(model.a.t() @ model.a, torch.eye(4), rtol=0, atol=1e-5)
    (listed,) = recipe.report.unkeyed
    assert listed.startswith("#0 (6x4, test_capture.py:") and "draws by order and not by name" in str(recipe.report)


@cpp
def test_a_generator_of_ones_own_is_used_and_what_it_drew_is_listed():
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    model, recipe = captured(lambda m: m.a.normal_(generator=generator))
    assert torch.equal(model.a, torch.empty(6, 4).normal_(generator=other))
    assert torch.equal(generator.get_state(), other.get_state()) and recipe.report.unkeyed == ("a",)


# --- programs --------------------------------------------------------------------------------------------------------

SLICES = [
    lambda t: t,
    lambda t: t[1],
    lambda t: t[1:3],
    lambda t: t[:, 1],
    lambda t: t.t(),
    lambda t: t.view(-1)[3:9],
    lambda t: t.view(-1)[::5],
    lambda t: t.view(2, 3, 4)[:, 1],
]
CONSTANT_STEPS = [
    lambda t, k: t.fill_(k),
    lambda t, k: t.zero_(),
    lambda t, k: t.mul_(k),
    lambda t, k: t.add_(k, alpha=2),
    lambda t, k: t.sub_(0.1),
    lambda t, k: t.div_(3),
    lambda t, k: t.clamp_(-k, k),
    lambda t, k: t.pow_(2),
    lambda t, k: t.copy_(torch.ones_like(t) * k),
    lambda t, k: t.copy_(t.clone() + 1),
    lambda t, k: t.index_fill_(0, torch.tensor([0]), k),
    lambda t, k: t.sum().item(),
    lambda t, k: t.data.fill_(k),
    lambda t, k: t.copy_(t.to(torch.float16)),
    lambda t, k: t.copy_(torch.full(t.shape, k).neg()),
]
RANDOM_STEPS = [
    lambda t, k: t.normal_(k, 2),
    lambda t, k: t.uniform_(-k, k),
    lambda t, k: nn.init.trunc_normal_(t, std=k),
    lambda t, k: t.uniform_(-0.5, 0.5).erfinv_(),  # (a truncated normal in full has other numbers when it waits)
    *CONSTANT_STEPS[:8],
    *CONSTANT_STEPS[10:13],
]


def programs(steps):
    step = st.tuples(
        st.integers(0, 1),
        st.integers(0, len(SLICES) - 1),
        st.integers(0, len(steps) - 1),
        st.sampled_from([0.5, 1.0, 3.0]),
    )
    return st.lists(step, max_size=12)


def run_program(model, program, steps):
    for which, view, step, number in program:
        steps[step](SLICES[view]((model.a, model.d)[which]), number)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6, 4))


@cpp
@given(programs(CONSTANT_STEPS))
def test_any_program_on_constants_gives_what_it_gives_without_capture(program):
    plain, model = Two(), Two()
    with torch.no_grad():
        run_program(plain, program, CONSTANT_STEPS)
    captured(lambda m: run_program(m, program, CONSTANT_STEPS), model)
    assert torch.equal(torch.nan_to_num(plain.a), torch.nan_to_num(model.a))
    assert torch.equal(torch.nan_to_num(plain.d), torch.nan_to_num(model.d))


@cpp
@settings(max_examples=300)
@given(programs(RANDOM_STEPS))
def test_any_program_gives_what_it_gives_when_every_fill_is_executed_at_once(program):
    lazy, eager = Two(), Two()
    captured(lambda m: run_program(m, program, RANDOM_STEPS), lazy)
    original = operators.Operators.run

    def run_and_flush(self, func, args, kwargs):
        result = original(self, func, args, kwargs)
        self.pending.run(self.book.pending())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators.Operators, "run", run_and_flush)
        captured(lambda m: run_program(m, program, RANDOM_STEPS), eager)
    for one, other in zip(lazy.parameters(), eager.parameters()):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5, equal_nan=True)


# --- names, blocks and threads ---------------------------------------------------------------------------------------


@cpp
def test_two_roots_are_an_error_unless_they_are_bound_under_prefixes():
    with pytest.raises(RuntimeError, match=r"2 modules.*\(Linear, Conv1d\).*recipe.bind"):
        with fastinit.capture(backend="cpp", seed=0):
            a, b = nn.Linear(3, 3), nn.Conv1d(2, 2, 1)
    assert a.weight.abs().max() <= 0.58 and a.weight.std() > 0.05  # filled all the same
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        a, b = nn.Linear(3, 3), nn.Linear(3, 3)
        recipe.bind(a, prefix="left")
        recipe.bind(b, "right.")
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(b.bias, named_fill("right.bias", (3,), bound)) and recipe.report.unkeyed == ()
    assert sorted(recipe.report.provenance) == ["left.bias", "left.weight", "right.bias", "right.weight"]
    with pytest.raises(RuntimeError, match="two roots have a parameter called 'bias'"):
        with fastinit.capture(backend="cpp", seed=0) as recipe:
            a, b = nn.Linear(3, 3), nn.Linear(3, 3)
            recipe.bind(a)
            recipe.bind(b)
    with pytest.raises(RuntimeError, match="block is over"):
        recipe_of_the_past = captured(lambda m: m.a.normal_(), Holder())[1]
        recipe_of_the_past._names = object()
        recipe_of_the_past.bind(a)
    with pytest.raises(TypeError, match="needs a torch.nn.Module"), fastinit.capture() as recipe:
        recipe.bind(torch.zeros(3))


@cpp
def test_what_is_read_after_it_was_bound_goes_by_its_name():
    with fastinit.capture(backend="cpp", seed=0, strict=True) as recipe:
        model = nn.Linear(3, 3)
        torch.zeros(2).sum().item()
        recipe.bind(model)
        seen = model.weight.sum().item()
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(model.weight, named_fill("weight", (3, 3), bound)) and seen == model.weight.sum().item()


@cpp
def test_modules_that_are_gone_or_draw_nothing_are_no_roots(request):
    gc.disable()
    request.addfinalizer(gc.enable)
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        nn.Linear(3, 3)
        cycle = nn.Linear(2, 2)
        cycle.itself = [cycle]
        del cycle
        nn.ReLU()
        norm = nn.LayerNorm(3)
        model = nn.Sequential(nn.Linear(3, 3))
        model.head = nn.Linear(3, 3)
    assert recipe.report.unkeyed == () and "head.weight" in recipe.report.provenance and (norm.weight == 1).all()


@cpp
def test_a_prefix_a_module_and_the_outermost_names_give_the_same_values():
    def make():
        return nn.Sequential(nn.Linear(3, 3))

    whole = fastinit.build(lambda: nn.ModuleDict({"encoder": make()}), backend="cpp", seed=0)
    part = fastinit.build(make, backend="cpp", seed=0, prefix="encoder")
    again = make()
    with fastinit.capture(again, backend="cpp", seed=0, prefix="encoder."):
        again[0].reset_parameters()
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture() as inner:
            encoder = fastinit.build(make)
        nested = nn.ModuleDict({"encoder": encoder})
    for other in (part, again, nested["encoder"]):
        assert same_bits(other[0].weight, whole["encoder"][0].weight)
    assert recipe.report.launches == {"cpu": 1}
    with pytest.raises(RuntimeError, match="part of a larger block"):
        inner.report


@cpp
def test_a_nested_block_with_a_seed_of_its_own_is_its_own():
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with fastinit.capture(backend="cpp", seed=9, prefix="teacher") as inner:
            teacher = nn.Linear(3, 3)
        seen = teacher.weight.detach().clone()
        model = nn.Linear(3, 3)
        recipe.bind(model)
    bound = plans.Uniform(-math.sqrt(1 / 3), math.sqrt(1 / 3))
    assert same_bits(teacher.weight, named_fill("teacher.weight", (3, 3), bound, seed=9)) and torch.equal(
        seen, teacher.weight
    )
    assert same_bits(model.weight, named_fill("weight", (3, 3), bound)) and inner.report.seed == 9


@cpp
def test_fastinits_own_calls_join_the_plan():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = Net()
        fastinit.normal_init(model.fc, std=0.3, bias=2)
        fastinit.constant_init(model.norm, 5)
    assert same_bits(model.fc.weight, named_fill("fc.weight", (4, 4), plans.Normal(0, 0.3)))
    assert (model.fc.bias == 2).all() and (model.norm.weight == 5).all() and recipe.report.launches == {"cpu": 1}
    model = Net()
    with fastinit.capture(model, backend="cpp", seed=0) as recipe:
        report = fastinit.initialize(model, dict(type="Xavier", layer="Linear"))
        model.head.bias.data.add_(1)
    assert report.launches == {"cpu": 1} and len(report.rows) == 4 and (model.head.bias == 1).all()
    assert same_bits(model.fc.weight, named_fill("fc.weight", (4, 4), plans.Normal(0, 0.5)))
    before = model.fc.weight._version
    with fastinit.capture(model, backend="cpp", seed=0):
        fastinit.normal_init(model.fc)
        assert model.fc.weight._version > before  # counted where the code asks, not when it is done
        before = model.fc.weight._version
    assert model.fc.weight._version == before


@cpp
def test_after_an_exception_tensors_have_the_values_that_were_asked_for():
    model = Holder()
    with pytest.raises(OSError, match="disk"), fastinit.capture(model, backend="cpp", seed=0) as recipe:
        model.a.data.normal_()
        model.b.data.fill_(2)
        raise OSError("disk")
    assert same_bits(model.a, named_fill("a", (6, 4), plans.Normal(0, 1))) and (model.b == 2).all() and is_uninstalled()
    with pytest.raises(RuntimeError, match="report is made when the block ends"):
        recipe.report
    with pytest.raises(ValueError, match="unknown backend 'cp'"), fastinit.capture(backend="cp"):
        pass
    assert is_uninstalled()
    with pytest.raises(RuntimeError, match="needs a|cannot|finds no|missing|not installed"):
        with fastinit.capture(backend="cuda" if not torch.cuda.is_available() else "cpp"):
            raise RuntimeError("cannot") if torch.cuda.is_available() else AssertionError("entered")


@cpp
def test_strict_refuses_what_is_drawn_by_order_and_still_leaves_values():
    with pytest.raises(RuntimeError, match=r"strict: test_capture.py:\d+ in .* draws normal.* of shape \(4, 4\)"):
        with fastinit.capture(backend="cpp", seed=0, strict=True):
            model = nn.Linear(4, 4)
            nn.init.normal_(model.weight)
            model.weight.sum().item()
    assert model.weight.isfinite().all() and model.bias.abs().max() <= 0.5 and is_uninstalled()
    with pytest.raises(RuntimeError, match="strict"):
        fastinit.build(
            lambda: nn.Sequential(nn.init.orthogonal_(nn.Linear(4, 4).weight) is None or nn.Linear(2, 2)),
            backend="cpp",
            strict=True,
        )
    with pytest.raises(RuntimeError, match="strict: `aten.bernoulli.*by order"):
        captured(lambda m: m.a.bernoulli_(0.5), strict=True)


@cpp
def test_a_draw_without_a_name_is_by_order_and_repeats_under_a_seed():
    def run():
        with fastinit.capture(backend="cpp", seed=0) as recipe:
            tensors = [torch.empty(5).normal_(), torch.randn(5)]
        return tensors, recipe.report.unkeyed

    (one, two), listed = run()
    (again, _), _ = run()
    assert same_bits(one, again) and not same_bits(one, two) and [text[:2] for text in listed] == ["#0", "#1"]
    assert same_bits(one, named_fill("#0", (5,), plans.Normal(0, 1)))


@cpp
def test_what_no_one_holds_at_the_end_is_never_drawn():
    def code(m):
        for _ in range(3):
            torch.randn(1000, 1000)
        m.a.copy_(torch.randn(1000, 24)[0].view(6, 4))
        m.b.normal_()
        m.b.uniform_()

    _, recipe = captured(code)
    assert recipe.report.n_bytes == 4 * 24 and len(recipe.report.rows) == 1


@cpp
def test_seedless_blocks_follow_torchs_generator_and_draw_once():
    def run():
        torch.manual_seed(5)
        with fastinit.capture(backend="cpp") as recipe:
            model = nn.Linear(3, 3)
        return model, recipe.report.seed, torch.get_rng_state()

    (a, seed, state), (b, again, _) = run(), run()
    torch.manual_seed(5)
    assert same_bits(a.weight, b.weight) and seed == again == int(torch.empty((), dtype=torch.int64).random_())
    assert torch.equal(state, torch.get_rng_state())
    with fastinit.use(backend="cpp", seed=seed):
        c = fastinit.build(nn.Linear, 3, 3)
    assert same_bits(a.weight, c.weight)


@cpp
def test_threads_record_apart_and_threads_started_in_a_block_with_it():
    results = {}

    def make(seed):
        for _ in range(20):
            with fastinit.capture(backend="cpp", seed=seed):
                model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
        results[seed] = model

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for seed, model in results.items():
        bound = plans.Uniform(-math.sqrt(1 / 8), math.sqrt(1 / 8))
        assert same_bits(model[3].weight, named_fill("3.weight", (8, 8), bound, seed=seed))

    model, seen = Holder(), []
    with fastinit.capture(model, backend="cpp", seed=0) as recipe, torch.no_grad():
        model.a.normal_()

        def work():
            seen.append(model.a.sum().item())
            with torch.no_grad():
                model.b.normal_()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        model.c.copy_(model.b.flatten())
    assert seen == [model.a.sum().item()] and torch.equal(model.b.flatten(), model.c) and is_uninstalled()
    assert same_bits(model.b, named_fill("b", (4, 6), plans.Normal(0, 1))) and recipe.report.unkeyed == ()


@cpp
def test_a_thread_that_outlives_the_block_goes_on_without_it():
    model, go, done = Holder(), threading.Event(), threading.Event()

    def work():
        go.wait(10)
        model.b.data.fill_(3)
        done.set()

    with fastinit.capture(model, backend="cpp", seed=0):
        thread = threading.Thread(target=work)
        thread.start()
        model.a.data.normal_()
    go.set()
    thread.join()
    assert done.is_set() and (model.b == 3).all() and is_uninstalled()


@cpp
def test_device_contexts_and_modes_of_others_work_within_and_around():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    with fastinit.capture(backend="cpp", seed=0) as recipe, torch.device("cpu"), Count() as inner:
        model = nn.Linear(4, 4)
    assert inner.n > 0 and recipe.report.unkeyed == ()
    with Count(), torch.device("cpu"), fastinit.capture(backend="cpp", seed=0):
        other = nn.Linear(4, 4)
    assert same_bits(model.weight, other.weight)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with FakeTensorMode():
            nn.Linear(3, 3)
        model = nn.Linear(4, 4)
        recipe.bind(model)
    assert same_bits(model.weight, other.weight)


@needs.mark(needs.CPP, needs.torch_from(2, 2))  # which has a subclass for tests
def test_subclasses_that_wrap_tensors_are_taken_apart_and_read():
    from torch.testing._internal.two_tensor import TwoTensor

    with fastinit.capture(backend="cpp", seed=0):
        a, b = torch.empty(3).fill_(2), torch.empty(3).fill_(3)
        both = TwoTensor(a, b)
        both.add_(1)
        total = both + both
    assert total.a.tolist() == [6, 6, 6] and total.b.tolist() == [8, 8, 8] and a.tolist() == [3, 3, 3]


@cpp
def test_versions_are_counted_as_the_operations_count_them():
    plain, model = Holder(), Holder()

    def code(m):
        m.a.data.normal_()
        nn.init.trunc_normal_(m.b)
        m.c.normal_().mul_(2)

    with torch.no_grad():
        code(plain)
    captured(code, model)
    for name in ("a", "b", "c"):
        assert (getattr(plain, name)._version > 0) == (getattr(model, name)._version > 0)
    leaf = nn.Parameter(torch.ones(3))
    product = (leaf * leaf).sum()
    with fastinit.capture(backend="cpp", seed=0), torch.no_grad():
        leaf.normal_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with pytest.raises(RuntimeError, match="leaf Variable"), fastinit.capture(backend="cpp"):
        nn.Parameter(torch.ones(3)).normal_()


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
def test_a_truncated_normal_far_from_its_bounds_warns_once_as_torch_does(backend):
    with pytest.warns(UserWarning, match="mean is more than 2 std from") as warned:
        captured(lambda m: nn.init.trunc_normal_(m.a, mean=5.0, std=1.0, a=-2, b=2), backend=backend)
    assert len(warned) == 1


@cpp
def test_bad_numbers_are_torchs_own_errors():
    for code in (lambda w: w.normal_(0, -1), lambda w: w.uniform_(2, 1), lambda w: nn.init.trunc_normal_(w, std=0.0)):
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            captured(lambda m: code(m.a))
        assert is_uninstalled()

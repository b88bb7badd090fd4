"""Init code of all kinds under ``capture``: the same bits on torch, values of the same kind on a contract backend."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from capturing import Holder, captured, cpp, is_uninstalled, timm_style
from helpers import same_bits
from torch import nn

import fastinit


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
def test_on_torch_init_code_gives_the_bits_it_gives_without_capture(code, make):
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
    assert torch.equal(state, after)
    assert list(plain.state_dict()) == list(model.state_dict())
    for name, tensor in plain.state_dict().items():
        other = model.state_dict()[name]
        if tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex():
            assert same_bits(tensor, other), name
        else:
            assert torch.equal(
                tensor.to_dense() if tensor.is_sparse else tensor, other.to_dense() if other.is_sparse else other
            )
    assert recipe.report.launches == {}
    assert recipe.report.unkeyed == ()
    assert known is None or is_uninstalled()


@cpp
@warns
@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_on_a_contract_backend_init_code_gives_values_of_the_same_kind(code):
    torch.manual_seed(11)
    plain = Holder()
    code(plain)
    model = Holder()
    torch.manual_seed(11)
    with fastinit.capture(model, backend="cpp", seed=0):
        code(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert is_uninstalled()
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
def test_matrices_that_code_makes_orthogonal_itself_are_so_and_listed_as_unnamed_draws():
    model, recipe = captured(
        lambda m: (m.a.copy_(torch.linalg.qr(torch.empty(6, 4).normal_())[0]), nn.init.normal_(m.b))
    )
    torch.testing.assert_close(model.a.t() @ model.a, torch.eye(4), rtol=0, atol=1e-5)
    (listed,) = recipe.report.unkeyed
    assert listed.startswith("#0 (6x4, test_init_code_of_all_kinds.py:")
    assert "draws by order and not by name" in str(recipe.report)


@cpp
def test_an_explicit_generator_is_used_and_its_draws_are_listed():
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    model, recipe = captured(lambda m: m.a.normal_(generator=generator))
    assert torch.equal(model.a, torch.empty(6, 4).normal_(generator=other))
    assert torch.equal(generator.get_state(), other.get_state())
    assert recipe.report.unkeyed == ("a",)


@cpp
def test_version_counters_advance_as_without_capture():
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
def test_invalid_arguments_raise_torchs_own_errors():
    for code in (lambda w: w.normal_(0, -1), lambda w: w.uniform_(2, 1), lambda w: nn.init.trunc_normal_(w, std=0.0)):
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            captured(lambda m: code(m.a))
        assert is_uninstalled()

"""``materialize``: memory and values for models on the meta device, or an error and the model as it was."""

from __future__ import annotations

import logging

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
CFG = dict(type="Normal", std=0.5, layer=["Linear", "Embedding", "Conv2d"])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.tokens.weight
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)


def on_meta(factory, *args):
    with torch.device("meta"):
        return factory(*args)


@backends
def test_every_parameter_gets_memory_and_the_values_that_initialize_gives(backend):
    cfg = [CFG, dict(type="Constant", val=7, param="frozen")]
    model, plain = on_meta(Tied), Tied()
    report = fastinit.materialize(model, cfg, backend=backend, seed=3)
    fastinit.initialize(plain, cfg, backend=backend, seed=3)
    if backend == "cpp":  # torch draws by order, and reset_parameters drew nothing here, so it is equal there too
        assert report.numbers.startswith("contract")
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, tensor in model.state_dict().items():
        assert same_bits(tensor, plain.state_dict()[name]), name
        assert tensor.stride() == plain.state_dict()[name].stride()
    assert model.head.weight is model.tokens.weight and isinstance(model.head.weight, nn.Parameter)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.frozen.requires_grad and model.conv.weight.requires_grad
    assert report.unreached == () and report.provenance["norm.weight"] == "`reset_parameters` of BatchNorm2d"
    assert [row.description for row in report.rows if row.action == "call"] == [
        "call of norm.reset_parameters() of BatchNorm2d"
    ]


@backends
def test_unreached_parameters_alone_are_drawn_by_their_modules_under_the_seed(backend):
    drawn = []

    class Spy(nn.Linear):
        def reset_parameters(self):
            drawn.append((self.weight.is_meta, None if self.weight.is_meta else self.weight[0, 0].item()))
            super().reset_parameters()

    def make():
        return nn.Sequential(Spy(4, 4), Spy(4, 4), nn.Linear(4, 4))

    cfg = [dict(type="Constant", val=2, param="0.weight"), dict(type="Constant", val=3, param="2.*")]
    a, b = on_meta(make), on_meta(make)
    drawn.clear()
    state = torch.get_rng_state()
    fastinit.materialize(a, cfg, seed=1, backend=backend)
    assert torch.equal(state, torch.get_rng_state())
    assert [is_meta for is_meta, _ in drawn] == [False, False]
    assert drawn[0][1] == 2  # what a rule fills can be read
    fastinit.materialize(b, cfg, seed=1, backend=backend)
    assert all(same_bits(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert (a[0].weight == 2).all() and (a[2].bias == 3).all() and a[1].weight.abs().max() <= 0.5


def test_tensors_off_the_meta_device_are_unchanged():
    model = on_meta(nn.Linear, 3, 3)
    model.register_buffer("table", torch.arange(3.0))
    model.bias = nn.Parameter(torch.full((3,), 9.0))
    table, bias = model.table, model.bias
    fastinit.materialize(model, dict(type="Constant", val=1, param="weight"), seed=0)
    assert model.table is table and model.bias is bias and (bias == 9).all() and (model.weight == 1).all()


@pytest.mark.parametrize(
    ("spoil", "cfg", "error", "message"),
    [
        (
            lambda m: m.register_parameter("x", nn.Parameter(torch.empty(2, device="meta"))),
            CFG,
            RuntimeError,
            "values: x",
        ),
        (
            lambda m: m.register_buffer("y", torch.empty(2, device="meta")),
            CFG,
            RuntimeError,
            "values: y.*No rule writes buffers",
        ),
        (
            lambda m: setattr(m[0], "reset_parameters", lambda: None),
            None,
            RuntimeError,
            "0.weight.*does not write them",
        ),
        (lambda m: None, dict(type="Nrmal"), KeyError, "Did you mean"),
        (lambda m: None, [CFG, dict(type="TruncNormal", std=0, param="0.bias")], ZeroDivisionError, r"init_cfg\[1\]"),
        (lambda m: m.append(nn.LazyLinear(3, device="meta")), CFG, RuntimeError, "'1.weight' is lazy"),
        (
            lambda m: m.register_parameter("s", nn.Parameter(torch.sparse_coo_tensor(size=(2, 2), device="meta"))),
            CFG,
            RuntimeError,
            "'s' is a torch.sparse_coo",
        ),
    ],
    ids=["parameter", "buffer", "reset", "type", "std", "lazy", "sparse"],
)
def test_an_error_leaves_the_model_on_the_meta_device(spoil, cfg, error, message):
    model = nn.Sequential(on_meta(nn.Linear, 3, 3))
    spoil(model)
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with pytest.raises(error, match=message):
        fastinit.materialize(model, cfg, seed=0)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)


def test_code_that_fails_half_way_leaves_the_model_on_the_meta_device():
    class Broken(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            raise OSError("disk")

    def make():
        first = fastinit.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=3, layer="Linear"))
        return fastinit.Sequential(first, Broken(), init_cfg=dict(CFG))

    root = on_meta(make)
    with pytest.raises(OSError, match="disk"):
        fastinit.materialize(root)
    assert all(parameter.is_meta for parameter in root.parameters())
    Broken.init_weights = lambda self: nn.init.ones_(self.fc.weight)
    fastinit.materialize(root)  # nothing is thought to be initialized already
    assert (root[0][0].weight == 3).all() and (root[1].fc.weight == 1).all()


@backends
def test_own_code_writing_through_numpy_is_detected_and_reading_is_not(backend):
    class Numpy(nn.Linear):
        def reset_parameters(self):
            if self.weight.is_meta:  # in the constructor
                return
            self.weight.detach().numpy()[1:] = 3
            self.weight.detach().numpy()[0] = 4
            nn.init.zeros_(self.bias)

    model = on_meta(Numpy, 3, 3)
    fastinit.materialize(model, backend=backend, seed=0)
    assert (model.weight[1:] == 3).all() and (model.weight[0] == 4).all()

    class Looks(nn.Linear):
        def reset_parameters(self):
            assert self.weight.is_meta or self.weight.data_ptr()
            nn.init.zeros_(self.bias)

    with pytest.raises(RuntimeError, match="no values: weight"):
        fastinit.materialize(on_meta(Looks, 3, 3), backend=backend, seed=0)


def test_attributes_of_parameters_are_kept():
    class Marked(nn.Parameter):
        pass

    model = on_meta(nn.Linear, 2, 2)
    model.weight = Marked(model.weight)
    model.weight.partition_dim = 1
    fastinit.materialize(model, CFG)
    assert type(model.weight) is Marked and model.weight.partition_dim == 1 and not model.weight.is_meta


@backends
def test_a_tree_uses_its_own_configs_and_tells_where_values_came_from(backend, caplog):
    def make():
        return fastinit.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), init_cfg=dict(type="Normal", layer="Linear"))

    model, plain = on_meta(make), make()
    with caplog.at_level(logging.INFO, "fastinit"):
        report = fastinit.materialize(model, backend=backend, seed=5)
    with fastinit.use(backend=backend, seed=5):
        plain.init_weights()
    assert same_bits(model[0].weight, plain[0].weight)
    assert report.provenance == {
        "0.weight": "NormalInit: mean=0, std=1, bias=0 (init_cfg)",
        "0.bias": "NormalInit: mean=0, std=1, bias=0 (init_cfg)",
        "1.weight": "`reset_parameters` of LayerNorm",
        "1.bias": "`reset_parameters` of LayerNorm",
    }
    assert model.is_init and model.last_init_report is not None
    assert "0.weight - (4, 4): NormalInit: mean=0, std=1, bias=0" in caplog.text
    assert "1.bias - (4,): `reset_parameters` of LayerNorm" in caplog.text


def test_without_a_config_modules_initialize_themselves():
    model = on_meta(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(8, 2), nn.BatchNorm1d(4), nn.GRU(3, 3))
    )
    fastinit.materialize(model, seed=0)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(8, 2), nn.BatchNorm1d(4), nn.GRU(3, 3))
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all() and tensor.shape == plain.state_dict()[name].shape
    assert torch.equal(model[0].weight, plain[0].weight) and (model[2].running_var == 1).all()


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        fastinit.materialize(torch.zeros(3), CFG)
    with pytest.raises(ValueError, match="device='meta'"):
        fastinit.materialize(nn.Linear(2, 2), CFG, device="meta")


def test_empty_models_and_empty_tensors_are_materialized():
    assert fastinit.materialize(nn.Sequential(), CFG).rows == ()
    model = on_meta(nn.Linear, 0, 3)
    fastinit.materialize(model, CFG)
    assert model.weight.shape == (3, 0)


def test_a_gpu_that_torch_does_not_find_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="device='cuda:1': torch .* finds no CUDA device"):
        fastinit.materialize(model, device="cuda:1")
    assert model.weight.is_meta

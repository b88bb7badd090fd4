"""``build`` and recipes on models of transformers: the same model, with each parameter filled once."""

from __future__ import annotations

import copy
import math

import needs
import pytest
import torch
from helpers import differing_kind, orthogonal_by_hand_, same_bits
from torch import nn

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend

transformers = needs.module("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

cpp = needs.mark(needs.CPP)

TEXT = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=300,
    pad_token_id=0,
)
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
)
CONFIGS = {
    "Llama": lambda: transformers.LlamaConfig(**TEXT),
    "Qwen2": lambda: transformers.Qwen2Config(**TEXT),
    "Qwen3": lambda: transformers.Qwen3Config(**TEXT, head_dim=16),
    "Mixtral": lambda: transformers.MixtralConfig(**TEXT, num_local_experts=4),
    "BERT": lambda: transformers.BertConfig(**{**TEXT, "num_key_value_heads": None}),
    "GPT-2": lambda: transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=300, bos_token_id=1, eos_token_id=2
    ),
    "T5": lambda: transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=300),
    "ViT": lambda: transformers.ViTConfig(**VISION),
    "BEiT": lambda: transformers.BeitConfig(**VISION),
    "Swin": lambda: transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "ConvNeXt": lambda: transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    "Whisper": lambda: transformers.WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        vocab_size=300,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "wav2vec2": lambda: transformers.Wav2Vec2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7
    ),
    "Mamba": lambda: transformers.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=300),
}
# What transformers' own code reads or computes before it is named: a parametrized weight, a bias from logarithms.
BY_ORDER = {"wav2vec2": 1, "Mamba": 2}
configs = pytest.mark.parametrize("name", CONFIGS)


def make(name, kind=transformers.AutoModel):
    return kind.from_config(CONFIGS[name]())


def everything(model):
    """Parameters and buffers, those that are not saved included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@configs
def test_on_torch_models_of_transformers_match_plain_construction(name):
    torch.manual_seed(3)
    plain, state = make(name), None
    state = torch.get_rng_state()
    torch.manual_seed(3)
    built = fastinit.build(make, name, backend="torch")
    assert torch.equal(state, torch.get_rng_state())
    seeded = fastinit.build(make, name, backend="torch", seed=3)
    for model in (built, seeded):
        assert list(everything(model)) == list(everything(plain))
        assert all(same_bits(a, b) for a, b in zip(everything(plain).values(), everything(model).values()))


@cpp
@configs
def test_on_a_contract_backend_every_parameter_and_buffer_is_of_the_same_kind(name):
    torch.manual_seed(3)
    plain = make(name)
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        model = make(name)
    assert list(everything(model)) == list(everything(plain))
    for key, tensor in everything(plain).items():
        assert differing_kind(tensor, everything(model)[key]) is None, key
    report = recipe.report
    assert len(report.unkeyed) == BY_ORDER.get(name, 0)
    assert report.launches == {"cpu": 1 + BY_ORDER.get(name, 0)}
    again = fastinit.build(make, name, backend="cpp", seed=0)
    assert all(same_bits(a, b) for a, b in zip(everything(model).values(), everything(again).values()))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in plain.parameters()]


def test_the_comparison_of_kinds_rejects_what_differs():
    torch.manual_seed(0)
    base = torch.randn(64, 64) * 0.02
    assert differing_kind(base, torch.randn(64, 64) * 0.02) is None
    for other in (
        torch.randn(64, 64) * 0.025,
        torch.randn(64, 64) * 0.02 + 0.005,
        torch.zeros(64, 64),
        (torch.rand(64, 64) - 0.5) * 0.02 * math.sqrt(12),
        torch.randn(64, 64, dtype=torch.float64) * 0.02,
    ):
        assert differing_kind(base, other) is not None
    assert differing_kind(torch.ones(5), torch.zeros(5)) == "constants"


@cpp
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in BY_ORDER])
def test_construction_on_the_meta_device_gives_the_same_model(name):
    built = fastinit.build(make, name, backend="cpp", seed=0)
    with fastinit.capture() as recipe, torch.device("meta"):
        model = make(name)
    without = copy.deepcopy(model)
    for meta, given in ((model, recipe), (without, None)):
        report = fastinit.materialize(meta, recipe=given, backend="cpp", seed=0)
        assert report.unkeyed == () and report.unreached == () and report.launches == {"cpu": 1}
        assert list(everything(meta)) == list(everything(built))
        for key, tensor in everything(built).items():
            assert same_bits(tensor, everything(meta)[key]), key


@cpp
def test_a_model_of_150_million_parameters_is_built():
    config = transformers.LlamaConfig(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=32000,
    )

    def large():
        return transformers.AutoModelForCausalLM.from_config(config)

    torch.manual_seed(0)
    plain = large()
    assert sum(p.numel() for p in plain.parameters()) > 150e6
    torch.manual_seed(0)
    model = fastinit.build(large, backend="torch")
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters()))
    del model
    with fastinit.capture(backend="cpp", seed=0, strict=True) as recipe:
        model = large()
    assert recipe.report.launches == {"cpu": 1} and recipe.report.unreached == ()
    for (key, one), other in zip(plain.named_parameters(), model.parameters()):
        assert differing_kind(one[:100], other[:100]) is None, key
    key = "model.layers.1.mlp.down_proj.weight"
    expected = torch.empty(1536, 4096)
    cpp_backend.run([plans.Fill.whole(key, expected, plans.Normal(0, 0.02), "", "")], 0)
    assert same_bits(model.get_parameter(key), expected)


@cpp
def test_build_takes_a_dtype_and_a_device_and_keeps_the_values():
    built = fastinit.build(make, "Llama", transformers.AutoModelForCausalLM, backend="cpp", seed=4)
    half = fastinit.build(
        lambda: transformers.AutoModelForCausalLM.from_config(CONFIGS["Llama"](), dtype=torch.bfloat16),
        backend="cpp",
        seed=4,
    )
    default = fastinit.build(nn.Linear, 4, 4, dtype=torch.float64, device="cpu", backend="cpp", seed=0)
    assert default.weight.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    for key, tensor in built.named_parameters():
        assert same_bits(half.get_parameter(key), tensor.to(torch.bfloat16)), key


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="returned <class 'torch.Tensor'>"):
        fastinit.build(torch.zeros, 3)
    with pytest.raises(ValueError, match="recipe"):
        fastinit.build(nn.Linear, 3, 3, device="meta")
    with pytest.raises(TypeError, match="recipe must be"):
        fastinit.materialize(nn.Linear(3, 3, device="meta"), recipe={})
    with pytest.raises(ZeroDivisionError):
        fastinit.build(lambda: 1 / 0, dtype=torch.float64)
    assert torch.get_default_dtype() == torch.float32


# --- recipes ---------------------------------------------------------------------------------------------------------


class Computes(nn.Module):
    """A plain module whose constructor does what modules do."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, 4) * 0.02)
        self.scale = nn.Parameter(torch.full((4,), 1e-4))
        self.table = nn.Embedding(6, 4, padding_idx=2)
        self.fused = nn.Linear(4, 12)
        for i in range(3):
            orthogonal_by_hand_(self.fused.weight[4 * i : 4 * i + 4]) if i == 1 else nn.init.xavier_uniform_(
                self.fused.weight[4 * i : 4 * i + 4]
            )
        self.register_buffer("mask", torch.ones(4, 4).tril())


@cpp
def test_a_recipe_lists_fills_and_unknown_operations_by_name():
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        Computes_ = Computes()
    assert set(recipe.fills) == {"query", "scale", "table.weight", "fused.bias"}
    assert set(recipe.unknown) == {"fused.weight"} and "mul_" in recipe.unknown["fused.weight"]
    assert [fill.shape for fill in recipe.fills["table.weight"]] == [(6, 4), (4,)]
    assert recipe.fills["query"][0].distribution == plans.Normal(0, 0.02)
    assert repr(recipe) == "<Recipe of 5 fills of 4 tensors; 1 written by other code>"
    assert "table.weight: constant(0), part of 4" in str(recipe) and Computes_.mask.sum() == 10


@cpp
def test_materialize_takes_the_config_first_then_the_recipe_then_the_modules_own_code():
    with fastinit.capture() as recipe, torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(6, 4, padding_idx=2), nn.BatchNorm1d(4))
        nn.init.normal_(model[0].weight, std=0.3)
    model.append(nn.Linear(2, 2, device="meta"))
    report = fastinit.materialize(
        model, dict(type="Constant", val=7, param="0.bias"), recipe=recipe, backend="cpp", seed=0
    )
    assert (model[0].bias == 7).all() and (model[2].running_var == 1).all() and report.launches == {"cpu": 1}
    expected = torch.empty(4, 4)
    cpp_backend.run([plans.Fill.whole("0.weight", expected, plans.Normal(0, 0.3), "", "")], 0)
    assert same_bits(model[0].weight, expected) and (model[1].weight[2] == 0).all() and model[1].weight[3].std() > 0
    assert report.provenance["3.weight"] == "`reset_parameters` of Linear" and report.unkeyed == ()
    assert report.provenance["0.weight"].startswith("`normal_` at test_build.py")
    whole = fastinit.build(lambda: nn.ModuleList([nn.Linear(2, 2)] * 4), backend="cpp", seed=0)
    assert not same_bits(model[3].weight, whole[3].weight)  # tied there: called by its first name


def test_a_recipe_runs_on_torch_too():
    with fastinit.capture() as recipe, torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Embedding(6, 4, padding_idx=2))
    fastinit.materialize(model, recipe=recipe, backend="torch", seed=0)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 4), nn.Embedding(6, 4, padding_idx=2))
    assert all(same_bits(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
def test_a_recipe_runs_again_on_a_model_with_memory(backend):
    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.Embedding(6, 4, padding_idx=2), nn.BatchNorm1d(4))

    with fastinit.capture(backend=backend, seed=0) as recipe:
        model = make()
    other = make()
    with torch.no_grad():
        for tensor in (*other.parameters(), other[2].running_var):
            tensor.fill_(7)
    report = fastinit.initialize(other, recipe, backend=backend, seed=0)
    assert all(same_bits(a, b) for a, b in zip(everything(model).values(), everything(other).values()))
    assert report.unreached == () and report.launches == ({"cpu": 1} if backend == "cpp" else {})
    part = nn.Sequential(nn.Linear(4, 4))
    fastinit.initialize(part, recipe, backend=backend, seed=0)
    assert same_bits(part[0].weight, model[0].weight)
    with pytest.warns(UserWarning, match="init_cfg: the recipe holds no parameter of ModuleDict"):
        fastinit.initialize(nn.ModuleDict({"a": nn.Linear(2, 2)}), recipe, backend=backend)


def test_values_that_cannot_be_computed_again_are_listed_with_their_operation():
    def draws_by_itself():
        model = nn.Linear(4, 4)
        nn.init.uniform_(model.weight, generator=torch.Generator())
        return model

    with fastinit.capture() as recipe, torch.device("meta"):
        model = draws_by_itself()
    before = everything(model)
    message = r"weight \(`aten.uniform_.default` at test_build.py.*draws from a generator of its own\).*param="
    with pytest.raises(RuntimeError, match=message):
        fastinit.materialize(model, recipe=recipe, seed=0)  # its own reset_parameters would give others
    assert all(tensor is before[key] for key, tensor in everything(model).items())
    fastinit.materialize(model, dict(type="Constant", val=2, param="weight"), recipe=recipe, seed=0)
    assert (model.weight == 2).all() and model.bias.abs().max() <= 0.5


def test_a_recipe_must_fit_the_shapes():
    with fastinit.capture() as recipe:
        nn.Linear(4, 4)
        recipe.bind(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match=r"'weight' was recorded with shape \(4, 4\), but is \(4, 5\)"):
        fastinit.materialize(nn.Linear(5, 4, device="meta"), recipe=recipe)


@cpp
def test_a_tree_of_base_modules_and_its_own_code_are_one_plan():
    class Head(fastinit.BaseModule):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg)
            self.cls, self.reg = nn.Linear(8, 4), nn.Linear(8, 4)
            self.query = nn.Parameter(torch.empty(3, 8))

        def init_weights(self):
            super().init_weights()
            fastinit.normal_init(self.cls, std=0.01, bias=fastinit.bias_init_with_prob(0.01))
            nn.init.trunc_normal_(self.query, std=0.02)
            self.reg.weight.data.mul_(0.5)

    def tree():
        return fastinit.Sequential(
            nn.Conv2d(3, 8, 3),
            fastinit.Sequential(nn.BatchNorm2d(8), init_cfg=dict(type="Constant", val=2, layer="_BatchNorm")),
            Head(init_cfg=dict(type="Normal", std=0.1, layer="Linear")),
            init_cfg=[dict(type="Kaiming", layer="Conv2d"), dict(type="Xavier", layer="Linear")],
        )

    model = tree()
    with fastinit.use(backend="cpp", seed=0):
        model.init_weights()
    report = model.last_init_report
    assert report.launches == {"cpu": 1} and report.unkeyed == ()
    for name, distribution in {
        "2.cls.weight": plans.Normal(0, 0.01),
        "2.reg.weight": plans.Normal(0, 0.05),
        "2.query": plans.TruncatedNormal(0, 0.02, -2, 2),
    }.items():
        expected = torch.empty_like(model.get_parameter(name))
        cpp_backend.run([plans.Fill.whole(name, expected, distribution, "", "")], 0)
        assert same_bits(model.get_parameter(name), expected), name
        assert "user-defined `init_weights` in Head" in report.provenance[name] or name == "2.cls.weight"
    assert (model[1][0].weight == 2).all() and (model[2].reg.bias == 0).all()
    with torch.device("meta"):
        meta = tree()
    fastinit.materialize(meta, backend="cpp", seed=0)
    assert all(same_bits(a, b) for a, b in zip(model.state_dict().values(), meta.state_dict().values()))


@cpp
def test_parameters_overwritten_by_a_checkpoint_are_not_drawn(tmp_path):
    source = nn.Linear(4, 4)
    torch.save({"0." + key: tensor for key, tensor in source.state_dict().items()}, tmp_path / "c.pth")
    cfg = [dict(type="Xavier", layer="Linear"), dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"))]
    model = fastinit.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), init_cfg=cfg)
    with fastinit.use(backend="cpp", seed=0):
        model.init_weights()
    assert torch.equal(model[0].weight, source.weight) and model[1].weight.std() > 0.1
    report = model.last_init_report
    assert report.launches == {"cpu": 1} and report.provenance["0.weight"].startswith("PretrainedInit")
    assert [row.parameter for row in report.rows if row.action == "fill"] == ["1.weight", "1.bias"]


def test_a_module_that_stands_there_is_no_factory() -> None:
    with pytest.raises(TypeError, match="needs a class or a function that makes a model, but got a Linear"):
        fastinit.build(nn.Linear(2, 2))

"""fastinit within other libraries, each tried with the real package."""

from __future__ import annotations

from types import SimpleNamespace

import needs
import pytest
import torch
from helpers import same_bits
from mmengine_parity import MODEL as mm
from torch import nn
from trees import TREES

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend
from fastinit.integrations import mmengine as with_mmengine

MMENGINES = needs.module("mmengine.registry").WEIGHT_INITIALIZERS
cpp = needs.mark(needs.CPP)


def expected_fill(name, like, distribution, seed=0):
    tensor = torch.empty_like(like)
    cpp_backend.run([plans.Fill.whole(name, tensor, distribution, "", "")], seed)
    return tensor


LIBRARY = SimpleNamespace(**vars(mm), trunc_normal_=mm.weight_init.trunc_normal_)


# --- mmengine --------------------------------------------------------------------------------------------------------


@pytest.fixture
def enabled():
    with_mmengine.enable()
    yield
    with_mmengine.disable()


class Head(mm.BaseModule):
    """Initializes itself in code, as three quarters of OpenMMLab's heads do."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.cls, self.reg = nn.Linear(16, 10), nn.Linear(16, 4)
        self.query = nn.Parameter(torch.empty(1, 5, 16))
        self.table = nn.Embedding(10, 16, padding_idx=0)

    def init_weights(self):
        super().init_weights()
        mm.normal_init(self.cls, std=0.01, bias=mm.bias_init_with_prob(0.01))
        mm.trunc_normal_init(self.reg, std=0.02)
        mm.weight_init.trunc_normal_(self.query, std=0.02)
        nn.init.xavier_uniform_(self.table.weight)


class Detector(mm.BaseModule):
    def __init__(self):
        super().__init__(
            [
                dict(type="Kaiming", layer="Conv2d"),
                dict(type="Constant", val=1, layer="_BatchNorm", override=dict(name="norm")),
            ]
        )
        self.backbone = mm.Sequential(
            nn.Conv2d(3, 8, 3), nn.Linear(8, 8), init_cfg=dict(type="Xavier", layer="Linear", distribution="uniform")
        )
        self.norm = nn.BatchNorm2d(8)
        self.head = Head(init_cfg=dict(type="Normal", std=0.1, layer="Linear"))


def initialized(make, **defaults):
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(1)
    with fastinit.use(**defaults):
        model.init_weights()
    return model, torch.get_rng_state()


@pytest.mark.parametrize("name", [*TREES, "detector"])
def test_mmengines_modules_get_mmengines_weights_on_torch(name):
    make = Detector if name == "detector" else lambda: TREES[name](LIBRARY)
    plain, state = initialized(make)
    with_mmengine.enable()
    try:
        ours, after = initialized(make)
    finally:
        with_mmengine.disable()
    assert torch.equal(state, after) and ours.is_init and not hasattr(plain, "last_init_report")
    for (key, one), other in zip(plain.state_dict().items(), ours.state_dict().values()):
        assert same_bits(one, other), key
    again, _ = initialized(make)
    assert not hasattr(again, "last_init_report")
    assert all(same_bits(a, b) for a, b in zip(plain.parameters(), again.parameters()))


@cpp
@pytest.mark.parametrize("name", [*TREES, "detector"])
def test_a_tree_of_mmengine_modules_is_one_launch(name, enabled):
    model, _ = initialized(Detector if name == "detector" else lambda: TREES[name](LIBRARY), backend="cpp", seed=3)
    report = model.last_init_report
    assert report.launches == {"cpu": 1} and report.unkeyed == ()
    if name == "detector":
        query = expected_fill("head.query", model.head.query, plans.TruncatedNormal(0, 0.02, -2, 2), 3)
        assert same_bits(model.head.query, query)
        assert same_bits(
            model.head.cls.weight, expected_fill("head.cls.weight", model.head.cls.weight, plans.Normal(0, 0.01), 3)
        )
        assert (
            report.provenance["head.query"] == "Initialized by user-defined `init_weights` in Head (head.init_weights)"
        )


def test_mmengines_log_is_used_and_foreign_initializers_are_found(enabled, caplog):
    @MMENGINES.register_module(name="Sevens", force=True)
    class Sevens:
        def __init__(self, layer):
            self.layer = layer

        def __call__(self, module):
            for each in module.modules():
                if type(each).__name__ == self.layer:
                    each.weight.data.fill_(7)
            mm.update_init_info(module, "sevens")

    from mmengine.logging import MMLogger

    # The latest is the current one. mmengine writes to the file of one that has a file, as that of a Runner has, and not to its log.
    logger = MMLogger.get_instance("of this test", log_level="INFO")
    logger.addHandler(caplog.handler)
    try:
        model = mm.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), init_cfg=dict(type="Sevens", layer="Linear"))
        model.init_weights()
    finally:
        MMLogger._instance_dict.pop(logger.instance_name)
        MMENGINES.module_dict.pop("Sevens")
    assert (model[0].weight == 7).all() and "0.weight - torch.Size([2, 2]): \nsevens" in caplog.text
    assert "1.bias - torch.Size([2]): \nThe value is the same before and after" in caplog.text


def test_enabling_twice_and_disabling_restores_mmengine():
    before = mm.BaseModule.init_weights, mm.update_init_info, dict(MMENGINES.module_dict)
    with_mmengine.enable()
    with_mmengine.enable()
    assert mm.BaseModule.init_weights is fastinit.BaseModule.init_weights
    with_mmengine.disable()
    assert before == (mm.BaseModule.init_weights, mm.update_init_info, dict(MMENGINES.module_dict))
    assert fastinit.WEIGHT_INITIALIZERS.fallback is None


@cpp
def test_a_runner_script_needs_no_change(enabled, tmp_path, monkeypatch):
    from mmengine.runner import Runner

    seen = {}

    class Net(mm.BaseModel):
        def __init__(self):
            super().__init__(init_cfg=dict(type="Normal", std=0.5, layer="Linear"))
            self.fc = nn.Linear(4, 2)

        def init_weights(self):
            super().init_weights()
            seen.update({key: tensor.clone() for key, tensor in self.state_dict().items()})

        def forward(self, inputs, labels=None, mode="tensor"):
            out = self.fc(torch.stack(list(inputs)))
            return dict(loss=out.square().mean()) if mode == "loss" else out

    monkeypatch.setenv("FASTINIT_BACKEND", "cpp")
    data = [(torch.ones(4), 0)] * 4
    runner = Runner(
        model=Net(),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=data, batch_size=2, sampler=dict(type="DefaultSampler", shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        randomness=dict(seed=0),
        default_scope="mmengine",
        log_level="ERROR",
    )
    runner.train()
    seed = runner.model.last_init_report.seed
    assert same_bits(seen["fc.weight"], expected_fill("fc.weight", seen["fc.weight"], plans.Normal(0, 0.5), seed))


# --- transformers ----------------------------------------------------------------------------------------------------


def llama():
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        pad_token_id=0,
    )


@cpp
def test_transformers_from_config_and_missing_keys_are_initialized(tmp_path):
    needs.module("transformers")
    from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

    from fastinit.integrations import transformers as with_transformers

    model = with_transformers.from_config(llama(), auto_class=AutoModelForCausalLM, backend="cpp", seed=0)
    base = with_transformers.from_config(llama(), backend="cpp", seed=0, dtype=torch.bfloat16)
    assert type(base).__name__ == "LlamaModel" and base.dtype == torch.bfloat16
    own = with_transformers.from_config(llama(), auto_class=LlamaForSequenceClassification, backend="cpp", seed=0)
    assert same_bits(own.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)
    model.model.save_pretrained(tmp_path)

    def load(**kwargs):
        return with_transformers.from_pretrained(LlamaForSequenceClassification, tmp_path, **kwargs)

    (loaded, recipe), (other, _) = load(backend="cpp", seed=1, strict=True), load(backend="cpp", seed=1)
    score = expected_fill("score.weight", loaded.score.weight, plans.Normal(0, 0.02), 1)
    assert same_bits(loaded.score.weight, score) and same_bits(other.score.weight, score)
    for key, tensor in model.model.state_dict().items():
        assert same_bits(loaded.model.state_dict()[key], tensor), key
    assert same_bits(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert list(recipe.report.provenance) == ["score.weight"] and recipe.report.launches == {"cpu": 1}
    torch.manual_seed(3)
    plain = LlamaForSequenceClassification.from_pretrained(tmp_path)
    torch.manual_seed(3)
    assert same_bits(load(backend="torch")[0].score.weight, plain.score.weight)


# --- what needs nothing of ours --------------------------------------------------------------------------------------


@cpp
def test_lightning_fabric_builds_modules():
    needs.module("lightning")
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    with fabric.init_module(), fastinit.capture(backend="cpp", seed=0) as recipe:
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    plain = fastinit.build(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), backend="cpp", seed=0)
    assert model[0].weight.dtype == torch.bfloat16 and recipe.report.launches == {"cpu": 1}
    assert same_bits(model[0].weight, plain[0].weight.to(torch.bfloat16))
    with fabric.init_module(empty_init=True), fastinit.capture(backend="cpp", seed=0):
        empty = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    fastinit.initialize(empty, dict(type="Normal", param="*weight"), backend="cpp", seed=0)


@cpp
def test_accelerates_empty_models_get_their_weights_from_a_recipe():
    accelerate, transformers = needs.module("accelerate"), needs.module("transformers")
    AutoModel = transformers.AutoModel
    built = fastinit.build(AutoModel.from_config, llama(), backend="cpp", seed=0)
    for buffers in (False, True):
        with fastinit.capture() as recipe, accelerate.init_empty_weights(include_buffers=buffers):
            model = AutoModel.from_config(llama())
        assert all(parameter.is_meta for parameter in model.parameters())
        report = fastinit.materialize(model, recipe=recipe, backend="cpp", seed=0)
        assert report.launches == {"cpu": 1} and report.unkeyed == ()
        for key, tensor in built.state_dict().items():
            assert same_bits(model.state_dict()[key], tensor), key
        assert same_bits(model.rotary_emb.inv_freq, built.rotary_emb.inv_freq)

"""Models of real size and shape: the seeds' own examples, and transformers' models from their configs."""

from __future__ import annotations

import needs
import pytest
import torch
from mmengine_parity import initialize_both, run_both
from torch import nn

import fastinit

# --- the examples of the documents that this library was specified by -------------------------------------------------


class FooNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.feat = nn.Conv2d(3, 16, 3)
        self.reg = nn.Conv2d(16, 10, 3)
        self.cls = nn.Conv2d(16, 5, 3)


class ResNet50(nn.Module):
    """torchvision's ResNet-50 by its parameters: names, shapes and order."""

    class Bottleneck(nn.Module):
        def __init__(self, inplanes, planes, stride=1, downsample=False):
            super().__init__()
            self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
            self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(planes * 4)
            self.relu = nn.ReLU(inplace=True)
            if downsample:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inplanes, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
                )

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inplanes = 64
        for index, (planes, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            layers = []
            for block in range(blocks):
                layers.append(self.Bottleneck(inplanes, planes, 1 + (index > 1 and block == 0), block == 0))
                inplanes = planes * 4
            setattr(self, f"layer{index}", nn.Sequential(*layers))
        self.fc = nn.Linear(2048, 1000)


@pytest.mark.parametrize(
    ("make", "cfg"),
    [
        (lambda: nn.Linear(2, 3, bias=True), dict(type="Constant", layer="Linear", val=1, bias=2)),
        (
            lambda: nn.Sequential(nn.Conv1d(3, 1, 3), nn.Linear(1, 2)),
            [dict(type="Constant", layer="Conv1d", val=1), dict(type="Constant", layer="Linear", val=2)],
        ),
        (
            FooNet,
            dict(
                type="Constant",
                val=1,
                bias=2,
                layer="Conv2d",
                override=dict(type="Constant", name="reg", val=3, bias=4),
            ),
        ),
    ],
)
def test_the_examples_of_initialize_run(make, cfg):
    initialize_both(make, cfg)


def test_the_example_of_a_pretrained_resnet50_runs_from_a_local_file(tmp_path):
    source = ResNet50()
    assert sum(p.numel() for p in source.parameters()) == 25_557_032  # torchvision's own number
    torch.save(source.state_dict(), tmp_path / "resnet50.pth")
    model = ResNet50()
    report = fastinit.initialize(model, dict(type="Pretrained", checkpoint=str(tmp_path / "resnet50.pth")))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values()))
    assert report.unreached == () and len(report.checkpoints[0].result.copied) == 320

    detector = nn.ModuleDict({"backbone": source, "head": nn.Linear(2, 2)})
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "detector.pth")
    other = ResNet50()
    fastinit.initialize(other, dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix="backbone."))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), other.state_dict().values()))


TOY_CONFIGS = [
    [dict(type="Kaiming", layer="Conv2d"), dict(type="Xavier", layer="Linear")],
    [dict(type="Kaiming", layer=["Conv2d", "Linear"])],
    [dict(type="Kaiming", layer=["Conv2d"], override=dict(name="conv2", type="Xavier"))],
]


@pytest.mark.parametrize("cfg", TOY_CONFIGS, ids=["a rule a layer", "one rule", "an override"])
def test_the_examples_of_basemodule_run(cfg):
    class ToyConv(nn.Module):
        def __init__(self):
            super().__init__()
            self.custom_weights = nn.Parameter(torch.zeros(1, 1, 1, 1))
            self.custom_bias = nn.Parameter(torch.zeros(1))

        def init_weights(self):
            with torch.no_grad():
                self.custom_weights.data.fill_(1)
                self.custom_bias.data.fill_(2)

    def make(library):
        class ToyNet(library.BaseModule):
            def __init__(self, init_cfg=None):
                super().__init__(init_cfg)
                self.conv1 = nn.Conv2d(3, 16, 3)
                self.conv2 = nn.Conv2d(3, 16, 3)
                self.fc = nn.Linear(4, 4)
                self.custom_conv = ToyConv()

        return ToyNet(init_cfg=cfg)

    ours, _ = run_both(make, lambda _, model: model.init_weights())
    assert ours.custom_conv.custom_weights.item() == 1 and ours.custom_conv.custom_bias.item() == 2
    assert "user-defined `init_weights` in ToyConv" in ours.last_init_report.provenance["custom_conv.custom_bias"]


def test_the_examples_of_the_functional_inits_run():
    for name in ("normal_init", "kaiming_init", "xavier_init"):
        options = dict(mean=0, std=0.01, bias=0.0) if name == "normal_init" else {}
        run_both(
            lambda _: nn.Conv2d(3, 16, 3),
            lambda library, model, name=name, options=options: getattr(library, name)(model, **options),
        )


def test_a_resnet50_gets_mmengines_bits_from_mmdets_config():
    cfg = [
        dict(type="Kaiming", layer="Conv2d"),
        dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"]),
        dict(type="Normal", std=0.01, layer="Linear"),
    ]
    initialize_both(ResNet50, cfg)


# --- transformers -----------------------------------------------------------------------------------------------------


def transformers_model(name):
    """Builds a model of transformers from a config of its own, without its own init, on given memory."""
    transformers = needs.module("transformers")
    small = {
        "LlamaForCausalLM": ("LlamaConfig", dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=4)),
        "BertModel": ("BertConfig", dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=4)),
        "ViTModel": ("ViTConfig", dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=4)),
        "MixtralForCausalLM": (
            "MixtralConfig",
            dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=4000),
        ),
        "ConvNextModel": ("ConvNextConfig", dict()),
    }
    config, options = small[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options))


MODELS = ["LlamaForCausalLM", "BertModel", "ViTModel", "MixtralForCausalLM", "ConvNextModel"]


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_get_mmengines_bits(name):
    cfg = [
        dict(type="TruncNormal", std=0.02, layer=["Linear", "Embedding"], bias=0),
        dict(type="Kaiming", layer="Conv2d", mode="fan_in"),
        dict(type="Constant", val=1, layer=["LayerNorm", "LlamaRMSNorm", "MixtralRMSNorm"]),
    ]
    initialize_both(lambda: transformers_model(name), cfg)


@needs.mark(needs.package("transformers", 5))  # where all experts of a layer are one tensor
def test_a_mixtral_is_reached_completely_by_name():
    model = transformers_model("MixtralForCausalLM")
    cfg = [
        dict(type="Normal", std=0.02, param="*"),
        dict(type="Constant", val=1, param="*norm.weight"),
        dict(type="Xavier", param=["*.experts.gate_up_proj", "*.experts.down_proj"], batch_dims=1),
    ]
    report = fastinit.initialize(model, cfg, seed=0)
    assert report.unreached == ()
    experts = [row for row in report.rows if "experts" in row.parameter and row.rule == "init_cfg[2]"]
    assert len(experts) == 4
    for row in experts:
        n_experts, fan_out, fan_in = row.shape
        assert n_experts == 8 and row.values["std"] == pytest.approx((2 / (fan_in + fan_out)) ** 0.5)

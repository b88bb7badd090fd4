"""Models of torchvision and timm, which run beside the torch that torchvision was built for: small ones, with their own init code."""

from __future__ import annotations

from functools import partial

import needs
import pytest
import torch
from helpers import differing_kind, same_bits

import fastinit


def torchvision_model(name):
    needs.built_for_torch("torchvision").check()
    from torchvision import models

    convnext = models.convnext.CNBlockConfig
    kinds = {
        "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10),
        "MobileNetV3": lambda: models.mobilenet_v3_small(width_mult=0.5),
        "DenseNet": lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=10),
        "VisionTransformer": lambda: models.VisionTransformer(32, 8, 2, 2, 32, 64),
        "SwinTransformer": lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [7, 7]),
        "ConvNeXt": lambda: models.ConvNeXt([convnext(16, 32, 2), convnext(32, None, 2)]),
        "GoogLeNet": lambda: models.GoogLeNet(num_classes=10, init_weights=True),
    }
    return kinds[name]()


def timm_model(name, **options):
    needs.built_for_torch("timm").check()  # it imports torchvision
    import timm

    return timm.create_model(name, **options)


TORCHVISION = ["ResNet", "MobileNetV3", "DenseNet", "VisionTransformer", "SwinTransformer", "ConvNeXt", "GoogLeNet"]
TIMM = {
    "resnet10t": dict(),
    "vit_tiny_patch16_224": dict(depth=2),
    "swin_tiny_patch4_window7_224": dict(embed_dim=24, depths=(2, 2), num_heads=(2, 4)),
    "convnext_atto": dict(),
    "beit_base_patch16_224": dict(embed_dim=64, depth=2, num_heads=2),
}
MODELS = {
    **{f"torchvision {name}": partial(torchvision_model, name) for name in TORCHVISION},
    **{f"timm {name}": partial(timm_model, name, **options) for name, options in TIMM.items()},
}


@needs.mark(needs.CPP)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_models_are_the_plain_ones_on_torch_and_one_launch_of_the_same_kinds_on_cpp(name):
    make = MODELS[name]
    torch.manual_seed(0)
    plain = make()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = fastinit.build(make, backend="torch")
    assert torch.equal(state, torch.get_rng_state())
    assert all(same_bits(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values()))
    with fastinit.capture(backend="cpp", seed=0, strict=True) as recipe:
        model = make()
    assert recipe.report.launches == {"cpu": 1} and recipe.report.unkeyed == ()
    for key, tensor in plain.state_dict().items():
        assert differing_kind(tensor, model.state_dict()[key]) is None, key


def test_features_of_timm_are_warned_about_without_a_recipe():
    name = "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        model = timm_model(name, **TIMM[name], features_only=True)
    with pytest.warns(UserWarning, match="whose layers FeatureListNet holds is not run.*capture"):
        fastinit.materialize(model, seed=0)

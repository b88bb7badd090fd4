"""Trees of BaseModules as OpenMMLab builds them, for either library: the same modules, parameters and init_cfg.

Sizes and nesting follow the published architectures. Only modules with parameters exist, and none has a forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

CNN_CFG = [
    dict(type="Kaiming", layer="Conv2d"),
    dict(type="Constant", val=1, layer=["_BatchNorm", "GroupNorm"]),
]


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Returns a convolution and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _bottleneck(lib: Any, inputs: int, width: int, stride: int) -> Any:
    class Bottleneck(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            override = dict(type="Constant", val=0, name="norm3")
            super().__init__(dict(type="Constant", val=0, override=override))  # zero-initialized residual
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.norm3 = nn.BatchNorm2d(4 * width)
            if inputs != 4 * width:
                self.downsample = conv_bn(inputs, 4 * width, 1, stride)

    return Bottleneck()


def resnet50(lib: Any) -> nn.Module:
    """ResNet-50 as mmdet builds it: 25.5M parameters, 21 BaseModules."""

    class ResNet(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(CNN_CFG)
            self.stem = conv_bn(3, 64, 7, 2)
            inputs = 64
            for index, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
                layers = []
                for block in range(blocks):
                    layers.append(_bottleneck(lib, inputs, width, 2 if index > 1 and block == 0 else 1))
                    inputs = 4 * width
                setattr(self, f"layer{index}", lib.Sequential(*layers))
            self.fc = nn.Linear(2048, 1000)

    return ResNet()


def hrnet18(lib: Any) -> nn.Module:
    """An HRNet-W18 with a segmentation head: several hundred BaseModules, nested six deep."""

    class Block(lib.BaseModule):  # type: ignore[misc]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)

    class Exchange(lib.BaseModule):  # type: ignore[misc]
        """One module of a stage: parallel branches, and the convolutions that fuse them."""

        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            self.branches = lib.ModuleList(lib.Sequential(*(Block(width) for _ in range(4))) for width in widths)
            self.fuse = lib.ModuleList(
                lib.ModuleList(conv_bn(b, a, 1 if b > a else 3) for b in widths if b != a) for a in widths
            )

    class HRNet(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(CNN_CFG)
            self.stem = lib.Sequential(conv_bn(3, 64, 3, 2), conv_bn(64, 64, 3, 2))
            self.layer1 = lib.Sequential(*(_bottleneck(lib, 64 if i == 0 else 256, 64, 1) for i in range(4)))
            widths = [18, 36, 72, 144]
            for stage, modules in ((2, 1), (3, 4), (4, 3)):
                setattr(self, f"stage{stage}", lib.Sequential(*(Exchange(widths[:stage]) for _ in range(modules))))

    class Head(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(dict(type="Normal", std=0.01, override=dict(name="conv_seg")))
            self.convs = nn.Sequential(conv_bn(270, 270, 1))
            self.conv_seg = nn.Conv2d(270, 19, 1)

    class Segmentor(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = HRNet()
            self.head = Head()

    return Segmentor()


def swin_tiny(lib: Any) -> nn.Module:
    """A Swin-T as mmdet builds it: its own init_weights draws truncated normals for every linear layer."""

    class Attention(lib.BaseModule):  # type: ignore[misc]
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.bias_table = nn.Parameter(nn.init.zeros_(nn.Linear(heads, 169, bias=False).weight))
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)

        def init_weights(self) -> None:
            lib.trunc_normal_(self.bias_table, std=0.02)

    class Block(lib.BaseModule):  # type: ignore[misc]
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = Attention(width, heads)
            self.ffn = lib.Sequential(nn.Linear(width, 4 * width), nn.Linear(4 * width, width))

    class Swin(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 96, 4, 4)
            self.stages = lib.ModuleList(
                lib.Sequential(*(Block(96 * 2**stage, 3 * 2**stage) for _ in range(depth)))
                for stage, depth in enumerate([2, 2, 6, 2])
            )

        def init_weights(self) -> None:
            super().init_weights()
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    lib.trunc_normal_init(module, std=0.02, bias=0.0)
                elif isinstance(module, nn.LayerNorm):
                    lib.constant_init(module, 1.0)

    class Classifier(lib.BaseModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Swin()
            self.head = lib.Sequential(
                nn.Linear(768, 1000), init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0)
            )

    return Classifier()


def chain50(lib: Any) -> nn.Module:
    """A chain of BaseModules 50 deep, two parameters each: bookkeeping and nothing else."""

    class Link(lib.BaseModule):  # type: ignore[misc]
        def __init__(self, depth: int) -> None:
            super().__init__(dict(type="Normal", std=0.1, layer="Linear") if depth % 10 == 0 else None)
            self.fc = nn.Linear(8, 8)
            if depth:
                self.next = Link(depth - 1)

    return Link(50)


TREES: dict[str, Callable[[Any], nn.Module]] = {
    "ResNet-50": resnet50,
    "HRNet-W18": hrnet18,
    "Swin-T": swin_tiny,
    "chain, 50 deep": chain50,
}

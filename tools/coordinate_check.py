"""The coordinate check of muP: how far a few steps of training move what flows through models of several widths.

    python tools/coordinate_check.py docs/coordinate_check.svg

Trains a small Transformer (tests/support/mup_models.py) with Adam for a few steps, on the backend ``cpp``: as it is,
and with the standard deviations, learning rates, output and attention factors of ``fastinit.mup``. Measures the mean
|change| of activations after each kind of layer. It must not grow with the width; as it is, it does. Prints a table and
the slopes of log |change| over log width, and draws a picture.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastinit

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from mup_models import Transformer  # type: ignore[import-not-found]

BASE = 64
LAYERS = {"embedding": "embed", "attention": "blocks.1.out", "feed-forward": "blocks.1.down", "logits": "readout"}
# High enough for a few steps to move the logits of the base model by its own size.
RATE = 0.01
# That of GPT-2, at the base width; the output starts at 0, so that the logits' own start, which goes with the width in
# neither way alike, does not show.
INIT_CFG: list[dict[str, Any]] = [
    dict(type="Normal", std=0.1, param=["*embed.weight", "positions"]),
    dict(type="Normal", std=0.08, param="blocks.*weight"),
    dict(type="Constant", val=1, param="*norm*.weight"),
    dict(type="Constant", val=0, param=["*bias", "readout.weight"]),
]
Changes = dict[str, dict[int, float]]
"""Layer -> width -> mean |change|."""


def measured(is_mup: bool, widths: Sequence[int], steps: int, seeds: int) -> Changes:
    """Returns how far training moves the activations, the mean over several seeds."""
    found: Changes = {layer: dict.fromkeys(widths, 0.0) for layer in LAYERS}
    for width in widths:
        for seed in range(seeds):
            for layer, change in _changes(is_mup, width, steps, seed).items():
                found[layer][width] += change / seeds
    return found


def slopes(changes: Changes) -> dict[str, float]:
    """Returns for each layer the slope of log |change| over log width, between the first width and the last."""
    found = {}
    for layer, of_width in changes.items():
        (first, start), *_, (last, end) = of_width.items()
        found[layer] = math.log(end / start) / math.log(last / first)
    return found


def _changes(is_mup: bool, width: int, steps: int, seed: int) -> dict[str, float]:
    make = partial(Transformer, is_mup=is_mup)
    scaling = fastinit.mup.scaling(partial(make, BASE), partial(make, width))
    with torch.device("meta"):
        model = make(width)
    init_cfg = scaling.config(partial(make, BASE), INIT_CFG) if is_mup else INIT_CFG
    fastinit.materialize(model, init_cfg, backend="cpp", seed=seed)
    factor = scaling.output_multipliers.get("readout.weight", 1.0) if is_mup else 1.0
    groups = scaling.param_groups(model, RATE) if is_mup else [{"params": list(model.parameters())}]
    optimizer = torch.optim.Adam(groups, lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (16, 17), generator=generator)
    before = _activations(model, tokens[:, :-1], factor)
    for _ in range(steps):
        logits = model(tokens[:, :-1]) * factor
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = _activations(model, tokens[:, :-1], factor)
    return {layer: float((after[layer] - before[layer]).abs().mean()) for layer in LAYERS}


@torch.no_grad()
def _activations(model: nn.Module, tokens: torch.Tensor, factor: float) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    names = {path: layer for layer, path in LAYERS.items()}

    def keep(layer: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        found[layer] = output * (factor if layer == "logits" else 1.0)

    handles = [model.get_submodule(path).register_forward_hook(partial(keep, layer)) for path, layer in names.items()]
    model(tokens)
    for handle in handles:
        handle.remove()
    return found


# --- the picture -----------------------------------------------------------------------------------------------------

_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#3ca951")
_SIZE, _LEFT, _TOP, _GAP = 230, 60, 40, 60


def picture(plain: Changes, by_mup: Changes) -> str:
    """Returns both as an SVG: a panel each, with logarithmic axes of the same range."""
    values = [value for each in (plain, by_mup) for of_width in each.values() for value in of_width.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    widths = list(next(iter(plain.values())))

    def x(panel: int, width: int) -> float:
        share = math.log(width / widths[0]) / math.log(widths[-1] / widths[0])
        return _LEFT + panel * (_SIZE + _GAP) + share * _SIZE

    def y(value: float) -> float:
        return _TOP + _SIZE * (high - math.log10(value)) / (high - low)

    total = 2 * _SIZE + _GAP + _LEFT + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {_SIZE + _TOP + 50}" font-family="sans-serif" '
        f'font-size="11">',
        f'<rect width="{total}" height="{_SIZE + _TOP + 50}" fill="white"/>',
    ]
    for panel, (title, changes) in enumerate((("as it is", plain), ("muP", by_mup))):
        start = _LEFT + panel * (_SIZE + _GAP)
        parts.append(f'<text x="{start + _SIZE / 2}" y="24" text-anchor="middle" font-size="14">{title}</text>')
        for power in range(low, high + 1):
            line = y(10.0**power)
            parts.append(f'<path d="M{start} {line:.1f}h{_SIZE}" stroke="#ddd"/>')
            parts.append(f'<text x="{start - 6}" y="{line + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for width in widths:
            parts.append(f'<text x="{x(panel, width):.1f}" y="{_TOP + _SIZE + 18}" text-anchor="middle">{width}</text>')
        for colour, of_width in zip(_COLOURS, changes.values()):
            points = " ".join(f"{x(panel, width):.1f},{y(value):.1f}" for width, value in of_width.items())
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [
                f'<circle cx="{x(panel, width):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
                for width, value in of_width.items()
            ]
        if panel == 1:
            ends = sorted((y(list(changes[layer].values())[-1]) + 4, layer, c) for c, layer in zip(_COLOURS, changes))
            for at, layer, colour in _apart(ends):
                parts.append(f'<text x="{start + _SIZE + 8}" y="{at:.1f}" fill="{colour}">{layer}</text>')
        middle = start + _SIZE / 2
        parts.append(f'<text x="{middle}" y="{_TOP + _SIZE + 38}" text-anchor="middle">width</text>')
    middle = _TOP + _SIZE / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">mean |change|</text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def _apart(labels: Sequence[tuple[float, str, str]]) -> Iterator[tuple[float, str, str]]:
    """Yields labels from the top, each moved down where it would cover the one above."""
    above = -math.inf
    for at, layer, colour in labels:
        above = max(at, above + 12)
        yield above, layer, colour


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="of the SVG")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = {}
    for name, is_mup in (("as it is", False), ("muP", True)):
        found[name] = measured(is_mup, options.widths, options.steps, options.seeds)
        for layer, slope in slopes(found[name]).items():
            changes = "".join(f"{value:10.4f}" for value in found[name][layer].values())
            print(f"{name:9}{layer:13}{changes}  slope {slope:.2f}")
    options.path.write_text(picture(*found.values()))


if __name__ == "__main__":
    main()

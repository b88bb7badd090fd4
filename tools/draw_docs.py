"""Draws the pictures of README and docs anew: ``python tools/draw_docs.py``; the same numbers give the same files.

``docs/coordinate_check.svg`` trains models and takes minutes: ``--all`` draws it too (tools/coordinate_check.py).
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastinit
from fastinit import drawing
from fastinit.demo import GPT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def values(path: Path) -> None:
    """Draws what a GPT holds whose projections into the residual stream get smaller with the depth."""
    with torch.device("meta"):
        model = GPT(24, 256, 5000, 256)
    init_cfg: list[dict[str, Any]] = [
        dict(type="Normal", std=0.02, layer=["Linear", "Embedding"]),
        dict(type="Constant", val=1, layer="LayerNorm"),
        dict(
            type="Normal",
            std="0.02 / sqrt(2 * (i + 1))",
            param=r"re:blocks\.(?P<i>\d+)\.(attention_out|down)\.weight",
        ),
    ]
    report = fastinit.materialize(model, init_cfg, backend="cpp", seed=0)
    report.plot(model, path)


def signals(path: Path) -> None:
    """Draws how a signal dies out in a deep network that starts too small."""
    layers = [layer for _ in range(16) for layer in (nn.Linear(128, 128), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    fastinit.initialize(model, dict(type="Normal", std=0.08, layer="Linear"), backend="cpp", seed=0)
    batch = fastinit.values("batch", (256, 128), fastinit.plans.Normal(0, 1), seed=0)
    fastinit.signals(model, batch).plot(path)


def build(path: Path) -> None:
    """Draws how long models of transformers take to be made, from the benchmark's table."""
    with (ROOT / "benchmarks" / "results" / "bench_build.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    models = list(dict.fromkeys(row["model"] for row in rows))
    with drawing.canvas("draw_docs", 7.5, 1.9, path) as figure:
        every = figure.subplots(1, len(models), sharey=True)
        for axes, model in zip(every, models):
            ways = [row for row in rows if row["model"] == model]
            colors = [drawing.LINES[1] if row["way"] == "build, cpp" else drawing.INK for row in ways]
            bars = axes.barh([row["way"] for row in ways], [float(row["seconds"]) for row in ways], color=colors)
            axes.bar_label(bars, [f"{row['seconds']} s" for row in ways], padding=3, fontsize=7, color=drawing.INK)
            axes.set_title(model, fontsize=8)
            axes.grid(visible=False)
            axes.margins(x=0.3)
            axes.tick_params(length=0, labelbottom=False)
            axes.spines[:].set_visible(False)
        every[0].invert_yaxis()
        figure.supxlabel(rows[0]["machine"], x=0.995, ha="right", fontsize=7)


def peers(path: Path) -> None:
    """Draws who fills how many numbers a second, of results/bench_peers.csv: all cores, new memory."""
    with (ROOT / "benchmarks/results/bench_peers.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["with"].endswith("new memory")]
    fills = ["normal", "uniform", "truncated normal"]
    measured = {(row["fill"], row["dtype"]) for row in rows}
    dtypes = [dtype for dtype in ("float32", "bfloat16") if {(fill, dtype) for fill in fills} <= measured]
    names = list(rows[0])[3:-2]  # between what is filled and the ratio
    (threads,) = {row["with"].split(",")[0] for row in rows}
    with drawing.canvas("draw_docs", 8.2, 0.3 + 1.65 * len(dtypes), path) as figure:
        figure.suptitle(
            f"Random numbers into new memory, billions a second, on {threads}", x=0.01, ha="left", fontsize=10
        )
        grid = figure.subplots(len(dtypes), len(fills), sharey=True, squeeze=False)
        for axes, (dtype, fill) in zip(grid.flat, ((dtype, fill) for dtype in dtypes for fill in fills)):
            (row,) = (row for row in rows if (row["fill"], row["dtype"]) == (fill, dtype))
            rates = [_rate(row[name]) for name in names]
            colors = [drawing.LINES[1] if name.startswith("fastinit") else drawing.INK for name in names]
            axes.barh(names, [rate or 0 for rate in rates], color=colors, height=0.72)
            for at, (name, rate) in enumerate(zip(names, rates)):
                is_ours = name.startswith("fastinit")
                text = f" {rate:.2g}" if rate is not None else "  has none" if row[name] == "-" else f"  {row[name]}"
                weight = "bold" if is_ours else "normal"
                axes.text(rate or 0, at, text, va="center", fontsize=7.5, fontweight=weight)
            axes.set_title(f"{fill}, {dtype}", loc="left", fontsize=8.5, fontweight="bold")
            axes.set_xlim(0, 1.18 * max(rate or 0 for rate in rates))
            axes.tick_params(left=False, bottom=False, labelbottom=False)
            axes.grid(False)
            axes.spines[["left", "bottom"]].set_visible(False)
        grid[0, 0].invert_yaxis()  # shared: the first on top, everywhere


def _rate(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


PICTURES: dict[str, Callable[[Path], None]] = {
    "values.svg": values,
    "signals.svg": signals,
    "build.svg": build,
    "peers.svg": peers,
}


def main() -> None:
    """Draws all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DOCS, help="docs, if not given")
    parser.add_argument("--all", action="store_true", help="those that take minutes, too")
    options = parser.parse_args()
    for name, draw in PICTURES.items():
        draw(options.folder / name)
    if options.all:
        command = [sys.executable, str(ROOT / "tools" / "coordinate_check.py")]
        subprocess.run([*command, str(options.folder / "coordinate_check.svg")], check=True)


if __name__ == "__main__":
    main()

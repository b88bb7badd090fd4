"""Records how the package ``mup`` scales models with their width, which tests/mup/test_mup.py compares with ours.

    python -m venv venv && venv/bin/pip install torch mup
    PYTHONPATH=tests/support venv/bin/python tools/check_mup.py > tests/data/mup.txt

Needs nothing of fastinit. The standard deviations are those that ``mup.init.normal_`` draws with, the learning rates
those of the groups of ``MuAdam`` and ``MuSGD``, the outputs those of ``MuReadout``. With ``--check`` compares with the
kept table instead; exit code 1: they differ.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import mup
import torch
from mup_models import MODELS, WIDTHS  # type: ignore[import-not-found]

KEPT = Path(__file__).parent.parent / "tests" / "data" / "mup.txt"
COLUMNS = "model name base shape std adam sgd output"


def drawn_std(parameter: Any) -> float:
    """Returns the standard deviation with which the package draws a parameter that the base model draws with 1."""
    with mock.patch("mup.init._no_grad_normal_") as draw:
        mup.init.normal_(parameter, 0, 1)
    return float(draw.call_args.kwargs["std"])


def rates(optimizer: torch.optim.Optimizer) -> dict[Any, float]:
    """Returns the learning rate of each parameter."""
    return {each: group["lr"] for group in optimizer.param_groups for each in group["params"]}


def table() -> list[str]:
    """Returns the lines of the table."""
    lines = [f"# mup {version('mup')}", f"# {COLUMNS}"]
    for kind, make in MODELS.items():
        made = {what: make(width, readout=partial(mup.MuReadout, output_mult=1.0)) for what, width in WIDTHS.items()}
        model = made["target"]
        mup.set_base_shapes(model, made["base"], delta=made["delta"], rescale_params=False)
        adam, sgd = rates(mup.MuAdam(model.parameters(), lr=1.0)), rates(mup.MuSGD(model.parameters(), lr=1.0))
        shapes = {name: tuple(each.shape) for name, each in made["base"].named_parameters()}
        for name, parameter in model.named_parameters():
            output = 1 / model.readout.width_mult() if name == "readout.weight" else 1.0
            base, shape = ("x".join(map(str, each)) for each in (shapes[name], parameter.shape))
            numbers = (drawn_std(parameter), adam[parameter], sgd[parameter], output)
            lines.append(f"{kind} {name} {base} {shape} " + " ".join(map(repr, map(float, numbers))))
    return lines


def main() -> None:
    """Prints the table, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the kept table")
    lines = table()
    if not parser.parse_args().check:
        print("\n".join(lines))
    elif lines != KEPT.read_text().splitlines():
        sys.exit(f"{KEPT} is not what the package gives")


if __name__ == "__main__":
    main()

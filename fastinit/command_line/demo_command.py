"""``fastinit demo``: plans and initializes a model, on every backend that can run."""

from __future__ import annotations

import argparse
import os

from ..demo import demo, demo_shards

NAME = "demo"
HELP = "plan and initialize a GPT-like model of 355 million parameters"
TEXT = """\
Plans and initializes a GPT-like model on every backend that can run here, and shows plan and reports.

examples:
  fastinit demo --layers 2 --width 64
  torchrun --nproc-per-node 2 -m fastinit demo --shards"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--layers", type=_positive, default=24, help="transformer blocks, 24 if not given")
    parser.add_argument("--width", type=_positive, default=1024, help="width of the model, 1024 if not given")
    parser.add_argument("--shards", action="store_true", help="run as one rank of several, under torchrun")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    if options.shards and "RANK" not in os.environ:
        parser.error("--shards is for several processes: torchrun --nproc-per-node 2 -m fastinit demo --shards")
    (demo_shards if options.shards else demo)(options.layers, options.width)
    return 0


def _positive(text: str) -> int:
    """Returns a positive number; argparse shows the message."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, but got {text!r}")
    return number

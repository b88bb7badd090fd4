"""The command line: ``python -m fastinit demo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .demo import demo, demo_shards
from .execution.defaults import check_default_backend
from .version import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs its command."""
    parser = argparse.ArgumentParser(
        prog="python -m fastinit", description="Planned weight initialization for PyTorch models."
    )
    parser.add_argument("--version", action="version", version=f"fastinit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="plan and initialize a GPT-like model of 355 million parameters")
    command.add_argument("--layers", type=_positive, default=24, help="transformer blocks, 24 if not given")
    command.add_argument("--width", type=_positive, default=1024, help="width of the model, 1024 if not given")
    command.add_argument("--shards", action="store_true", help="run as one rank of several, under torchrun")
    options = parser.parse_args(arguments)
    try:
        check_default_backend()
    except ValueError as error:
        parser.error(str(error))
    if options.shards and "RANK" not in os.environ:
        parser.error("--shards is for several processes: torchrun --nproc-per-node 2 -m fastinit demo --shards")
    try:
        (demo_shards if options.shards else demo)(options.layers, options.width)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's end would try to write the rest


def _positive(text: str) -> int:
    """Returns a positive number; argparse shows the message."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, but got {text!r}")
    return number


if __name__ == "__main__":
    main()

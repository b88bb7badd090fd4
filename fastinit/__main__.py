"""The command line: ``python -m fastinit demo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .demo import demo, demo_shards


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs its command."""
    parser = argparse.ArgumentParser(
        prog="python -m fastinit", description="Planned weight initialization for PyTorch models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="plan and initialize a GPT-like model of 355 million parameters")
    command.add_argument("--layers", type=int, default=24)
    command.add_argument("--width", type=int, default=1024)
    command.add_argument("--shards", action="store_true", help="run as one rank of several, under torchrun")
    options = parser.parse_args(arguments)
    (demo_shards if options.shards else demo)(options.layers, options.width)


if __name__ == "__main__":
    main()

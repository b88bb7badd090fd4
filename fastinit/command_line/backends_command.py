"""``fastinit backends``: which backends can run here, and why others cannot."""

from __future__ import annotations

import argparse
import json

from ..backends import BACKENDS, available_backends
from .output import tell, tell_json

NAME = "backends"
HELP = "which backends can run here, and why others cannot"
TEXT = """\
Shows which backends can run on this machine, and why others cannot.

example:
  fastinit backends --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="name -> null, or the reason")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    found = available_backends()
    if options.json:
        tell_json(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    longest = max(map(len, found))
    for name, reason in found.items():
        state = f"runs here; numbers: {BACKENDS[name].NUMBERS}" if reason is None else f"cannot run here: {reason}"
        tell(f"{name.ljust(longest)}  {state}")
    return 0

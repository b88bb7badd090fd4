"""``fastinit doctor``: whether this install gives the right numbers, and what it lacks."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..backends import available_backends, cpp_backend
from ..version import __version__
from .known_answers import outcomes
from .output import tell, tell_json

NAME = "doctor"
HELP = "known answers on every backend that can run here, versions, and what is missing"
TEXT = """\
Draws known answers with every backend that can run here, cpp with each instruction set, and compares bits.
Shows versions, threads, and what is missing with how to get it.
Exit code: 0 where all answers are right, 1 where one is wrong. What is missing is no fault.

example:
  fastinit doctor --json"""

# Package -> what it is for.
_OPTIONAL = {
    "safetensors": "other tools for the files of `fastinit write`",
    "transformers": "models from a config.json",
    "tqdm": "progress bars",
    "huggingface_hub": "hf:// checkpoints",
    "fsspec": "s3:// and other remote checkpoints",
    "triton": "the backend triton",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    found = _examined()
    if options.json:
        tell_json(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _tell(found)
    return int(any(found["known_answers"].values()))


def _examined() -> dict[str, Any]:
    return {
        "fastinit_doctor": 1,
        "versions": {
            "fastinit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in ("numpy", *_OPTIONAL)},
        },
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "instruction_sets": [] if cpp_backend._native is None else list(cpp_backend._core().instruction_sets()),
        "backends": available_backends(),
        "known_answers": dict(outcomes()),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tell(found: dict[str, Any]) -> None:
    versions = found["versions"]
    tell(", ".join(f"{name} {number}" for name, number in versions.items() if number is not None))
    sets = ", ".join(found["instruction_sets"]) or "none, as the native core is missing"
    tell(f"{platform.platform()}; {found['threads']} threads on {found['cores']} cores; instruction sets: {sets}")
    tell(f"GPUs: {', '.join(found['gpus']) or 'torch finds none'}")
    tell("\nknown answers:")
    for what, wrong in found["known_answers"].items():
        tell(f"  {what}: {'WRONG: ' + wrong if wrong else 'right'}")
    missing = [f"  {name}: {reason}" for name, reason in found["backends"].items() if reason is not None]
    missing += [f"  {name}: for {use}; pip install {name}" for name, use in _OPTIONAL.items() if versions[name] is None]
    if missing:
        tell("\nmissing here:")
        tell("\n".join(missing))
    if any(found["known_answers"].values()):
        tell("\nThe numbers of this install are wrong: build it anew, and report it with this output.")

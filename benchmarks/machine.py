"""Describes the machine that a benchmark ran on, for its tables."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata

import torch
from csv_files import processor


def describe(packages: Sequence[str] = ()) -> str:
    """Returns processor, cores, Python, torch, and those of further packages that are installed, in one line."""
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return f"{processor()}, {', '.join(versions)}"


def describe_device(device: torch.device) -> str:
    """Returns GPU, clocks and versions in one line; without a GPU, says so and names the CPU."""
    if device.type == "cpu":
        return f"NO GPU: over cpp on {describe()}"
    # Maximum clocks: the current ones vary.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.memory,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            command + ([f"--id=GPU-{uuid}"] if uuid else []), capture_output=True, text=True, timeout=60, check=True
        )
        sm, memory, driver = asked.stdout.splitlines()[0].split(", ")
        clocks = f"clocks up to {sm} (memory {memory}), driver {driver}"
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        clocks = "clocks unknown"
    try:
        triton = f"triton {importlib.import_module('triton').__version__}"
    except ImportError:
        triton = "no triton"
    python = f"Python {platform.python_version()}"
    return f"{torch.cuda.get_device_name(device)}, {clocks}, {python}, torch {torch.__version__}, {triton}"


def takes_no_arguments(text: str | None) -> None:
    """Answers --help with a script's text, and refuses all else, before anything is measured and written."""
    argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

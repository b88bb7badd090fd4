"""CSV files of results: read, and written whole; without torch, for tools that run beside any or none."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def save(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows as CSV; a process that is killed meanwhile leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(unfinished, path)


def read(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file, none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def processor() -> str:
    """Returns the processor and its cores, e.g. ``AMD EPYC, 2 cores``."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"

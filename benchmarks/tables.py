"""The tables that benchmarks write: CSV files in ``results/``, printed as Markdown too."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import machine

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[dict[str, object]]) -> None:
    """Writes rows as CSV with the machine beside them, and prints them as a Markdown table."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "machine"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "machine": machine.describe()} for row in rows)
    print_table(rows)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(flush=True)

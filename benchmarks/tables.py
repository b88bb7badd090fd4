"""The tables of results: CSV files in ``results/``, printed as Markdown too.

tools/update_tables.py puts them into README and docs.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import machine

RESULTS = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a benchmark's rows to ``results/``, each with the machine it ran on, and prints them."""
    save(RESULTS / name, [{**row, "machine": machine.describe()} for row in rows])
    print_table(rows)


def replace(name: str, rows: Sequence[Mapping[str, object]], *keys: str) -> None:
    """Writes rows into a benchmark's table in the place of those with the same keys, and prints them.

    The other rows of this machine stay where they are; those of another machine go, as a table has one machine.
    """
    here = machine.describe()

    def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in keys)

    table: dict[tuple[str, ...], Mapping[str, object]]
    table = {key_of(row): row for row in read(RESULTS / name) if row["machine"] == here}
    table.update({key_of(row): {**row, "machine": here} for row in rows})
    save(RESULTS / name, list(table.values()))
    print_table(rows)


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


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(flush=True)

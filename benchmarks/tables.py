"""The tables of results: CSV files in ``results/``, printed as Markdown too.

tools/update_tables.py puts them into README and docs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import machine
from csv_files import RESULTS, read, save

__all__ = ["RESULTS", "print_table", "read", "replace", "save", "write"]


def write(name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a benchmark's rows to ``results/``, each with the machine it ran on, and prints them."""
    save(RESULTS / name, [{**row, "machine": machine.describe()} for row in rows])
    print_table(rows)


def replace(name: str, rows: Sequence[Mapping[str, object]], *keys: str, packages: Sequence[str] = ()) -> None:
    """Writes rows into a benchmark's table in the place of those with the same keys, and prints them.

    The other rows of this machine stay where they are; those of another machine, of other versions (of Python, torch
    and ``packages``), or with other columns go: a table has one machine.
    """
    here = machine.describe(packages)

    def key_of(row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in keys)

    table: dict[tuple[str, ...], Mapping[str, object]]
    columns = {*rows[0], "machine"}
    table = {key_of(row): row for row in read(RESULTS / name) if row["machine"] == here and set(row) == columns}
    table.update({key_of(row): {**row, "machine": here} for row in rows})
    save(RESULTS / name, list(table.values()))
    print_table(rows)


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Prints rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(flush=True)

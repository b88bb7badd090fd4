"""Writes the benchmarks' results into README and docs: a table is between a comment that names its CSV and an end mark.

Run it after a benchmark with ``python tools/update_tables.py``; a test checks that the pages are up to date. Tables
that need a GPU say so until a GPU day is adopted (adopt_gpu_day.py).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Written by a GPU day.
NEEDS_A_GPU = ["bench_gpu.csv", "gpu_day.csv", "gpu_ncu.csv", "gpu_rates.csv"]
NOT_MEASURED = "Not measured yet: no GPU was at hand."
_TABLE = re.compile(r"<!-- (benchmarks/results/\S+\.csv) -->\n.*?<!-- end -->", re.DOTALL)


def table(path: Path) -> str:
    """Returns a CSV file as a Markdown table, with the machine of its rows below."""
    if path.name in NEEDS_A_GPU and not path.exists():
        return NOT_MEASURED
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (machine,) = {row.pop("machine") for row in rows}
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + f"\n\n({machine})"


def updated(text: str, root: Path = ROOT) -> str:
    """Returns a page's text with all tables updated from the results below a root."""
    return _TABLE.sub(lambda found: f"<!-- {found[1]} -->\n{table(root / found[1])}\n<!-- end -->", text)


def update() -> None:
    """Updates the tables of all pages."""
    for page in PAGES:
        page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    update()

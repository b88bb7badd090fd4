"""Puts the benchmarks' results into README and docs: a table stands between a comment with its CSV and an end mark.

Run it after a benchmark with ``python benchmarks/update_tables.py``; a test checks that the pages are up to date.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_TABLE = re.compile(r"<!-- (benchmarks/results/\S+\.csv) -->\n.*?<!-- end -->", re.DOTALL)


def table(path: Path) -> str:
    """Returns a CSV file as a Markdown table, and the machine that all its rows name below it."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (machine,) = {row.pop("machine") for row in rows}
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + f"\n\n({machine})"


def updated(text: str) -> str:
    """Returns a page's text with all tables made anew."""
    return _TABLE.sub(lambda found: f"<!-- {found[1]} -->\n{table(ROOT / found[1])}\n<!-- end -->", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page.read_text()))

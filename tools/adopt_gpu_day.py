"""Adopts the results of a GPU day: writes benchmarks/results, and updates the tables of README and docs.

    python tools/adopt_gpu_day.py FOLDER [FOLDER...]

A folder is the ``--out`` of ``gpu_day.py``. Several folders must come from one machine; a later folder's steps replace
an earlier one's. Folders made without a GPU are refused. Measurements of steps whose checks failed are left out. At the
end it lists the sentences of the pages that still say that nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_predictions
import update_tables

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from tables import RESULTS, read, save

N_FINDINGS = 12  # per step, in the day's table
# How the pages say that nothing was measured. Whoever adopts a day rewrites these sentences.
UNMEASURED = re.compile(r"[Nn]o GPU has (run|filled)|[Nn]o GPU was at hand|nothing has been timed|no GPU timing")

Results = dict[str, Any]


def results_of(folder: Path) -> Results:
    """Returns the results of a folder.

    Raises:
        SystemExit: it has none, or was made without a GPU.
    """
    path = folder / "results.json"
    if not path.exists():
        raise SystemExit(f"{folder}: there is no results.json; expected the --out folder of gpu_day.py")
    results: Results = json.loads(path.read_text())
    if results.get("fastinit_gpu_day") != 1:
        raise SystemExit(f"{path}: no results of a GPU day, or those of another version of gpu_day.py")
    if not results["machine"].get("is_gpu"):
        what = results["machine"].get("description", "a machine that is not known")
        raise SystemExit(f"{folder}: made without a GPU ({what}): only results from a GPU can be adopted")
    return results


def adopt(folders: Sequence[Path], results: Path) -> list[str]:
    """Writes the CSV files of a day's folders to the project's results.

    Returns:
        What was left out and why.

    Raises:
        SystemExit: a folder cannot be adopted; nothing is written then.
    """
    days = [results_of(folder) for folder in folders]
    machines = {day["machine"]["description"] for day in days}
    if len(machines) > 1:
        raise SystemExit(f"these days ran on different machines: {'; '.join(sorted(machines))}")
    (machine,) = machines
    steps: dict[str, Results] = {}
    for day in days:
        for step in day["steps"]:
            if step["state"] != "left out" or step["step"] not in steps:
                steps[step["step"]] = step

    tables = {
        "gpu_day.csv": [summary_of(step) for step in steps.values()],
        "gpu_ncu.csv": numbers_of(steps, "ncu", "distribution"),
        "gpu_rates.csv": numbers_of(steps, "rates", "distribution"),
        "bench_gpu.csv": bench_rows(steps, folders),
    }
    left_out = []
    for name, rows in tables.items():
        if not rows:
            left_out.append(f"{name}: nothing measured, or its checks failed; the file is unchanged")
            continue
        save(results / name, [{**row, "machine": machine} for row in rows])
    gpu_predictions.write(results)
    return left_out


def summary_of(step: Results) -> dict[str, str]:
    """Returns a step's row of the day's table."""
    findings = [each for each in step["findings"] if not (step["table"] and each["kind"] == "found")]
    findings.sort(key=lambda each: each["kind"] == "found")
    texts = [("" if each["kind"] == "found" else each["kind"].upper() + ": ") + each["text"] for each in findings]
    if step["table"]:
        texts.append(f"see {step['table']}")
    if len(texts) > N_FINDINGS:
        texts = [*texts[:N_FINDINGS], f"and {len(texts) - N_FINDINGS} more"]
    cell = "<br>".join(text.strip().replace("|", "\\|") for text in texts)
    state = step["state"] + (f" ({step['why']})" if step["why"] else "")
    return {"step": step["step"], "result": state, "seconds": f"{step['seconds']:.0f}", "found": cell}


def numbers_of(steps: dict[str, Results], name: str, column: str) -> list[dict[str, str]]:
    """Returns the findings of a step that have a certain column; none if the step failed."""
    step = steps.get(name)
    if step is None or step["state"] == "FAILED":
        return []
    rows = [each["numbers"] for each in step["findings"] if column in each["numbers"]]
    columns = dict.fromkeys(key for row in rows for key in row)  # a profiler may lack some numbers of a kernel
    return [{**dict.fromkeys(columns, ""), **row} for row in rows]


def bench_rows(steps: dict[str, Results], folders: Sequence[Path]) -> list[dict[str, str]]:
    """Returns the rows of all folders' bench_gpu.csv; later folders win, and the ceilings appear once.

    The benchmark checks the bits of a workload before timing it, and writes no row if they are wrong.
    """
    if not any(steps[name]["findings"] for name in ("llama", "tensor", "experts") if name in steps):
        return []
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in folders:
        for row in read(folder / "bench_gpu.csv"):
            rows[row["workload"], row["dtype"], row["distribution"], row["contender"]] = row
    return list(rows.values())


def untrue(pages: Sequence[Path]) -> list[str]:
    """Returns the lines of the pages that say that nothing was measured, as ``file:line: text``."""
    return [
        f"{page.name}:{number}: {line.strip()}"
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if UNMEASURED.search(line)
    ]


def main() -> None:
    """Adopts folders, and updates the pages' tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for line in adopt(parser.parse_args().folders, RESULTS):
        print(line)
    update_tables.update()
    for line in untrue(update_tables.PAGES):
        print(f"not true any more? {line}")


if __name__ == "__main__":
    main()

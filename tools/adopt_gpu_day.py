"""Takes the results of a GPU day into the project: benchmarks/results, and by them the tables of README and docs.

    python tools/adopt_gpu_day.py FOLDER [FOLDER...]

A folder is what ``gpu_day.py`` left (its ``--out``). Of several, made on one machine, a later one's steps replace an
earlier one's. A folder that was made without a GPU is refused, and so are folders of different machines. What was
measured in a step whose checks failed is left out. At last it lists what the pages still say of a time before.
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

N_FINDINGS = 12  # of a step in the table of the day
# What pages say as long as nothing was measured. The people who adopt a day rewrite these sentences.
UNMEASURED = re.compile(r"[Nn]o GPU has (run|filled)|[Nn]o GPU was at hand|nothing has been timed|no GPU timing")

Results = dict[str, Any]


def results_of(folder: Path) -> Results:
    """Returns the results of a folder.

    Raises:
        SystemExit: it holds none, or was made without a GPU.
    """
    path = folder / "results.json"
    if not path.exists():
        raise SystemExit(f"{folder}: there is no results.json in it; a GPU day leaves one")
    results: Results = json.loads(path.read_text())
    if results.get("fastinit_gpu_day") != 1:
        raise SystemExit(f"{path}: these are no results of a GPU day, or of another version of it")
    if not results["machine"].get("is_gpu"):
        what = results["machine"].get("description", "a machine that is not known")
        raise SystemExit(f"{folder}: made without a GPU ({what}): it says nothing of one, and is not adopted")
    return results


def adopt(folders: Sequence[Path], results: Path) -> list[str]:
    """Writes the CSV files of a day's folders into the project's results.

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
            left_out.append(f"{name}: the day brought nothing for it, or its checks failed; what is there stays")
            continue
        save(results / name, [{**row, "machine": machine} for row in rows])
    gpu_predictions.write(results)
    return left_out


def summary_of(step: Results) -> dict[str, str]:
    """Returns a step's row in the table of the day."""
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
    """Returns the rows that a step found, those with a column; none of a step that failed."""
    step = steps.get(name)
    if step is None or step["state"] == "FAILED":
        return []
    rows = [each["numbers"] for each in step["findings"] if column in each["numbers"]]
    columns = dict.fromkeys(key for row in rows for key in row)  # a profiler need not have every number of each kernel
    return [{**dict.fromkeys(columns, ""), **row} for row in rows]


def bench_rows(steps: dict[str, Results], folders: Sequence[Path]) -> list[dict[str, str]]:
    """Returns the rows of the days' bench_gpu.csv, a later folder's in place of an earlier's, the ceilings once.

    The benchmark checks the bits of a workload before it times it, and writes no row of one that is wrong.
    """
    if not any(steps[name]["findings"] for name in ("llama", "tensor", "experts") if name in steps):
        return []
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for folder in folders:
        for row in read(folder / "bench_gpu.csv"):
            rows[row["workload"], row["dtype"], row["distribution"], row["contender"]] = row
    return list(rows.values())


def untrue(pages: Sequence[Path]) -> list[str]:
    """Returns the lines of pages that say that nothing has been measured, as ``file:line: text``."""
    return [
        f"{page.name}:{number}: {line.strip()}"
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if UNMEASURED.search(line)
    ]


def main() -> None:
    """Adopts folders, and makes the pages' tables anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for line in adopt(parser.parse_args().folders, RESULTS):
        print(line)
    update_tables.update()
    for line in untrue(update_tables.PAGES):
        print(f"not true any more? {line}")


if __name__ == "__main__":
    main()

"""Sweeps over libraries: is each model, by every way to make it, the one that its own constructor makes?

Makes small models of every architecture of transformers, of timm, torchvision, diffusers and peft, as far as they are
installed, and of torch's own modules, and applies the four checks of ``sweep_checks.py``. Writes a table of counts
(``benchmarks/results/sweep.csv``) and one of what is not fine (``sweep_exceptions.csv``), for docs/backend.md. That
``materialize`` alone refuses or warns is counted only.

    python tools/sweep_libraries.py                            # some forty minutes on two cores
    python tools/sweep_libraries.py --only peft,torch          # these libraries; the rows of others stay
    python tools/sweep_libraries.py --only timm --match resnet # prints, and writes nothing

Each library runs in processes of its own, with a time limit for each model. Exit code 1: some model is silently another
one, or a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import selectors
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sweep_models
import torch
from sweep_checks import FINE, TOLD, check, seed_all, told

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from tables import RESULTS, read, save

MODEL_S = 240.0  # a hundred times what most take
START_S = 120.0  # to import a library
CHECKS = {
    "a": "build on torch: the same bits",
    "b": "build on cpp: values of the same kind",
    "c": "capture on meta, materialize: the bits of build on cpp, the kind on torch",
    "d": "materialize alone: values of the same kind",
}
MACHINE = f"small models; torch {torch.__version__}, Python {platform.python_version()}"
COUNTS, EXCEPTIONS = RESULTS / "sweep.csv", RESULTS / "sweep_exceptions.csv"

Finding = dict[str, Any]
"""A model's outcomes: ``model``, and ``found`` and ``reason`` by check, or ``left out`` with a reason."""


# --- in a process of its own ------------------------------------------------------------------------------------------


def work(library: str, names: Sequence[str]) -> None:
    """Checks models, and prints a line of JSON for each."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    make_of = sweep_models.LIBRARIES[library][1]
    print(json.dumps({"begins": True}), file=out, flush=True)
    for name in names:
        print(json.dumps({"model": name, **outcomes(make_of, name)}), file=out, flush=True)


def outcomes(make_of: Any, name: str) -> Finding:
    """Returns a model's outcomes."""
    try:
        seed_all(0)
        make = make_of(name)
        make()
    except Exception as error:  # the library's own
        return {"left out": told(error)}
    return {letter: list(outcome) for letter, outcome in check(make).items()}


# --- in the parent ----------------------------------------------------------------------------------------------------


def swept(library: str, names: Sequence[str]) -> Iterator[Finding]:
    """Yields the findings of models; one that ends its process or takes too long fails, and the rest goes on."""
    left = list(names)
    while left:
        command = [sys.executable, str(Path(__file__).resolve()), "--work", library, *left]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            try:
                for line in lines_of(process):
                    finding = json.loads(line)
                    if "model" in finding:
                        left.remove(finding["model"])
                        yield finding
                why = f"its process ended with {process.wait()}"
            except TimeoutError as error:
                why = str(error)
            finally:
                process.kill()
        if left:
            yield {"model": left.pop(0), **{letter: ["failed", why] for letter in CHECKS}}


def lines_of(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yields a process's lines.

    Raises:
        TimeoutError: the next line is not there in time.
    """
    assert process.stdout is not None
    limit, unfinished = START_S + MODEL_S, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                raise TimeoutError(f"it took more than {limit:.0f} s")
            read_now = os.read(process.stdout.fileno(), 1 << 16)
            if not read_now:
                return
            *lines, unfinished = (unfinished + read_now).split(b"\n")
            yield from (line.decode() for line in lines)
            limit = MODEL_S


def halves(names: Sequence[str], n: int) -> list[Sequence[str]]:
    """Splits names among processes."""
    return [names[i::n] for i in range(n) if names[i::n]]


def sweep(library: str, match: str, jobs: int) -> list[Finding]:
    """Returns the findings of a library's models, in order."""
    began = time.monotonic()
    names = [name for name in sweep_models.LIBRARIES[library][0]() if re.search(match, name)]
    findings: list[Finding] = []

    def run(part: Sequence[str]) -> None:
        for finding in swept(library, part):
            findings.append(finding)
            print(f"{library} {len(findings)}/{len(names)} {in_short(finding)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, halves(names, jobs)))
    print(f"{library}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return sorted(findings, key=lambda finding: names.index(finding["model"]))


def in_short(finding: Finding) -> str:
    """Returns a finding in one line."""
    if "left out" in finding:
        return f"{finding['model']}: left out: {finding['left out']}"
    cells = [f"({letter}) {finding[letter][0]}" for letter in CHECKS]
    reasons = [finding[letter][1] for letter in CHECKS if finding[letter][0] not in (*FINE, "impossible")]
    return f"{finding['model']}: {', '.join(cells)} {'; '.join(reasons)[:300]}"


# --- the tables -------------------------------------------------------------------------------------------------------


def rows_of(library: str, findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Returns the rows of counts: one for each check."""
    made = [finding for finding in findings if "left out" not in finding]
    rows = []
    for letter, what in CHECKS.items():
        counts = Counter(finding[letter][0] for finding in made)
        rows.append(
            {
                "library": f"{library} {sweep_models.version_of(library)}".split("+")[0],
                "models": str(len(made)),
                "check": what,
                "right": str(sum(counts[each] for each in FINE)),
                "refused": str(counts[TOLD[0]]),
                "warned": str(counts[TOLD[1]]),
                "silently other": str(counts["other"]),
                "failed": str(counts["failed"]),
                "not on meta": str(counts["impossible"]),
                "machine": MACHINE,
            }
        )
    return rows


def exceptions_of(library: str, findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Returns a row for each outcome that is not fine, and not to be expected."""
    return [
        {
            "library": library,
            "model": finding["model"],
            "check": CHECKS[letter].partition(":")[0],
            "found": found,
            "reason": textwrap.shorten(reason.replace("|", "/"), 200),
            "machine": MACHINE,
        }
        for finding in findings
        if "left out" not in finding
        for letter in CHECKS
        for found, reason in [finding[letter]]
        if found not in (*FINE, "impossible") and not (letter == "d" and found in TOLD)
    ]


def kept(path: Path, libraries: Sequence[str]) -> list[dict[str, str]]:
    """Returns an earlier table's rows of other libraries."""
    return [row for row in (read(path) if path.exists() else []) if row["library"].split()[0] not in libraries]


def main() -> int:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(sweep_models.LIBRARIES), help="libraries, separated by commas")
    parser.add_argument("--match", default="", help="only models whose name has this regular expression; prints only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], arguments.work[1:])
        return 0
    libraries = [name for name in arguments.only.split(",") if name in sweep_models.LIBRARIES]
    present = [name for name in libraries if sweep_models.version_of(name)]
    for name in set(libraries) - set(present):
        print(f"{name} is not installed, and is left out", file=sys.stderr)
    counts, exceptions = [], []
    for library in present:
        findings = sweep(library, arguments.match, arguments.jobs)
        counts += rows_of(library, findings)
        exceptions += exceptions_of(library, findings)
        if not arguments.match:
            save(COUNTS, [*kept(COUNTS, present[: present.index(library) + 1]), *counts])
            save(EXCEPTIONS, [*kept(EXCEPTIONS, present[: present.index(library) + 1]), *exceptions])
    for row in [*counts, *exceptions]:
        print(", ".join(list(row.values())[:-1]))
    return 1 if any(row["found"] in ("other", "failed") for row in exceptions) else 0


if __name__ == "__main__":
    sys.exit(main())

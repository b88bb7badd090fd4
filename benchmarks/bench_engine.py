"""The engine's own cost on the host, without the kernels' speed, here and in another checkout of fastinit.

``python benchmarks/bench_engine.py --against main`` compares this checkout with a git revision (in a temporary worktree
that gets a copy of this checkout's compiled extensions) or with a folder that holds another checkout. Both sides run
the same workloads (engine_workloads.py) and must give the same plan rows and weights, or nothing is timed. Then they
are timed in turns, each time in a new process: CPU time, except in fresh memory, where it is wall time. "times faster"
is the ratio of the medians; where torch alone could make the same model, "of plain" is our time divided by its time.
``--write`` writes each row into ``results/bench_engine.csv`` when it is there: all rows take half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from engine_workloads import WORKLOADS
from tables import print_table, replace

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).parent / "engine_workloads.py"
# Odd, so that medians are measurements.
ROUNDS, REPEATS = 5, 3


@dataclass
class Side:
    """A checkout, and what was measured of one workload."""

    root: Path
    label: str
    seconds: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


def main() -> None:
    """Checks, times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="another checkout: its folder, or a git revision of this repository")
    parser.add_argument("--only", default="", help="run the workloads whose names hold this text")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"processes of each side (default: {ROUNDS})")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the models, relative (default: 1)")
    parser.add_argument("--write", action="store_true", help="write results/bench_engine.csv")
    arguments = parser.parse_args()
    names = [name for name in WORKLOADS if arguments.only in name]
    if not names:
        parser.error(f"--only {arguments.only!r} matches no workload; there are: {'; '.join(WORKLOADS)}")
    if arguments.write and arguments.scale != 1:
        parser.error("--write needs workloads in full size: leave out --scale")
    print(machine.describe() + "\n", flush=True)
    with other_checkout(arguments.against) as other:
        rows = []
        for name in names:
            rows.append(row_of(name, other, arguments.scale, arguments.rounds))
            if arguments.write:
                replace("bench_engine.csv", rows[-1:], "workload")
    if not arguments.write:
        print_table(rows)


@contextmanager
def other_checkout(against: str | None) -> Iterator[Side | None]:
    """Gives the checkout to compare with: a folder as it is, or a git revision in a temporary worktree."""
    if against is None:
        yield None
    elif Path(against).is_dir():
        yield checked(Side(Path(against).resolve(), revision(Path(against))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "checkout"
            verify = ["rev-parse", "--quiet", "--verify", f"{against}^{{commit}}"]
            if subprocess.run(["git", "-C", ROOT, *verify], stdout=subprocess.DEVNULL).returncode:
                raise SystemExit(f"--against {against!r} is neither a folder nor a git revision of {ROOT}")
            git("worktree", "add", "--detach", "--quiet", str(root), against)
            try:
                for extension in (ROOT / "fastinit").glob("*.so"):
                    shutil.copy2(extension, root / "fastinit")
                yield checked(Side(root, revision(root)))
            finally:
                git("worktree", "remove", "--force", str(root))


def checked(side: Side) -> Side:
    """Returns the side; raises SystemExit unless it is a checkout with a compiled core."""
    if not list((side.root / "fastinit").glob("_native*.so")):
        raise SystemExit(f"{side.root}: no compiled core in fastinit/ (build it there with `make test`, or copy it)")
    return side


def git(*arguments: str, root: Path = ROOT) -> str:
    """Returns the output of git."""
    return subprocess.run(["git", "-C", root, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def revision(root: Path) -> str:
    """Returns the short name of a checkout's revision, and whether it was changed."""
    return git("describe", "--always", "--dirty", "--exclude=*", root=root)


def row_of(name: str, other: Side | None, scale: float, rounds: int) -> dict[str, object]:
    """Checks and times one workload, in turns, and returns its row of the table."""
    sides = [Side(ROOT, "this checkout")] + ([] if other is None else [Side(other.root, other.label)])
    n_tensors = must_be_equal(name, sides, scale)
    for at in range(rounds):
        for side in sides if at % 2 == 0 else reversed(sides):
            answer = run(side, name, scale, REPEATS)
            side.seconds += answer["fastinit"]
            side.peer += answer["peer"]
    row = table_row(name, n_tensors, sides)
    compared = "" if other is None else f", {row['times faster']} times faster than {other.label}"
    print(f"{name}: equal; {row['ms']} ms{compared}", file=sys.stderr, flush=True)
    return row


def must_be_equal(name: str, sides: Sequence[Side], scale: float) -> int:
    """Returns how many tensors a workload has; raises SystemExit unless all sides give the same result."""
    answers = [run(side, name, scale, 0) for side in sides]
    if len({answer["digest"] for answer in answers}) > 1:
        where = " and ".join(str(side.root) for side in sides)
        raise SystemExit(f"{name}: {where} give different results: nothing is timed")
    n_tensors: int = answers[0]["tensors"]
    return n_tensors


def run(side: Side, name: str, scale: float, repeats: int) -> dict[str, Any]:
    """Runs a workload of a checkout in a new process, and returns its answer."""
    environment = {**os.environ, "PYTHONPATH": str(side.root)}
    command = [sys.executable, str(SCRIPT), name, str(scale), str(repeats)]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"{name}: failed in {side.root}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    if side.root not in Path(answer["fastinit from"]).parents:
        raise SystemExit(f"{name}: imported {answer['fastinit from']}, not that of {side.root}")
    return answer


def table_row(name: str, n_tensors: int, sides: Sequence[Side]) -> dict[str, object]:
    """Returns the times of a workload as a row."""
    this, *others = sides
    median = statistics.median(this.seconds)
    row: dict[str, object] = {
        "workload": name,
        "tensors": f"{n_tensors:,}",
        "ms": f"{median * 1e3:.4g}",
        "least, ms": f"{min(this.seconds) * 1e3:.4g}",
        "us a tensor": f"{median / n_tensors * 1e6:.3g}",
        "of plain": f"{median / statistics.median(this.peer):.2f}" if this.peer else "",
    }
    for other in others:
        row[f"{other.label}, ms"] = f"{statistics.median(other.seconds) * 1e3:.4g}"
        row[f"{other.label}, least, ms"] = f"{min(other.seconds) * 1e3:.4g}"
        row["times faster"] = f"{statistics.median(other.seconds) / median:.2f}"
    return row


if __name__ == "__main__":
    main()

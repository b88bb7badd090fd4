"""Fills on the CPU: fastinit's ``cpp``, torch.nn.init, numpy and JAX, by distribution and dtype, in one table.

Whatever a contender makes is checked first (peers.py: values, range, determinism); a wrong result is not timed, and its
cell says "refused". Then all are timed in turns: in a process that may use one core, in one that may use all, and there
in new memory, too, which each call allocates and which costs page faults (before each, some memory is freed: all find
the same state). The cells are the medians, in billions of elements a second; "-" is what a contender does not have.
``--only TEXT`` measures the fills with this in "normal, float32" and the like, and keeps the rows of the others. Writes
``results/bench_peers.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import fresh
import torch
from peers import CONTENDERS, DTYPES, FILLS, Filler, NotInstalledError, by_jax, checksum_of, examined
from tables import print_table, replace

N_ELEMENTS = 1 << 23
# Of a filler that takes longer than this, the median is that of three.
ROUNDS, SLOW_S = 5, 0.2
OURS = "fastinit, cpp"
Row: TypeAlias = dict[str, object]
# By contender: what is wrong, or an empty text; and a checksum of its values.
Answers: TypeAlias = dict[str, tuple[str, int]]
REFUSED, HAS_NOT, NOT_INSTALLED = "refused", "-", "not installed"


class Worker:
    """A process that may use some cores, and fills on request."""

    def __init__(self, n_threads: int, n_elements: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, n_threads, n_elements), daemon=True)
        self._process.start()
        theirs.close()

    def prepared(self, fill: str, dtype: str, is_checked: bool) -> Answers:
        """Makes ready what all contenders have for a fill; returns why not, if not, and the checksum of the values."""
        found: Answers = self._asked(("prepare", fill, dtype, is_checked))
        return found

    def seconds(self, contender: str, is_new: bool, seed: int) -> float:
        """Returns the seconds of one fill, of memory that was filled before or that is new."""
        seconds: float = self._asked(("fill", contender, is_new, seed))
        return seconds

    def close(self) -> None:
        """Ends the process."""
        self._end.send(None)
        self._process.join()

    def _asked(self, request: tuple[object, ...]) -> Any:
        self._end.send(request)
        try:
            return self._end.recv()
        except EOFError:
            raise SystemExit("a process that fills has failed") from None


def serve(end: Connection, n_threads: int, n_elements: int) -> None:
    """Answers a Worker's requests until there are no more."""
    if hasattr(os, "sched_setaffinity"):  # before JAX starts its threads, which no setting of its own bounds
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_threads])
    torch.set_num_threads(n_threads)
    fillers: dict[str, Filler] = {}
    while (request := end.recv()) is not None:
        if request[0] == "prepare":
            fillers.clear()  # and their memory
            _, fill, dtype, is_checked = request
            end.send(prepare(fillers, fill, dtype, n_elements, is_checked))
        else:
            _, contender, is_new, seed = request
            if is_new:  # or the first one would fetch from the host what the others then find
                fresh.touch_and_free(10 * n_elements + (1 << 26))
            make = fillers[contender].anew if is_new else fillers[contender].again
            began = time.perf_counter()
            kept = make(seed)
            end.send(time.perf_counter() - began)
            del kept


def prepare(fillers: dict[str, Filler], fill: str, dtype: str, n_elements: int, is_checked: bool) -> Answers:
    """Keeps the fillers of the contenders whose results pass the check, and says why not of the others.

    Where another process checks, values are only summed up, to be compared.
    """
    answers: Answers = {}
    for name, contender in CONTENDERS.items():
        try:
            filler = contender(FILLS[fill], DTYPES[dtype], n_elements)
        except NotInstalledError:
            answers[name] = NOT_INSTALLED, 0
            continue
        if filler is None:
            answers[name] = HAS_NOT, 0
            continue
        if is_checked:
            answers[name] = examined(filler, FILLS[fill], DTYPES[dtype])
        else:
            answers[name] = "", checksum_of(filler.tensor_of(filler.again(1)))
        if not answers[name][0]:
            fillers[name] = filler
    return answers


def rows_of(fill: str, dtype: str, one: Worker, all_cores: Worker, n_threads: int, options: Options) -> list[Row]:
    """Checks and times one fill, and returns its rows: on one core, on all, and there in new memory."""
    why_not = must_agree(f"{fill}, {dtype}", one.prepared(fill, dtype, False), all_cores.prepared(fill, dtype, True))
    ways = {"1 thread": (one, False), f"{n_threads} threads": (all_cores, False)}
    ways[f"{n_threads} threads, new memory"] = all_cores, True
    contenders = [name for name, reason in why_not.items() if not reason]
    seconds: dict[tuple[str, str], list[float]] = {(way, name): [] for way in ways for name in contenders}
    for seed in range(options.rounds):
        for way, (worker, is_new) in ways.items():
            for name in contenders:
                found = seconds[way, name]
                if len(found) < 3 or min(found) < SLOW_S:
                    found.append(worker.seconds(name, is_new, seed))
    rows: list[Row] = []
    for way in ways:
        rates = {name: options.elements / statistics.median(seconds[way, name]) / 1e9 for name in contenders}
        row: Row = {"fill": fill, "dtype": dtype, "with": way}
        row |= {name: f"{rates[name]:.3g}" if name in rates else cell_of(why_not[name]) for name in CONTENDERS}
        row["times the best other"] = f"{rates[OURS] / max(rates[each] for each in rates if each != OURS):.1f}"
        rows.append(row)
    return rows


class Options(argparse.Namespace):
    """What was asked for."""

    only: str
    rounds: int
    elements: int


def cell_of(reason: str) -> str:
    """Returns what stands in the place of a rate."""
    return reason if reason in (HAS_NOT, NOT_INSTALLED) else REFUSED


def must_agree(fill: str, one: Answers, all_cores: Answers) -> dict[str, str]:
    """Returns why each contender is not timed, an empty text if it is, and says so.

    Raises:
        SystemExit: fastinit's own result is wrong.
    """
    reasons: dict[str, str] = {}
    for name, (reason, checksum) in one.items():
        reasons[name] = reason or all_cores[name][0]
        if not reasons[name] and checksum != all_cores[name][1]:
            reasons[name] = "the number of threads changes the values"
        if cell_of(reasons[name]) == REFUSED and reasons[name]:
            print(f"{fill}: {name} is refused: {reasons[name]}", file=sys.stderr, flush=True)
    if reasons[OURS]:
        raise SystemExit(f"{fill}: {OURS} is wrong: nothing is timed")
    return reasons


def drawn_in_bfloat16() -> list[str]:
    """Returns how many different numbers JAX draws in bfloat16 itself, and what the check says of them."""
    found: list[str] = []
    for fill in ("normal", "uniform", "truncated normal"):
        filler = by_jax("threefry2x32", FILLS[fill], torch.bfloat16, N_ELEMENTS, rounds=False)
        n_values = len(torch.unique(filler.tensor_of(filler.anew(0))))
        problem, _ = examined(filler, FILLS[fill], torch.bfloat16)
        found.append(f"{fill}: {n_values} different values in {N_ELEMENTS:,}; {problem or 'passes the check'}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures in turns, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="the fills with this in 'normal, float32' and so on")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"fills of each kind (default: {ROUNDS})")
    parser.add_argument("--elements", type=int, default=N_ELEMENTS, help="of each tensor; others are not recorded")
    parser.add_argument("--drawn-in-bfloat16", action="store_true", help="only show what JAX draws in bfloat16 itself")
    options = parser.parse_args(arguments, Options())
    if options.drawn_in_bfloat16:
        print("\n".join(drawn_in_bfloat16()))
        return
    kinds = [(fill, dtype) for dtype in DTYPES for fill in FILLS if options.only in f"{fill}, {dtype}"]
    if not kinds:
        parser.error(f"--only {options.only!r} matches no fill; there are: {'; '.join(FILLS)}; of {', '.join(DTYPES)}")
    n_threads = torch.get_num_threads()
    one, all_cores = Worker(1, options.elements), Worker(n_threads, options.elements)
    for fill, dtype in kinds:
        rows = rows_of(fill, dtype, one, all_cores, n_threads, options)
        if options.elements == N_ELEMENTS:
            replace("bench_peers.csv", rows, "fill", "dtype", "with", packages=("numpy", "jax"))
        else:
            print_table(rows)
    one.close()
    all_cores.close()


if __name__ == "__main__":
    main()

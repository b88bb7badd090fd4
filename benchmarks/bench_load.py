"""Loading checkpoints of 2.4 GB in 328 tensors and 84 MB in 20,000: ours against mmengine, torch and safetensors.

Each measurement runs in its own process, watched from outside: peak memory above the model's and bytes read come from
/proc. Every way must first give the file's values, bit for bit, converted by torch where the model has another dtype.
"Cold": the file is not in the page cache. Writes ``results/bench_load.csv``, and what is converted or taken in parts to
``results/bench_load_turned.csv``. Run with ``make bench``.

``--only TEXT`` measures the groups whose names hold the text, and keeps the other rows of the same machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import machine
import torch
from load_ways import PREFIX, TURNED, WAYS, Way, local_of, model_of, part_of, save, source_of, tiny_like
from tables import RESULTS, print_table, read
from tables import save as save_table
from torch import nn

ROUNDS = 3
CSV = "bench_load.csv"
CSV_TURNED = "bench_load_turned.csv"


class Measured(NamedTuple):
    """One load."""

    seconds: float
    peak: float
    """GB of memory above the model's."""
    n_read: float
    """GB read from the disk."""


def child(way: Way, path: Path) -> None:
    """Loads on request, reports the seconds, and stays alive until the parent has read /proc."""
    answers, sys.stdout = sys.stdout, sys.stderr  # mmengine prints
    model = model_of(way.model)
    way.run(nn.Linear(1, 1), tiny_like(path, f"{PREFIX}." if way.model == "part" else ""))  # one-time costs
    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    way.run(model, str(path))
    print(time.perf_counter() - began, file=answers, flush=True)
    sys.stdin.readline()


def measure(index: int, path: Path, cold: bool) -> Measured:
    """Measures one way in a new process."""
    command = [sys.executable, __file__, "--child", str(index), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit("the measured process failed")
        _cache(path, not cold)
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # resets the peak
        memory, read = _number(process.pid, "status", "VmRSS"), _number(process.pid, "io", "read_bytes")
        process.stdin.write("go\n")
        process.stdin.flush()
        seconds = float(process.stdout.readline())
        peak = _number(process.pid, "status", "VmHWM") - memory
        n_read = _number(process.pid, "io", "read_bytes") - read
        process.stdin.write("end\n")
        process.stdin.flush()
    return Measured(seconds, peak / 1e6 * 1.024, n_read / 1e9)


def _number(process: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def _cache(path: Path, wanted: bool) -> None:
    """Puts a file, or those of a folder, into the page cache, or takes them out."""
    for each in _files(path):
        with each.open("rb") as file:
            if wanted:
                while file.read(1 << 24):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


def must_be_right(way: Way, path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Raises SystemExit unless a way gives the file's values."""
    model = model_of(way.model)
    way.run(model, str(path))
    prefix = f"{PREFIX}." if way.model == "part" else ""
    for key, value in model.state_dict().items():
        if not torch.equal(local_of(value), part_of(value, expected[prefix + key]).to(value.dtype)):
            raise SystemExit(f"{way.label}, {way.file}: {key} has other values than the file")


Found = dict[tuple[int, bool], list[Measured]]
"""The loads of each way, by its index and whether the file was cold."""


def prepared(load: str, folder: Path) -> list[int]:
    """Writes the files of a group, checks that each way gives their values, and returns the indices of the ways."""
    ways = [way for way in WAYS if way.load == load]
    for file in dict.fromkeys(way.file for way in ways):
        source = source_of(file)
        save(source, folder / file)
        for way in ways:
            if way.file == file:
                must_be_right(way, folder / file, source.state_dict())
    os.sync()
    return [index for index, way in enumerate(WAYS) if way.load == load]


def measure_once(indices: list[int], folder: Path, found: Found) -> None:
    """Measures each way once, warm and cold."""
    for index in indices:
        for cold in (False, True):
            found.setdefault((index, cold), []).append(measure(index, folder / WAYS[index].file, cold))


def rows_of(indices: list[int], folder: Path, found: Found) -> list[dict[str, Any]]:
    """Returns the rows of a group."""
    middle = {key: Measured(*map(statistics.median, zip(*each))) for key, each in found.items()}
    base, rows = middle[indices[0], False].seconds, []
    for index in indices:
        way, warm, from_disk = WAYS[index], middle[index, False], middle[index, True]
        n_bytes = sum(file.stat().st_size for file in _files(folder / way.file))
        rows.append(
            {
                "load": way.load,
                "file": f"{way.file.rpartition('.')[2]}, {n_bytes / 1e9:.2f} GB",
                "way": way.label,
                "warm, s": f"{warm.seconds:.3f}",
                "cold, s": f"{from_disk.seconds:.3f}",
                "peak memory above the model's, GB": f"{warm.peak:.3f}",
                "read from disk, GB": f"{from_disk.n_read:.3f}",
                "times faster, warm": f"{base / warm.seconds:.1f}",
            }
        )
    return rows


def write_rows(measured: list[dict[str, Any]]) -> None:
    """Replaces the rows of a group in the table, and keeps those of this machine's other groups."""
    here, groups = machine.describe(), list(dict.fromkeys(way.load for way in WAYS))
    table = RESULTS / (CSV_TURNED if measured[0]["load"] in TURNED else CSV)
    kept = [row for row in read(table) if row["machine"] == here and row["load"] in groups]
    kept = [row for row in kept if row["load"] != measured[0]["load"]]
    rows = [*kept, *({**row, "machine": here} for row in measured)]
    save_table(table, sorted(rows, key=lambda row: groups.index(str(row["load"]))))
    print_table(measured)


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the groups whose names hold this text")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"loads of each way (default: {ROUNDS})")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(WAYS[int(arguments.child[0])], Path(arguments.child[1]))
        return
    groups = list(dict.fromkeys(way.load for way in WAYS))
    wanted = [load for load in groups if arguments.only in load]
    if not wanted:
        parser.error(f"--only {arguments.only!r} matches no group; there are: {'; '.join(groups)}")
    for load in wanted:
        with tempfile.TemporaryDirectory() as name:
            indices, found = prepared(load, Path(name)), Found()
            for turn in range(arguments.rounds):
                measure_once(indices, Path(name), found)
                print(f"{load}: round {turn + 1} of {arguments.rounds}", file=sys.stderr)
            write_rows(rows_of(indices, Path(name), found))


if __name__ == "__main__":
    main()

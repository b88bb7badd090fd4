"""Runs the tests on other releases of Python and torch, each pair in a virtual environment of its own.

    python tools/check_versions.py                                          # all of PAIRS: an hour or more
    python tools/check_versions.py --only 3.10:2.1.2 --folders config plans # a part; other cells of the table stay
    python tools/check_versions.py --matrix                                 # the matrix of .github/workflows/ci.yml

Needs no package itself. A pair gets its torch, what the tests need, and a copy of the checkout with the native core
compiled for its Python, without the CUDA kernel. Only torch wheels without NVIDIA's libraries are installed, as the
others take gigabytes: where pip finds none (an index of CPU builds is set with PIP_EXTRA_INDEX_URL), the pair is left
out, and the end says so. An environment that is there and has the right torch is used as it is. Writes
``benchmarks/results/versions.csv``, and exits with 1 where a test fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from csv_files import RESULTS, processor, read, save  # noqa: E402

TABLE = "versions.csv"
# The folders of tests/ that a version can change. Not among them: `kernels` (one compiler of Triton), `native` (no
# torch), `house` (the project itself), `tools` (they are for developers, on the pinned torch).
FOLDERS = (
    *("contract", "config", "plans", "backends", "shards", "mup", "integrations", "execution", "recording"),
    *("command_line", "checkpoint"),
)
# Beside torch; the oldest have no wheels for every pair, so pip chooses the releases.
PACKAGES = (
    *("numpy", "filelock", "scipy", "pytest", "pytest-xdist", "hypothesis", "safetensors", "tqdm", "fsspec"),
    *("huggingface_hub", "matplotlib", "mmengine-lite", "opencv-python-headless", "transformers", "lightning"),
    *("accelerate", "peft", "torchmetrics", "setuptools>=77", "pybind11", "ninja"),
)
# What wheels for NVIDIA's GPUs ask for.
_OF_A_GPU = re.compile(r"nvidia-|cuda-|triton$")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|deselected)\b")


class Pair(NamedTuple):
    """A release of Python and one of torch."""

    python: str
    torch: str


# The oldest torch, then about every second of the later ones, with each Python that has wheels of it.
PAIRS = [
    *(Pair(python, "2.1.2") for python in ("3.10", "3.11")),
    *(Pair(python, "2.4.1") for python in ("3.10", "3.11", "3.12")),
    *(
        Pair(python, release)
        for release in ("2.8.0", "2.11.0", "2.13.0")
        for python in ("3.10", "3.11", "3.12", "3.13")
    ),
]


class LeftOutError(Exception):
    """A pair cannot be tried here; the text says why."""


class Counts(NamedTuple):
    """How the tests of a folder ended; those that could not run at all count as failed."""

    passed: int
    skipped: int
    failed: int

    def __str__(self) -> str:
        parts = [f"{self.passed}", *([f"{self.skipped} skipped"] if self.skipped else [])]
        return ", ".join([*parts, *([f"**{self.failed} failed**"] if self.failed else [])])


def run(*command: object, cwd: Path = ROOT, **variables: str) -> str:
    """Runs a command and returns what it printed.

    Raises:
        LeftOutError: it failed.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, **variables}
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise LeftOutError(f"{' '.join(words[:6])} ...: {done.stdout.strip()[-400:]}")
    return done.stdout


def gpu_packages(report: Mapping[str, object]) -> list[str]:
    """Returns the packages for GPUs among those that pip would install, by its report."""
    installs = report["install"]
    assert isinstance(installs, list)
    names = [str(each["metadata"]["name"]) for each in installs]
    return [name for name in names if _OF_A_GPU.match(name)]


def environment_of(pair: Pair, below: Path) -> Path:
    """Returns the Python of a pair's environment, which is made where it is not there.

    Raises:
        LeftOutError: this machine has no such Python, or pip finds no such torch for the CPU.
    """
    folder = below / f"py{pair.python}-torch{pair.torch}" / "venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and _release_of(python, "torch") == pair.torch:
        return python
    found = shutil.which(f"python{pair.python}")
    if found is None or f"Python {pair.python}." not in run(found, "--version"):
        raise LeftOutError(f"there is no python{pair.python} on the PATH")
    run(found, "-m", "venv", folder)
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "--upgrade", "pip")  # the oldest know no --report
    # numpy 2 came after the torch that was built for 1.
    torch = [f"torch=={pair.torch}", *(["numpy<2"] if pair.torch < "2.3" else [])]
    report = folder / "would_install.json"
    run(*pip, "--dry-run", "--report", report, *torch)
    if gpu := gpu_packages(json.loads(report.read_text(encoding="utf-8"))):
        raise LeftOutError(f"pip finds torch {pair.torch} only with {len(gpu)} packages for GPUs ({gpu[0]}, ...)")
    run(*pip, *torch, *PACKAGES)
    return python


def _release_of(python: Path, package: str) -> str:
    """Returns the release of a package in an environment without what builds add to it, "" where it is not there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.strip().partition("+")[0]


def copy_of_checkout(python: Path) -> Path:
    """Makes a pair's copy of the files that git knows, with the native core for its Python; returns the folder."""
    into = python.parents[2] / "checkout"
    for old in into.iterdir() if into.is_dir() else ():
        if old.name != "build":  # what is compiled already
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    run(python, "setup.py", "build_ext", "--inplace", cwd=into, FASTINIT_CUDA="0", FASTINIT_REQUIRE_BUILD="native")
    return into


def counts_of(output: str) -> Counts:
    """Returns what pytest's last line says.

    Raises:
        LeftOutError: pytest did not get so far.
    """
    last = output.strip().rpartition("\n")[2]
    found = {word.rstrip("s") if word.startswith("error") else word: int(n) for n, word in _COUNT.findall(last)}
    if not found:
        raise LeftOutError(f"pytest did not end: {output.strip()[-400:]}")
    passed = found.get("passed", 0) + found.get("xfailed", 0)
    return Counts(passed, found.get("skipped", 0), found.get("failed", 0) + found.get("error", 0))


def test(python: Path, checkout: Path, folder: str, n_processes: int) -> tuple[Counts, str]:
    """Runs a folder of tests; returns their counts, and pytest's output."""
    command = [python, "-m", "pytest", "-q", "-n", str(n_processes), "--dist", "loadscope", f"tests/{folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "FASTINIT_REQUIRE"}
    environment["PYTHONPATH"] = str(checkout)  # for the programs that tests start: fastinit is not installed there
    done = subprocess.run(
        [str(word) for word in command],
        cwd=checkout,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return counts_of(done.stdout), done.stdout


def note(pair: Pair, python: Path, counts: Mapping[str, Counts]) -> None:
    """Writes counts into the pair's row of the table; its other cells and the other rows stay.

    A folder that no pair has run has no column.
    """
    path = RESULTS / TABLE
    rows = {Pair(row["python"], row["torch"]): row for row in read(path)}
    others = {"numpy": _release_of(python, "numpy"), "mmengine": _release_of(python, "mmengine-lite")}
    cells = {folder: str(count) for folder, count in counts.items()}
    rows[pair] = {**rows.get(pair, {}), **pair._asdict(), **others, **cells, "machine": processor()}
    tried = [folder for folder in FOLDERS if any(row.get(folder) for row in rows.values())]
    columns = [*Pair._fields, "numpy", "mmengine", *tried, "machine"]
    here = sorted(
        rows, key=lambda each: [[int(part) for part in text.split(".")] for text in (each.torch, each.python)]
    )
    save(path, [{column: rows[each].get(column, "") for column in columns} for each in here])


def check(pair: Pair, below: Path, folders: Sequence[str], n_processes: int, is_kept: bool) -> int:
    """Tries a pair; returns how many tests failed."""
    python = environment_of(pair, below)
    checkout = python.parents[2] / "checkout"
    if not (is_kept and list(checkout.glob("fastinit/_native*"))):  # a build that was stopped leaves none
        copy_of_checkout(python)
    n_failed = 0
    for folder in folders:
        counts, output = test(python, checkout, folder, n_processes)
        (checkout.parent / f"{folder}.log").write_text(output, encoding="utf-8")
        note(pair, python, {folder: counts})
        print(f"Python {pair.python}, torch {pair.torch}, tests/{folder}: {counts}", flush=True)
        for line in re.findall(r"^(?:FAILED|ERROR) .*", output, re.MULTILINE):
            print(f"    {line[:200]}", flush=True)
        n_failed += counts.failed
    return n_failed


def matrix() -> str:
    """Returns the matrix of the public CI, in YAML: each pair as a job."""
    return "\n".join(f'          - {{ python: "{pair.python}", torch: "{pair.torch}" }}' for pair in PAIRS)


def pair_of(text: str) -> Pair:
    """Returns one of PAIRS, from e.g. ``3.10:2.1.2``; argparse shows the message."""
    pair = Pair(*text.split(":")) if text.count(":") == 1 else None
    if pair not in PAIRS:
        known = ", ".join(":".join(each) for each in PAIRS)
        raise argparse.ArgumentTypeError(f"expected PYTHON:TORCH, one of {known}; got {text!r}")
    return pair


def main() -> None:
    """Tries the pairs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", type=pair_of, metavar="PYTHON:TORCH", help="these pairs; all if not given")
    parser.add_argument("--folders", nargs="+", choices=FOLDERS, default=FOLDERS, help="of tests/; all if not given")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "versions", help="where they are kept")
    parser.add_argument("--keep", action="store_true", help="tests a pair's copy of the checkout as it was made before")
    parser.add_argument("-n", type=int, default=os.cpu_count() or 1, help="how many processes test")
    parser.add_argument("--matrix", action="store_true", help="prints the matrix of the public CI, and tries nothing")
    options = parser.parse_args()
    if options.matrix:
        print(matrix())
        return
    left_out, n_failed = [], 0
    for pair in options.only or PAIRS:
        try:
            n_failed += check(pair, options.environments.resolve(), options.folders, options.n, options.keep)
        except LeftOutError as error:
            left_out.append(f"Python {pair.python}, torch {pair.torch}: {error}")
    print(f"{n_failed} failed" + "".join(f"\nleft out: {each}" for each in left_out))
    # A pair that was asked for by name must run.
    sys.exit(bool(n_failed or (left_out and options.only)))


if __name__ == "__main__":
    main()

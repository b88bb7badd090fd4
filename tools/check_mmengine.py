"""Runs mmengine's own tests plain and after ``fastinit.integrations.mmengine.enable()``, and compares the outcomes.

    git clone --depth 1 --branch v0.10.7 https://github.com/open-mmlab/mmengine
    python -m venv venv && venv/bin/pip install torch mmengine==0.10.7 pytest parameterized dill lmdb .
    venv/bin/python tools/check_mmengine.py mmengine/tests

Runs in the environment of its interpreter: mmengine, or onedl-mmengine, which has the same import name. Each run is a
process of its own, in which ``enable`` comes before anything else. Prints a table of counts, and each test that came
out otherwise than plain. Exit code 1: there is such a test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import distribution, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PARTS = ("test_model", "test_runner/test_checkpoint.py", "test_registry", "test_config/test_config.py")
BACKENDS = ("torch", "cpp")
NEEDED = ("mmengine", "pytest", "parameterized", "dill", "lmdb")
PLUGIN = "import fastinit\nfastinit.integrations.mmengine.enable()\n"
OUTCOMES = ("passed", "failed", "error", "skipped")

Outcome = tuple[str, str]
"""How a test came out, one of OUTCOMES, and the first line of why."""


def outcomes_in(report: Path) -> dict[str, Outcome]:
    """Returns the outcome of each test in a JUnit report of pytest, by the test's name.

    A test that has two entries, such as a failure and then an error of its teardown, keeps the first.
    """
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = ("passed", "")
        for child in case:
            kind = {"failure": "failed"}.get(child.tag, child.tag)
            if kind in OUTCOMES:
                outcome = (kind, child.get("message", "").partition("\n")[0])
                break
        found.setdefault(f"{case.get('classname')}.{case.get('name')}", outcome)
    return found


def differences(plain: dict[str, Outcome], enabled: dict[str, Outcome]) -> list[str]:
    """Returns a line for each test that came out otherwise than plain, or that only one of two runs has."""
    none = ("not run", "")
    pairs = {name: (plain.get(name, none), enabled.get(name, none)) for name in sorted({*plain, *enabled})}
    return [
        f"{name}: {before[0]} plain, {after[0]} enabled: {after[1] or before[1]}"
        for name, (before, after) in pairs.items()
        if before[0] != after[0]
    ]


def run(tests: Path, parts: Sequence[str], backend: str | None) -> dict[str, Outcome]:
    """Runs tests in a process of its own.

    Args:
        tests: mmengine's folder of tests.
        parts: files and folders in it.
        backend: that of fastinit, which is enabled; None: without fastinit.

    Raises:
        SystemExit: pytest could not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([folder, str(ROOT)])}
        if backend is not None:
            (Path(folder) / "fastinit_enabled.py").write_text(PLUGIN)
            command += ["-p", "fastinit_enabled"]
            environment["FASTINIT_BACKEND"] = backend
        command += [str(Path(tests.name) / part) for part in parts]
        done = subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True)
        if not report.is_file():
            raise SystemExit(f"pytest could not run (exit code {done.returncode}):\n{done.stdout}{done.stderr}")
        return outcomes_in(report)


def table(runs: dict[str, dict[str, Outcome]]) -> str:
    """Returns the counts of runs as a table in Markdown."""
    plain = next(iter(runs.values()))
    lines = [f"| run | tests | {' | '.join(OUTCOMES)} | otherwise than plain |", "|---" * (len(OUTCOMES) + 3) + "|"]
    for name, found in runs.items():
        counts = Counter(outcome for outcome, _ in found.values())
        cells = [name, len(found), *(counts[each] for each in OUTCOMES), len(differences(plain, found))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def versions() -> str:
    """Returns the versions of what is compared: of mmengine under the name by which it is installed."""
    folder = Path(str(find_spec("mmengine").origin)).parent  # type: ignore[union-attr]
    found = {name: distribution(name) for name in packages_distributions()["mmengine"]}
    imported = [f"{name} {each.version}" for name, each in found.items() if each.locate_file("mmengine") == folder]
    return ", ".join([*imported, f"torch {version('torch')}", f"Python {sys.version.split()[0]}"])


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="the folder tests of mmengine's sources, of the installed version")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, help="of fastinit; torch and cpp unless told")
    parser.add_argument("--parts", nargs="+", default=PARTS, help=f"of the tests; {' '.join(PARTS)} unless told")
    options = parser.parse_args()
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        parser.error(f"mmengine's tests need {', '.join(missing)}: pip install {' '.join(missing)}")
    if absent := [part for part in options.parts if not (options.tests / part).exists()]:
        parser.error(
            f"{options.tests} has no {', '.join(absent)}; give the folder tests of mmengine's sources: "
            "git clone --depth 1 --branch v0.10.7 https://github.com/open-mmlab/mmengine"
        )
    tests = options.tests.resolve()
    runs = {"plain": run(tests, options.parts, None)}
    for backend in options.backends:
        runs[f"enabled, {backend}"] = run(tests, options.parts, backend)
    print(f"{versions()}\n\n{table(runs)}")
    lines = [f"{name}: {line}" for name, found in runs.items() for line in differences(runs["plain"], found)]
    print("\n".join(["", *lines]))
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())

"""The GPU day: builds fastinit on a machine with a GPU, checks its kernels against cpp, times and profiles them.

For a machine that you have for minutes: one command in a fresh checkout, without installation. The most valuable steps
come first; each runs in its own process with its own time limit, and a failure does not stop the next one. The whole
ends after ``--seconds``; steps without enough time or without their tools are reported as left out.

    python3 tools/gpu_day.py                          # all steps, within 500 s
    python3 tools/gpu_day.py --steps smoke,pytest     # later: only these steps
    python3 tools/gpu_day.py --list                   # what each step checks

Results are in ``--out``, else in ``$OUT``, else in a temporary folder: summary.txt (rewritten after every step, printed
at the end), results.json (the same for programs), log.txt (all output), bench_gpu.csv, gpu_rates.csv, ncu_*.csv.
``adopt_gpu_day.py`` adopts them into the project. Without a GPU the same code runs small sizes on the backend cpp, and
each line of the summary says so.

Exit codes: 0 all steps passed, 1 some failed, 3 none failed but some were left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_day_step import FINDINGS, NOT_DONE, RIGHT, WRONG

HERE = Path(__file__).resolve().parent
SECONDS = 500.0  # some machines stop a command after 600 s: leaves time to start it and to fetch the results
SHORTEST_S = 15.0  # a third of it goes into importing torch and creating a GPU context; less is not worth a start
GRACE_S = 5.0  # between SIGTERM and SIGKILL
N_FINDINGS = 60  # per step in the summary; results.json has all
N_IN_SHORT = 4  # of failures per step, at the summary's end
N_LAST_WORDS = 6  # lines of a failed step's output
NO_GPU = "[NO GPU, over cpp] "


@dataclass(frozen=True)
class Step:
    """One step of the day."""

    name: str
    limit_s: float
    shows: str
    run: str
    """MODULE:FUNCTION, which gpu_day_step.py runs in a process."""
    arguments: tuple[str, ...] = ()
    table: str = ""
    """The table with the step's findings, if any."""


BENCH = "gpu_day_tools:bench"
# Most valuable first. The limits are two to four times the expected time on an H100; their sum exceeds the day's.
STEPS = [
    Step(
        "facts",
        40,
        "GPU, driver, versions, tools; fails if torch does not see the GPU that the driver sees",
        "gpu_day_tools:facts",
    ),
    Step("build", 150, "both extensions import, or are built for this GPU only", "gpu_day_tools:build"),
    Step(
        "smoke",
        110,
        "every byte against cpp: distributions, dtypes, boxes, 20,000 tensors, streams, 2^33 elements",
        "gpu_day_checks:smoke",
    ),
    Step(
        "rates",
        45,
        "how fast each loop writes, for the table of predictions",
        "gpu_rates:rates",
        table="gpu_predictions.csv",
    ),
    Step(
        "llama", 70, "Llama 3 8B, 291 tensors in one launch, against torch.nn.init", BENCH, ("Llama",), "bench_gpu.csv"
    ),
    Step(
        "model",
        80,
        "a whole Llama 8B by transformers' own init, build, and capture: seconds, memory, bits",
        "gpu_day_uses:model",
    ),
    Step(
        "tensor",
        90,
        "one tensor of 2^30 elements, all distributions, against torch",
        BENCH,
        ("one tensor",),
        "bench_gpu.csv",
    ),
    Step("pytest", 110, "the suite's own tests of GPU kernels, on the GPU", "gpu_day_tools:suite"),
    Step("odd", 40, "graphs, torch.compile, inference mode, default device, saved for backward", "gpu_day_uses:odd"),
    Step("shard", 40, "FSDP2 and DTensor, as one rank of four", "gpu_day_uses:shard"),
    Step("memcheck", 80, "compute-sanitizer over a launch of each kind", "gpu_day_tools:memcheck"),
    Step(
        "experts",
        60,
        "20,000 experts' matrices in one launch, against torch.nn.init",
        BENCH,
        ("mixture of experts",),
        "bench_gpu.csv",
    ),
    Step("expandable", 30, "memory of expandable segments", "gpu_day_tools:expandable"),
    Step(
        "ncu",
        150,
        "the profiler on both kernels: memory, issue slots, occupancy",
        "gpu_day_tools:ncu",
        table="gpu_ncu.csv",
    ),
]


@dataclass
class Outcome:
    """The outcome of a step."""

    step: str
    state: str
    """``right``, ``FAILED``, ``not done`` (at least in part) or ``left out``."""
    why: str = ""
    rc: int | None = None
    seconds: float = 0.0
    table: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    last_words: list[str] = field(default_factory=list)


class Day:
    """Runs steps, and keeps the summary and the results up to date in a folder."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.ends = out, time.monotonic() + seconds
        self.machine: dict[str, Any] = {}
        self.outcomes: list[Outcome] = []
        self.work = Path(tempfile.mkdtemp(prefix="fastinit-gpu-day-"))
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "log.txt").open("ab")

    def close(self) -> None:
        """Closes the log, and removes temporary files."""
        self.log.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def environment(self, findings: Path) -> dict[str, str]:
        """Returns a step's environment: this checkout before any installed fastinit, and no network."""
        found = {**os.environ, FINDINGS: str(findings), "FASTINIT_GPU_DAY_OUT": str(self.out)}
        paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        found.update(
            PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
        )
        found.setdefault("TRITON_CACHE_DIR", str(self.work / "triton"))  # shared by all steps: compilation takes 15 s
        return found

    def run(self, step: Step) -> Outcome:
        """Runs a step, or records why not, and writes the results so far."""
        left = self.ends - time.monotonic()
        if left < min(SHORTEST_S, step.limit_s):
            outcome = Outcome(step.name, "left out", f"{max(0.0, left):.0f} s were left", table=step.table)
        else:
            outcome = self._run(step, min(step.limit_s, left))
        if step.name == "facts" and outcome.findings:
            self.machine = outcome.findings[0]["numbers"]
        self.outcomes.append(outcome)
        self.write()
        print(self.lines_of(outcome)[0], flush=True)  # the rest is in the summary, printed at the end
        return outcome

    def _run(self, step: Step, limit_s: float) -> Outcome:
        path = self.work / f"{step.name}.jsonl"
        self.log.write(f"\n##### {step.name}, {limit_s:.0f} s at most\n".encode())
        self.log.flush()
        began_at, began = self.log.tell(), time.monotonic()
        command = [sys.executable, str(HERE / "gpu_day_step.py"), step.run, *step.arguments]
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            env=self.environment(path),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, to be killed as a whole
        )
        is_late = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            end_group(process)
        lines = path.read_text().splitlines() if path.exists() else []
        findings = [json.loads(line) for line in lines if line.endswith("}")]  # a killed step may leave half a line
        outcome = Outcome(step.name, "right", "", process.returncode, time.monotonic() - began, step.table, findings)
        outcome.state, outcome.why = verdict(process.returncode, findings, f"killed after {limit_s:.0f} s" * is_late)
        if outcome.state == "FAILED":
            with (self.out / "log.txt").open("rb") as log:
                log.seek(began_at)
                lines = log.read().decode(errors="replace").splitlines()
            outcome.last_words = [line for line in lines if line.strip() and not line.startswith("=> ")][-N_LAST_WORDS:]
        return outcome

    def write(self) -> None:
        """Writes summary.txt and results.json; if killed meanwhile, leaves the previous ones."""
        steps = [{**asdict(each), "seconds": round(each.seconds, 2)} for each in self.outcomes]
        results = {"fastinit_gpu_day": 1, "machine": self.machine, "exit_code": self.exit_code(), "steps": steps}
        for name, text in (("summary.txt", self.summary()), ("results.json", json.dumps(results, indent=1))):
            unfinished = self.work / name
            unfinished.write_text(text + "\n")
            shutil.copyfile(unfinished, self.out / f".{name}")
            os.replace(self.out / f".{name}", self.out / name)

    @property
    def mark(self) -> str:
        """The prefix of each line of the summary: empty on a GPU."""
        return "" if self.machine.get("is_gpu") else NO_GPU

    def lines_of(self, outcome: Outcome) -> list[str]:
        """Returns a step's lines of the summary."""
        why = f" ({outcome.why})" if outcome.why else ""
        lines = [f"{outcome.step}: {outcome.state}{why}, {outcome.seconds:.1f} s"]
        # Failures first, then as many others as there is room for.
        ordered = sorted(outcome.findings, key=lambda each: each["kind"] == "found")
        for finding in ordered[:N_FINDINGS]:
            lines.append(f"    {'' if finding['kind'] == 'found' else finding['kind'].upper() + ': '}{finding['text']}")
        if len(ordered) > N_FINDINGS:
            lines.append(f"    ... {len(ordered) - N_FINDINGS} more in results.json")
        lines += [f"      | {line[:200]}" for line in outcome.last_words]
        return [self.mark + line for line in lines]

    def summary(self) -> str:
        """Returns the summary; its end, which survives truncation, has a line per step and the failures."""
        lines = [self.mark + str(self.machine.get("description", "the machine is not known"))]
        for outcome in self.outcomes:
            lines += self.lines_of(outcome)
        lines.append(self.mark + "in short:")
        for outcome in self.outcomes:
            head, *rest = self.lines_of(outcome)
            n_wrong = sum(each["kind"] != "found" for each in outcome.findings)  # which come first
            lines += [head, *rest[: min(n_wrong, N_IN_SHORT)]]
        counts = []
        for state in ("right", "FAILED", "not done", "left out"):
            names = [each.step for each in self.outcomes if each.state == state]
            if names:
                counts.append(f"{len(names)} {state}" + (f" ({', '.join(names)})" if state != "right" else ""))
        return "\n".join([*lines, f"{self.mark}{len(self.outcomes)} steps: {', '.join(counts)}"])

    def exit_code(self) -> int:
        """Returns the exit code of the steps so far."""
        states = {each.state for each in self.outcomes}
        return WRONG if "FAILED" in states else NOT_DONE if states - {"right"} else RIGHT


def verdict(rc: int, findings: Sequence[dict[str, Any]], killed: str) -> tuple[str, str]:
    """Returns a step's state and the reason, from its exit code and from its findings or its programs'."""
    kinds = {finding["kind"] for finding in findings}
    if killed:
        return "FAILED", killed
    if rc not in (RIGHT, NOT_DONE):
        return "FAILED", "" if rc == WRONG else f"signal {-rc}" if rc < 0 else f"exit code {rc}"
    if "wrong" in kinds:
        return "FAILED", ""
    if not findings:
        return "FAILED", "it found nothing at all"
    return ("not done" if rc == NOT_DONE or "not done" in kinds else "right"), ""


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and everything that it started, with SIGTERM first."""
    for number, seconds in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGKILL:
                return


def run_day(steps: Sequence[Step], out: Path, seconds: float) -> int:
    """Runs steps in order, with results in ``out``, and returns the exit code."""
    day = Day(out, seconds)
    try:
        for step in steps:
            day.run(step)
        print(f"\n================ summary, {out} ================\n{day.summary()}", flush=True)
        return day.exit_code()
    finally:
        day.close()


def chosen(names: str) -> list[Step]:
    """Returns the steps of a comma-separated list, in the day's order and always with the facts.

    Raises:
        SystemExit: a name is unknown.
    """
    wanted = [name for name in names.split(",") if name]
    if unknown := set(wanted) - {step.name for step in STEPS}:
        raise SystemExit(f"no step is named {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in STEPS)}")
    return [step for step in STEPS if not wanted or step.name in wanted or step.name == "facts"]


def new_folder(out: Path) -> Path:
    """Returns the absolute path of the results' folder.

    Raises:
        SystemExit: it already has another day's results.
    """
    if (out / "results.json").exists():
        raise SystemExit(f"{out} holds the results of a day already; adopt_gpu_day.py takes several folders")
    return out.resolve()


def main() -> int:
    """Runs the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="", help="comma-separated steps to run instead of all; facts always run")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"after which the day ends, {SECONDS:.0f} if not given"
    )
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="the folder for the results")
    parser.add_argument("--list", action="store_true", help="lists the steps and ends")
    arguments = parser.parse_args()
    if arguments.list:
        for step in STEPS:
            print(f"{step.name:<11}{step.limit_s:4.0f} s  {step.shows}")
        return RIGHT
    steps = chosen(arguments.steps)
    # Terminating the day also terminates the running step.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out = new_folder(Path(arguments.out or tempfile.mkdtemp(prefix="fastinit-gpu-day-results-")))
    print(f"results: {out}", flush=True)
    return run_day(steps, out, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())

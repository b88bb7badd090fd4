"""The GPU day: builds fastinit where a GPU is at hand, proves its kernels against cpp, times and profiles them.

For a machine that is lent for minutes: one command in a fresh checkout, without any installation. What is worth most
comes first; every step has a process and a limit of its own, and the next one runs whatever became of it. The whole
ends after ``--seconds``; steps that are left then, or that need a tool that is not there, are said to be left out.

    python3 tools/gpu_day.py                          # all steps, in 500 s at most
    python3 tools/gpu_day.py --steps smoke,pytest     # a later call, for what is missing
    python3 tools/gpu_day.py --list                   # what each step shows

Results lie in ``--out``, else in ``$OUT``, else in a temporary folder: summary.txt (printed last, and written anew
after every step), results.json (the same for programs), log.txt (all output), bench_gpu.csv, gpu_rates.csv, ncu_*.csv.
``adopt_gpu_day.py`` takes them into the project. Without a GPU the same code runs over the backend cpp in small sizes,
and each line of the summary says so.

Exit codes: 0 all right, 1 something failed, 3 nothing failed and something was left out.
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
SECONDS = 500.0  # of the 600 that a lent machine may give a command: time to start it and to bring results back
SHORTEST_S = 15.0  # importing torch and making a context on the GPU take a third of it; less is no step
GRACE_S = 5.0  # between asking a step to end and killing it
N_FINDINGS = 60  # of a step in the summary; results.json has all
N_IN_SHORT = 4  # of what is wrong in a step, at the summary's end
N_LAST_WORDS = 6  # lines of its output, where it failed
NO_GPU = "[NO GPU, over cpp] "


@dataclass(frozen=True)
class Step:
    """One thing to try."""

    name: str
    limit_s: float
    shows: str
    run: str
    """MODULE:FUNCTION, of which gpu_day_step.py makes a process."""
    arguments: tuple[str, ...] = ()
    table: str = ""
    """The table that has the step's findings, where one has them."""


BENCH = "gpu_day_tools:bench"
# Most valuable first. The limits are two to four times what is expected on an H100, and together more than there is.
STEPS = [
    Step(
        "facts",
        40,
        "GPU, driver, versions, tools; fails where torch does not see a GPU that is there",
        "gpu_day_tools:facts",
    ),
    Step("build", 150, "both extensions import, else they are built, for this GPU alone", "gpu_day_tools:build"),
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
    Step(
        "ncu",
        75,
        "what the profiler sees of both kernels: memory, issue slots, occupancy",
        "gpu_day_tools:ncu",
        table="gpu_ncu.csv",
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
]


@dataclass
class Outcome:
    """What became of a step."""

    step: str
    state: str
    """``right``, ``FAILED``, ``not done`` (of a part at least) or ``left out``."""
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
        """Ends the log, and removes what no result needs."""
        self.log.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def environment(self, findings: Path) -> dict[str, str]:
        """Returns what a step's process sees: this checkout, nothing installed over it, and no network."""
        found = {**os.environ, FINDINGS: str(findings), "FASTINIT_GPU_DAY_OUT": str(self.out)}
        paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        found.update(
            PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"
        )
        found.setdefault("TRITON_CACHE_DIR", str(self.work / "triton"))  # one for all steps: compilation takes 15 s
        return found

    def run(self, step: Step) -> Outcome:
        """Runs a step, or says why not, and writes the results so far."""
        left = self.ends - time.monotonic()
        if left < min(SHORTEST_S, step.limit_s):
            outcome = Outcome(step.name, "left out", f"{max(0.0, left):.0f} s were left", table=step.table)
        else:
            outcome = self._run(step, min(step.limit_s, left))
        if step.name == "facts" and outcome.findings:
            self.machine = outcome.findings[0]["numbers"]
        self.outcomes.append(outcome)
        self.write()
        print(self.lines_of(outcome)[0], flush=True)  # the rest in the summary, which is printed last
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
            start_new_session=True,  # a group of its own, which is killed as a whole
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
        """Writes summary.txt and results.json; whoever is killed meanwhile leaves those before."""
        steps = [{**asdict(each), "seconds": round(each.seconds, 2)} for each in self.outcomes]
        results = {"fastinit_gpu_day": 1, "machine": self.machine, "exit_code": self.exit_code(), "steps": steps}
        for name, text in (("summary.txt", self.summary()), ("results.json", json.dumps(results, indent=1))):
            unfinished = self.work / name
            unfinished.write_text(text + "\n")
            shutil.copyfile(unfinished, self.out / f".{name}")
            os.replace(self.out / f".{name}", self.out / name)

    @property
    def mark(self) -> str:
        """What each line of the summary begins with: nothing on a GPU."""
        return "" if self.machine.get("is_gpu") else NO_GPU

    def lines_of(self, outcome: Outcome) -> list[str]:
        """Returns what the summary says of a step."""
        why = f" ({outcome.why})" if outcome.why else ""
        lines = [f"{outcome.step}: {outcome.state}{why}, {outcome.seconds:.1f} s"]
        # What is wrong first, then what there is room for.
        ordered = sorted(outcome.findings, key=lambda each: each["kind"] == "found")
        for finding in ordered[:N_FINDINGS]:
            lines.append(f"    {'' if finding['kind'] == 'found' else finding['kind'].upper() + ': '}{finding['text']}")
        if len(ordered) > N_FINDINGS:
            lines.append(f"    ... {len(ordered) - N_FINDINGS} more in results.json")
        lines += [f"      | {line[:200]}" for line in outcome.last_words]
        return [self.mark + line for line in lines]

    def summary(self) -> str:
        """Returns all that is known; at its end, which a cut output shows, a line for each step and what is wrong."""
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
        """Returns what the steps so far come to."""
        states = {each.state for each in self.outcomes}
        return WRONG if "FAILED" in states else NOT_DONE if states - {"right"} else RIGHT


def verdict(rc: int, findings: Sequence[dict[str, Any]], killed: str) -> tuple[str, str]:
    """Returns the state of a step and why, by its exit code and by what it, or a program that it ran, found."""
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
    """Ends a process and all that it has started, politely at first."""
    for number, seconds in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGKILL:
                return


def run_day(steps: Sequence[Step], out: Path, seconds: float) -> int:
    """Runs steps in order and returns the exit code; the results lie in ``out``."""
    day = Day(out, seconds)
    try:
        for step in steps:
            day.run(step)
        print(f"\n================ summary, {out} ================\n{day.summary()}", flush=True)
        return day.exit_code()
    finally:
        day.close()


def chosen(names: str) -> list[Step]:
    """Returns the steps of a comma list, in the day's order, the facts always among them.

    Raises:
        SystemExit: a name is not known.
    """
    wanted = [name for name in names.split(",") if name]
    if unknown := set(wanted) - {step.name for step in STEPS}:
        raise SystemExit(f"no step is named {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in STEPS)}")
    return [step for step in STEPS if not wanted or step.name in wanted or step.name == "facts"]


def new_folder(out: Path) -> Path:
    """Returns the folder for the results, in full.

    Raises:
        SystemExit: another day's lie there.
    """
    if (out / "results.json").exists():
        raise SystemExit(f"{out} holds the results of a day already; adopt_gpu_day.py takes several folders")
    return out.resolve()


def main() -> int:
    """Runs the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="", help="a comma list of steps, instead of all; the facts come always")
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
    # Whoever ends the day from outside ends the step that runs, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    out = new_folder(Path(arguments.out or tempfile.mkdtemp(prefix="fastinit-gpu-day-results-")))
    print(f"results: {out}", flush=True)
    return run_day(steps, out, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())

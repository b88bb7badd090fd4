"""Steps of the GPU day that run other programs: builds, the benchmark, the test suite, profiler and sanitizer."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_day_step import check, found, not_done, wrong

ROOT = Path(__file__).resolve().parent.parent
STEP = Path(__file__).resolve().parent / "gpu_day_step.py"
PROGRAMS = ("nvcc", "g++", "ncu", "compute-sanitizer")
PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "hypothesis", "scipy", "pybind11", "ninja")
BENCH_REPEATS = 7  # instead of bench_gpu's 11, to save a third of the time
MACHINE_CODE = "90"  # built if there is no GPU to ask: an H100's


def out() -> Path:
    """Returns the folder for a step's files."""
    return Path(os.environ["FASTINIT_GPU_DAY_OUT"])


def answer(command: Sequence[str], timeout_s: float = 30) -> str:
    """Returns a program's output, "" if it cannot be run or fails."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


# --- facts ------------------------------------------------------------------------------------------------------------


def facts() -> None:
    """Records what machine this is."""
    import machine
    from gpu_day_device import DEVICE, GPU

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    tools = {name: shutil.which(name) or "" for name in PROGRAMS}
    description = machine.describe_device(DEVICE)
    facts: dict[str, Any] = dict(description=description, is_gpu=GPU, versions=versions, programs=tools)
    facts.update(
        python=platform.python_version(), processors=os.cpu_count(), commit=answer(["git", "rev-parse", "HEAD"])
    )
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        facts.update(
            gpu=properties.name,
            capability=f"{properties.major}{properties.minor}",
            memory_gb=properties.total_memory / 1e9,
            multiprocessors=properties.multi_processor_count,
            n_gpus=torch.cuda.device_count(),
        )
    found(description, **facts)
    query = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.max.mem,mig.mode.current"
    listed = answer(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    for line in listed.splitlines():
        found(f"nvidia-smi: {line}")
    if not GPU and (listed or Path("/dev/nvidiactl").exists()):
        wrong("torch does not see this machine's GPU: a day on cpp proves nothing about the kernels")
    found(", ".join(f"{name} {text or 'is missing'}" for name, text in {"Python": facts["python"], **versions}.items()))
    missing = [name for name, path in tools.items() if not path]
    found(f"{os.cpu_count()} processors; " + (f"no {', '.join(missing)}" if missing else "all programs are there"))


# --- build ------------------------------------------------------------------------------------------------------------

IMPORT_BOTH = "from fastinit import _cuda, _native; print(_cuda.RUNTIME_VERSION)"


def imported() -> str:
    """Returns the CUDA runtime of this checkout's extensions, "" if one does not import."""
    return answer([sys.executable, "-c", IMPORT_BOTH])


def build(setup: str = "setup.py") -> None:
    """Checks that both extensions import in this Python, or builds them in place for this machine's GPU."""
    from gpu_day_device import GPU

    if runtime := imported():
        found(f"uses the extensions in this checkout, runtime {runtime}")
        return
    code = "".join(map(str, torch.cuda.get_device_capability(0))) if GPU else MACHINE_CODE
    environment = {**os.environ, "FASTINIT_CUDA_ARCHS": code}
    command = [sys.executable, setup, "-q", "build_ext", "--inplace"]
    rc = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if runtime := imported():
        found(f"built here for sm_{code}, runtime {runtime}")
        return
    for name in ("native_missing.txt", "cuda_missing.txt"):
        if (ROOT / "fastinit" / name).exists():
            wrong((ROOT / "fastinit" / name).read_text().strip()[:600])
    wrong(f"the extensions do not import after a build that ended with {rc}")


# --- benchmark --------------------------------------------------------------------------------------------------------


def bench(*only: str) -> None:
    """Runs workloads of bench_gpu.py, and writes the table after each."""
    import bench_gpu
    import gpu_workloads
    from gpu_day_device import GPU, backends

    backends()
    elements = gpu_workloads.N_ELEMENTS if GPU else bench_gpu.TRIAL_ELEMENTS
    bench_gpu.measured(only, BENCH_REPEATS if GPU else 1, elements, out() / "bench_gpu.csv", told)


def told(rows: Sequence[Mapping[str, str]]) -> None:
    """Records each measured row."""
    for row in rows:
        what = ", ".join(filter(None, (row["workload"], row["dtype"], row["distribution"], row["contender"])))
        cells = {
            name: row[name] for name in ("seconds", "GB/s", "of the write ceiling", "times faster", "host, ms", "note")
        }
        found(f"{what}: " + ", ".join(f"{name} {cell}" for name, cell in cells.items() if cell), **row)


# --- the suite's own tests --------------------------------------------------------------------------------------------

TESTS = (
    "tests/backends/test_gpu_backends.py",
    "tests/kernels/test_gpu_kernels.py",
    "tests/kernels/test_digest_kernel.py",
)


def suite(*more: str) -> None:
    """Runs the tests of the GPU kernels with all backends required; without a GPU, those of the host's side."""
    from gpu_day_device import GPU

    arguments = ["-q", "--maxfail=12", "-p", "no:cacheprovider", "-rfEs", "--durations=5", *more]
    arguments += ["--device", "cuda", *TESTS] if GPU else TESTS[:1]
    required = {"FASTINIT_REQUIRE": "cpp,triton,cuda" if GPU else "cpp"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, **required},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last = reason = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if line.startswith("E   "):
            reason = line[1:].strip()
        elif re.match(r"(FAILED|ERROR)\b", line):  # pytest names a file that does not import without the reason
            wrong(line.strip()[:300] + ("" if " - " in line else f" - {reason[:200]}"))
        elif line.startswith("SKIPPED"):
            found(line.strip()[:200])
        last = line.strip() or last
    rc = process.wait()
    tests = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last)}
    check(rc == 0 and tests.get("passed", 0) > 0, f"pytest, exit code {rc}: {last}", **tests)


# --- compute-sanitizer ------------------------------------------------------------------------------------------------

# How it reports missing permissions; the kernels were not checked then.
REFUSALS = ("Device not supported", "Unable to find injection library", "error 999")


def memcheck() -> None:
    """Checks with compute-sanitizer that no kernel touches foreign memory."""
    from gpu_day_device import GPU, backends

    for backend in backends():
        command = [sys.executable, str(STEP), "gpu_day_checks:sanitize", backend]
        tool = ["compute-sanitizer", "--tool", "memcheck", "--target-processes", "all"]
        if GPU and not shutil.which(tool[0]):
            not_done(f"{tool[0]} is not on the PATH")
        elif GPU:
            run = subprocess.run(
                [*tool, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
            print(run.stdout)
            memcheck_verdict(backend, run.returncode, run.stdout)
        else:
            rc = subprocess.run(command, check=False).returncode
            check(rc == 0, f"{backend}: what the sanitizer would look at ends with {rc}")


def memcheck_verdict(backend: str, rc: int, text: str) -> None:
    """Records the verdict of the tool's output."""
    refusal = next((each for each in REFUSALS if each in text), "")
    summaries = re.findall(r"ERROR SUMMARY: (.*)", text)
    if refusal:
        not_done(f"{backend}: compute-sanitizer cannot look here: {refusal}")
    elif not summaries:
        wrong(f"{backend}: compute-sanitizer ended with {rc} and no summary: {' '.join(text.split())[-200:]}")
    else:
        good = rc == 0 and all(summary.startswith("0 errors") for summary in summaries)
        check(good, f"{backend}: compute-sanitizer: {'; '.join(summaries)}, exit code {rc}")


def expandable() -> None:
    """Checks fills of expandable segments, which the allocator maps page by page."""
    from gpu_day_device import backends

    setting = "expandable_segments:True"  # the first is the name before torch 2.9
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": setting, "PYTORCH_ALLOC_CONF": setting}
    for backend in backends():
        command = [sys.executable, str(STEP), "gpu_day_checks:sanitize", backend]
        rc = subprocess.run(command, env=environment, check=False).returncode
        check(rc == 0, f"{backend}: in expandable segments, exit code {rc}")


# --- Nsight Compute ---------------------------------------------------------------------------------------------------

SECTIONS = (
    *("SpeedOfLight", "LaunchStats", "Occupancy", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis"),
    *("InstructionStats", "SchedulerStats", "WarpStateStats"),
)
KERNELS = "regex:^(fill|fastinit_fill)$"  # Triton's and CUDA's
# Our columns, and their names in releases of ncu; the first that exists counts.
METRICS = {
    "ms": ("gpu__time_duration.sum",),
    "memory, %": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",),
    "DRAM, %": (
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    ),
    "SM, %": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "issue slots, %": (
        "sm__inst_issued.avg.pct_of_peak_sustained_active",
        "smsp__issue_active.avg.pct_of_peak_sustained_active",
        "sm__instruction_throughput.avg.pct_of_peak_sustained_active",
    ),
    "IPC": ("sm__inst_executed.avg.per_cycle_active",),
    "warps, %": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "registers": ("launch__registers_per_thread",),
    "instructions": ("smsp__inst_executed.sum",),
}
MS_OF = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}
NCU_REFUSALS = ("ERR_NVGPUCTRPERM", "LibraryNotLoaded", "Failed to initialize the profiler")


def ncu() -> None:
    """Profiles a launch of each distribution and dtype with Nsight Compute, without changing clocks."""
    from gpu_day_device import GPU, backends

    for backend in backends():
        command = [sys.executable, str(STEP), "gpu_rates:target", backend]
        if not GPU:
            rc = subprocess.run(command, check=False).returncode
            check(rc == 0, f"{backend}: what the profiler would look at ends with {rc}")
        elif not shutil.which("ncu"):
            not_done("ncu is not on the PATH")
        else:
            sections = [word for section in SECTIONS for word in ("--section", section)]
            tool = ["ncu", "--clock-control", "none", "--kernel-name", KERNELS, "--csv", "--page", "raw", *sections]
            path = out() / f"ncu_{backend}.csv"
            with path.open("w") as file:
                rc = subprocess.run([*tool, *command], stdout=file, check=False).returncode
            ncu_verdict(backend, rc, path)


def ncu_verdict(backend: str, rc: int, path: Path) -> None:
    """Records the rows of a file that ncu wrote, or why there are none."""
    import gpu_rates

    rows = list(ncu_rows(path))
    for label, row in zip(gpu_rates.TARGETS, rows):
        cells = {"backend": backend, "distribution": label[0], "dtype": label[1], **row}
        found(f"ncu, {backend}, {label[1]} {label[0]}: " + ", ".join(f"{k} {v}" for k, v in row.items()), **cells)
    text = path.read_text(errors="replace")
    if not rows and (refusal := next((each for each in NCU_REFUSALS if each in text), "")):
        not_done(f"{backend}: ncu cannot look here: {refusal}")
    elif len(rows) != len(gpu_rates.TARGETS):
        words = " ".join(text.split())[-200:]
        wrong(f"{backend}: ncu ended with {rc} and {len(rows)} of {len(gpu_rates.TARGETS)} kernels: {words}")


def ncu_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yields our columns of each kernel in a file that ``ncu --csv --page raw`` wrote.

    Other programs' lines may precede the table, whose first row holds the units.
    """
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')]
    units: Mapping[str, str] = {}
    for row in csv.DictReader(lines):
        if not (row.get("ID") or "").isdigit():
            units = row
            continue
        cells = {}
        for column, names in METRICS.items():
            name = next((each for each in names if row.get(each)), None)
            if name is None:
                continue
            number = float(row[name].replace(",", ""))
            if column == "ms":
                number *= MS_OF.get(units.get(name, "ns"), 1e-6)
            cells[column] = f"{number:.4g}" if number < 1e6 else f"{number:.0f}"
        yield cells

"""The native core without Python: recorded calls of it replayed under sanitizers, and on aarch64 in an emulator.

Builds replay.cpp with csrc/ for each variant, lets it execute the calls (recorded_calls.py) on every instruction set,
and compares all memory with what the installed core makes of them. Exits with 1 at any difference, report of a sanitizer
or crash.

Usage: ``python tests/native/replay.py [plain] [address] [thread] [aarch64]``; build files go to build/native/.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from recorded_calls import NATIVE, Array, Call, recorded

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native"
SETUP = ast.parse((ROOT / "setup.py").read_text())
# Flags after those of the product. -O1 and debug symbols for lines only: sanitized code takes long to compile.
VARIANTS = {
    "plain": [],
    "address": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
    "aarch64": ["-static"],
}


def build(variant: str) -> Path:
    """Compiles what has changed, as setup.py does but for the variant's own flags, and returns the program."""
    import ninja

    tools, packages = (["g++"], "g++")
    if variant == "aarch64":
        tools, packages = ["aarch64-linux-gnu-g++", "qemu-aarch64"], "g++-aarch64-linux-gnu qemu-user"
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        sys.exit(f"{variant}: {' and '.join(missing)} not found; on Debian and Ubuntu: apt install {packages}")
    # setup.py's tables, without running it.
    assigned = {ast.unparse(node.targets[0]): node.value for node in SETUP.body if isinstance(node, ast.Assign)}
    names = ("FLAGS", "X86", "ONCE", "PER_INSTRUCTION_SET")
    product_flags, x86, once, per_set = (ast.literal_eval(assigned[name]) for name in names)
    is_x86 = variant != "aarch64" and platform.machine().lower() in ("x86_64", "amd64")
    flags = " ".join([*product_flags, *VARIANTS[variant]])
    sources = {"replay": ("tests/native/replay.cpp", "")} | {name: (f"csrc/{name}.cpp", "") for name in once}
    for name, own in (x86 if is_x86 else {"baseline": []}).items():
        for source in per_set:
            sources[f"{source}.{name}"] = (f"csrc/{source}.cpp", " ".join([*own, f"-DFASTINIT_ISA={name}"]))
    lines = [
        "rule cxx",
        f"  command = {tools[0]} -MMD -MF $out.d {flags} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {tools[0]} -pthread {' '.join(VARIANTS[variant])} $in -o $out",
        f"build replay: link {' '.join(f'{name}.o' for name in sources)}",
    ]
    for name, (source, own) in sources.items():
        lines += [f"build {name}.o: cxx {ROOT / source}", f"  flags = {own}"]
    folder = BUILD / variant
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = len(os.sched_getaffinity(0))
    made = subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", folder, f"-j{jobs}"], text=True, stdout=subprocess.PIPE)
    if made.returncode != 0:
        sys.exit(f"{variant}: does not compile\n{made.stdout}")
    return folder / "replay"


def execute(variant: str, program: Path, *arguments: object) -> str:
    """Runs a variant's program and returns its output; exits where it fails or a sanitizer reports something."""
    command = ["qemu-aarch64"] if variant == "aarch64" else []
    command += [str(part) for part in (program, *arguments)]
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    run = partial(subprocess.run, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done = run(command)
    if "unexpected memory mapping" in done.stderr:  # gcc's ThreadSanitizer under a kernel that randomizes more bits
        done = run(["setarch", "-R", *command])
    if done.returncode != 0 or done.stderr:
        sys.exit(f"{variant}: exit status {done.returncode} of {' '.join(command)}\n{done.stderr}")
    return str(done.stdout)


def difference(calls: Sequence[Call], found: Array) -> str | None:
    """Returns where the memory is first not as expected, or None."""
    buffers = [buffer for call in calls for _ in range(call.n_callers) for buffer in call.buffers]
    if len(found) != sum(buffer.memory.nbytes for buffer in buffers):
        return f"{len(found)} bytes were written, another number than recorded"
    at = 0
    for buffer in buffers:
        expected, got = buffer.memory, found[at : at + buffer.memory.nbytes]
        where = np.flatnonzero(got != expected)
        if len(where) > 0:
            return f"{len(where)} of {len(expected)} bytes differ, the first is {where[0]}: {buffer.label}"
        at += len(expected)
    return None


def main() -> None:
    """Replays the calls in the variants that the command line names."""
    variants = sys.argv[1:] or list(VARIANTS)
    if not set(variants) <= set(VARIANTS):
        sys.exit(__doc__)
    if NATIVE is None:
        sys.exit("fastinit is installed without its native core, which makes what is expected")
    calls = recorded()
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "calls").write_bytes(b"".join(call.encoded() for call in calls))
    for variant in variants:
        program, memory = build(variant), BUILD / variant / "memory"
        for isa in execute(variant, program).split():
            start = time.perf_counter()
            execute(variant, program, BUILD / "calls", memory, isa)
            if message := difference(calls, np.fromfile(memory, np.uint8)):
                sys.exit(f"{variant}, {isa}: {message}\n(the installed core must be built from the same csrc/)")
            seconds = time.perf_counter() - start
            print(f"{variant}, {isa}: {len(calls)} calls, {memory.stat().st_size:,} bytes, the same; {seconds:.1f} s")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

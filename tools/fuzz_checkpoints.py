"""Loads damaged checkpoints by the hundred thousand, and reports those that break a promise of fastinit.

Every mutant is loaded into a model in a child process with limits. It is a failure if the process dies, reads a file
outside the mutant's folder, or imports or runs something; if an error is undocumented, long or not printable; if the
load takes more memory or CPU time than promised, or fails and has changed the model; or if values differ from those of
``torch.load(weights_only=True)`` or ``safetensors``, where they read the file too. Linux only.

    python tools/fuzz_checkpoints.py --seed 1 --seconds 60 --keep found
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from limits import in_limited_child, status_bytes
from mutants import FORMATS, Honest, honest_checkpoints, model, mutant
from other_readers import bytes_of, difference, read_by_others, same
from torch import nn

import fastinit
from fastinit.checkpoint import CheckpointLoader, load_checkpoint, request

# The promises of docs/checkpoints.md for small files.
MOST_BYTES = 100 << 20
MOST_CPU_S = 1.0
# Far beyond them the kernel ends the child: after so much CPU time, or so much time in all on a busy machine.
_STOPPED_AFTER_CPU_S = 10.0
_STOPPED_AFTER_S = 120.0
# Mutants per child: a child takes a fork and 0.1 s of warm-up, but leftovers of a mutant affect the rest of its batch.
BATCH = 500
_LONGEST_MESSAGE = 5000
# The errors that load_checkpoint documents. Others' subclasses, such as RecursionError, are failures.
DOCUMENTED = (RuntimeError, FileNotFoundError, OSError)
# Forbidden while loading; Python's audit hooks report these before they happen.
_FORBIDDEN = ("os.", "subprocess.", "socket.", "exec", "compile", "pickle.", "import", "shutil.", "ctypes.dlopen")
_HARMLESS = ("os.listdir", "os.scandir")

Read = Callable[..., Any]


class Verdict(NamedTuple):
    """The outcome of one mutant."""

    outcome: str
    """``accepted``, ``refused``, or ``died``."""
    problem: str | None = None
    compared: bool = False
    """Whether another library read it too."""


class Watch:
    """Records forbidden actions of this process; a process has only one, because audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else self.folder
            if not path.startswith((self.folder, "/proc/self/")):
                self.seen.append(f"opened {path!r}")
        elif event.startswith(_FORBIDDEN) and event not in _HARMLESS and args != (None,):  # dlopen(None): this program
            self.seen.append(f"{event} {args!r:.100}")


_watch: list[Watch] = []


def examine(
    path: Path,
    format: str,
    *,
    strict: bool,
    assign: bool,
    access: str,
    list_of_folder: bytes = b"",
    read: Read | None = None,
) -> Verdict:
    """Loads a checkpoint into a model of ``mutants.model`` in this process, and judges the outcome.

    Args:
        path: of the checkpoint, in a folder with no other files.
        format: one of ``FORMATS``.
        strict, assign, access: as for ``load_checkpoint``.
        list_of_folder: the undamaged metadata of a folder; without it, values are not compared.
        read: to call instead of ``load_checkpoint``.
    """
    if not _watch:
        _watch.append(Watch())
    watch = _watch[0]
    target = model()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    # Address space: a system short of memory takes pages away. What is asked for and never touched counts, too.
    memory, start = status_bytes("VmSize"), time.process_time()
    watch.seen, watch.folder = [], str(path if path.is_dir() else path.parent)
    error: BaseException | None = None
    try:
        (read or load_checkpoint)(target, path, strict=strict, assign=assign, access=access, logger="silent")
    except BaseException as caught:
        error = caught
    finally:
        watch.folder = None
    cpu_s, used = time.process_time() - start, status_bytes("VmPeak") - memory
    outcome = "accepted" if error is None else "refused"
    if watch.seen:
        return Verdict(outcome, f"did what a file must not: {watch.seen[:3]}")
    if used > MOST_BYTES or cpu_s > MOST_CPU_S:
        return Verdict(outcome, f"took {used / 2**20:.0f} MiB and {cpu_s:.2f} s of CPU time")
    if error is None:
        return _compared(target, path, format, assign, list_of_folder)
    if (wrong := _wrong_error(error)) is not None:
        return Verdict(outcome, wrong)
    after = target.state_dict()
    if changed := [key for key in before if not same(before[key], after[key])]:
        # strict also refuses good files that do not fit this model; these must not be written either.
        return Verdict(outcome, f"failed, and had changed {changed}: {error!s:.200}")
    return Verdict(outcome)


def _wrong_error(error: BaseException) -> str | None:
    text = str(error)
    is_own = isinstance(error, fastinit.Error) and isinstance(error, DOCUMENTED)
    is_documented = is_own or type(error) in DOCUMENTED or isinstance(error, OSError)
    if not is_documented:
        return f"raised {type(error).__name__}: {text[:200]}"
    if len(text) > _LONGEST_MESSAGE or not text.replace("\n", "").replace("\t", "").isprintable():
        return f"its message has {len(text)} characters, or some that are not printable: {text[:200]!r}"
    return None


# --- what others read ------------------------------------------------------------------------------------------------


def _compared(target: nn.Module, path: Path, format: str, assign: bool, list_of_folder: bytes) -> Verdict:
    os.write(_answers[0], b"theirs\n") if _answers else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = read_by_others(path, format, list_of_folder)
            found = request.state_dict_of(theirs, path, request.STRIP_MODULE)
            expected = model()
            try:
                expected.load_state_dict(found, assign=assign)
            except RuntimeError:  # the rest, after the matching tensors were copied
                if assign:
                    return Verdict("accepted")
    except BaseException:  # they refuse it, each with its own error
        return Verdict("accepted")
    ours, others = target.state_dict(), expected.state_dict()
    if assign:  # a bool may keep a byte other than 0 and 1, or be read as 0 or 1, as torch's copies do
        ours, others = ({key: value.clone() for key, value in each.items()} for each in (ours, others))
    if different := [key for key in others if not same(ours[key], others[key])]:
        pairs = [(bytes_of(ours[key])[:8], bytes_of(others[key])[:8]) for key in different[:1]]
        return Verdict("accepted", f"other values than by the format's own library: {different}: {pairs}"[:500], True)
    if format in ("zip", "legacy"):
        try:
            whole = CheckpointLoader.load_checkpoint(path, logger="silent")
        except DOCUMENTED:  # something besides the weights that is not data
            return Verdict("accepted", None, True)
        if (where := difference(whole, theirs, "")) is not None:
            return Verdict("accepted", f"another value than torch.load's at {where}"[:500], True)
    return Verdict("accepted", None, True)


# --- batches ---------------------------------------------------------------------------------------------------------

_answers: list[int] = []
"""In a child: the pipe to the parent."""


def run_batch(jobs: list[tuple[int, str, Honest, dict[str, Any]]], read: Read | None = None) -> list[Verdict]:
    """Judges checkpoints in a child process, with a new child for the rest after one that fails or kills it."""

    def work(pipe: int) -> None:
        _answers.append(pipe)
        torch.set_num_threads(1)  # the parent's threads do not survive a fork
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # a leak of open files soon shows
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
            for _, format, content, options in jobs[len(verdicts) :]:
                path = _written(content, Path(folder) / "c")
                signal.setitimer(signal.ITIMER_PROF, _STOPPED_AFTER_CPU_S)
                signal.setitimer(signal.ITIMER_REAL, _STOPPED_AFTER_S)
                os.write(pipe, b"ours\n")
                verdict = examine(path, format, **options, list_of_folder=list_of_folder, read=read)
                os.write(pipe, json.dumps(verdict).encode() + b"\n")
                shutil.rmtree(Path(folder) / "c")
                if verdict.problem:  # a peak of memory stays that of the process
                    break

    list_of_folder = settled()["folder"][0].files[".metadata"]
    verdicts: list[Verdict] = []
    while len(verdicts) < len(jobs):
        data, killed_by = in_limited_child(work, cpu_s=3600)
        lines = data.decode().splitlines()
        verdicts += [Verdict(*json.loads(line)) for line in lines if line.startswith("[")]
        if len(verdicts) < len(jobs) and not "".join(lines[-1:]).startswith("["):
            how = killed_by.name if killed_by else f"no word, after {lines[-1:]}"
            if lines[-1:] == ["theirs"]:  # caused by the other library
                verdicts.append(Verdict("accepted"))
            else:
                verdicts.append(Verdict("died", f"the process ended by {how}"))
    return verdicts


@lru_cache(maxsize=1)
def settled() -> dict[str, list[Honest]]:
    """Returns the honest checkpoints, and imports everything that loading needs, so that no mutant seems to."""
    honest = honest_checkpoints()
    for codec in ("cp437", "raw_unicode_escape", "unicode_escape", "utf-16", "utf-32"):  # of archives, text and JSON
        codecs.lookup(codec)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n, content in enumerate(each for several in honest.values() for each in several):
            path = _written(content, Path(folder) / str(n))
            for access, assign in (("read", False), ("map", False), ("map", True)):
                load_checkpoint(model(), path, assign=assign, access=access, logger="silent")
    return honest


def _written(content: Honest, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in content.files.items():
        (folder / name).write_bytes(data)
    return folder / content.opened


def fuzz(
    seed: int, n_mutants: int, seconds: float, keep: Path | None, read: Read | None = None
) -> dict[str, Counter[str]]:
    """Judges mutants until there are enough or time is up, prints failures, and returns counts by format."""
    honest = settled()
    counts = {format: Counter[str]() for format in FORMATS}
    plain = {"strict": False, "assign": False, "access": "auto"}
    for format in FORMATS:
        for verdict in run_batch([(-1, format, each, plain) for each in honest[format]], read):
            if verdict.outcome != "accepted" or verdict.problem:
                raise RuntimeError(f"an honest checkpoint ({format}) is not read: {verdict}")
    start = time.monotonic()
    for first in range(0, n_mutants, BATCH):
        if time.monotonic() - start >= seconds:
            break
        jobs, told = [], []
        for number in range(first, min(first + BATCH, n_mutants)):
            format = FORMATS[number % len(FORMATS)]
            content, done = mutant(honest, format, seed, number)
            options = {"strict": number % 3 == 0, "assign": number % 4 == 0, "access": ("map", "read")[number // 5 % 2]}
            jobs.append((number, format, content, options))
            told.append(done)
        for job, done, verdict in zip(jobs, told, run_batch(jobs, read)):
            count = counts[job[1]]
            count.update(
                {"mutants": 1, verdict.outcome: 1, "compared": verdict.compared, "failures": bool(verdict.problem)}
            )
            if verdict.problem:
                print(f"{job[1]} {job[0]} ({done[:200]}; {job[3]}): {verdict.problem}", flush=True)
                if keep is not None:
                    shutil.rmtree(keep / f"{job[1]}-{seed}-{job[0]}", ignore_errors=True)
                    _written(job[2], keep / f"{job[1]}-{seed}-{job[0]}")
    return counts


def main() -> None:
    """Runs the fuzzer; the exit status is 1 if a mutant broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the mutants follow from it and their numbers")
    parser.add_argument("--mutants", type=int, default=10**9, help="how many at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit; the last batch is finished")
    parser.add_argument("--keep", type=Path, help="folder for failing mutants")
    args = parser.parse_args()
    counts = fuzz(args.seed, args.mutants, args.seconds, args.keep)
    columns = ("mutants", "accepted", "refused", "died", "compared", "failures")
    print(f"{'':12}" + "".join(f"{column:>10}" for column in columns))
    total: Counter[str] = Counter()
    for format, count in counts.items():
        total.update(count)
        print(f"{format:12}" + "".join(f"{count[column]:>10,}" for column in columns))
    print(f"{'all':12}" + "".join(f"{total[column]:>10,}" for column in columns))
    raise SystemExit(1 if total["failures"] else 0)


if __name__ == "__main__":
    main()

"""The fuzzer of checkpoints finds what it is for: it is given readers with planted faults."""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from pathlib import Path

import fuzz_checkpoints
import needs
import pytest
import torch
from folders import needs_dcp
from fuzz_checkpoints import fuzz
from limited import needs_linux
from mutants import FORMATS, honest_checkpoints, mutant

from fastinit.checkpoint import load_checkpoint

pytestmark = [needs_linux, needs_dcp]
needs.module("safetensors.torch")

# Enough that some mutants of each format are refused, and some are read.
N_MUTANTS = 100


def a_value_that_is_wrong(model, path, **options):
    load_checkpoint(model, path, **options)
    with torch.no_grad():
        model.wide[3, 5] += 1


def written_before_it_fails(model, path, **options):
    try:
        load_checkpoint(model, path, **options)
    except Exception:
        with torch.no_grad():
            model[0].weight[0, 0] = 5
        raise


def another_exception(model, path, **options):
    try:
        load_checkpoint(model, path, **options)
    except RuntimeError as error:
        raise KeyError("0.weight") from error


def an_endless_message(model, path, **options):
    try:
        load_checkpoint(model, path, **options)
    except RuntimeError as error:
        raise RuntimeError("x" * 10_000) from error


def much_memory(model, path, **options):
    mmap.mmap(-1, 150 << 20).close()  # never touched
    load_checkpoint(model, path, **options)


def much_memory_for_damage(model, path, **options):
    try:
        load_checkpoint(model, path, **options)
    except RuntimeError:
        mmap.mmap(-1, 150 << 20).close()
        raise


def much_time(model, path, **options):
    while time.process_time() < 1.3 and path.parent.name == "c":  # the first in each child
        sum(range(10**5))
    load_checkpoint(model, path, **options)


def death(model, path, **options):
    try:
        load_checkpoint(model, path, **options)
    except Exception:
        os.kill(os.getpid(), signal.SIGSEGV)


def another_file(model, path, **options):
    Path(__file__).read_bytes()
    load_checkpoint(model, path, **options)


def code_of_the_file(model, path, **options):
    os.system("true")
    load_checkpoint(model, path, **options)


# What happens on damage only, and how it is told.
ON_DAMAGE = {
    written_before_it_fails: "had changed ['0.weight']",
    another_exception: "raised KeyError",
    an_endless_message: "its message has 10000 characters",
    death: "ended by SIGSEGV",
    much_memory_for_damage: "took 150 MiB",
}
# What happens to honest files, too: the fuzzer does not even begin.
ALWAYS = {
    a_value_that_is_wrong: "other values",
    much_memory: "took 150 MiB",
    much_time: "s of CPU time",
    another_file: "opened",
    code_of_the_file: "os.system",
}


def test_the_readers_pass_the_fuzzer(capsys):
    counts = fuzz(1, N_MUTANTS, 60, None)
    total = sum(counts.values(), start=type(counts["zip"])())
    assert total["mutants"] == N_MUTANTS and not total["failures"], capsys.readouterr().out
    assert all(counts[format]["refused"] for format in FORMATS) and total["compared"] > 5
    assert total["accepted"] + total["refused"] == N_MUTANTS


@pytest.mark.parametrize("fault", ON_DAMAGE, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_and_its_mutant_kept(tmp_path, capsys, fault):
    counts = fuzz(1, 20, 60, tmp_path, fault)
    failures, honest = (sum(count[name] for count in counts.values()) for name in ("failures", "accepted"))
    assert failures >= 5 and failures + honest == 20  # none is blamed for what another did
    assert ON_DAMAGE[fault] in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == sum(count["failures"] for count in counts.values())


@pytest.mark.parametrize("fault", ALWAYS, ids=lambda fault: fault.__name__)
def test_a_fault_with_valid_files_is_found_first(fault):
    with pytest.raises(RuntimeError, match="an honest checkpoint") as caught:
        fuzz(1, 20, 60, None, fault)
    assert ALWAYS[fault] in str(caught.value)


def test_mutants_follow_from_the_seed_and_their_number():
    first, second = honest_checkpoints(), honest_checkpoints()
    several = [(format, number) for format in FORMATS for number in range(20)]
    made = [mutant(first, format, 3, number) for format, number in several]
    assert made == [mutant(second, format, 3, number) for format, number in several]
    assert made != [mutant(second, format, 4, number) for format, number in several]


@pytest.mark.parametrize(("read", "status"), [(load_checkpoint, 0), (another_exception, 1)], ids=["none", "some"])
def test_failures_are_the_exit_status_and_in_the_table(monkeypatch, capsys, read, status):
    monkeypatch.setattr(fuzz_checkpoints, "load_checkpoint", read)
    monkeypatch.setattr(sys, "argv", ["fuzz_checkpoints.py", "--seed", "1", "--mutants", "20"])
    with pytest.raises(SystemExit) as ended:
        fuzz_checkpoints.main()
    assert ended.value.code == status
    *_, last = capsys.readouterr().out.splitlines()
    name, n_mutants, *_, n_failures = last.split()
    assert (name, n_mutants) == ("all", "20") and (int(n_failures) > 0) == bool(status)

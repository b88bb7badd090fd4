"""The lines of the GPU day that only a GPU reaches run here over a GPU that is made up, so that none of them is new there.

What the made-up GPU computes is computed by cpp; events, streams, graphs and the programs around it do nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import SimpleNamespace

import bench_gpu
import gpu_day_checks
import gpu_day_device
import gpu_day_tools
import gpu_day_uses
import gpu_rates
import machine
import pytest
import torch
from gpu_days import collected, needs_cpp, wrong_ones
from torch import nn

import fastinit
from fastinit.backends import BACKENDS, cpp_backend

pytestmark = needs_cpp

findings = pytest.fixture(collected, name="findings")
PROPERTIES = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=8e10, multi_processor_count=132)


class Nothing:
    """Stands for a stream, an event, a graph: whatever is asked of it is done."""

    def __init__(self, *_, **__): ...

    def __getattr__(self, name):
        return lambda *_: None

    def elapsed_time(self, _):
        return 2.5


@pytest.fixture
def gpu(monkeypatch):
    """Makes a GPU up for the steps, whose backend `cuda` is cpp; returns what else a test patches."""
    for module in (gpu_day_device, gpu_day_checks, gpu_day_uses, gpu_rates):
        monkeypatch.setattr(module, "GPU", True)
    for module in (gpu_day_checks, gpu_day_uses, gpu_rates):
        monkeypatch.setattr(module, "backends", lambda: ["cuda"])
    monkeypatch.setattr(gpu_day_device, "backends", lambda: ["cuda"])
    for name in ("run", "why_not", "why_not_now", "why_not_fill", "engine"):
        monkeypatch.setattr(BACKENDS["cuda"], name, getattr(cpp_backend, name))
    for name in ("Event", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    for name in ("synchronize", "_sleep", "set_stream", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("default_stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 16_060_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: PROPERTIES)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: PROPERTIES.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return monkeypatch


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs that print a text before those of the machine."""

    def put(**texts):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
            program = folder / name.replace("_", "-")
            program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/{name}.called\ncat {folder}/{name}.txt\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return folder

    return put


def test_facts_have_the_gpu(findings, gpu, programs, tmp_path):
    folder = programs(nvidia_smi="1980 MHz, 2619 MHz, 580.1\n")
    gpu.setattr(gpu_day_device, "DEVICE", torch.device("cuda", 0))
    gpu_day_tools.facts()
    numbers = json.loads((tmp_path / "findings.jsonl").read_text().splitlines()[0])["numbers"]
    assert numbers["is_gpu"] and numbers["capability"] == "90" and numbers["multiprocessors"] == 132
    assert numbers["description"] == machine.describe_device(torch.device("cuda", 0))
    assert "NVIDIA H100, clocks up to 1980 MHz (memory 2619 MHz), driver 580.1" in numbers["description"]
    assert ("found", "nvidia-smi: 1980 MHz, 2619 MHz, 580.1") in findings() and not wrong_ones(findings)
    assert "mig.mode.current" in (folder / "nvidia_smi.called").read_text()


def test_launches_on_several_streams_are_checked(findings, gpu):
    gpu_day_checks.pending("cuda")
    assert findings() == [("found", findings()[0][1])] and "200 launches on 4 stream(s)" in findings()[0][1]


def test_a_rate_is_the_median_between_events_and_the_clock_that_of_the_load(findings, gpu, programs):
    programs(nvidia_smi="1755\n")
    gpu.setattr(gpu_rates, "N_ELEMENTS", 1 << 12)
    row = gpu_rates.rate("cuda", "normal", "bfloat16", 1e9)
    assert row["ms"] == "2.5" and row["SM clock, MHz"] == "1755" and row["GB/s"] == f"{8192 / 2.5e-3 / 1e9:.0f}"
    assert gpu_rates.rate("cuda", "uniform", "bfloat16", 1e9)["SM clock, MHz"] == ""
    gpu_rates.target("cuda")
    assert findings()[-1] == ("found", f"cuda: {len(gpu_rates.TARGETS)} launches")


def test_a_call_is_timed_between_events(gpu):
    gpu.setattr(torch.cuda, "is_available", lambda: True)
    seconds, host = bench_gpu.timed(lambda: None)
    assert seconds == 2.5e-3 and host < 1


def test_the_profiler_and_the_sanitizer_run_what_they_are_given(findings, gpu, programs, tmp_path):
    kernels = "".join(f'"{i}","1000"\n' for i in range(len(gpu_rates.TARGETS)))
    table = f'"ID","gpu__time_duration.sum"\n"","us"\n{kernels}'
    folder = programs(ncu=table, compute_sanitizer="========= ERROR SUMMARY: 0 errors\n")
    gpu_day_tools.ncu()
    assert len(findings()) == len(gpu_rates.TARGETS) and not wrong_ones(findings)
    assert (tmp_path / "ncu_cuda.csv").read_text() == table
    called = (folder / "ncu.called").read_text()
    assert "--clock-control none" in called and called.rstrip().endswith("gpu_day_step.py gpu_rates:target cuda")
    gpu_day_tools.memcheck()
    assert findings()[-1] == ("found", "cuda: compute-sanitizer: 0 errors, exit code 0")
    called = (folder / "compute_sanitizer.called").read_text()
    assert called.rstrip().endswith("gpu_day_step.py gpu_day_checks:sanitize cuda")


def test_a_missing_tool_leaves_its_step_undone(findings, gpu):
    gpu.setenv("PATH", "/nowhere")
    gpu_day_tools.ncu()
    gpu_day_tools.memcheck()
    assert [kind for kind, _ in findings()] == ["not done", "not done"]


def test_the_build_targets_the_present_gpu(findings, gpu, tmp_path):
    (tmp_path / "setup.py").write_text("import os; print(os.environ['FASTINIT_CUDA_ARCHS'], file=open('archs', 'w'))")
    answers = iter(["", "13000"])
    gpu.setattr(gpu_day_tools, "ROOT", tmp_path)
    gpu.setattr(gpu_day_tools, "imported", lambda: next(answers))
    gpu.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0))
    gpu_day_tools.build()
    assert (tmp_path / "archs").read_text() == "100\n" and findings() == [
        ("found", "built here for sm_100, runtime 13000")
    ]


def test_a_capture_that_is_not_refused_is_wrong(findings, gpu):
    gpu_day_uses.in_a_graph("cuda")
    assert wrong_ones(findings) == ["cuda in the capture of a graph: NOT refused"]

    def refuse(*_, **__):
        raise RuntimeError("the current stream is captured into a CUDA graph")

    gpu.setattr(fastinit, "initialize", refuse)
    gpu_day_uses.in_a_graph("auto")
    assert findings()[-1][0] == "found" and "captured" in findings()[-1][1]


def test_a_replay_that_has_the_old_weights_is_wrong(findings, gpu):
    gpu_day_uses.before_a_replay("cuda")  # nothing is captured here, so that the result stays the old one
    assert wrong_ones(findings) == ["cuda: a graph's replay sees new weights: False"]


def test_a_model_is_timed_twice_with_its_peak_memory_and_its_bits(findings, gpu):
    def made(seed):
        layer = nn.Linear(64, 64, bias=False)
        config = dict(type="Normal", std=gpu_day_uses.NORMAL.std, layer="Linear")
        fastinit.initialize(layer, config, backend="cpp", seed=seed)
        return layer

    gpu_day_uses.timed_model("ours", lambda: made(gpu_day_uses.SEED), is_ours=True)
    assert "4,096 parameters" in findings()[0][1] and "peak 16.1 GB" in findings()[0][1]
    gpu_day_uses.timed_model("ours", lambda: made(3), is_ours=True)
    assert "weight differs from the cpp backend" in wrong_ones(findings)[0]
    gpu_day_uses.timed_model("theirs", lambda: made(3), is_ours=False)
    assert findings()[-1][1].startswith("theirs: 4,096")

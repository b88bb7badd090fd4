"""The checks of the GPU day find wrong kernels, missing backends, and tests that fail."""

from __future__ import annotations

from types import SimpleNamespace

import gpu_day_checks
import gpu_day_device
import gpu_day_step
import gpu_day_tools
import pytest
import torch
from gpu_days import another_seed, collected, needs_cpp, wrong_ones

from fastinit import plans
from fastinit.backends import BACKENDS, cpp_backend

findings = pytest.fixture(collected, name="findings")


@needs_cpp
def test_the_right_kernels_pass_the_smoke_test(findings):
    gpu_day_checks.smoke()
    assert not wrong_ones(findings)
    assert gpu_day_step.exit_code() == 0
    assert any("all distributions x dtypes: 272 fills, 1 launch(es), 0 wrong" in text for _, text in findings())


def one_byte_behind(fills, seed, **_):
    launches = cpp_backend.run(fills, seed)
    tensor = fills[0].tensor
    end = tensor.storage_offset() + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride())) + 1
    if end < tensor.untyped_storage().nbytes() // tensor.element_size():
        tensor.as_strided((1,), (1,), end).view(torch.uint8).bitwise_not_()
    return launches


def last_one_forgotten(fills, seed, **_):
    last = [fill.tensor.reshape(-1)[-1:].clone() for fill in fills]
    launches = cpp_backend.run(fills, seed)
    for fill, kept in zip(fills, last):
        fill.tensor[(-1,) * fill.tensor.dim()] = kept[0]
    return launches


def imprecise_doubles(fills, seed, **_):
    launches = cpp_backend.run(fills, seed)
    for fill in fills:
        if fill.tensor.dtype == torch.float64 and not isinstance(fill.distribution, plans.Constant):
            fill.tensor.mul_(1 + 1e-11)
    return launches


def not_the_same_twice(fills, seed, **_):
    another_seed.calls = getattr(another_seed, "calls", 0) + 1
    return cpp_backend.run(fills, seed + another_seed.calls % 2)


@needs_cpp
@pytest.mark.parametrize(
    "run, caught_by",
    [
        (another_seed, ["distributions", "boxes", "500 tensors", "none waited for", "windows wrong"]),
        (one_byte_behind, ["distributions", "boxes"]),
        (last_one_forgotten, ["distributions", "boxes", "500 tensors", "windows wrong"]),
        (imprecise_doubles, ["distributions", "boxes"]),
        (not_the_same_twice, ["three fills"]),
    ],
)
def test_the_smoke_test_finds_a_backend_that_is_wrong(findings, monkeypatch, run, caught_by):
    monkeypatch.setitem(BACKENDS, "broken", SimpleNamespace(run=run))
    monkeypatch.setattr(gpu_day_checks, "backends", lambda: ["broken"])
    gpu_day_checks.smoke()
    texts = wrong_ones(findings)
    assert gpu_day_step.exit_code() == 1
    for words in caught_by:
        assert any(words in text for text in texts), (words, texts)


@needs_cpp
def test_an_element_that_is_not_written_is_found_outside_of_all_windows(findings, monkeypatch):
    def with_a_hole(fills, seed, **_):
        launches = cpp_backend.run(fills, seed)
        fills[0].tensor.view(torch.int16)[1000] = -1
        return launches

    monkeypatch.setitem(BACKENDS, "broken", SimpleNamespace(run=with_a_hole))
    monkeypatch.setattr(gpu_day_checks, "HUGE_WINDOW", 16)
    gpu_day_checks.huge("broken", torch.bfloat16, 1 << 16, plans.Normal(0, 1))
    assert "windows wrong, 1 elements not written" in wrong_ones(findings)[0]
    assert ": 0 of " in wrong_ones(findings)[0]


@needs_cpp
def test_float64_within_the_contracts_error_is_right(findings, monkeypatch):
    def nearly(fills, seed, **_):
        launches = cpp_backend.run(fills, seed)
        for fill in fills:
            if fill.tensor.dtype == torch.float64 and not isinstance(fill.distribution, plans.Constant):
                fill.tensor.mul_(1 + 2e-16)
        return launches

    monkeypatch.setitem(BACKENDS, "nearly", SimpleNamespace(run=nearly))
    gpu_day_checks.compare("doubles", "nearly", gpu_day_checks.everything())
    assert not wrong_ones(findings)


@needs_cpp
def test_a_missing_backend_is_wrong_on_a_gpu_and_no_backend_ends_the_step(findings, monkeypatch):
    monkeypatch.setattr(gpu_day_device, "GPU", True)
    reasons = {"triton": None, "cuda": "it was not built"}
    for name in reasons:
        monkeypatch.setattr(BACKENDS[name], "why_not", lambda device, name=name: reasons[name])
    able = gpu_day_device.backends.__wrapped__
    assert able() == ["triton"]
    assert wrong_ones(findings) == ["cuda is MISSING, and is not tried: it was not built"]
    reasons["triton"] = "too old"
    with pytest.raises(SystemExit, match="no backend can run here"):
        able()
    monkeypatch.setattr(cpp_backend, "why_not", lambda device: "no compiler")
    with pytest.raises(SystemExit, match="cpp, which all is compared with, is MISSING: no compiler"):
        able()


def test_a_gpu_that_torch_does_not_see_is_wrong(findings, monkeypatch):
    monkeypatch.setattr(gpu_day_device, "GPU", False)
    monkeypatch.setattr(gpu_day_device, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu_day_tools, "answer", lambda command, *_: "NVIDIA H200, 580" if "smi" in command[0] else "")
    gpu_day_tools.facts()
    assert wrong_ones(findings) == [
        "torch does not see this machine's GPU: a day on cpp proves nothing about the kernels"
    ]


def test_a_build_that_does_not_import_is_wrong_and_says_why(findings, monkeypatch, tmp_path):
    (tmp_path / "fastinit").mkdir()
    (tmp_path / "fastinit" / "cuda_missing.txt").write_text("nvcc is not installed\n")
    (tmp_path / "setup.py").write_text("import os; print(os.environ['FASTINIT_CUDA_ARCHS'], file=open('archs', 'w'))")
    monkeypatch.setattr(gpu_day_tools, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_day_tools, "imported", lambda: "")
    monkeypatch.setattr(gpu_day_device, "GPU", False)
    gpu_day_tools.build()
    assert (tmp_path / "archs").read_text() == "90\n"
    assert "nvcc is not installed" in wrong_ones(findings)
    assert len(wrong_ones(findings)) == 2


SUITE = """
import os
from pytest import skip
def test_device(request): assert request.config.getoption("--device") == "cuda"
def test_backends(): assert os.environ["FASTINIT_REQUIRE"] == "cpp,triton,cuda"
def test_skipped(): skip("one GPU only")
"""


@pytest.mark.parametrize("is_gpu", [True, False])
def test_the_suite_requires_all_backends_on_a_gpu_and_reports_failures(findings, monkeypatch, tmp_path, is_gpu):
    (tmp_path / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--device', default='cpu')")
    (tmp_path / "test_made_up.py").write_text(SUITE)
    monkeypatch.setattr(gpu_day_tools, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_day_tools, "TESTS", ("test_made_up.py",))
    monkeypatch.setattr(gpu_day_device, "GPU", is_gpu)
    gpu_day_tools.suite()
    *failures, (kind, last) = [each for each in findings() if "one GPU only" not in each[1]]
    assert kind == ("found" if is_gpu else "wrong")
    assert f"exit code {int(not is_gpu)}" in last
    assert len(failures) == (0 if is_gpu else 2)
    assert len(findings()) == len(failures) + 2
    gpu_day_tools.suite("-k", "no_test_has_this_name")
    assert findings()[-1][0] == "wrong"
    assert "exit code 5" in findings()[-1][1]

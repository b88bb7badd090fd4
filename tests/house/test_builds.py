"""What the build's switches do, and what is said where something cannot be built."""

from __future__ import annotations

import re

import pytest
from packages import (
    COMPILER,
    add_tool,
    build,
    gencodes,
    reason,
)
from paths import ROOT


def test_without_compilers_the_reason_says_so(project, tools):
    assert build(project).returncode == 0
    begin = "was not built when fastinit was installed:"
    assert (
        reason(project, "native") == f"the native core {begin} no C++ compiler (g++, c++ or clang++) is on the PATH\n"
    )
    assert f"the CUDA kernel {begin} NVIDIA's compiler nvcc is neither on the PATH" in reason(project, "cuda")


def test_extensions_are_rebuilt_when_compilers_come_and_go(project, tools):
    assert build(project).returncode == 0
    assert reason(project, "native")
    assert reason(project, "cuda")
    add_tool(tools, "g++")
    add_tool(tools, "nvcc")
    assert build(project).returncode == 0
    assert reason(project, "native") is None
    assert reason(project, "cuda") is None
    (tools / "g++").unlink()
    assert build(project).returncode == 0
    assert reason(project, "native")
    assert reason(project, "cuda")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "In file included from {file}:7:\n{root}/csrc/fill.h:12:10: fatal error: cstdint: No such file or directory\n"
            "   12 | #include <cstdint>\n      |          ^~~~~~~~~\ncompilation terminated.",
            "csrc/fill.h:12:10: fatal error: cstdint: No such file or directory",
        ),
        (
            "g++: error: unrecognized command-line option '-mavx512f'",
            "g++: error: unrecognized command-line option '-mavx",
        ),
        (
            "g++: fatal error: Killed signal terminated program cc1plus",
            "g++: fatal error: Killed signal terminated program",
        ),
        (
            "/tmp/pip-build-env-x1/overlay/lib/pybind11/common.h:3:1: error: Python.h is wrong",
            ": common.h:3:1: error: Python.h is wrong",
        ),
        (
            "/tmp/cc01.o: in function `f':\n/tmp/cc01.o:(.text+0x1): undefined reference to `g'",
            "undefined reference to `g'",
        ),
        ("error: a; error: b", "error: a; error: b"),
        ("it does not feel like it", "it does not feel like it"),
        ("no -I/tmp/x/include and -L/usr/lib/gcc", "no -Iinclude and -Lgcc"),
        ("", "ninja ended with status 1 and said nothing"),
    ],
)
def test_the_compilers_message_is_the_reason(output, expected, project, tools):
    (tools / "said").write_text(output.replace("{root}", str(project)))
    add_tool(tools, "g++", '#!/bin/sh\ncat "$(dirname "$0")/said" >&2\nexit 1\n')
    done = build(project)
    assert done.returncode == 0
    text = reason(project, "native")
    assert expected in text
    # Shown with `pip install -v`, whole.
    assert output.replace("{root}", str(project)) in done.stdout.replace("\r", "")
    for not_said in (
        "non-zero exit status",
        str(project),
        "/tmp/",
        "FAILED",
        "[1/",
        "-ffp-contract",
        "In file included",
    ):
        assert not_said not in text
    assert text.count("\n") == 1
    assert text.count(expected) == 1


def test_long_compiler_messages_are_truncated(project, tools):
    add_tool(tools, "g++", '#!/bin/sh\nfor i in 1 2 3 4 5; do echo "$i: error: $0 $*$*$*$*$*"; done\nexit 1\n')
    assert build(project).returncode == 0
    text = reason(project, "native")
    assert text.startswith("the native core was not built when fastinit was installed: 1: error: ")
    assert text.endswith("...\n")
    assert len(text) < 600


def test_compilers_run_in_an_english_locale(project, tools):
    add_tool(tools, "g++", '#!/bin/sh\necho "error in the language of $LC_ALL"\nexit 1\n')
    assert build(project, LC_ALL="de_DE.UTF-8").returncode == 0
    assert "error in the language of C\n" in reason(project, "native")


def test_a_source_that_is_missing_is_named(project, tools):
    add_tool(tools, "g++")
    (project / "csrc" / "dispatch.cpp").unlink()
    assert build(project).returncode == 0
    assert "ninja: error: 'csrc/dispatch.cpp', needed by 'dispatch.o', missing" in reason(project, "native")


def test_a_package_that_the_build_needs_is_named(project, tools):
    add_tool(tools, "g++")
    hidden = project.parent / "hidden" / "pybind11.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ImportError('hidden', name='pybind11')")
    assert build(project, PYTHONPATH=str(hidden.parent)).returncode == 0
    assert "the build needs the package pybind11, which is not installed" in reason(project, "native")


def test_nvccs_message_is_the_reason_and_the_native_core_is_built(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc", COMPILER.replace("while [", "echo 'a.cu(3): error: no such thing' >&2; exit 2\nwhile ["))
    assert build(project).returncode == 0
    assert reason(project, "native") is None
    assert reason(project, "cuda").endswith("installed: a.cu(3): error: no such thing\n")


def test_an_outdated_nvcc_is_reported_with_its_release(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc", gpus="52 60 70")
    assert build(project).returncode == 0
    nvcc = tools / "nvcc"
    expected = f"{nvcc} (CUDA 12.4) does not compile for GPUs of compute capability 8.0; it knows 52, 60, 70"
    assert expected in reason(project, "cuda")
    # Before CUDA 11 it does not even know the question.
    answer = "  --list-gpu-arch) echo \"nvcc fatal   : Unknown option '--list-gpu-arch'\" >&2; exit 1;;"
    add_tool(tools, "nvcc", re.sub(r"  --list-gpu-arch.*", answer, COMPILER))
    assert build(project).returncode == 0
    expected = f"{nvcc} (CUDA 12.4) --list-gpu-arch: nvcc fatal   : Unknown option '--list-gpu-arch'"
    assert expected in reason(project, "cuda")


def test_a_gpu_unknown_to_nvcc_is_an_error(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc", gpus="80 90")
    assert build(project, FASTINIT_CUDA_ARCHS="9.0 10.0").returncode == 0
    assert "does not compile for GPUs of compute capability 10.0; it knows 80, 90" in reason(project, "cuda")


@pytest.mark.parametrize(
    ("archs", "known", "expected"),
    [
        ("", "75 80 90 100 120", "sm_80 sm_90 sm_100 sm_120 compute_80"),
        ("", "75 80 86", "sm_80 compute_80"),
        ("90", "80 90", "sm_90 compute_90"),
        ("9.0", "80 90", "sm_90 compute_90"),
        ("9.0+PTX", "80 90", "sm_90 compute_90"),
        ("8.0,9.0+PTX", "80 90", "sm_80 sm_90 compute_90"),
        ("12.0;80 86, 9.0;", "80 86 90 100 120", "sm_80 sm_86 sm_90 sm_120 compute_80"),
        ("8.0+ptx 9.0+PTX 80", "80 90", "sm_80 sm_90 compute_80 compute_90"),
    ],
)
def test_the_gpus_to_compile_for_can_be_chosen(archs, known, expected, project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc", gpus=known)
    assert build(project, FASTINIT_CUDA_ARCHS=archs).returncode == 0
    assert reason(project, "cuda") is None
    assert gencodes(tools) == expected.split()


def test_the_cuda_kernel_can_be_left_out(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc")
    assert build(project).returncode == 0
    assert reason(project, "cuda") is None
    (tools / "calls").unlink()
    assert build(project, FASTINIT_CUDA="0").returncode == 0
    assert reason(project, "cuda").endswith(": FASTINIT_CUDA=0 was set\n")
    assert reason(project, "native") is None
    assert "nvcc" not in ((tools / "calls").read_text() if (tools / "calls").exists() else "")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("FASTINIT_CUDA", "no", "FASTINIT_CUDA: expected 0 (without the CUDA kernel) or 1 (not without it), got 'no'"),
        ("FASTINIT_CUDA_ARCHS", "Hopper", "expected compute capabilities such as 90, 9.0 or 9.0+PTX"),
        ("FASTINIT_CUDA_ARCHS", "80,9.0a", "commas, semicolons or spaces, got '9.0a'; names of GPUs and suffixes"),
        ("FASTINIT_CUDA_ARCHS", "9", "got '9'"),
        ("FASTINIT_CUDA_ARCHS", "7.5", "runs on GPUs of compute capability 8.0 or later, got '7.5'"),
        ("FASTINIT_REQUIRE_BUILD", "native,gpu", "expected native or cuda, or both with a comma, got 'gpu'"),
    ],
)
def test_an_unknown_value_of_a_switch_stops_the_build(variable, value, expected, project):
    done = build(project, **{variable: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"{variable}: ")
    assert expected in done.stderr


def test_switches_that_contradict_each_other_stop_the_build(project):
    done = build(project, FASTINIT_CUDA="0", FASTINIT_REQUIRE_BUILD="native,cuda")
    assert done.returncode == 1
    assert "unset one of them" in done.stderr


@pytest.mark.parametrize(
    ("switch", "compilers", "missing"),
    [
        ({"FASTINIT_REQUIRE_BUILD": "native"}, [], "the native core was not built"),
        ({"FASTINIT_REQUIRE_BUILD": "native"}, ["g++"], None),
        ({"FASTINIT_REQUIRE_BUILD": "native,cuda"}, ["g++"], "the CUDA kernel was not built"),
        ({"FASTINIT_REQUIRE_BUILD": "cuda"}, ["g++", "nvcc"], None),
        ({"FASTINIT_CUDA": "1"}, ["g++"], "the CUDA kernel was not built"),
        ({"FASTINIT_CUDA": "1"}, ["g++", "nvcc"], None),
    ],
)
def test_required_extensions_are_built_or_the_build_fails(switch, compilers, missing, project, tools):
    for name in compilers:
        add_tool(tools, name)
    done = build(project, **switch)
    assert (done.returncode != 0) == (missing is not None), done.stderr
    assert missing is None or missing in done.stderr


def test_the_path_of_the_project_may_hold_spaces_and_signs(project, tools):
    add_tool(tools, "g++")
    moved = project.rename(project.parent / "my $work: 2")
    assert build(moved).returncode == 0
    assert reason(moved, "native") is None


def test_the_oldest_gpu_is_the_one_on_which_the_backend_runs():
    from fastinit.backends import gpu_launch

    assert f'GPUS = ["{"".join(map(str, gpu_launch.MIN_CAPABILITY))}", ' in (ROOT / "setup.py").read_text()

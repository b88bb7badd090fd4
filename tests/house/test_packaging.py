"""What the sdist and the wheel hold, what the build's switches do, and what is said where something cannot be built.

Works on copies of the checkout, as a clone has it, with compilers that are scripts: nothing is compiled.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
IGNORED = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line and line[0] != "#"]
# What setuptools adds, and git's own.
MADE = {"PKG-INFO", "setup.cfg"}
# Compiles: makes the files after -o and -MF, and notes its arguments. nvcc also answers questions.
COMPILER = """#!/bin/sh
echo "$(basename "$0") $*" >> "$(dirname "$0")/calls"
case "$1" in
  --list-gpu-arch) for gpu in {gpus}; do echo "compute_$gpu"; done; exit 0;;
  --version) echo "Cuda compilation tools, release 12.4, V12.4.131"; exit 0;;
esac
while [ $# -gt 0 ]; do
  case "$1" in -o) : > "$2";; -MF) echo "x.o: x.cpp" > "$2";; esac
  shift
done
"""


def is_ignored(path: str) -> bool:
    """Tells whether .gitignore, as far as it is used here, leaves a file out."""
    parts = path.split("/")
    return any(fnmatch.fnmatch(path, pattern) for pattern in IGNORED if "/" in pattern) or any(
        fnmatch.fnmatch(part, pattern) for part in parts for pattern in IGNORED if "/" not in pattern
    )


def files_of(root: Path) -> set[str]:
    """Returns the files of a checkout that git would keep, without asking it."""
    found = set()
    for folder, folders, files in os.walk(root):
        within = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if name != ".git" and not is_ignored((within / name).as_posix())]
        paths = [(within / name).as_posix() for name in files]
        # .git is a file where git worktree made the folder. An unpacked sdist has what setuptools made.
        found |= {path for path in paths if not is_ignored(path) and path not in {".git", *MADE}}
    return found


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout as a clone has it."""
    root = tmp_path / "checkout"
    for file in files_of(ROOT):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    return root


def built(root: Path, kind: str) -> Path:
    """Builds an sdist or a wheel of a checkout, as pip does but with the packages that are here."""
    out = root.parent / "dist"
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return file


def packed(root: Path) -> set[str]:
    """Returns the files of a checkout's sdist, without what setuptools makes."""
    with tarfile.open(built(root, "sdist")) as file:
        names = [member.name.partition("/")[2] for member in file.getmembers() if member.isfile()]
    return {name for name in names if name not in MADE and ".egg-info/" not in name}


def test_the_sdist_holds_what_the_checkout_holds(checkout):
    assert {"csrc/fill_cpu.cpp", "tests/data/contract_1.json", "docs/backend.md", ".ci/run"} <= files_of(checkout)
    missing, extra = files_of(checkout) - packed(checkout), packed(checkout) - files_of(checkout)
    assert not missing, f"neither in MANIFEST.in nor in .gitignore: {sorted(missing)}"
    assert not extra, f"they are in .gitignore, and packed: {sorted(extra)}"


def test_new_files_are_packed(checkout):
    new = {"csrc/new.h", "csrc/more/new.cuh", "docs/new.svg", "tests/data/new.bin", "tools/new.py", "SECURITY.md"}
    for name in new:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("")
    assert new <= packed(checkout)


def test_what_builds_and_tests_leave_behind_is_not_packed(checkout):
    leftovers = {
        f"fastinit/_native{SUFFIX}",
        "fastinit/native_missing.txt",
        "fastinit/cuda_missing.txt",
        "fastinit/__pycache__/rules.cpython-311.pyc",
        "tests/__pycache__/helpers.cpython-311.pyc",
        "tests/.hypothesis/examples/a",
        "tests/native/.pytest_cache/README.md",
        "csrc/fill_cpu.o",
        "build/lib/fastinit/config/rules.py",
        "dist/torch_fastinit-0.0.1.tar.gz",
        ".venv/bin/python",
        ".mypy_cache/a.json",
    }
    for name in leftovers:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    assert not leftovers & packed(checkout)
    # What setuptools itself leaves, and reads again.
    assert (checkout / "torch_fastinit.egg-info/SOURCES.txt").exists()
    shutil.rmtree(checkout.parent / "dist")
    assert not leftovers & packed(checkout)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The only folder on the PATH, and the only place in which CUDA's compiler is looked for: empty."""
    folder = tmp_path / "tools"
    folder.mkdir()
    # What the compilers, which are scripts, are made of.
    for name in ("basename", "cat", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTINIT_CUDA", "FASTINIT_CUDA_ARCHS", "FASTINIT_REQUIRE_BUILD"):
        monkeypatch.delenv(name, raising=False)
    return folder


def add_tool(folder: Path, name: str, text: str = COMPILER, gpus: str = "80 86 90 100 120") -> None:
    (folder / name).write_text(text.replace("{gpus}", gpus))
    (folder / name).chmod(0o755)


@pytest.fixture
def project(checkout, tools):
    """The copy of the checkout, whose build does not see this machine's CUDA."""
    setup = (checkout / "setup.py").read_text()
    assert setup.count('"/usr/local/cuda/bin"') == 1
    (checkout / "setup.py").write_text(setup.replace("/usr/local/cuda/bin", str(tools)))
    return checkout


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Builds the extensions in a checkout, as an editable install does, and returns what was said."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=project, env={**os.environ, **environment}, capture_output=True, text=True, encoding="utf-8"
    )


def reason(project: Path, name: str) -> str | None:
    """Returns why an extension was not built, as the package says it, None where there is an extension."""
    module = {"native": "_native", "cuda": "_cuda"}[name]
    file, extension = project / "fastinit" / f"{name}_missing.txt", project / "fastinit" / f"{module}{SUFFIX}"
    assert file.exists() != extension.exists()
    return file.read_text(encoding="utf-8") if file.exists() else None


def gencodes(tools: Path) -> list[str]:
    """Returns for which GPUs nvcc was asked to compile."""
    return [
        code for call in (tools / "calls").read_text().splitlines() for code in re.findall(",code=([a-z0-9_]+)", call)
    ]


def test_the_wheel_holds_extensions_tables_and_types_and_no_tests(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc")
    with zipfile.ZipFile(built(project, "wheel")) as file:
        names = set(file.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    kept = {name for name in files_of(project) if name.startswith("fastinit/")}
    assert {"fastinit/py.typed", "fastinit/checkpoint/sources/names/mmcls.json"} <= kept
    assert names - metadata == kept | {f"fastinit/_native{SUFFIX}", f"fastinit/_cuda{SUFFIX}"}


def test_the_wheel_says_what_it_lacks(project, tools):
    with zipfile.ZipFile(built(project, "wheel")) as file:
        assert b"no C++ compiler" in file.read("fastinit/native_missing.txt")
        assert b"nvcc is neither" in file.read("fastinit/cuda_missing.txt")
        assert not [name for name in file.namelist() if name.endswith(".so")]


def test_without_compilers_the_reason_says_so(project, tools):
    assert build(project).returncode == 0
    begin = "was not built when fastinit was installed:"
    assert (
        reason(project, "native") == f"the native core {begin} no C++ compiler (g++, c++ or clang++) is on the PATH\n"
    )
    assert f"the CUDA kernel {begin} NVIDIA's compiler nvcc is neither on the PATH" in reason(project, "cuda")


def test_what_could_not_be_built_is_built_when_it_can(project, tools):
    assert build(project).returncode == 0 and reason(project, "native") and reason(project, "cuda")
    add_tool(tools, "g++")
    add_tool(tools, "nvcc")
    assert build(project).returncode == 0 and reason(project, "native") is None and reason(project, "cuda") is None
    (tools / "g++").unlink()
    assert build(project).returncode == 0 and reason(project, "native") and reason(project, "cuda")


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
def test_the_compiler_s_words_are_the_reason(output, expected, project, tools):
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
    assert text.count("\n") == 1 and text.count(expected) == 1


def test_long_words_are_cut(project, tools):
    add_tool(tools, "g++", '#!/bin/sh\nfor i in 1 2 3 4 5; do echo "$i: error: $0 $*$*$*$*$*"; done\nexit 1\n')
    assert build(project).returncode == 0
    text = reason(project, "native")
    assert text.startswith("the native core was not built when fastinit was installed: 1: error: ")
    assert text.endswith("...\n") and len(text) < 600


def test_compilers_are_asked_to_speak_english(project, tools):
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


def test_nvcc_s_words_are_the_reason_and_the_native_core_is_built(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc", COMPILER.replace("while [", "echo 'a.cu(3): error: no such thing' >&2; exit 2\nwhile ["))
    assert build(project).returncode == 0
    assert reason(project, "native") is None
    assert reason(project, "cuda").endswith("installed: a.cu(3): error: no such thing\n")


def test_an_nvcc_that_is_too_old_is_told_with_its_release(project, tools):
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


def test_a_gpu_that_nvcc_does_not_know_is_told_and_not_left_out(project, tools):
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
    assert build(project).returncode == 0 and reason(project, "cuda") is None
    (tools / "calls").unlink()
    assert build(project, FASTINIT_CUDA="0").returncode == 0
    assert reason(project, "cuda").endswith(": FASTINIT_CUDA=0 was set\n") and reason(project, "native") is None
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
def test_a_switch_that_means_nothing_stops_the_build(variable, value, expected, project):
    done = build(project, **{variable: value})
    assert done.returncode == 1 and done.stderr.startswith(f"{variable}: ") and expected in done.stderr


def test_switches_that_contradict_each_other_stop_the_build(project):
    done = build(project, FASTINIT_CUDA="0", FASTINIT_REQUIRE_BUILD="native,cuda")
    assert done.returncode == 1 and "unset one of them" in done.stderr


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
def test_what_is_required_is_built_or_the_build_fails(switch, compilers, missing, project, tools):
    for name in compilers:
        add_tool(tools, name)
    done = build(project, **switch)
    assert (done.returncode != 0) == (missing is not None), done.stderr
    assert missing is None or missing in done.stderr


def test_a_required_extension_fails_the_wheel(project, tools, monkeypatch):
    monkeypatch.setenv("FASTINIT_REQUIRE_BUILD", "native")
    with pytest.raises(AssertionError, match="no C\\+\\+ compiler"):
        built(project, "wheel")
    assert not list((project.parent / "dist").glob("*.whl"))


def test_the_path_of_the_project_may_hold_spaces_and_signs(project, tools):
    add_tool(tools, "g++")
    moved = project.rename(project.parent / "my $work: 2")
    assert build(moved).returncode == 0
    assert reason(moved, "native") is None


def test_the_oldest_gpu_is_the_one_on_which_the_backend_runs():
    from fastinit.backends import gpu_launch

    assert f'GPUS = ["{"".join(map(str, gpu_launch.MIN_CAPABILITY))}", ' in (ROOT / "setup.py").read_text()

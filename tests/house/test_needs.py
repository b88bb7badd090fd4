"""Skips: what was asked for fails instead, and what is skipped for another reason than the listed ones fails a session."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import needs
import pytest
from paths import ROOT, TESTS

pytest_plugins = ["pytester"]

PREAMBLE = "import needs, pytest\ndef test_passes(): pass\n"


@pytest.fixture
def session(pytester, monkeypatch):
    """Runs pytest on files with these texts, under the conftest.py of these tests; returns (status, what it printed)."""

    def run(*texts, require=None, options=()):
        monkeypatch.delenv("FASTINIT_REQUIRE", raising=False)
        if require is not None:
            monkeypatch.setenv("FASTINIT_REQUIRE", require)
        monkeypatch.setattr(needs, "_device", needs._device)  # which the run sets
        paths = [str(TESTS / "support"), str(ROOT)]  # workers find them by it
        conftest = TESTS / "conftest.py"
        pytester.makeconftest(f"import sys\nsys.path[:0] = {paths}\nexec(open({str(conftest)!r}).read())\n")
        pytester.makepyfile(**{f"test_{i}": PREAMBLE + text for i, text in enumerate(texts)})
        result = pytester.runpytest("-p", "no:cacheprovider", *options)
        return result.ret, result.stdout.str() + result.stderr.str()

    return run


GPU = "@needs.mark(needs.GPU)\ndef test_gpu(): assert False\n"
TORCH = "@needs.mark(needs.torch_from(99, 1))\ndef test_torch(): assert False\n"
NO_TRITON = "@needs.mark(needs.backend('triton', 'it is hidden'))\ndef test_triton(): assert False\n"


@needs.mark(needs.CPP)
def test_tests_for_other_machines_or_torches_are_skipped_and_counted(session):
    for require in (None, "cpp"):
        status, text = session(GPU + TORCH, TORCH, require=require)
        assert status == 0, text
        assert re.search(r"^ +2  needs another torch$", text, re.M), text
        assert re.search(r"^ +1  needs a GPU \(--device cuda\)$", text, re.M), text


@needs.mark(needs.CPP)
@pytest.mark.parametrize(
    "text",
    [
        "def test_it(): pytest.skip('not today')\n",
        "@pytest.mark.skipif(True, reason='needs a GPU')\ndef test_it(): pass\n",
        "@pytest.mark.parametrize('x', [])\ndef test_it(x): pass\n",
        "@pytest.mark.xfail\ndef test_it(): assert False\n",
        "pytest.skip('not this file', allow_module_level=True)\n",
    ],
    ids=["skip", "skipif", "empty parameters", "xfail", "module"],
)
def test_any_other_skip_fails_the_session_where_backends_are_required(session, text):
    status, printed = session(text, require="cpp")
    assert status == 1 and "1 skipped although FASTINIT_REQUIRE is set" in printed, printed
    assert "test_0.py" in printed.rpartition("although")[2]


def test_any_other_skip_is_only_reported_where_nothing_is_required(session):
    status, printed = session("def test_it(): pytest.skip('not today')\n")
    assert status == 0 and "1  none of the reasons in tests/support/needs.py: not today" in printed, printed


@needs.mark(needs.CPP, needs.package("xdist"))
def test_skips_of_workers_are_counted_once_with_those_of_whole_files(session):
    file = "needs.torch_from(99, 1).check()\ndef test_it(): pass\n"
    wrong = "pytest.skip('not this file', allow_module_level=True)\n"
    status, printed = session(GPU + TORCH, file, file, wrong, require="cpp", options=["-n", "2"])
    assert status == 1 and "1 skipped although" in printed, printed
    assert re.search(r"^ +3  needs another torch$", printed, re.M), printed
    assert re.search(r"^ +1  none of the reasons.*: not this file$", printed, re.M), printed


@needs.mark(needs.CPP)
def test_a_backend_that_was_asked_for_and_cannot_run_fails_its_tests_with_the_reason(session):
    status, printed = session(NO_TRITON, require="triton,cpp")
    assert status == 1 and "needs the backend triton: it is hidden; it was asked for" in printed, printed
    assert "FASTINIT_REQUIRE=triton,cpp" in printed
    status, printed = session(NO_TRITON, require="cpp")
    assert status == 0 and "1  needs the backend triton" in printed, printed


@needs.mark(needs.CPP)
def test_a_package_that_is_missing_skips_a_whole_file_but_not_where_backends_are_required(session):
    text = "needs.module('no_such_package')\ndef test_it(): pass\n"
    status, printed = session("", text)
    assert status == 0 and "1  needs a package" in printed, printed
    status, printed = session("", text, require="cpp")
    assert status != 0 and "no_such_package cannot be imported" in printed, printed


def test_an_unknown_backend_is_refused(session):
    status, printed = session("", require="cpp,cudnn")
    assert (
        status == pytest.ExitCode.USAGE_ERROR and "unknown backends ['cudnn']; choose from cpp, triton, cuda" in printed
    )


@needs.mark(needs.NO_GPU)
def test_device_cuda_without_a_gpu_is_one_error(session):
    status, printed = session(GPU, options=["--device", "cuda"])
    assert status == pytest.ExitCode.USAGE_ERROR and "--device cuda: torch" in printed
    assert "finds no CUDA device" in printed and "passed" not in printed and "failed" not in printed


def test_device_cuda_asks_for_all_backends_unless_fewer_are_named(monkeypatch):
    monkeypatch.delenv("FASTINIT_REQUIRE", raising=False)
    monkeypatch.setattr(needs, "_device", "cuda")
    assert needs.required() == {"cpp", "triton", "cuda"} and not needs.is_strict()
    assert needs.Kind.CUDA.must_be_met() and not needs.Kind.PACKAGE.must_be_met()
    with pytest.raises(pytest.fail.Exception, match=r"the backend cuda: no driver; it was asked for: --device cuda"):
        needs.backend("cuda", "no driver").check()
    monkeypatch.setenv("FASTINIT_REQUIRE", "triton")
    assert needs.Kind.TRITON.must_be_met() and needs.Kind.CPP.must_be_met() and not needs.Kind.CUDA.must_be_met()
    with pytest.raises(pytest.skip.Exception, match=r"^needs the backend cuda: no driver$"):
        needs.backend("cuda", "no driver").check()


def test_a_compiler_may_be_missing_where_a_gpu_runs_the_kernels_but_not_where_they_are_proved(monkeypatch):
    monkeypatch.setenv("FASTINIT_REQUIRE", "cuda")
    monkeypatch.setattr(needs, "_device", "cpu")
    with pytest.raises(pytest.fail.Exception, match=r"needs the backend cuda: nvcc is not installed"):
        needs.proof("cuda", "nvcc is not installed").check()
    monkeypatch.setattr(needs, "_device", "cuda")
    with pytest.raises(pytest.skip.Exception, match=r"^needs the emulation of a GPU: nvcc is not installed$"):
        needs.proof("cuda", "nvcc is not installed").check()


def test_every_skip_of_the_suite_says_what_it_needs():
    ways = {
        "skip",
        "skipif",
        "skipIf",
        "skipUnless",
        "importorskip",
        "xfail",
        "SkipTest",
        "skipTest",
        "expectedFailure",
    }
    found = []
    files = {*TESTS.rglob("*.py"), ROOT / "conftest.py"} - {TESTS / "support" / "needs.py", Path(__file__)}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.attr] if isinstance(node, ast.Attribute) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name}:{node.lineno}: {name}" for name in names if name in ways]
    assert not found, f"tests/support/needs.py has what to write instead: {found}"


GPU_TESTS = [
    "backends/test_gpu_backends.py",
    "kernels/test_gpu_kernels.py",
    "kernels/test_gpu_instructions.py",
    "kernels/test_digest_kernel.py",
    "backends/test_device_work.py",
    "conftest.py",
]
# Where the project's own modules are that tests import.
FOLDERS = [TESTS / "support", ROOT / "benchmarks", ROOT / "tools"]


def imported(path, seen):
    """Adds to ``seen`` the packages that a file, and those of the project's own that it imports, import at their top."""
    folders = FOLDERS
    tree = ast.parse(path.read_text())
    for node in ast.walk(ast.Module([each for each in tree.body if not isinstance(each, ast.FunctionDef)], [])):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in {name.split(".")[0] for name in names} - seen:
                seen.add(name)
                for own in (
                    each for folder in folders for each in [folder / f"{name}.py", *(folder / name).glob("*.py")]
                ):
                    imported(own, seen) if own.exists() else None


def test_the_tests_of_gpus_import_no_more_than_their_extra_names():
    seen = set()
    for path in [ROOT / "conftest.py", *(TESTS / name for name in GPU_TESTS)]:
        imported(path, seen)
    own = {path.stem for folder in FOLDERS for path in folder.glob("*")}
    packages = seen - own - sys.stdlib_module_names - {"fastinit", "torch", "numpy"}
    (extra,) = re.findall(r"^test-gpu = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    named = set(re.findall(r'^ +"(\w+)', extra, re.M))
    assert {"pytest", "hypothesis"} <= packages <= named == {"pytest", "hypothesis", "scipy", "triton"}

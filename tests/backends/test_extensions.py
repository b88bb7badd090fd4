"""Why a compiled extension is missing is told as it is: each cause in a fresh interpreter, on a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from paths import ROOT

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
WHAT = {"cpp": ("_native", "the native core"), "cuda": ("_cuda", "the CUDA kernel")}
backends = pytest.mark.parametrize("backend", list(WHAT))

Reasons = Callable[..., dict[str, str | None]]


def copy_package(into: Path) -> Path:
    """Copies the package's Python files, as they are when nothing was built, and returns its folder."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*_missing.txt", "__pycache__")
    return Path(shutil.copytree(ROOT / "fastinit", into / "fastinit", ignore=ignored))


def copy_checkout(into: Path) -> Path:
    """Copies what tells a checkout from an installed package, too, and returns the package's folder."""
    package = copy_package(into)
    shutil.copy(ROOT / "setup.py", into)
    shutil.copytree(ROOT / "csrc", into / "csrc")
    return package


def touched(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def fresh(*arguments: object) -> dict[str, Any]:
    """Returns the start of a new interpreter that has this one's packages, but not its editable installs.

    With -S no .pth file is read.
    """
    folders = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    return dict(args=[sys.executable, "-S", *map(str, arguments)], env=environment, text=True)


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**fresh(*arguments), cwd=cwd, capture_output=True)


# Answers, for each line of its input, in a copy of itself that has imported torch and nothing of fastinit: importing torch
# takes most of the time of a fresh interpreter.
SERVER = """
import json, os, sys, traceback
import torch
def answer(folder, installed, before):
    os.chdir(folder)
    sys.path[1:1] = installed
    exec(before, {"sys": sys})
    import fastinit
    assert os.path.dirname(fastinit.__file__) == os.path.join(folder, "fastinit"), fastinit.__file__
    return fastinit.available_backends()
for line in sys.stdin:
    assert "fastinit" not in sys.modules
    if (child := os.fork()) == 0:
        try:
            print(json.dumps(answer(*json.loads(line))), flush=True)
        except BaseException:
            print(json.dumps(traceback.format_exc()), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps("it died"), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    needs.FORK.check()
    with subprocess.Popen(**fresh("-c", SERVER), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        yield started
        started.stdin.close()


@pytest.fixture
def reasons(server: subprocess.Popen[str]) -> Reasons:
    """Returns what ``available_backends()`` says where only torch was imported, in a package's parent, as in a checkout.

    Further folders hold packages which this one hides, ``before`` is code to run first.
    """

    def said(package: Path, *installed: Path, before: str = "") -> dict[str, str | None]:
        request = str(package.parent), list(map(str, installed)), before
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        found = json.loads(server.stdout.readline())
        assert isinstance(found, dict), found  # else what was raised
        return found

    return said


def install(into: Path, *, built: bool = True, editable: Path | None = None) -> Path:
    """Makes what pip would: the package beside its metadata, or metadata alone that point at a checkout."""
    metadata = touched(into / "torch_fastinit-9.9.dist-info" / "METADATA")
    metadata.write_text("Metadata-Version: 2.1\nName: torch-fastinit\nVersion: 9.9\n")
    if editable is not None:
        origin = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (metadata.parent / "direct_url.json").write_text(json.dumps(origin))
    package = into / "fastinit" if editable is None else editable / "fastinit"
    touched(package / "__init__.py")
    for name, _ in WHAT.values():
        if built:
            touched(package / f"{name}{SUFFIX}")
    return into


@backends
def test_a_checkout_that_was_not_built_says_how_to_build_it(backend, tmp_path, reasons):
    _, what = WHAT[backend]
    package = copy_checkout(tmp_path / "checkout")
    reason = reasons(package)[backend]
    assert reason is not None and reason.startswith(f"{what} is missing: this checkout was not built"), reason
    assert f"run `pip install -e .` in {tmp_path / 'checkout'}" in reason
    assert "circular" not in reason


@backends
def test_a_checkout_says_which_installed_build_it_hides(backend, tmp_path, reasons):
    package = copy_checkout(tmp_path / "checkout")
    installed = install(tmp_path / "site")
    reason = reasons(package, installed)[backend]
    assert f"this checkout was not built, and hides the one installed in {installed / 'fastinit'}" in reason
    assert "or run from a folder outside of it" in reason


def test_a_checkout_says_which_editable_install_it_hides(tmp_path, reasons):
    package = copy_checkout(tmp_path / "checkout")
    installed = install(tmp_path / "site", editable=tmp_path / "other checkout")
    reason = reasons(package, installed)["cpp"]
    assert f"hides the one installed in {tmp_path / 'other checkout' / 'fastinit'}" in reason


# As setuptools makes it: it comes last, and so answers for what Python's own finder does not find.
FINDER = """
import importlib.util, pathlib
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        file = pathlib.Path({folder!r}, *name.split(".")[1:-1], name.split(".")[-1] + {suffix!r})
        return importlib.util.spec_from_file_location(name, file) if name[:9] == "fastinit." and file.exists() else None
sys.meta_path.append(Finder)
"""


@backends
def test_the_extension_of_another_checkout_is_not_taken(backend, tmp_path, reasons):
    package = copy_checkout(tmp_path / "checkout")
    other = tmp_path / "other"
    installed = install(tmp_path / "site", editable=other)
    reason = reasons(package, installed, before=FINDER.format(folder=str(other / "fastinit"), suffix=SUFFIX))[backend]
    assert f"this checkout was not built, and hides the one installed in {other / 'fastinit'}" in reason


def test_an_installed_package_without_the_extension_is_not_named(tmp_path, reasons):
    package = copy_checkout(tmp_path / "checkout")
    reason = reasons(package, install(tmp_path / "site", built=False))["cpp"]
    assert str(tmp_path / "site") not in reason


def test_metadata_that_cannot_be_read_do_not_stop_the_import(tmp_path, reasons):
    package = copy_checkout(tmp_path / "checkout")
    installed = install(tmp_path / "site")
    (installed / "torch_fastinit-9.9.dist-info" / "direct_url.json").write_text("no JSON")
    assert "this checkout was not built;" in reasons(package, installed)["cpp"]


def test_pytest_in_an_unbuilt_checkout_says_so(tmp_path):
    package = copy_checkout(tmp_path / "checkout")
    shutil.copy(ROOT / "pyproject.toml", package.parent)
    test = touched(package.parent / "tests" / "test_it.py")
    test.write_text("import fastinit, pytest\ndef test_it(): pytest.fail(fastinit.available_backends()['cpp'])\n")
    done = python("-m", "pytest", "-p", "no:cacheprovider", "tests/test_it.py", cwd=package.parent)
    assert "1 failed" in done.stdout and "this checkout was not built" in done.stdout, done.stdout


@backends
def test_an_extension_for_another_python_is_named(backend, tmp_path, reasons):
    name, what = WHAT[backend]
    package = copy_checkout(tmp_path / "checkout")
    other = touched(package / f"{name}.cpython-27-sparc-solaris.so").name
    reason = reasons(package)[backend]
    assert reason.startswith(f"{what} in {package} was built for another Python or machine ({other}), and this one ")
    assert f"loads {name}{SUFFIX}: run `pip install -e .` in {tmp_path / 'checkout'} with this Python" in reason


def test_an_installed_package_for_another_python_is_to_be_installed_again(tmp_path, reasons):
    package = copy_package(tmp_path)
    touched(package / "_native.cp310-win_amd64.pyd")
    reason = reasons(package)["cpp"]
    assert "_native.cp310-win_amd64.pyd" in reason and reason.endswith("install the package with this Python")


@backends
def test_the_stored_reason_comes_before_all_others(backend, tmp_path, reasons):
    name, _ = WHAT[backend]
    package = copy_checkout(tmp_path / "checkout")
    touched(package / f"{name}.cpython-27-sparc-solaris.so")
    file = {"cpp": "native_missing.txt", "cuda": "cuda_missing.txt"}[backend]
    (package / file).write_text("it was too hot; 30 °C\n", encoding="utf-8")
    assert reasons(package, install(tmp_path / "site"))[backend] == "it was too hot; 30 °C"


@backends
def test_an_extension_that_does_not_load_keeps_the_loader_s_words(backend, tmp_path, reasons):
    name, what = WHAT[backend]
    package = copy_package(tmp_path)
    (package / f"{name}{SUFFIX}").write_bytes(b"no shared library")
    reason = reasons(package)[backend]
    assert reason.startswith(f"{what} does not load: ") and f"{name}{SUFFIX}" in reason
    # The loader's words are the C library's.
    assert "file too short" in reason or "invalid ELF header" in reason or sys.platform != "linux"


@needs.mark(needs.GCC)
def test_a_library_that_is_missing_is_named(tmp_path, reasons):
    package = copy_package(tmp_path / "package")
    (tmp_path / "a.c").write_text("int f(void) { return 1; }")
    (tmp_path / "b.c").write_text("int f(void); int PyInit__native(void) { return f(); }")
    library, target = tmp_path / "libgone.so", package / f"_native{SUFFIX}"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "a.c", "-o", library], check=True)
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "b.c", library, "-o", target], check=True)
    library.unlink()
    reason = reasons(package)["cpp"]
    assert reason.startswith("the native core does not load: ") and "libgone.so" in reason


def test_a_module_that_an_extension_needs_is_not_taken_for_the_extension(tmp_path, reasons):
    package = copy_package(tmp_path)
    (package / "_native.py").write_text("import a_module_that_is_nowhere\n")
    assert reasons(package)["cpp"] == "the native core does not load: No module named 'a_module_that_is_nowhere'"


def test_a_package_whose_extension_was_deleted_says_what_is_gone(tmp_path, reasons):
    package = copy_package(tmp_path)
    reason = reasons(package)["cpp"]
    assert reason.startswith(f"the native core is missing: {package} holds no _native{SUFFIX}")


def test_a_backend_requested_by_name_gives_the_same_reason(tmp_path):
    package = copy_checkout(tmp_path)
    code = "import fastinit, torch; fastinit.initialize(torch.nn.Linear(2, 2), dict(type='Normal', layer='Linear'), "
    code += "backend='cpp', seed=0)"
    done = python("-c", code, cwd=package.parent)
    assert done.returncode == 1 and "RuntimeError" in done.stderr
    assert "the backend 'cpp' cannot " in done.stderr
    assert ": the native core is missing: this checkout was not built" in done.stderr

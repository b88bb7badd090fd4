"""What tests need that not every machine has: the closed list of reasons for which a test of this project is skipped.

A test says what it needs with ``@needs.mark(needs.CPP, needs.torch_from(2, 6))``, or where it needs it with
``needs.LINUX.check()`` and ``needs.module("lightning")``. What is missing skips the test, with a reason that begins with
one of the list. What was asked for fails it instead: the backends that FASTINIT_REQUIRE names
(``FASTINIT_REQUIRE=cpp,triton,cuda``; ``--device cuda`` alone asks for these three), and, where that variable is set at
all, packages that ``pip install '.[test]'`` brings. skips.py sees to it that there are no other skips then.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastinit.backends import cpp_backend, cuda_backend, triton_backend

# The contract backends: what may be asked for. The kernels of the two on GPUs are compared with cpp's.
BACKENDS = ("cpp", "triton", "cuda")


class Kind(Enum):
    """The closed list: how a reason goes on after "needs "."""

    GPU = "a GPU (--device cuda)"
    GPUS = "several GPUs"
    NO_GPU = "a machine without a GPU"
    EMULATION = "the emulation of a GPU"
    SYSTEM = "another operating system"
    PYTHON = "another Python"
    TORCH = "another torch"
    PACKAGE = "a package"
    CPP = "the backend cpp"
    TRITON = "the backend triton"
    CUDA = "the backend cuda"

    def must_be_met(self) -> bool:
        """Tells whether what is missing was asked for, so that a test that needs it must fail."""
        if self is Kind.PACKAGE:
            return is_strict() and _device == "cpu"  # a machine with a GPU is seldom ours to install on
        if self is Kind.CPP:
            return bool(required())
        return self in (Kind.TRITON, Kind.CUDA) and self.name.lower() in required()


@dataclass(frozen=True)
class Need:
    """Something that a test needs; ``why_not`` returns why it is not here, None if it is."""

    kind: Kind
    why_not: Callable[[], str | None]

    def check(self) -> None:
        """Skips the test, or the file that is being imported, if this is missing; fails it if it was asked for."""
        if reason := self.why_not():
            text = f"needs {self.kind.value}: {reason}"
            if self.kind.must_be_met():
                pytest.fail(f"{text}; it was asked for: {_asked()}", pytrace=False)
            pytest.skip(text, allow_module_level=True)


def mark(*needs: Need) -> pytest.MarkDecorator:
    """Returns the mark of tests that need all of these; conftest.py checks them before the test's fixtures."""
    return pytest.mark.needs(*needs)


def _text_of(path: str) -> str:
    """Returns what a file of the system says, "" if there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


# --- what was asked for -----------------------------------------------------------------------------------------------

_device = "cpu"


def configure(device: str) -> None:
    """Takes the option --device.

    Raises:
        pytest.UsageError: FASTINIT_REQUIRE names what is no backend, or there is no GPU to run anything on.
    """
    global _device
    _device = device
    if unknown := sorted(required() - set(BACKENDS)):
        raise pytest.UsageError(f"FASTINIT_REQUIRE: unknown backends {unknown}; choose from {', '.join(BACKENDS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device cuda: torch {torch.__version__} finds no CUDA device")


def is_strict() -> bool:
    """Tells whether FASTINIT_REQUIRE is set: nothing is skipped then but for want of another machine or torch."""
    return bool(os.environ.get("FASTINIT_REQUIRE"))


def required() -> set[str]:
    """Returns the backends that were asked for."""
    if is_strict():
        return {name.strip() for name in os.environ["FASTINIT_REQUIRE"].split(",")}
    return set(BACKENDS) if _device == "cuda" else set()


def _asked() -> str:
    return f"FASTINIT_REQUIRE={os.environ['FASTINIT_REQUIRE']}" if is_strict() else f"--device {_device}"


# --- the needs --------------------------------------------------------------------------------------------------------


CPU = torch.device("cpu")

CPP = Need(Kind.CPP, lambda: cpp_backend.why_not(CPU))
TRITON = Need(Kind.TRITON, lambda: triton_backend.why_not_installed())
# The extension alone; whether it finds a GPU is another question.
CUDA = Need(Kind.CUDA, lambda: None if cuda_backend._extension is not None else cuda_backend.why_not(CPU))
# What compiles the native core compiles a library for a test, too.
GCC = Need(Kind.CPP, lambda: None if shutil.which("gcc") else "there is no gcc")
GPU = Need(Kind.GPU, lambda: None if _device == "cuda" else "this run is on the CPU")
GPUS = Need(Kind.GPUS, lambda: None if torch.cuda.device_count() > 1 else f"{torch.cuda.device_count()} here")
NO_GPU = Need(Kind.NO_GPU, lambda: "torch finds one" if torch.cuda.is_available() else None)
EMULATION = Need(Kind.EMULATION, lambda: None if _device == "cpu" else "this run is on a GPU")
LINUX = Need(
    Kind.SYSTEM, lambda: None if sys.platform == "linux" else f"it reads Linux's /proc, and this is {sys.platform}"
)
HUGE_PAGES = Need(
    Kind.SYSTEM,
    lambda: (
        None if "[madvise]" in _text_of("/sys/kernel/mm/transparent_hugepage/enabled") else "huge pages are no choice"
    ),
)
FORK = Need(Kind.SYSTEM, lambda: None if hasattr(os, "fork") else f"{sys.platform} has no fork")


def torch_from(*release: int) -> Need:
    """Returns the need of a torch of at least this release, e.g. ``torch_from(2, 6)``.

    It asks for the release and not for the feature: one that a newer torch has lost is a failure.
    """

    def why_not() -> str | None:
        return None if _release("torch") >= release else f"{_dotted(release)} or later, and this is {torch.__version__}"

    return Need(Kind.TORCH, why_not)


def python_from(*release: int) -> Need:
    """Returns the need of a release of Python or a later one."""
    here = f"{_dotted(release)} or later, and this is {platform.python_version()}"
    return Need(Kind.PYTHON, lambda: None if sys.version_info >= release else here)


def package(name: str, *release: int) -> Need:
    """Returns the need of a package, or of a module of one, that can be imported; and of at least this release."""

    def why_not() -> str | None:
        if reason := _why_not_imported(name):
            return reason
        if release and _release(name) < release:
            return f"{name} {_dotted(release)} or later, and this is {version(name)}"
        return None

    return Need(Kind.PACKAGE, why_not)


def built_for_torch(name: str) -> Need:
    """Returns the need of a package that is built for one build of torch only: ``.[test]`` cannot bring it.

    PyPI's torchvision is for PyPI's torch. Beside a CPU build neither it nor what imports it (timm, transformers) loads.
    """
    return Need(Kind.TORCH, lambda: _why_not_imported(name))


def module(name: str) -> ModuleType:
    """Imports a module of a package that may be missing, and returns it."""
    package(name).check()
    return importlib.import_module(name)


def backend(name: str, reason: str | None) -> Need:
    """Returns the need of a backend that cannot run for a reason, or can (None)."""
    return Need(Kind[name.upper()], lambda: reason)


def proof(name: str, reason: str | None) -> Need:
    """Returns the need of what proves a backend's kernels without a GPU, which is missing for a reason, or is not (None).

    On the CPU a backend that was asked for must be proved; where a GPU runs it, the compiler may be missing.
    """
    return backend(name, reason) if _device == "cpu" else Need(Kind.EMULATION, lambda: reason)


def _why_not_imported(name: str) -> str | None:
    try:
        found = importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # the latter is torchvision's, beside another torch
        return f"{name} cannot be imported: {error}"
    if name == "transformers" and not found.is_torch_available():
        return "transformers has no models beside a torch that is too old for it"
    return None


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(name).split(".")[:2])


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))

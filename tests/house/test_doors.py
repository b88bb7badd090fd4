"""What ``import fastinit`` leaves to the first use, and that the names of packages are there all the same."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from paths import PACKAGE

import fastinit.checkpoint
import fastinit.integrations
from fastinit.doors import door

LATER = [
    "fastinit.checkpoint.formats.by_content",
    "fastinit.checkpoint.loading",
    "fastinit.checkpoint.sources.downloads",
    "fastinit.checkpoint.writing",
    "fastinit.command_line",
    "fastinit.data_dependent",
    "fastinit.integrations.mmengine",
    "fastinit.integrations.transformers",
    "fastinit.materializing",
    "fastinit.mup",
    "fastinit.parameter_values",
    "fastinit.planning",
    "fastinit.presets",
    "fastinit.redrawing",
    "fastinit.signal_flow",
    "fastinit.verifying",
    "fastinit.writing",
    "filelock",
    "mmengine",
    "safetensors",
    "transformers",
    "triton",
]
SMALL = "fastinit.initialize(torch.nn.Linear(10, 10), dict(type='Normal', std=0.02, layer='Linear'))"


@pytest.mark.parametrize("use", ["pass", SMALL], ids=["import", "initialize"])
def test_what_a_small_initialization_does_not_need_is_not_loaded(use: str) -> None:
    code = f"import sys, torch\nbefore = set(sys.modules)\nimport fastinit\n{use}\nprint(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "fastinit.weight_init" in loaded
    assert not loaded & set(LATER)


PACKAGES = [
    pytest.param(package, id=package.__name__) for package in (fastinit, fastinit.checkpoint, fastinit.integrations)
]


def told_to_type_checkers(package: object) -> dict[str, set[str]]:
    """Returns the names that a package imports for type checkers only, by their modules."""
    (file,) = (PACKAGE.parent / f"{package.__name__.replace('.', '/')}/__init__.py",)  # type: ignore[attr-defined]
    found: dict[str, set[str]] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for each in node.body:
                assert isinstance(each, ast.ImportFrom)
                names = {alias.name for alias in each.names}
                found |= {each.module: names} if each.module else {name: set() for name in names}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_gives_each_name_that_type_checkers_see_from_its_module(package: object) -> None:
    told = told_to_type_checkers(package)
    assert told
    for module, names in told.items():
        loaded = __import__(f"{package.__name__}.{module}", fromlist=["x"])  # type: ignore[attr-defined]
        if not names:
            assert getattr(package, module) is loaded
        for name in names:
            assert getattr(package, name) is getattr(loaded, name)


@pytest.mark.parametrize("package", PACKAGES)
def test_names_that_are_loaded_later_are_listed(package: object) -> None:
    assert set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]


def test_a_fresh_process_finds_every_public_name_by_a_star() -> None:
    code = "from fastinit import *\nprint(plan, build, mup, presets, signals, write)"
    assert "signals" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_door_says_which_name_it_does_not_have() -> None:
    load, _ = door("fastinit", {"presets": ()})
    with pytest.raises(AttributeError, match=r"module 'fastinit' has no attribute 'presents'"):
        load("presents")

"""The script that type checkers read runs, so that what they accept is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import needs
import pytest
import typed_user
from paths import ROOT

import fastinit


@needs.mark(needs.CPP)
def test_the_script_for_type_checkers_does_what_it_says(tmp_path: Path) -> None:
    said = typed_user.main(tmp_path)
    assert "normal(mean=0, std=0.5)" in said and "4 parameters initialized" in said and "cpp: can run" in said
    assert said.endswith("Did you mean 'Linear'?") and (tmp_path / "weights.safetensors").stat().st_size > 4 * 44


def test_users_type_checkers_are_told_of_the_types() -> None:
    assert Path(fastinit.__file__).with_name("py.typed").is_file()


@pytest.mark.parametrize("name", ["typed_rules", "typed_user"])
def test_both_type_checkers_read_the_scripts_of_users(name: str) -> None:
    assert re.search(rf"^files = .*tests/support/{name}.py", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert re.search(rf"bin/pyright .*tests/support/{name}.py", (ROOT / "Makefile").read_text())

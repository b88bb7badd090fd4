"""All files of tests/hostile: each is answered as its README says, at little cost, and nothing of it is run."""

from __future__ import annotations

import re

import needs
import pytest
from folders import needs_dcp
from fuzz_checkpoints import run_batch
from limited import needs_linux
from mutants import Honest
from paths import TESTS

pytestmark = [needs_linux, needs_dcp]
needs.module("safetensors.torch")

HERE = TESTS / "hostile"
# Rows of the README's tables: | `kind/name` | refused | why |
ROWS = dict(re.findall(r"^\| `(\S+/\S+)` \| (refused|read) \|", (HERE / "README.md").read_text(), re.MULTILINE))
CASES = sorted(path for kind in HERE.iterdir() if kind.is_dir() and kind.name[0] != "_" for path in kind.iterdir())
FORMATS = {".pth": "zip", ".bin": "zip", ".legacy": "legacy", ".safetensors": "safetensors"}


def test_the_readme_has_a_row_for_every_file_and_no_other():
    assert sorted(ROWS) == [path.relative_to(HERE).as_posix() for path in CASES]


@pytest.mark.parametrize("access", ["map", "read"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.relative_to(HERE).as_posix())
def test_a_hostile_file_is_answered_as_the_readme_says(tmp_path, monkeypatch, path, assign, access):
    monkeypatch.chdir(tmp_path)  # for what a file might write
    name = path.relative_to(HERE).as_posix()
    if path.is_dir():
        files = {each.name: each.read_bytes() for each in path.iterdir()}
        index = next((each for each in files if each.endswith(".index.json")), "")
        content = Honest("index" if index else "folder", files, index)
    else:
        content = Honest(FORMATS[path.suffix], {path.name: path.read_bytes()}, path.name)
    options = {"strict": False, "assign": assign, "access": access}
    (verdict,) = run_batch([(0, content.format, content, options)])
    assert verdict.problem is None and verdict.outcome == {"read": "accepted", "refused": "refused"}[ROWS[name]], (
        verdict
    )
    assert not list(tmp_path.iterdir())

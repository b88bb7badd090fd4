"""The notebooks of docs run, and hold what they print."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import needs
import pytest
import run_notebooks

NOTEBOOKS = sorted(run_notebooks.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def this_package_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a notebook's child processes, whose folder is another, import the package that is tested."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join((str(run_notebooks.NOTEBOOKS.parents[1]), os.environ.get("PYTHONPATH", "")))
    )


@needs.mark(needs.CPP, needs.torch_from(2, 6))  # which has fully_shard
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_as_much_as_it_holds(path: Path) -> None:
    # Times and, of training, last digits are this machine's; digests and the number of lines are not.
    assert _lines(run_notebooks.run(path)) == _lines(json.loads(path.read_text(encoding="utf-8")))


def test_a_cell_that_fails_is_named_and_leaves_the_notebook(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": ["x = 1\n", "print(x)"]}, {"cell_type": "code", "source": ["1 / (x - 1)"]}]
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    before, folder = path.read_text(), Path.cwd()
    with pytest.raises(ZeroDivisionError) as error:
        run_notebooks.run(path)
    assert error.traceback[-1].path == Path("broken.ipynb, cell 2") or "broken.ipynb, cell 2" in str(
        error.traceback[-1]
    )
    assert path.read_text() == before and Path.cwd() == folder


def _lines(notebook: dict) -> list[list[tuple[int, list[str]]]]:
    """Returns, for each cell, the number of its lines and the digests in them."""
    found = []
    for cell in notebook["cells"]:
        text = "".join("".join(each["text"]) for each in cell.get("outputs", ()))
        found.append((len(text.splitlines()), re.findall(r"\b[0-9a-f]{32}\b", text)))
    return found

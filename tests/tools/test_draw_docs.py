"""The pictures in docs are what tools/draw_docs.py draws, and each has its script."""

from __future__ import annotations

import re
from pathlib import Path

import draw_docs
import needs
import pytest
from paths import ROOT

DOCS = ROOT / "docs"


@needs.mark(needs.CPP)
@pytest.mark.parametrize("name", draw_docs.PICTURES)
def test_a_committed_picture_is_what_the_script_draws(name: str, tmp_path: Path) -> None:
    matplotlib = needs.module("matplotlib")
    draw_docs.PICTURES[name](tmp_path / name)
    drawn, committed = (tmp_path / name).read_text(), (DOCS / name).read_text()
    # What is written in it, and the same curves: other releases and processors move points by a last digit.
    assert re.findall(r"<text[^>]*>([^<]*)", drawn) == re.findall(r"<text[^>]*>([^<]*)", committed)
    assert drawn.count("<path") == committed.count("<path")
    if f"Matplotlib v{matplotlib.__version__}" in committed and name == "values.svg":
        assert drawn == committed


def test_every_picture_in_docs_has_a_script_and_a_page() -> None:
    pages = "".join(page.read_text() for page in [ROOT / "README.md", *DOCS.rglob("*.md")])
    for picture in DOCS.glob("*.svg"):
        assert picture.name in {*draw_docs.PICTURES, "coordinate_check.svg"}
        assert picture.name in pages

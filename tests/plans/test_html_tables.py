"""Notebooks show plans and reports as HTML: the rows that print shows, and nothing in a name becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from torch import nn

import fastinit
from fastinit import Plan, Report

HOSTILE = "<script>alert(1)</script>&\"'"


class Read(HTMLParser):
    """The tags and the cells of an HTML text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.last = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.last = ""
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.last += data
        if self.rows and self.rows[-1] and data.strip() and self.last == data:
            self.rows[-1][-1] = data


def shown(kind: str, model: nn.Module) -> Plan | Report:
    cfg = dict(type="Normal", layer="Linear")
    return fastinit.plan(model, cfg) if kind == "plan" else fastinit.initialize(model, cfg)


@pytest.mark.parametrize("kind", ["plan", "report"])
def test_hostile_names_are_text(kind: str) -> None:
    model = nn.ModuleDict({HOSTILE: nn.Linear(2, 2), "other": nn.LayerNorm(2)})
    model["other"].register_parameter(HOSTILE, nn.Parameter(model["other"].weight.detach()))
    found = shown(kind, model)
    read = Read(found._repr_html_())
    assert read.tags == {"table", "tr", "th", "td", "pre"}
    assert read.rows[1][0] == f"{HOSTILE}.weight"
    assert f"other.{HOSTILE}" in read.last


@pytest.mark.parametrize("kind", ["plan", "report"])
def test_like_layers_are_one_row(kind: str) -> None:
    found = shown(kind, nn.Sequential(*(nn.Linear(2, 2) for _ in range(8))))
    assert [row[0] for row in Read(found._repr_html_()).rows] == ["parameter", "{0..7}.weight", "{0..7}.bias"]


@pytest.mark.parametrize("kind", ["plan", "report"])
def test_the_rows_are_those_of_the_text(kind: str) -> None:
    found = shown(kind, nn.Sequential(*(nn.Linear(i + 1, 2) for i in range(80))))
    lines = found.table().splitlines()
    del lines[1]  # the rule below the head
    texts = [row[0] for row in Read(found._repr_html_()).rows]
    assert len(texts) == 62 and "more rows" in texts[46]
    assert all(line.startswith(text) for line, text in zip(lines, texts, strict=True))


@pytest.mark.parametrize("kind", ["plan", "report"])
def test_the_summary_is_below(kind: str) -> None:
    found = shown(kind, nn.Linear(2, 2))
    assert str(found).endswith(Read(found._repr_html_()).last)

"""Links of the pages lead to files and headings that exist, in the checkout and in the site that is made of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def without_code(text: str) -> str:
    """Returns a page without its code, whose brackets are no links."""
    return re.sub(r"`[^`\n]+`", "code", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each) for each in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Returns the targets of relative links, and of pictures, that are not there."""
    broken = []
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text)) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_that_names_a_file_leads_to_that_file(page: Path) -> None:
    links = re.findall(r"\[([\w./]+\.md)\]\(([^)#]+)", page.read_text())
    assert [link for link in links if Path(link[0]).name != Path(link[1]).name] == []


def test_every_page_of_the_docs_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())
        linked |= {(page.parent / target).resolve() for target in targets} - {page}
    assert [page for page in PAGES if page.parent != ROOT and page.name != "index.md" and page not in linked] == []


def test_wrong_links_are_found() -> None:
    text = """
    [a](docs/none.md) [b](docs/plans.md) [c](docs/plans.md#no-such-heading) [d](docs/plans.md#the-format) `[e](none.md)`
    ![f](docs/none.svg) <img src="docs/values.svg"> <source srcset="docs/none-dark.svg"> [g](https://example.org/none)
    """
    wrong = ["docs/none.md", "docs/plans.md#no-such-heading", "docs/none.svg", "docs/none-dark.svg"]
    assert broken_links(ROOT / "README.md", text) == wrong

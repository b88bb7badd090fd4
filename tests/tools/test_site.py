"""The site of the docs: every page has its place, every public name a page, and links of the checkout are the site's."""

from __future__ import annotations

import re
from collections import Counter

import api_pages
import pytest
import site_hooks
from paths import ROOT

DOCS = ROOT / "docs"


def test_every_page_has_its_place_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert Counter(re.findall(r"[\w/]+\.md$", navigation, re.MULTILINE)) == Counter(pages | set(site_hooks.ROOT_PAGES))


def test_the_reference_is_what_the_docstrings_say() -> None:
    for name, text in api_pages.generated().items():
        assert (DOCS / "api" / name).read_text() == text, f"docs/api/{name}: run python tools/api_pages.py"


def test_every_public_name_is_on_one_page() -> None:
    names = [name for page in api_pages.pages().values() for name in page.names]
    assert Counter(names) == Counter(api_pages.public_names())
    assert {"fastinit.plan", "fastinit.mup.OPTIMIZERS", "fastinit.checkpoint.load_checkpoint"} <= set(names)


@pytest.mark.parametrize(
    ("here", "link", "expected"),
    [
        ("config.md", "schemes.md", "schemes.md"),
        ("start/library.md", "../api/calls.md", "../api/calls.md"),
        ("checkpoints.md", "../SECURITY.md", "SECURITY.md"),
        ("start/library.md", "../../SECURITY.md", "../SECURITY.md"),
        ("CONTRIBUTING.md", "docs/api/index.md", "api/index.md"),
        ("CONTRIBUTING.md", "SECURITY.md", "SECURITY.md"),
        ("faq.md", "../setup.py", "../setup.py"),
    ],
    ids=lambda each: str(each),
)
def test_a_link_of_the_checkout_leads_to_the_same_page_of_the_site(here: str, link: str, expected: str) -> None:
    assert site_hooks.site_link(here, link) == expected


def test_a_link_that_shows_a_file_name_shows_a_title_in_the_site() -> None:
    assert site_hooks.title("start/library.md", "../plans.md") == "Plans"
    assert site_hooks.title("CONTRIBUTING.md", "docs/gpu.md") == "On GPUs"

"""What the site needs beyond docs/ (mkdocs.yml): the pages of the root, links to them, and doctests in colour.

The pages are written for a reader of the checkout: their links go by its folders, and lead to the same pages here.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
_FILE_NAME = re.compile(r"\[[\w./]+\.md\]\(([^)\s:#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page's text as the site has it."""
    here = page.file.src_uri
    markdown = _FILE_NAME.sub(lambda found: f"[{title(here, found[1])}]({found[1]}", markdown)
    markdown = _LINK.sub(lambda found: found[1] + site_link(here, found[2]) + found[3], markdown)
    markdown = re.sub(r" +# doctest: [+\w, ]+$", "", markdown, flags=re.MULTILINE)
    return markdown.replace("```python\n>>>", "```pycon\n>>>")


def site_link(here: str, link: str) -> str:
    """Returns a link of a page of the site to what it means in the checkout; others stay, and fail the build.

    Args:
        here: the page's path in the site, such as "start/library.md".
        link: a path relative to the page's file in the checkout.
    """
    target = _target(here, link)
    in_site = target if target in ROOT_PAGES else target.removeprefix("docs/")
    if in_site == target and target not in ROOT_PAGES:
        return link
    return posixpath.relpath(in_site, posixpath.dirname(here) or ".")


def title(here: str, link: str) -> str:
    """Returns the title of the page that a link of another one leads to, as far as a colon: "Plans" for "plans.md"."""
    first = (ROOT / _target(here, link)).read_text().partition("\n")[0]
    return first.removeprefix("# ").partition(":")[0]


def _target(here: str, link: str) -> str:
    folder = posixpath.dirname(here if here in ROOT_PAGES else f"docs/{here}")
    return posixpath.normpath(posixpath.join(folder, link))

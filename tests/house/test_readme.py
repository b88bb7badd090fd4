"""README and docs are true: examples run (as doctests, see pyproject.toml), tables are those of the benchmarks."""

from __future__ import annotations

import re
import sys

from paths import ROOT

TYPES = (ROOT / "docs/config.md").read_text()
# CHANGELOG.md is missing here: it also names what no longer exists.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def test_the_tables_are_the_benchmarks_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import update_tables

    sys.modules.pop("update_tables")
    pages = [page.read_text() for page in update_tables.PAGES]
    assert len(pages) > 1 and all(update_tables.updated(page) == page for page in pages)
    named = set(re.findall(r"<!-- (benchmarks/results/\S+) -->", "".join(pages)))
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks/results").glob("*.csv")}
    assert named == there | {f"benchmarks/results/{name}" for name in update_tables.NEEDS_A_GPU}


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([\w-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "docs"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), f"make {command}"


def test_the_config_table_names_every_type_and_its_arguments():
    import inspect

    import fastinit

    common = inspect.signature(fastinit.BaseInit.__init__).parameters
    for name, initializer in fastinit.WEIGHT_INITIALIZERS.items():
        if not initializer.__module__.startswith("fastinit."):
            continue
        (row,) = re.findall(rf"^\| `{name}` \| (?:`([^`]*)`|–)", TYPES, re.MULTILINE)
        own = inspect.signature(initializer.__init__).parameters.values()
        for argument in own:
            if argument.name in ("kwargs", *common):
                continue
            default = "" if argument.default is argument.empty else f"={argument.default!r}"
            assert re.search(rf"(^|, ){re.escape(argument.name + default)}(,|$)", row), (name, argument)

"""The files of a project on a public forge: what they say is what the project has."""

from __future__ import annotations

import re

import check_versions
import needs
import pytest
from paths import ROOT

from fastinit import __version__
from fastinit.__main__ import main

yaml = needs.module("yaml")
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_hooks_and_ci_have_the_same_releases_of_the_linters():
    pinned = dict(re.findall(r"^(ruff|mypy)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert hooks["ruff-format"]["additional_dependencies"] == [f"ruff=={pinned['ruff']}"]
    assert hooks["ruff-check"]["additional_dependencies"] == [f"ruff=={pinned['ruff']}"]
    assert hooks["mypy"]["name"] == f"mypy {pinned['mypy']}"


def test_the_citation_names_this_release_and_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__
    assert f'license = "{citation["license"]}"' in PROJECT


def test_the_forges_ci_tries_the_pairs_of_the_script():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert f"        include:\n{check_versions.matrix()}\n    steps:" in text
    jobs = yaml.safe_load(text)["jobs"]
    listed = [check_versions.Pair(**each) for each in jobs["versions"]["strategy"]["matrix"]["include"]]
    assert listed == check_versions.PAIRS
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"run: make ([\w-]+)", text):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


def test_the_pairs_have_every_python_and_the_oldest_torch_of_the_package():
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert sorted({pair.python for pair in check_versions.PAIRS}) == sorted(pythons)
    (oldest,) = re.findall(r'dependencies = \["torch>=([\d.]+)"', PROJECT)
    assert check_versions.PAIRS[0].torch == oldest
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned in {pair.torch for pair in check_versions.PAIRS}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_for_issues_has_what_a_forge_wants(form):
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert content == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(content)
    asked = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert asked and len(set(asked)) == len(asked)
    for page in re.findall(r"\((\S+\.md)\)", form.read_text()):
        assert (ROOT / page).exists(), page


def test_the_forms_name_commands_that_there_are(capsys):
    named = {command for form in FORMS for command in re.findall(r"`fastinit (\w+)", form.read_text())}
    assert "doctor" in named
    for command in named:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0, command

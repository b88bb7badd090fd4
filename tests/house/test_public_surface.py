"""What users program against is kept as text, so that a change of it is seen in review."""

from __future__ import annotations

from pathlib import Path

import public_surface
import pytest

import fastinit


def test_public_names_and_signatures_are_those_of_the_file() -> None:
    assert public_surface.SURFACE.read_text() == public_surface.generated(), (
        "what docs/stability.md calls stable has changed: run python tools/public_surface.py, and read the difference"
    )


def test_every_public_name_exists_and_is_listed_once() -> None:
    names = fastinit.__all__
    assert len(set(names)) == len(names) and all(hasattr(fastinit, name) for name in names)


@pytest.mark.parametrize(
    "name", ["Error", "Plan", "Recipe", "Report", "Row", "Verification", "PlanDiff", "rules", "errors"]
)
def test_results_and_errors_are_public(name: str) -> None:
    assert name in fastinit.__all__


def test_what_calls_return_can_be_named() -> None:
    model = fastinit.Sequential(init_cfg=None)
    with fastinit.capture(model) as recipe:
        pass
    plan = fastinit.plan(model, [])
    assert isinstance(recipe, fastinit.Recipe) and isinstance(plan, fastinit.Plan)
    assert isinstance(fastinit.initialize(model, plan), fastinit.Report)
    assert isinstance(plan.diff(plan), fastinit.PlanDiff) and isinstance(
        fastinit.verify(model, plan), fastinit.Verification
    )


def test_a_changed_signature_changes_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = public_surface.generated()

    def digest(source: object, *, quick: bool = False) -> object:
        return source

    monkeypatch.setattr(fastinit, "digest", digest)
    after = public_surface.generated()
    changed = set(after.splitlines()) - set(before.splitlines())
    assert changed == {"digest(source: object, *, quick: bool = False) -> object"}


def test_the_text_has_no_address_and_no_path_of_this_machine() -> None:
    text = public_surface.SURFACE.read_text()
    assert " at 0x" not in text and str(Path(fastinit.__file__).parent) not in text

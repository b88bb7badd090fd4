"""profile_build.py counts each moment of a build for one stage, and changes no value."""

from __future__ import annotations

from functools import partial

import needs
import pytest

import fastinit

pytestmark = needs.mark(needs.CPP, needs.LINUX)
profile_build = needs.module("profile_build")  # it imports transformers


def clocked(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    ticks = iter(times)
    monkeypatch.setattr(profile_build.time, "perf_counter", lambda: next(ticks))


def test_time_counts_for_the_innermost_stage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, 0, 1, 11, 111)
    stages = profile_build.Stages()
    with stages.stage("outer"):
        assert stages.timed("inner", lambda: 7)() == 7
    assert stages.seconds == {"outer": 1 + 100, "inner": 10}


@pytest.mark.parametrize("name", profile_build.MODELS)
def test_the_stages_of_a_build_are_all_of_it(name: str) -> None:
    make = partial(profile_build.MODELS[name], True)
    seconds, digests = profile_build.profiled(make)
    stages = [seconds[stage] for stage in ("constructors", "watching", "records", "fills", "rest")]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(seconds["total"], rel=0.05)
    assert digests == 2 * [str(fastinit.digest(fastinit.build(make, backend="cpp", seed=0)))]


def test_the_timers_are_gone_after_the_block() -> None:
    places = [*profile_build.modes(), (profile_build.capturing, "_execute"), (profile_build.cpp_backend, "_native")]
    before = [getattr(owner, name) for owner, name in places]
    with profile_build.timers(profile_build.Stages()):
        assert all(getattr(owner, name) is not was for (owner, name), was in zip(places, before))
    assert [getattr(owner, name) for owner, name in places] == before


def test_other_values_are_not_recorded() -> None:
    with pytest.raises(SystemExit, match="other values: nothing is recorded"):
        profile_build.must_be_equal("DETR", ["a", "a", "b"])


def test_the_mixture_of_experts_has_ten_thousand_tensors() -> None:
    with profile_build.torch.device("meta"):
        model = profile_build.make_experts(False)
    assert 10_000 <= len(list(model.parameters())) < 10_100

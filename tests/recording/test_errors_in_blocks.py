"""What becomes of pending fills when a block ends by an exception."""

from __future__ import annotations

import logging

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.backends import cpp_backend

pytestmark = needs.mark(needs.CPP)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the fills of each launch."""
    made: list[int] = []
    original = cpp_backend.run

    def run(fills, *arguments, **options):  # type: ignore[no-untyped-def]
        made.append(len(fills))
        return original(fills, *arguments, **options)

    monkeypatch.setattr(cpp_backend, "run", run)
    return made


def interrupted(*_: object, **__: object) -> int:
    """As a backend's run, in which the user presses Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
def test_a_factory_that_fails_has_nothing_filled(error: type[BaseException], launches: list[int]) -> None:
    def factory() -> nn.Module:
        kept.append(nn.Linear(8, 8))
        raise error("out of it")

    kept: list[nn.Module] = []
    with pytest.raises(error, match="out of it"):
        fastinit.build(factory, backend="cpp", seed=0)
    assert len(kept) == 1 and launches == []


def test_materialize_that_refuses_in_the_end_fills_nothing(launches: list[int]) -> None:
    class Rope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.empty(3))

        def reset_parameters(self) -> None:
            pass

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), Rope())
    with pytest.raises(RuntimeError, match=r"no values: 1\.table"):
        fastinit.materialize(model, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    assert launches == [] and model[0].weight.is_meta


def test_an_error_in_a_captured_block_leaves_the_values_that_were_asked_for(launches: list[int]) -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="mine"), fastinit.capture(model, backend="cpp", seed=0):
        nn.init.constant_(model.bias, 4)
        nn.init.uniform_(model.weight, 5, 6)
        raise ValueError("mine")
    assert (model.bias == 4).all() and (model.weight >= 5).all() and launches == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupt_in_a_captured_block_drops_what_is_pending_and_says_so(
    error: type[BaseException], launches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(8, 8)
    with caplog.at_level(logging.WARNING, logger="fastinit"):
        with pytest.raises(error), fastinit.capture(model, backend="cpp", seed=0):
            nn.init.uniform_(model.weight, 5, 6)
            raise error
    assert launches == [] and "1 fills that were requested and not yet written are dropped" in caplog.text


def test_a_launch_that_is_interrupted_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def run(fills, *arguments, **options):  # type: ignore[no-untyped-def]
        started.append(len(fills))
        raise KeyboardInterrupt

    monkeypatch.setattr(cpp_backend, "run", run)
    model = nn.Linear(8, 8)
    with pytest.raises(KeyboardInterrupt), fastinit.capture(model, backend="cpp", seed=0):
        nn.init.uniform_(model.weight)
    assert started == [1]


def test_a_launch_that_is_interrupted_is_said_to_have_left_tensors_in_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpp_backend, "run", interrupted)
    model = nn.Linear(8, 8)
    with pytest.raises(KeyboardInterrupt), fastinit.capture(model, backend="cpp", seed=0):
        nn.init.uniform_(model.weight)
    assert (
        "KeyboardInterrupt stopped a launch: 1 tensors are initialized only in part or not at all: weight"
        in caplog.text
    )


def test_a_build_that_is_interrupted_says_nothing_of_a_model_that_nobody_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpp_backend, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastinit.build(nn.Linear, 8, 8, backend="cpp", seed=0)
    assert caplog.records == []


def test_materialize_that_is_interrupted_says_nothing_of_memory_that_nobody_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpp_backend, "run", interrupted)
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    with pytest.raises(KeyboardInterrupt):
        fastinit.materialize(model, dict(type="Normal", layer="Linear"), backend="cpp", seed=0)
    assert caplog.records == [] and model.weight.is_meta


def test_what_is_dropped_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(KeyboardInterrupt), fastinit.capture(model, backend="cpp", seed=0):
        nn.init.uniform_(model.weight, 5, 6)
        nn.init.zeros_(model.bias)
        raise KeyboardInterrupt
    assert "2 tensors: weight, bias" in caplog.text


def test_a_launch_that_fails_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def run(fills, *arguments, **options):  # type: ignore[no-untyped-def]
        started.append(len(fills))
        raise OSError("device")

    monkeypatch.setattr(cpp_backend, "run", run)
    model = nn.Linear(8, 8)
    with pytest.raises(OSError, match="device"), fastinit.capture(model, backend="cpp", seed=0):
        nn.init.uniform_(model.weight)
    assert started == [1]

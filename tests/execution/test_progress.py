"""Bars: for what is large, in a terminal, once; what they count is what is done, and values do not change."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit import progress
from fastinit.backends import cpp_backend
from fastinit.contract.records import lowered
from fastinit.execution import runner
from fastinit.plans import Fill, Normal
from fastinit.progress import advance, expect, is_wanted, listening, showing, silent

LARGE = 1 << 40


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes stderr a terminal, and everything large and slow."""
    needs.module("tqdm")
    for name in ("FASTINIT_PROGRESS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(progress, "_DELAY_S", 0)
    monkeypatch.setattr(progress, "_LEAST_BYTES", 1)


@pytest.mark.parametrize(
    ("is_terminal", "variables", "wanted"),
    [
        (True, {}, True),
        (True, {"FASTINIT_PROGRESS": "1"}, True),
        (False, {}, False),
        (True, {"FASTINIT_PROGRESS": "0"}, False),
        (True, {"FASTINIT_PROGRESS": "off"}, False),
        (True, {"RANK": "0"}, True),
        (True, {"RANK": "3"}, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("terminal")
def test_bars_are_for_terminals_and_can_be_switched_off(
    is_terminal: bool, variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_is_terminal", lambda: is_terminal)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_wanted() is wanted
    with silent():
        assert not is_wanted()


def test_without_a_listener_nothing_is_said() -> None:
    expect(1)
    advance(1)


@pytest.mark.usefixtures("terminal")
def test_a_bar_shows_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with showing("write", LARGE):
        expect(2000)
        advance(1500)
        time.sleep(0.2)
        advance(500)
    assert re.search(r"write: 100%.*2.00k/2.00k", capsys.readouterr().err)


@pytest.mark.usefixtures("terminal")
def test_a_call_within_a_larger_one_has_no_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with showing("write", LARGE), showing("fill", LARGE):
        expect(2)
        advance(2)
    shown = capsys.readouterr().err
    assert "write" in shown and "fill" not in shown


@pytest.mark.usefixtures("terminal")
def test_what_is_small_has_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LEAST_BYTES", 100)
    with showing("write", 99):
        expect(99)
        advance(99)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("terminal")
def test_without_tqdm_there_is_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with showing("write", LARGE):
        advance(1)
    assert capsys.readouterr().err == ""


def net() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))


CFG = dict(type="Normal", std=1, layer="Linear")
N_BYTES = 4 * (32 * 32 + 32) * 4


def checkpoint(folder: Path) -> Path:
    torch.save(net().state_dict(), folder / "net.pth")
    return folder / "net.pth"


CALLS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "initialize": ("fill", lambda _: fastinit.initialize(net(), CFG, seed=0)),
    "initialize, cpp": ("fill", lambda _: fastinit.initialize(net(), CFG, backend="cpp", seed=0)),
    "materialize": ("fill", lambda _: fastinit.materialize(net().to("meta"), CFG, backend="cpp", seed=0)),
    "build": ("fill", lambda _: fastinit.build(net, backend="cpp", seed=0)),
    "Pretrained": (
        "load",
        lambda folder: fastinit.initialize(net(), dict(type="Pretrained", checkpoint=str(folder / "net.pth"))),
    ),
    "load_checkpoint": ("load", lambda folder: fastinit.checkpoint.load_checkpoint(net(), folder / "net.pth")),
    "digest": ("digest", lambda _: fastinit.digest(net())),
    "write": ("write", lambda folder: fastinit.write(net, folder / "out", seed=0)),
}


def slow_table() -> tuple[torch.Tensor, Any]:
    """Returns memory, and the record of a fill of it that takes one thread without vector instructions 0.1 s and more."""
    tensor = torch.zeros(1 << 23)
    return tensor, lowered([Fill.whole("w", tensor, Normal(0, 1), "", "")], 0).view("u1")


@needs.mark(needs.CPP)
def test_the_core_says_while_it_works_how_far_it_is() -> None:
    tensor, table = slow_table()
    heard: list[int] = []
    cpp_backend._core().fill(table, 1, "baseline", advance=heard.append)
    assert len(heard) > 2 and min(heard) > 0 and sum(heard) == tensor.nbytes
    heard.clear()
    assert cpp_backend._core().compare(table, 1, "baseline", advance=heard.append).tolist() == [-1]
    assert len(heard) > 2 and sum(heard) == tensor.nbytes


@needs.mark(needs.CPP)
def test_what_is_raised_by_who_hears_ends_the_work() -> None:
    tensor, table = slow_table()

    def refuse(n_bytes: int) -> None:
        raise OSError(f"after {n_bytes}")

    with pytest.raises(OSError, match="after"):
        cpp_backend._core().fill(table, 1, "baseline", advance=refuse)
    assert tensor[0] != 0 and tensor[-1] == 0


@needs.mark(needs.CPP)
@pytest.mark.usefixtures("terminal")
def test_a_bar_costs_no_launches() -> None:
    assert fastinit.initialize(net(), CFG, backend="cpp", seed=0).launches == {"cpu": 1}


@needs.mark(needs.CPP)
@pytest.mark.usefixtures("terminal")
def test_structured_fills_count_as_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setattr(runner, "advance", heard.append)
    fastinit.initialize(
        nn.Sequential(nn.Linear(32, 32)), dict(type="Orthogonal", layer="Linear"), backend="cpp", seed=0
    )
    assert sum(heard) == 4 * (32 * 32 + 32)


@needs.mark(needs.CPP)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.usefixtures("terminal")
def test_long_calls_show_one_bar_that_comes_to_its_end(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tqdm

    checkpoint(tmp_path)
    bars: list[Any] = []

    class Kept(tqdm.tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            if self not in bars:
                bars.append(self)
            super().close()

    monkeypatch.setattr(tqdm, "tqdm", Kept)
    what, function = CALLS[call]
    function(tmp_path)
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [(what, N_BYTES, N_BYTES)]


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
@pytest.mark.usefixtures("terminal")
def test_a_bar_changes_no_value(backend: str) -> None:
    shown, plain = net(), net()
    fastinit.initialize(shown, CFG, backend=backend, seed=3)
    with silent():
        fastinit.initialize(plain, CFG, backend=backend, seed=3)
    assert all(map(torch.equal, shown.parameters(), plain.parameters()))


def test_nothing_is_counted_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "n_bytes_of", lambda _: pytest.fail("counted"))
    fastinit.initialize(net(), CFG, seed=0)


def test_a_listener_of_a_larger_call_hears_nothing_of_fills_within() -> None:
    heard: list[int] = []
    with listening(heard.append, heard.append):
        fastinit.initialize(net(), CFG, seed=0)
    assert heard == []

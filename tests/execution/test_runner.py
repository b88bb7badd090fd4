"""The runner: one launch for a backend and a device, versions counted once, and what is asked before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastinit.execution import runner
from fastinit.execution.runner import check, execute, prepare
from fastinit.execution.scope import Scope
from fastinit.plans import Constant, Copy, Fill, LoadResult, Normal

CPU, META = torch.device("cpu"), torch.device("meta")


class Launches:
    """A contract backend that notes its launches, on the CPU and on the meta device alike."""

    IS_CONTRACT = True

    def __init__(self) -> None:
        self.groups: list[tuple[list[str], int | None]] = []
        self.busy: dict[torch.device, str] = {}
        self.error: Exception | None = None

    def why_not_now(self, device: torch.device) -> str | None:
        return self.busy.get(device)

    def run(self, fills: Sequence[Fill], seed: int | None, generators: object = None, **_: object) -> int:
        self.groups.append(([fill.name for fill in fills], seed))
        if self.error is not None:
            raise self.error
        return 1


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    backend = Launches()
    monkeypatch.setitem(runner.BACKENDS, "cpp", backend)  # type: ignore[arg-type]
    return backend


def fill(name: str, device: torch.device = CPU, values: Any = Constant(0)) -> Fill:
    return Fill.whole(name, torch.zeros(3, device=device), values, "init_cfg", "")


def scope(**arguments: Any) -> Scope:
    return Scope(None, None, **{"backend": "cpp", "seed": 5, **arguments})


def test_fills_of_one_device_are_one_launch_in_their_order(launches: Launches) -> None:
    execute([fill("a"), fill("m", META), fill("b")], scope())
    assert launches.groups == [(["a", "b"], 5), (["m"], 5)]


def test_the_launches_of_several_runs_add_up(launches: Launches) -> None:
    here = scope()
    execute([fill("a"), fill("m", META)], here)
    execute([fill("b")], here)
    assert here.launches == {CPU: 2, META: 1}


def test_a_device_that_is_busy_stops_all_launches_before_the_first(launches: Launches) -> None:
    launches.busy[META] = "a graph is being recorded"
    with pytest.raises(RuntimeError, match="a graph is being recorded"):
        execute([fill("a"), fill("m", META)], scope())
    assert launches.groups == []


def test_the_version_of_a_tensor_is_counted_once_by_a_launch(launches: Launches) -> None:
    made = fill("a")
    execute([made], scope())
    assert made.tensor._version == 1


def test_versions_that_were_counted_at_the_request_are_not_counted_by_the_launch(launches: Launches) -> None:
    made = fill("a")
    execute([made], scope(), are_counted=True)
    assert made.tensor._version == 0


def test_a_launch_that_fails_counts_the_versions_of_what_it_may_have_written(launches: Launches) -> None:
    launches.error, made = OSError("driver"), fill("a")
    with pytest.raises(OSError, match="driver"):
        execute([made], scope())
    assert made.tensor._version == 1


@pytest.mark.parametrize(("are_counted", "versions"), [(False, 1), (True, 0)])
def test_on_torch_versions_are_counted_at_the_request_or_by_torch(are_counted: bool, versions: int) -> None:
    made = fill("a", values=Normal(0, 1))
    execute([made], scope(backend="torch"), are_counted=are_counted)
    assert made.tensor._version == versions and made.tensor.std() > 0


# --- before a run -----------------------------------------------------------------------------------------------------


def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives all names one stream."""
    original = runner.streams_of
    monkeypatch.setattr(runner, "streams_of", lambda names: original(["a" for _ in names]))


def test_constants_draw_nothing_and_collide_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    colliding(monkeypatch)
    prepare([fill("a"), fill("b"), fill("c", values=Normal(0, 1))], scope())


def test_a_name_that_is_drawn_twice_does_not_collide_with_itself() -> None:
    prepare([fill("a", values=Normal(0, 1)), fill("a", values=Normal(0, 2))], scope())


def test_streams_are_checked_before_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    colliding(monkeypatch)
    here = scope()
    monkeypatch.setattr(here.seed, "agree", lambda: pytest.fail("ranks wait for one that has failed"))
    with pytest.raises(RuntimeError, match="names 'b' and 'a' have the same random stream"):
        prepare([fill("a", values=Normal(0, 1)), fill("b", values=Normal(0, 1))], here)


def test_ranks_agree_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    here, agreed = scope(), []
    monkeypatch.setattr(here.seed, "agree", lambda: agreed.append("once"))
    prepare([fill("a", values=Normal(0, 1))], here)
    assert agreed == ["once"]


def test_ranks_compare_names_shapes_dtypes_and_values_of_distributed_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "is_sharded", lambda tensor: True)
    monkeypatch.setattr(runner, "mesh_of", lambda tensor: "mesh")
    here, asked = scope(), []
    monkeypatch.setattr(here.seed, "ask", lambda mesh, what: asked.append((mesh, what)))
    runner.ask_if_sharded(fill("a", values=Normal(0, 1)), here)
    assert asked == [("mesh", f"a (3,) torch.float32 {Normal(0, 1)!r}")]


def test_fills_that_are_not_distributed_ask_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    here = scope()
    monkeypatch.setattr(here.seed, "ask", lambda mesh, what: pytest.fail("a rank alone would wait"))
    runner.ask_if_sharded(fill("a"), here)


# --- the check --------------------------------------------------------------------------------------------------------


def copy_into(tensor: torch.Tensor, *, replaces: bool) -> Copy:
    def load() -> Any:
        return LoadResult((), (), (), ()), ()

    entry: Any = SimpleNamespace(tensor=tensor)
    return Copy(nn.Module(), (entry,), "c.pth", "init_cfg[1]", "", replaces, False, load)


def test_a_fill_on_the_meta_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"init_cfg: the parameter '' is on the meta device"):
        check([fill("a", META)], scope(backend="torch"))


def test_a_plan_takes_fills_on_the_meta_device() -> None:
    check([fill("a", META)], scope(backend="torch"), needs_memory=False)


def test_a_copy_into_a_meta_tensor_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"init_cfg\[1\]: the parameter"):
        check([copy_into(torch.empty(2, device="meta"), replaces=False)], scope(backend="torch"))


def test_a_copy_that_replaces_meta_tensors_needs_none_of_their_memory() -> None:
    check([copy_into(torch.empty(2, device="meta"), replaces=True)], scope(backend="torch"))


@pytest.mark.parametrize("needs_memory", [True, False])
def test_only_a_call_that_writes_asks_whether_the_device_is_there(
    needs_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []

    def why_not(device: torch.device) -> None:
        asked.append(device)

    fake: Callable[..., Any] = SimpleNamespace  # the rest of a backend that can do all
    backend = fake(IS_CONTRACT=True, why_not=why_not, why_not_now=lambda _: None, why_not_fill=lambda _: None)
    monkeypatch.setitem(runner.BACKENDS, "cpp", backend)
    check([fill("a")], scope(), needs_memory=needs_memory)
    assert asked == ([CPU] if needs_memory else [])

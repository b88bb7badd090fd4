"""What the GPU backends do on the host around a launch, and what they refuse at a moment when they must not launch."""

from __future__ import annotations

from contextlib import contextmanager

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit import backends, plans
from fastinit.backends import cpp_backend, cuda_backend, gpu_launch
from fastinit.contract import gpu_work as device_work
from fastinit.execution import runner
from fastinit.execution.scope import Scope

NORMAL = dict(type="Normal", std=0.5, layer="Linear")
TRIPS = device_work.Trips(4096, 16384)


@pytest.fixture
def capturing(monkeypatch):
    """A process with two GPUs: cuda:0 is the current one, and the stream of cuda:1 is captured into a graph."""
    entered = [torch.device("cuda", 0)]

    @contextmanager
    def current(device):
        entered.append(device)
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: entered[-1] == torch.device("cuda", 1))


def test_graph_capture_is_queried_on_the_tensors_device(capturing):
    assert gpu_launch.why_not_now(torch.device("cuda", 0)) is None
    assert "captured into a CUDA graph" in gpu_launch.why_not_now(torch.device("cuda", 1))


@pytest.fixture
def busy(monkeypatch):
    """As on a GPU whose stream is captured: what "auto" takes can run there, but not now."""
    needs.CPP.check()
    monkeypatch.setattr(backends, "_PREFERRED", {"cpu": ("cpp",)})
    monkeypatch.setattr(cpp_backend, "why_not_now", lambda device: "a graph is captured")


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_a_momentary_reason_refuses_before_anything_is_written(busy, backend):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match=r"init_cfg: the backend 'cpp' cannot fill .*: a graph is captured"):
        fastinit.initialize(model, NORMAL, backend=backend, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_momentary_reason_does_not_change_what_auto_takes(busy):
    assert backends.Choice("auto").on(torch.device("cpu")) == "cpp"
    plan = fastinit.plan(nn.Linear(3, 4), NORMAL, seed=0)
    assert {row.backend for row in plan.rows} == {"cpp"}


class Elsewhere:
    """A tensor of the second GPU."""

    device = torch.device("cuda", 1)


@pytest.fixture
def launched(monkeypatch):
    found = []
    monkeypatch.setattr(gpu_launch, "execute", lambda *arguments: found.append(arguments))
    return found


def test_pending_fills_are_not_launched_during_a_graph_capture(capturing, launched):
    fill = plans.Fill("captured", Elsewhere(), plans.Normal(0, 1), "", "", (4,))
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        gpu_launch.run([fill], 0, TRIPS, lambda *_: None)
    assert launched == []


def test_a_graph_capture_on_one_device_stops_the_launches_on_all(capturing, launched, monkeypatch):
    monkeypatch.setattr(
        cuda_backend, "run", lambda fills, seed, **_: gpu_launch.run(fills, seed, TRIPS, lambda *_: None)
    )
    free, captured = torch.empty(4), Elsewhere()
    fills = [
        plans.Fill.whole("free", free, plans.Normal(0, 1), "", ""),
        plans.Fill("captured", captured, plans.Normal(0, 1), "", "", (4,)),
    ]
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        runner.execute(fills, Scope(None, None, backend="cuda", seed=0))
    assert launched == [] and free._version == 0


def test_a_launch_of_nothing_is_none(launched):
    assert gpu_launch.run([], 0, TRIPS, lambda *_: None) == 0 and launched == []


def test_both_tables_reach_the_launch_in_one_piece_of_memory(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu_launch, "on_device", lambda device: contextmanager(lambda: (yield))())
    monkeypatch.setattr(gpu_launch, "why_not_now", lambda device: None)
    monkeypatch.setattr(gpu_launch, "_pinned", lambda n: torch.empty(n, dtype=torch.uint8))
    fills = [plans.Fill.whole(f"p{i}", torch.empty(5000 + i), plans.Normal(0, 1), "", "") for i in range(3)]
    gpu_launch.run(fills, 0, TRIPS, lambda records, work, n: seen.append((records, work, n)))
    ((records, work, n_pieces),) = seen
    assert records.untyped_storage().data_ptr() == work.untyped_storage().data_ptr()
    assert records.data_ptr() % 16 == 0 and work.data_ptr() % 16 == records.data_ptr() % 16
    pieces = work.numpy().view(device_work.WORK)
    assert len(pieces) == n_pieces and set(pieces["fill"].tolist()) == {0, 1, 2}

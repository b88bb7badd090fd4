"""A plugin of pytest that runs the ``cpp`` backend through the host side of the GPU backends, with plain memory.

``python -m pytest -p cpp_as_gpu tests/recording ...`` takes every fill of ``cpp`` by the way that fills of ``triton``
and ``cuda`` take: grouped by device, cut into pieces of work, both tables copied to "the device" in one go, launched there.
So that way is run within everything that may be around it (recording, building, modes, dry runs) where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fastinit.backends import cpp_backend, gpu_launch
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering
from fastinit.plans import Fill, n_bytes_of
from fastinit.progress import Listener

launches: list[int] = []
"""The pieces of work of every launch."""
TRIPS = device_work.Trips(4096, 16384)  # the CUDA kernel's


def launch(records: torch.Tensor, work: torch.Tensor, n_pieces: int) -> None:
    """Executes the records of tables that were copied to the device, as a kernel would."""
    pieces = work.numpy().view(device_work.WORK)
    assert len(pieces) == n_pieces
    table = records.numpy().copy()  # the native core wants whole words
    assert set(pieces["fill"].tolist()) == set(range(len(table) // lowering.RECORD.itemsize))
    launches.append(n_pieces)
    cpp_backend._core().fill(table, torch.get_num_threads())


def run(fills: Sequence[Fill], seed: int | None, *, advance: Listener | None = None) -> int:
    """Executes fills as a GPU backend does."""
    assert seed is not None
    n_launches = gpu_launch.run(fills, seed, TRIPS, launch)
    if advance is not None:
        advance(sum(map(n_bytes_of, fills)))
    return n_launches


@pytest.fixture(autouse=True)
def cpp_as_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes the fills of ``cpp`` by the way of the GPU backends."""
    monkeypatch.setattr(cpp_backend, "run", run)
    monkeypatch.setattr(gpu_launch, "on_device", lambda device: nullcontext())
    monkeypatch.setattr(gpu_launch, "why_not_now", lambda device: None)
    monkeypatch.setattr(gpu_launch, "_pinned", lambda n: torch.empty(n, dtype=torch.uint8, device="cpu"))
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how much was launched: none would mean that nothing was tried."""
    terminalreporter.write_line(f"cpp_as_gpu: {len(launches)} launches by the host side of the GPU backends")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds what a worker of pytest-xdist has launched."""
    launches.extend(getattr(node, "workeroutput", {}).get("launches", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run in which nothing took this way."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launches"] = launches
    elif not launches:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

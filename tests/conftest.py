"""The option --device, what tests need (needs.py), and the account of those that were skipped (skips.py)."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest
import skips

# They hold no doctests, and all have one name, which pytest imports for doctests once only.
collect_ignore_glob = ["*conftest.py"]


# Files that take longest. A worker of pytest-xdist takes a file at a time (--dist loadscope), and one of these that came last
# would leave the others idle.
FIRST = (
    *("kernels/test_gpu_kernels.py", "shards/test_shards.py", "tools/test_run_notebooks.py", "house/test_demo.py"),
    *("kernels/test_digest_kernel.py", "kernels/test_gpu_instructions.py", "checkpoint/test_hostile_files.py"),
    *("recording/test_growth.py", "backends/test_extensions.py", "checkpoint/test_loading_costs.py"),
    *("checkpoint/formats/test_folders_ranks.py", "tools/test_check_mmengine.py", "backends/test_cpp_statistics.py"),
    *("config/test_jax_and_keras.py", "house/test_builds.py", "tools/test_fuzzer.py", "checkpoint/test_saving.py"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Has each test leave logging as it was: one that disables it would silence a later test."""
    root, ours = logging.getLogger(), logging.getLogger("fastinit")
    before = root.manager.disable, ours.level
    yield
    assert (root.manager.disable, ours.level) == before, (
        "the test left logging disabled, or fastinit's at another level"
    )


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Has Python, and programs that it starts, hear Ctrl-C: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where tests of GPU kernels run them: their PTX executed on the CPU, or a real GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu_proof: proves compiled GPU kernels without a GPU; needs nvcc and triton")
    config.addinivalue_line("markers", "needs(*needs): is skipped, or fails, where one of them is missing (needs.py)")
    needs.configure(config.getoption("--device"))
    config.pluginmanager.register(skips.Skips())


def pytest_report_header() -> str | None:
    return f"required backends: {', '.join(sorted(needs.required()))}" if needs.required() else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for need in mark.args:
            need.check()

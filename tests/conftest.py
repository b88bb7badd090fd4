"""The option --device, what tests need (needs.py), and the account of those that were skipped (skips.py)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import needs
import pytest
import skips

# They hold no doctests, and all have one name, which pytest imports for doctests once only.
collect_ignore_glob = ["*conftest.py"]


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

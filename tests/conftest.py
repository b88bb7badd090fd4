"""The option --device, and why tests that prove GPU kernels on the CPU are skipped."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where tests of GPU kernels run them: their PTX executed on the CPU, or a real GPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu_proof: proves compiled GPU kernels without a GPU; needs nvcc and triton")

"""The device of the GPU day's steps: the GPU and its backends, or without one the CPU and the reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from gpu_day_step import wrong

from fastinit.backends import BACKENDS, cpp_backend

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
CPU = torch.device("cpu")
GPU_BACKENDS = ("triton", "cuda")


@lru_cache(maxsize=1)
def backends() -> list[str]:
    """Returns the backends to try; a missing one fails the step on a GPU, as does a missing reference.

    Raises:
        SystemExit: the reference is missing, or no backend can run.
    """
    if reason := cpp_backend.why_not(CPU):
        raise SystemExit(f"cpp, which all is compared with, is MISSING: {reason}")
    reasons = {name: BACKENDS[name].why_not(DEVICE) for name in (GPU_BACKENDS if GPU else ("cpp",))}
    for name, why in reasons.items():
        if why is not None:
            wrong(f"{name} is MISSING, and is not tried: {why}")
    able = [name for name, why in reasons.items() if why is None]
    if not able:
        raise SystemExit("no backend can run here")
    return able


def sync() -> None:
    """Waits for the GPU."""
    if GPU:
        torch.cuda.synchronize()


def sleep() -> None:
    """Keeps the GPU's current stream busy for some ten milliseconds, so that the next launches queue up."""
    if GPU:
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]


def seconds_of(call: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds until a call returned, and until the GPU finished it."""
    sync()
    began = time.perf_counter()
    call()
    host = time.perf_counter() - began
    sync()
    return host, time.perf_counter() - began

"""The backends, and the one place that chooses among them.

A backend is a module with what the protocol :class:`Backend` lists. Its functions that ask why not answer None for "it
can", else a reason to show to the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ..plans import Fill
from . import cpp_backend, cuda_backend, torch_backend, triton_backend


class Backend(Protocol):
    """What a backend module offers."""

    NUMBERS: str
    IS_CONTRACT: bool
    """Whether a value depends on seed, name and index alone: fills may then wait for each other and replace another."""

    def why_not(self, device: torch.device) -> str | None:
        """Returns why the backend cannot run on a device, None if it can: what lasts, by which "auto" chooses."""

    def why_not_now(self, device: torch.device) -> str | None:
        """Returns why the backend, which can run on a device, must not at this moment: "auto" takes no other then."""

    def why_not_fill(self, fill: Fill) -> str | None:
        """Returns why the backend cannot do a fill (its dtype, its layout), None if it can."""

    def engine(self) -> str:
        """Returns what does the work, for the report."""

    def run(self, fills: Sequence[Fill], seed: int | None) -> int:
        """Executes fills that it can do, in order, and returns in how many launches of a kernel.

        A contract backend is given fills of one device, and the seed; its caller counts the versions of the tensors
        (``versions.count_writes``). Another may be given fills of several devices, ignores the seed and counts itself.
        """


BACKENDS: dict[str, Backend] = {
    "torch": torch_backend,  # type: ignore[dict-item]
    "cpp": cpp_backend,  # type: ignore[dict-item]
    "triton": triton_backend,  # type: ignore[dict-item]
    "cuda": cuda_backend,  # type: ignore[dict-item]
}

AUTO = "auto"
# What "auto" takes on a device of a type, the first that can run there. Where none can, and on every other type, it is
# "torch": the numbers that users have today.
_PREFERRED = {"cuda": ("triton", "cuda")}
# The type of device on which a backend works, where that is not the CPU.
_DEVICE_TYPE = {"triton": "cuda", "cuda": "cuda"}


def available_backends() -> dict[str, str | None]:
    """Returns for every backend None where it can run on this machine, else why it cannot.

    Example:
        >>> import fastinit
        >>> fastinit.available_backends()["torch"] is None
        True
    """
    return {name: backend.why_not(torch.device(device_type(name))) for name, backend in BACKENDS.items()}


def device_type(name: str) -> str:
    """Returns the type of device on which a backend works."""
    return _DEVICE_TYPE.get(name, "cpu")


def checked(name: str) -> str:
    """Returns the name of a backend or "auto".

    Raises:
        TypeError: ``name`` is no text.
        ValueError: there is no backend of that name.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a str, but got {name!r} of {type(name)}")
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; this fastinit has {', '.join([AUTO, *BACKENDS])}")
    return name


def on_device(name: str, device: torch.device) -> str:
    """Returns the name of the backend that ``name`` stands for on a device; only "auto" ever chooses."""
    if name != AUTO:
        return name
    able = (each for each in _PREFERRED.get(device.type, ()) if BACKENDS[each].why_not(device) is None)
    return next(able, "torch")


def for_fill(name: str, on_device: str, fill: Fill) -> str:
    """Returns the backend that executes a fill: that of its device, but "auto" leaves to torch what it cannot do."""
    if name == AUTO and on_device != "torch" and BACKENDS[on_device].why_not_fill(fill) is not None:
        return "torch"
    return on_device

"""The backends, and the one place that chooses among them.

A backend is a module with what the protocol :class:`Backend` lists. Its functions that ask why not answer None for "it
can", else a reason to show to the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from ..errors import InitRuntimeError, InitTypeError, InitValueError
from ..plans import Fill
from ..progress import Listener
from ..shards.dtensor import why_not_shards
from . import cpp_backend, cuda_backend, torch_backend, triton_backend
from .generators import Generators


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

    def run(
        self,
        fills: Sequence[Fill],
        seed: int | None,
        generators: Generators | None = None,
        *,
        advance: Listener | None = None,
    ) -> int:
        """Executes fills that it can do, in order, and returns in how many launches of a kernel.

        A contract backend is given fills of one device, and the seed; its caller counts the versions of the tensors
        (``versions.count_writes``). Another may be given fills of several devices, draws from ``generators`` (None:
        the default ones) and counts itself. On the CPU ``advance`` hears now and then how many more bytes are done.
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
        raise InitTypeError(f"backend must be a str, but got {name!r} of {type(name)}")
    if name != AUTO and name not in BACKENDS:
        raise InitValueError(f"unknown backend {name!r}", hint=f"; choose from {', '.join([AUTO, *BACKENDS])}")
    return name


class Choice:
    """Which backend executes what in one call: the one that was asked for by name or, under "auto", the device's.

    Answers are remembered: there are many fills, and a driver takes its time to answer.
    """

    def __init__(self, asked: str, meta: torch.device | None = None, needed: str = "") -> None:
        self.asked = checked(asked)
        """The name of a backend, or "auto"."""
        self.needed = needed
        """The numbers that "auto" has to give, those of a plan that was kept; "": any."""
        self._meta = meta
        """The device for which the meta device stands: a plan may be asked for before there is memory."""
        self._on: dict[torch.device, str] = {}
        self._of: dict[Fill, str] = {}
        self._why_not: dict[tuple[str, torch.device], str | None] = {}
        self._is_contract: dict[torch.device, bool] = {}

    def need(self, numbers: str) -> None:
        """Asks for backends with these numbers.

        Raises:
            RuntimeError: none has them, or the one that was asked for has others.
        """
        if self.asked != AUTO and numbers != BACKENDS[self.asked].NUMBERS:
            raise InitRuntimeError(
                f"the plan has the numbers of {numbers!r}, and the backend {self.asked!r} gives those of "
                f"{BACKENDS[self.asked].NUMBERS!r}",
                hint=": leave backend out, or name another",
            )
        if all(numbers != backend.NUMBERS for backend in BACKENDS.values()):
            known = dict.fromkeys(backend.NUMBERS for backend in BACKENDS.values())
            raise InitRuntimeError(
                f"the plan has the numbers of {numbers!r}, which this version of fastinit does not have; it has: "
                f"{', '.join(known)}"
            )
        self.needed = numbers
        for known_answers in (self._on, self._of, self._why_not, self._is_contract):
            known_answers.clear()  # type: ignore[attr-defined]

    def differs_from(self, other: Choice) -> bool:
        """Tells whether it may choose otherwise than another."""
        return self.asked != other.asked or self.needed != other.needed

    def placed(self, device: torch.device) -> torch.device:
        """Returns the device for which the meta device stands, if that was said; any other as it is."""
        return self._meta if self._meta is not None and device.type == "meta" else device

    def on(self, device: torch.device) -> str:
        """Returns the name of the backend for a device; only "auto" ever chooses."""
        if self.asked != AUTO:
            return self.asked
        device = self.placed(device)
        if device not in self._on:
            able = (name for name in _PREFERRED.get(device.type, ()) if BACKENDS[name].why_not(device) is None)
            self._on[device] = next(able, "torch")
            if self.needed not in ("", BACKENDS[self._on[device]].NUMBERS):
                self._on[device] = self._needed_on(device)
        return self._on[device]

    def of(self, fill: Fill) -> str:
        """Returns the name of the backend that executes a fill: "auto" leaves to torch what its device's cannot do."""
        if self.asked != AUTO:
            return self.asked
        if fill not in self._of:
            name = self.on(fill.tensor.device)
            can = name == "torch" or BACKENDS[name].why_not_fill(fill) is None
            must = self.needed != "" and fill.is_drawn
            self._of[fill] = name if can or must else "torch"
        return self._of[fill]

    def _needed_on(self, device: torch.device) -> str:
        """Returns a backend for a device that has the numbers, the last one if none can run there: it says why."""
        having = [name for name in BACKENDS if self.needed == BACKENDS[name].NUMBERS]
        here = [name for name in having if device_type(name) == device.type]
        able = (name for name in here if BACKENDS[name].why_not(device) is None)
        return next(able, (here or having)[0])

    def is_contract(self, device: torch.device) -> bool:
        """Tells whether fills on a device may be kept pending: their values do not depend on when they are drawn."""
        if device not in self._is_contract:
            name = self.on(device)
            self._is_contract[device] = BACKENDS[name].IS_CONTRACT and device.type in ("meta", device_type(name))
        return self._is_contract[device]

    def why_not(self, fill: Fill, *, needs_memory: bool = True) -> str | None:
        """Returns why the chosen backend cannot execute a fill, None if it can.

        Args:
            fill: its memory may be missing where only a plan is wanted.
            needs_memory: ask the device too.
        """
        name = self.of(fill)
        why = self._why_not_on(name, fill.tensor.device) if needs_memory else None
        return why or why_not_shards(fill.tensor) or BACKENDS[name].why_not_fill(fill)

    def _why_not_on(self, name: str, device: torch.device) -> str | None:
        """Returns why a backend cannot run on a device at this moment, asked once."""
        where = name, device
        if where not in self._why_not:
            self._why_not[where] = BACKENDS[name].why_not(device) or BACKENDS[name].why_not_now(device)
        return self._why_not[where]

    def why_not_here(self) -> str | None:
        """Returns why the backend that was asked for by name cannot run on this machine; None: it can, or "auto"."""
        if self.asked == AUTO:
            return None
        return BACKENDS[self.asked].why_not(torch.device(device_type(self.asked)))

    def used(self, names: Iterable[str]) -> list[str]:
        """Returns the backends of items, each once; where none is a fill, the one for the CPU."""
        return [name for name in dict.fromkeys(names) if name] or [self.on(torch.device("cpu"))]


def numbers_of(names: Iterable[str]) -> str:
    """Returns which numbers backends produce, e.g. "contract 1"."""
    return " and ".join(dict.fromkeys(BACKENDS[name].NUMBERS for name in names))


def engines_of(names: Iterable[str]) -> str:
    """Returns what does the work of backends, for the report."""
    return " and ".join(BACKENDS[name].engine() for name in names)

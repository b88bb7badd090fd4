"""Hosts: other libraries whose initialization fastinit may run within, and which keep books of their own.

By default there are none. An integration adds its library's.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Host(Protocol):
    """What fastinit asks of a library and tells it."""

    def is_initializing(self, module: nn.Module) -> bool:
        """Tells whether the library is initializing a module now, and keeps books of it."""

    def wrote(self, module: nn.Module, info: str) -> None:
        """Notes that ``info`` wrote parameters of ``module``."""

    def logs(self, module: nn.Module) -> bool:
        """Logs what wrote each parameter of a module of the library's; returns False where it is not the library's."""


hosts: list[Host] = []


def host_of(module: nn.Module) -> Host | None:
    """Returns the library that is initializing a module now, if one is."""
    return next((host for host in hosts if host.is_initializing(module)), None)

"""Hosts: libraries whose own initialization may be running around fastinit's, with their own provenance records.

The list is empty by default; an integration appends its library's host.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from ..naming import is_model_wrapper, original


class Host(Protocol):
    """A library's side of an initialization."""

    def is_initializing(self, module: nn.Module) -> bool:
        """Tells whether the library is initializing ``module`` now, and records provenance itself."""

    def wrote(self, module: nn.Module, info: str) -> None:
        """Records that ``info`` wrote parameters of ``module``, which the library is initializing."""

    def is_model_wrapper(self, parent: nn.Module, child: object) -> bool | None:
        """Tells whether ``child`` only wraps a model, for a ``parent`` of this library; None for any other parent."""

    def logs(self, module: nn.Module) -> bool:
        """Logs the provenance of a module of this library, and returns True; False for any other module."""


hosts: list[Host] = []


def host_of(module: nn.Module) -> Host | None:
    """Returns the host that is initializing ``module`` now, None if there is none."""
    return next((host for host in hosts if host.is_initializing(module)), None)


def inside(parent: nn.Module, child: nn.Module) -> nn.Module:
    """Returns the module whose ``init_weights`` a parent runs for a child: what wrappers hold, else the child."""
    if not hasattr(child, "init_weights"):
        answers = (host.is_model_wrapper(parent, child) for host in hosts)
        told = next((answer for answer in answers if answer is not None), None)
        if is_model_wrapper(child) if told is None else told:
            child = child.module  # type: ignore[assignment]
    return original(child)

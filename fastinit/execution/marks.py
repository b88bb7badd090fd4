"""Marks: parameters as they were when last looked at, by which writes to them, or other memory, show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..plans import byte_span
from .spans import Spans
from .version_counters import version_of


class Marks:
    """The marks of parameters, and the parameters by where they lie."""

    def __init__(self) -> None:
        self._marks: dict[torch.Tensor, _Mark] = {}
        self._parameters_in: dict[int, Spans[torch.Tensor]] = {}
        """By the address of their storage."""

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor in self._marks

    def has_changed(self, parameter: torch.Tensor) -> bool:
        """Tells whether a parameter is not as it was when last looked at."""
        return self._marks[parameter] != _mark_of(parameter)

    def renew(self, parameter: torch.Tensor) -> None:
        """Looks at a parameter, which may be a new one."""
        before, now = self._marks.get(parameter), _mark_of(parameter)
        self._marks[parameter] = now
        if before is not None:
            if before[1:] == now[1:]:
                return
            if before.storage:
                known = self._parameters_in[before.storage]
                known.take_within(before.start, before.end, lambda other: other is parameter)
        if now.storage:
            self._parameters_in.setdefault(now.storage, Spans()).add(now.start, now.end, parameter)

    def meeting(self, storage: int, start: int, end: int) -> Iterator[torch.Tensor]:
        """Yields the parameters that have bytes between two addresses in a storage, which is given by its own."""
        parameters = self._parameters_in.get(storage)
        for parameter in () if parameters is None else parameters.meeting(start, end):
            own_start, own_end = byte_span(parameter)
            if start < own_end and own_start < end:
                yield parameter


class _Mark(NamedTuple):
    version: int
    storage: int
    """Its address, 0 where there is none to compare."""
    start: int
    """The address of the first byte."""
    end: int


def _mark_of(parameter: torch.Tensor) -> _Mark:
    memory = memory_of(parameter)
    return _Mark(version_of(parameter), *memory)


def memory_of(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Returns the addresses of a tensor's storage, of its first byte, and of the one behind its last.

    Zeros where it has no memory to compare (meta, uninitialized, wrappers).
    """
    try:
        if not (tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested):
            with torch._C.DisableTorchFunction():  # others may watch who asks for addresses
                if storage := tensor.untyped_storage().data_ptr():
                    return storage, *byte_span(tensor)
    except (RuntimeError, ValueError, NotImplementedError):
        pass
    return 0, 0, 0

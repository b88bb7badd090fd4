"""Storages on disk: a stretch of one file, and what all kinds of storages have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ...shards.dtensor import boxes_of, is_sharded
from . import copying
from .files import File
from .stored import Storage, StoredTensor

_CPU = torch.device("cpu")


class OnDisk(Storage):
    """How every ``Storage`` is read: through the one batch that also checks what it reads."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.memory: torch.UntypedStorage | None = None
        # Reentrant: a tensor's attributes may be tensors of the same storage.
        self.lock: AbstractContextManager[Any] = threading.RLock()

    def read(self) -> None:
        """Reads all of it into ``memory``."""
        copying.read([self])

    def copy_into(self, destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
        """Implements ``destination.copy_(source)``."""
        return copying.copy_into(destination, source)


class FileStorage(OnDisk):
    """A stretch of a file.

    Args:
        file: the open file.
        offset: of the first byte in it.
        n_bytes: its length.
    """

    opens_few_files = True

    def __init__(self, file: File, offset: int, n_bytes: int) -> None:
        super().__init__(n_bytes)
        self.file = file
        self.offset = offset

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path

    @property
    def stretch(self) -> tuple[File, int]:
        """The file, and the offset of the first byte in it."""
        return self.file, self.offset

    def whole(self) -> StoredTensor:
        """Returns its bytes as a tensor."""
        return StoredTensor.at(self, 0, (self.n_bytes,), (1,), torch.uint8, _CPU)

    def check(self, destination: torch.Tensor | None, unchanged: set[File]) -> None:
        """Raises OSError if the file was changed since it was opened; asks once for each file."""
        if self.file not in unchanged:
            unchanged.add(self.file)
            self.file.check()

    def pieces(self, destination: torch.Tensor, source: StoredTensor) -> Iterable[tuple[torch.Tensor, StoredTensor]]:
        """Returns the copy, or one for each box of a distributed tensor's local part."""
        if not is_sharded(destination):
            return [(destination, source)]
        boxes = boxes_of(destination)
        return [(box.tensor, source.part(box.index(destination.shape), tuple(box.tensor.shape))) for box in boxes]

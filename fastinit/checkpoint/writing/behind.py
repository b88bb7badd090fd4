"""Writing behind: one thread writes what has values while the others compute the next, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

# How many pieces are there at once: one is filled while the other is written.
PIECES = 2
# What the system may hold back of a file. It is dropped from the page cache then: nobody reads it soon, and what is
# used there would have to be read again.
_HELD_BACK_BYTES = 256 << 20


class Behind:
    """Runs writes of a file in their order, in a thread of its own; a context manager.

    Args:
        file: that they write.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._threads = ThreadPoolExecutor(1, "fastinit-write")
        self._waiting: deque[Future[None]] = deque()
        self._synced = 0

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            while self._waiting and error[0] is None:
                self._waiting.popleft().result()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def wait_for_room(self) -> None:
        """Returns when memory for one more piece is free; raises what an earlier write has raised."""
        while len(self._waiting) >= PIECES:
            self._waiting.popleft().result()

    def submit(self, write: Callable[[], object]) -> None:
        """Runs a write when those before it are done."""
        self._waiting.append(self._threads.submit(self._run, write))

    def _run(self, write: Callable[[], object]) -> None:
        write()
        end = self._file.tell()
        if end - self._synced >= _HELD_BACK_BYTES:
            self._file.flush()
            handle = self._file.fileno()
            getattr(os, "fdatasync", os.fsync)(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, self._synced, end - self._synced, os.POSIX_FADV_DONTNEED)
            self._synced = end

"""A local checkpoint file: opened once, read or mapped in pieces, checked for changes."""

from __future__ import annotations

import io
import json
import mmap
import os
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ...errors import InitOSError, InitValueError

ACCESS = ("auto", "map", "read")
# On these, a page fault is a round trip to a server for 4 to 64 KiB, and some let another machine truncate a mapped
# file without notice.
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
        *("ocfs2", "orangefs", "panfs", "smb3", "smbfs", "wekafs"),
    }
)
# linux/mman.h: reserves no memory for pages that are never written.
_MAP_NORESERVE = 0x4000


class File:
    """An open checkpoint file.

    Args:
        path: of an existing regular file.
        access: "map" (tensors are copied out of a memory mapping), "read" (straight into their
            destination, and nothing is mapped), or "auto": tensors that are copied are read, and adopted ones are
            mapped; on network file systems all are read.

    Raises:
        OSError: the file cannot be opened.
        ValueError: unknown ``access``.
    """

    def __init__(self, path: Path, access: str = "auto") -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.fd)
        status = os.fstat(self.fd)
        self.size: int = status.st_size
        self._changed = status.st_mtime_ns
        self.access = checked_access(access)
        """"auto" means that adopted tensors are mapped; "read" that nothing is."""
        if access == "auto" and is_on_network(path):
            self.access = "read"
        self._hurries = False
        self._mapping: mmap.mmap | None = None
        self._mapped: torch.Tensor | None = None
        self._lock = threading.Lock()
        self._position = threading.Lock()
        """Where the system cannot read at an offset (Windows; macOS not into several buffers), threads take turns."""

    def check(self) -> None:
        """Raises OSError if the file was written since it was opened.

        Touching a mapped page that was truncated kills the process (SIGBUS), so each piece is preceded by this check.
        """
        status = os.fstat(self.fd)
        if status.st_size != self.size or status.st_mtime_ns != self._changed:
            raise InitOSError(
                f"{self.path}: the file was changed while it was being loaded (it had {self.size:,} bytes, and has "
                f"{status.st_size:,})",
                place=self.path,
                hint=". Write checkpoints to a new file and rename it, so that readers keep the old one",
            )

    def bytes_at(self, offset: int, n_bytes: int) -> bytes:
        """Returns a few bytes, such as a header; fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self.fd, n_bytes, offset)
        with self._position:
            os.lseek(self.fd, offset, os.SEEK_SET)
            return os.read(self.fd, n_bytes)

    def json_at(self, offset: int, n_bytes: int, twice: str) -> Any:
        """Parses JSON text in the file; a duplicate key is a ValueError, with ``twice`` formatted with the key."""

        def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise InitValueError(twice.format(Counter(name for name, _ in pairs).most_common(1)[0][0]))
            return found

        return json.loads(self.bytes_at(offset, n_bytes).decode("utf-8"), object_pairs_hook=without_duplicates)

    def read_into(self, destinations: Sequence[memoryview], offset: int) -> None:
        """Fills ``destinations`` one after the other with the bytes from ``offset`` on; thread-safe."""
        n_read = self._read_at(destinations, offset)
        while n_read < sum(map(len, destinations)):  # rare: a signal, the end of the file, more than 2 GiB
            offset, left = offset + n_read, []
            for each in destinations:
                left.append(each[n_read:])
                n_read = max(0, n_read - len(each))
            destinations = [each for each in left if len(each)]
            n_read = self._read_at(destinations, offset)
            if n_read == 0:
                raise self.too_short(offset)

    def too_short(self, end: int) -> InitOSError:
        """Returns the error of a read that found the end of the file; raises that of a changed file.

        Args:
            end: the byte before which the file ended.
        """
        self.check()
        return InitOSError(
            f"{self.path}: the file ends before byte {end:,}, within the tensor that is being read", place=self.path
        )

    def _read_at(self, destinations: Sequence[memoryview], offset: int) -> int:
        """Reads once from ``offset`` on; returns how many bytes came, which may be fewer than there is room for."""
        if hasattr(os, "preadv"):
            return os.preadv(self.fd, destinations, offset)
        n_read = 0
        with self._position, io.FileIO(self.fd, closefd=False) as file:
            file.seek(offset)
            for each in destinations:
                n_of_this = file.readinto(each) or 0
                n_read += n_of_this
                if n_of_this < len(each):
                    break
        return n_read

    def hurry(self) -> None:
        """Advises the system that most of the file will be read sequentially, so that it reads ahead."""
        if not self._hurries and hasattr(os, "posix_fadvise"):
            self._hurries = True
            with suppress(OSError):  # only a hint, which some file systems refuse
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def mapped(self) -> torch.Tensor:
        """Returns the file as a read-only mapping of bytes; it is mapped once."""
        with self._lock:
            if self._mapped is None:
                # Pages of a shared mapping are the page cache itself, and count against no limit.
                self._mapping = mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ)
                self._mapped = bytes_of_buffer(self._mapping)
            return self._mapped

    def forget(self, start: int, end: int) -> None:
        """Releases mapped pages that have been copied, so that they do not count as memory of the process."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                self._mapping.madvise(mmap.MADV_DONTNEED, start, end - start)

    def unmap(self) -> None:
        """Drops the mapping, which ends as soon as no tensor uses it."""
        self._mapping = self._mapped = None

    def mapped_privately(self) -> torch.Tensor:
        """Returns the file as a new copy-on-write mapping of bytes: writes to it do not change the file."""
        if not hasattr(mmap, "MAP_PRIVATE"):
            return bytes_of_buffer(mmap.mmap(self.fd, self.size, access=mmap.ACCESS_COPY))
        flags = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
        return bytes_of_buffer(mmap.mmap(self.fd, self.size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def checked_access(access: str) -> str:
    """Returns ``access`` if it is a known one, else raises ValueError."""
    if access not in ACCESS:
        raise InitValueError(f"access must be one of {', '.join(map(repr, ACCESS))}, but got {access!r}")
    return access


def bytes_of_buffer(buffer: mmap.mmap) -> torch.Tensor:
    """Returns a tensor over a mapping, and keeps the mapping alive."""
    with warnings.catch_warnings():  # about read-only memory, which is never written
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(buffer, dtype=torch.uint8)


def is_on_network(path: Path) -> bool:
    """Returns whether a file is on a network file system, by Linux's list of mounts; elsewhere False."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        where = os.path.realpath(path)
    except OSError:
        return False
    kind, longest = "", -1
    for point, of_this in _mounts(mounts):
        if (where == point or where.startswith(point + "/")) and len(point) >= longest:
            kind, longest = of_this, len(point)
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


@lru_cache(maxsize=1)  # an index may name hundreds of files
def _mounts(listed: str) -> tuple[tuple[str, str], ...]:
    """Returns where file systems are mounted, and of which kind they are."""
    found = []
    for line in listed.splitlines():
        # 36 35 98:0 /root /mount/point options - type source options; blanks are written \040
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) >= 5 and after:
            found.append((fields[4].replace("\\040", " ").rstrip("/"), after.split(" ", 1)[0]))
    return tuple(found)

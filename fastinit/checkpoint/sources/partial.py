"""An incomplete download: its bytes, and the server's validators of that version of the file."""

from __future__ import annotations

import email.utils
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import InitRuntimeError

# A Last-Modified within a second of the answer cannot distinguish two versions of that second (RFC 9110, 8.8.2.2).
_STRONG_AFTER_S = 1.0
# Entity tags are hashes or times; servers refuse longer headers.
_MAX_VALIDATOR = 1000
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@dataclass(frozen=True)
class Version:
    """The validators by which a server distinguishes versions of a file."""

    etag: str = ""
    modified: str = ""
    total: int | None = None
    """Its size in bytes."""

    @staticmethod
    def of(headers: Mapping[str, str], total: int | None) -> Version:
        """Returns the version of a response, without weak validators."""
        etag, modified = (_sendable(headers.get(name) or "") for name in ("ETag", "Last-Modified"))
        return Version("" if etag.startswith("W/") else etag, modified if _is_strong(headers) else "", total)

    @property
    def validator(self) -> str:
        """The value for ``If-Range``; "" if the server sent no strong validator."""
        return self.etag or self.modified

    def is_continued_by(self, part: Version) -> bool:
        """Returns whether a later part is of this version: a validator confirms it, and none contradicts it."""
        if self.total is not None and part.total != self.total:
            return False
        pairs = [(mine, its) for mine, its in ((self.etag, part.etag), (self.modified, part.modified)) if mine and its]
        return bool(pairs) and all(mine == its for mine, its in pairs)


def _sendable(value: str) -> str:
    return value if len(value) <= _MAX_VALIDATOR and value.isprintable() else ""


def _is_strong(headers: Mapping[str, str]) -> bool:
    try:
        modified, now = (email.utils.parsedate_to_datetime(headers[name]) for name in ("Last-Modified", "Date"))
        return (now - modified).total_seconds() >= _STRONG_AFTER_S
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return False


class Partial:
    """The file that a download is written to, and the note beside it.

    Args:
        path: of the file.
        place: the address without its query, which may be secret or differ each time.
        source: the address, for messages.
    """

    def __init__(self, path: Path, place: str, source: str) -> None:
        self.path = path
        self.source = source
        self._place = hashlib.sha256(place.encode()).hexdigest()

    @property
    def size(self) -> int:
        """The number of bytes downloaded so far."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def begun(self) -> tuple[int, Version]:
        """Returns the number of bytes downloaded, and their version; 0 if the download cannot be resumed."""
        version = self._note()
        n_bytes = self.size
        return (n_bytes, version) if n_bytes and version is not None and version.validator else (0, Version())

    def note(self, version: Version) -> None:
        """Records the version of the bytes."""
        with self.on_disk():
            note_of(self.path).write_text(json.dumps({"place": self._place, **asdict(version)}), encoding="utf-8")

    def write(self, file: int, block: bytes) -> None:
        """Appends to the open file; all of it, or raises."""
        rest = memoryview(block)
        with self.on_disk():
            while rest:
                rest = rest[os.write(file, rest) :]

    @contextmanager
    def opened(self, anew: bool) -> Iterator[int]:
        """Opens the file to append to it, or ``anew``."""
        with self.on_disk():
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND) | getattr(os, "O_BINARY", 0)
            file = os.open(self.path, flags, 0o666)
        try:
            yield file
        finally:
            os.close(file)

    def check_space(self, n_bytes: int) -> None:
        """Raises RuntimeError if the disk has no room for further bytes."""
        try:
            free = shutil.disk_usage(self.path.parent).free
        except OSError:
            return
        if n_bytes > free:
            raise InitRuntimeError(
                f"{self.source}: {n_bytes:,} bytes are to be downloaded, and the disk of {self.path.parent} has room "
                f"for {free:,}",
                place=self.source,
                hint=". Make room, or set TORCH_HOME to a folder elsewhere",
            )

    def forget(self) -> None:
        """Deletes the file and its note."""
        for path in (self.path, note_of(self.path)):
            with suppress(OSError):
                path.unlink()

    def settled(self) -> str:
        """Deletes bytes that cannot be resumed; returns a sentence about what the next call will find."""
        n_bytes, _ = self.begun()
        if not n_bytes:
            self.forget()
            return "Nothing was kept"
        return f"{n_bytes:,} bytes are kept in {self.path}, and the next call goes on from there"

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        """Turns an error of the disk into one that says what to do, and is not retried."""
        with on_disk(self.path.parent, self.source, self.settled):
            yield

    def _note(self) -> Version | None:
        try:
            note = json.loads(note_of(self.path).read_text(encoding="utf-8"))
            if not isinstance(note, dict) or note.pop("place", None) != self._place:
                return None
            version = Version(**note)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        fits = isinstance(version.etag, str) and isinstance(version.modified, str)
        return version if fits and (version.total is None or type(version.total) is int) else None


@contextmanager
def on_disk(folder: Path, source: str, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turns an OSError of the cache folder into a RuntimeError that says what to do.

    Args:
        folder: the one that is written to.
        source: of the file, for messages.
        kept: returns the message's sentence about the bytes already downloaded.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            rest = f" {kept()}." if kept is not None else ""
            raise InitRuntimeError(
                f"{source}: the disk of {folder} is full ({reason}).{rest}",
                place=source,
                hint=" Make room, or set TORCH_HOME to a folder elsewhere",
            ) from error
        raise InitRuntimeError(
            f"{source}: the cache of downloads, {folder}, cannot be made or written ({reason})",
            place=source,
            hint=". Set TORCH_HOME to a folder that can, or download the file and give its path",
        ) from error


def note_of(partial: Path) -> Path:
    """Returns the path of the note beside a download that is not complete."""
    return partial.with_name(partial.name + ".json")

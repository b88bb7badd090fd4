"""A download that is not complete yet: its bytes, and what the server knew that version of the file by."""

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

# A Last-Modified that is as young as the answer does not tell two versions of one second apart (RFC 9110, 8.8.2.2).
_STRONG_AFTER_S = 1.0
# Entity tags are hashes or times; servers refuse requests with longer headers.
_MAX_VALIDATOR = 1000
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


@dataclass(frozen=True)
class Version:
    """What a server says of a file that tells one version of it from another."""

    etag: str = ""
    modified: str = ""
    total: int | None = None
    """Its size in bytes."""

    @staticmethod
    def of(headers: Mapping[str, str], total: int | None) -> Version:
        """Returns the version that an answer is of; what is too weak to know it by is left out."""
        etag, modified = (_sendable(headers.get(name) or "") for name in ("ETag", "Last-Modified"))
        return Version("" if etag.startswith("W/") else etag, modified if _is_strong(headers) else "", total)

    @property
    def validator(self) -> str:
        """What ``If-Range`` takes; "" where nothing tells versions apart."""
        return self.etag or self.modified

    def is_continued_by(self, part: Version) -> bool:
        """Tells whether a later part is of this version: something says so, and nothing says otherwise."""
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
        place: the address without what may be secret or another each time.
        told: how messages call the address.
    """

    def __init__(self, path: Path, place: str, told: str) -> None:
        self.path = path
        self.told = told
        self._place = hashlib.sha256(place.encode()).hexdigest()

    @property
    def size(self) -> int:
        """How many bytes are there."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def begun(self) -> tuple[int, Version]:
        """Returns how many bytes are there and of which version; 0 where a download cannot go on from them."""
        version = self._note()
        n_bytes = self.size
        return (n_bytes, version) if n_bytes and version is not None and version.validator else (0, Version())

    def note(self, version: Version) -> None:
        """Remembers which version the bytes are of."""
        with self.on_disk():
            note_of(self.path).write_text(json.dumps({"place": self._place, **asdict(version)}))

    def write(self, file: int, block: bytes) -> None:
        """Appends to the open file; all of it, or raises."""
        rest = memoryview(block)
        with self.on_disk():
            while rest:
                rest = rest[os.write(file, rest) :]

    @contextmanager
    def opened(self, anew: bool) -> Iterator[int]:
        """Opens the file for what follows, or ``anew``."""
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
            raise RuntimeError(
                f"{self.told}: {n_bytes:,} bytes are to be downloaded, and the disk of {self.path.parent} has room for "
                f"{free:,}. Make room, or set TORCH_HOME to a folder elsewhere"
            )

    def forget(self) -> None:
        """Removes what is there."""
        for path in (self.path, note_of(self.path)):
            with suppress(OSError):
                path.unlink()

    def settled(self) -> str:
        """Returns what the next call will find, for a message; what it could not use is removed."""
        n_bytes, _ = self.begun()
        if not n_bytes:
            self.forget()
            return "Nothing was kept"
        return f"{n_bytes:,} bytes are kept in {self.path}, and the next call goes on from there"

    @contextmanager
    def on_disk(self) -> Iterator[None]:
        """Turns what a disk refuses into an error that says what to do; it is never tried again."""
        with on_disk(self.path.parent, self.told, self.settled):
            yield

    def _note(self) -> Version | None:
        try:
            note = json.loads(note_of(self.path).read_text())
            if not isinstance(note, dict) or note.pop("place", None) != self._place:
                return None
            version = Version(**note)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        fits = isinstance(version.etag, str) and isinstance(version.modified, str)
        return version if fits and (version.total is None or type(version.total) is int) else None


@contextmanager
def on_disk(folder: Path, told: str, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turns an OSError of the cache folder into a RuntimeError that says what to do.

    Args:
        folder: the one that is written to.
        told: how messages call what is fetched.
        kept: called for what the message says about what is there already.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            rest = f" {kept()}." if kept is not None else ""
            raise RuntimeError(
                f"{told}: the disk of {folder} is full ({reason}).{rest} Make room, or set TORCH_HOME to a folder "
                f"elsewhere"
            ) from error
        raise RuntimeError(
            f"{told}: the cache of downloads, {folder}, cannot be made or written ({reason}). Set TORCH_HOME to a "
            f"folder that can, or download the file and give its path"
        ) from error


def note_of(partial: Path) -> Path:
    """Returns the path of the note beside a download that is not complete."""
    return partial.with_name(partial.name + ".json")

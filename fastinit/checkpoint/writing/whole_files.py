"""Files that appear whole or not at all, several of which are one checkpoint: it counts when its last file is there.

Each file is written under a hidden name, brought to the disk, and renamed. What is finished is noted in a hidden file
beside them (the journal), so that a later call for the same contents goes on where one was killed. The journal goes
when the last file has come.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock

from ...errors import InitFileExistsError, InitRuntimeError

_FORMAT = 1
JOURNALS = ".*.writing"
"""Which files of a folder say that a checkpoint of it is not finished."""
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint, and what writes each of them."""

    stem: str
    """What the names of hidden files begin with."""
    digest: str
    """Of the contents: files that were finished under another one do not count."""
    jobs: Mapping[str, Callable[[IO[bytes]], Any]]
    """File -> what writes it, and returns what is to be known of it when the last file is written: JSON, not None."""
    last: tuple[str, Callable[[Mapping[str, Any], IO[bytes]], object]] | None
    """The file that makes a checkpoint of the others, and what writes it from what is known of them; None: there is one
    file only."""
    markers: tuple[str, ...]
    """Names of files that, where one is there, say that a checkpoint is whole."""
    pattern: re.Pattern[str]
    """Of the names of all files that such a checkpoint may have."""
    redone: frozenset[str] = frozenset()
    """Files whose digest does not tell all of their contents: those that an earlier call has finished do not count."""

    @property
    def final(self) -> str:
        """The file whose presence says that the checkpoint is whole."""
        return next(iter(self.jobs)) if self.last is None else self.last[0]


def write_files(folder: Path, layout: Layout, *, overwrite: bool) -> list[str]:
    """Writes the files of a checkpoint; returns those that an earlier call had finished, which stay as they are.

    Args:
        folder: where they go; it is made if it is not there.
        layout: the files.
        overwrite: an earlier checkpoint of the same name is removed first.

    Raises:
        FileExistsError: such a checkpoint is there.
        RuntimeError: another process is writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _sole_writer(folder, layout):
        writer = _Writer(folder, layout)
        there = [folder / name for name in layout.markers if (folder / name).exists()]
        if there and not overwrite:
            if writer.is_same and folder / layout.final in there:  # a call was killed between its last two steps
                writer.forget()
                return list(layout.jobs)
            raise InitFileExistsError(
                f"{there[0]}: there is a checkpoint already",
                place=there[0],
                hint=". Pass overwrite=True to replace it, or another path",
            )
        writer.clear(there)
        return writer.run()


class _Writer:
    """One call of ``write_files``, which has the folder to itself."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._journal = folder / f".{layout.stem}.writing"
        self._noted: dict[str, dict[str, Any]] = {}
        self.is_same = False
        """An earlier call for the same contents did not come to its end."""
        try:
            noted = json.loads(self._journal.read_text(encoding="utf-8"))
            self.is_same = (noted["fastinit_write"], noted["digest"]) == (_FORMAT, layout.digest)
            self._noted = dict(noted["done"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or one that was damaged: it only saves work
            pass

    def clear(self, markers: list[Path]) -> None:
        """Removes what does not belong to the checkpoint, first what says that an earlier one is whole."""
        for path in markers:
            path.unlink()
            sync_folder(self._folder)
        if not self.is_same:  # unfinished files of other contents
            stale = [self._folder / name for name in self._noted if self._layout.pattern.fullmatch(name)]
            self._noted = {}
            if markers:
                stale = [path for path in self._folder.iterdir() if self._layout.pattern.fullmatch(path.name)]
            for path in stale:
                path.unlink(missing_ok=True)

    def run(self) -> list[str]:
        """Writes what is not finished; returns what is."""
        layout, kept = self._layout, []
        known: dict[str, Any] = {}
        self._save()
        for name, job in layout.jobs.items():
            found = self._finished(name)
            if found is not None:
                kept.append(name)
                known[name] = found
                continue
            with self._file(name) as file:
                known[name] = job(file)
            if layout.last is not None:
                status = (self._folder / name).stat()
                self._noted[name] = {"status": [status.st_size, status.st_mtime_ns], "known": known[name]}
                self._save()
        if layout.last is not None:
            with self._file(layout.last[0]) as file:
                layout.last[1](known, file)
        self.forget()
        return kept

    def forget(self) -> None:
        """Removes the journal: the checkpoint is whole."""
        self._journal.unlink(missing_ok=True)

    def _finished(self, name: str) -> Any:
        """Returns what is known of a file that an earlier call has finished, None if it is to be written."""
        noted = self._noted.get(name)
        if noted is None or name in self._layout.redone:
            return None
        try:
            status = (self._folder / name).stat()
        except OSError:
            return None
        return noted["known"] if noted["status"] == [status.st_size, status.st_mtime_ns] else None

    def _save(self) -> None:
        text = json.dumps({"fastinit_write": _FORMAT, "digest": self._layout.digest, "done": self._noted})
        with self._file(self._journal.name) as file:
            file.write(text.encode())

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file for writing, which gets its name when the block ends well and its bytes are on the disk."""
        temporary = self._folder / f".{name}{_PARTIAL}"
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _sole_writer(folder: Path, layout: Layout) -> Iterator[None]:
    """Keeps other processes from writing the same checkpoint during the block.

    Raises:
        RuntimeError: another one is writing it.
    """
    path = folder / f".{layout.stem}.lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InitRuntimeError(
            f"{folder}: another process is writing this checkpoint",
            place=folder,
            hint=". Under torchrun, call write on one rank only",
        ) from None
    try:
        for left in folder.glob(f".*{_PARTIAL}"):  # of a process that was killed
            if layout.pattern.fullmatch(left.name[1 : -len(_PARTIAL)]):
                left.unlink(missing_ok=True)
        yield
    finally:
        with suppress(PermissionError):  # Windows keeps what is open; there the lock's own release removes it
            path.unlink(missing_ok=True)
        lock.release()

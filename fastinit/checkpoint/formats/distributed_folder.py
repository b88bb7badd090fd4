"""Folders of torch.distributed.checkpoint: tensors in chunks, each an archive of torch.save in a part of a file.

Neither torch's reader nor Python's pickle is used. The list of contents, with all places in it, is checked when the
folder is opened, and each chunk before anything is written. Each rank reads only its part of a distributed tensor.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import InitFileNotFoundError, InitOSError, InitRuntimeError, InitValueError
from ...plans import names_line
from ...shards.dtensor import boxes_of, is_sharded, why_not_shards
from ..storage.copying import fill
from ..storage.files import File
from ..storage.on_disk import OnDisk
from ..storage.stored import StoredTensor
from ..storage.stubs import one_line, shown
from . import folder_list, saved_tensor
from .folder_list import Chunk, Entry
from .saved_tensor import SavedTensor, Seen
from .sibling_files import status_beside

_CPU = torch.device("cpu")
LIST = ".metadata"
"""The file that lists the contents of the others."""
_DATA_ENDING = ".distcp"
# A million chunks take 0.2 GB.
_MAX_LIST_BYTES = 2 << 30
# The first byte of pickles since protocol 2, which torch's writer has always used.
_PICKLE_HEAD = b"\x80"
# A process may usually open 1,024 files, and other code needs some of them.
_MAX_OPEN_FILES = 128
# Every rank checks all chunks of the tensors it loads, so that damage is an error on every rank. In larger folders,
# which thousands of ranks may share over a network, each rank checks only the chunks it needs.
_MAX_CHUNKS_FOR_EACH_RANK = 1 << 16


class FolderStorage(OnDisk):
    """One tensor of a folder.

    Args:
        folder: the open folder.
        key: of the tensor in it.
        entry: its entry in the folder's list.
    """

    stretch = None

    def __init__(self, folder: Folder, key: str, entry: Entry) -> None:
        self.folder = folder
        self.key = key
        self.entry = entry
        self.strides = torch.empty(entry.shape, dtype=entry.dtype, device="meta").stride()
        super().__init__(math.prod(entry.shape) * entry.dtype.itemsize)
        self._saved: dict[int, SavedTensor] = {}
        """Checked chunks, by id: with offsets as keys, a file could force hash collisions."""

    @property
    def path(self) -> Path:
        """The path of the folder."""
        return self.folder.path

    @property
    def opens_few_files(self) -> bool:
        """Whether all files of the folder may be open at the same time."""
        return len(self.folder.names) <= _MAX_OPEN_FILES

    @property
    def _is_left_to_ranks(self) -> bool:
        return self.folder.n_chunks > _MAX_CHUNKS_FOR_EACH_RANK

    def reads(self, memory: torch.Tensor) -> tuple[()]:
        """Reads the chunks now, file by file."""
        whole = self.tensor(_CPU)
        fill(whole.over(memory.untyped_storage()), whole)
        return ()

    def tensor(self, location: torch.device) -> StoredTensor:
        """Returns the tensor, to be read to a location."""
        return StoredTensor.at(self, 0, self.entry.shape, self.strides, self.entry.dtype, location)

    def check(self, destination: torch.Tensor | None, unchanged: set[File]) -> None:
        """Finds and checks every chunk; in large folders, only those that meet the destination.

        Raises:
            OSError: a file cannot be read, or was changed.
            RuntimeError: a chunk is damaged.
        """
        chunks: Iterable[Chunk] = self.entry.chunks
        if destination is not None and tuple(destination.shape) != self.entry.shape:
            # Scalars had one dimension before torch 0.4. Any other shape is a mismatch, and nothing will be read.
            chunks = chunks if destination.numel() == math.prod(self.entry.shape) else ()
        elif destination is not None and self._is_left_to_ranks and why_not_shards(destination) is None:
            chunks = [chunk for chunk, _, _ in self._meeting(destination)]
        for chunk in _by_file(chunks):
            self._found(chunk)

    def pieces(self, destination: torch.Tensor, source: StoredTensor) -> list[tuple[torch.Tensor, StoredTensor]]:
        """Returns the copies out of single files that fill a destination, file by file and in the files' order.

        All of them are checked before this returns.

        Raises:
            OSError, RuntimeError: as ``check``; or the destination's placements are not supported.
        """
        if (reason := why_not_shards(destination)) is not None:
            raise InitRuntimeError(reason)
        met = sorted(self._meeting(destination), key=lambda each: _place(each[0]))
        pieces = ((view, self._part(chunk, *box)) for chunk, view, box in met)
        dtype = source.geometry.dtype
        is_as_stored = dtype == self.entry.dtype
        return [(view, part if is_as_stored else part.turned_into(dtype)) for view, part in pieces]

    def _meeting(self, destination: torch.Tensor) -> Iterator[tuple[Chunk, torch.Tensor, Any]]:
        """Yields the chunks that overlap a destination's local part: (chunk, destination, box within the chunk)."""
        destination = destination.detach()
        # So are most tensors of a folder that one rank saved.
        if len(self.entry.chunks) == 1 and not is_sharded(destination):
            (chunk,) = self.entry.chunks
            yield chunk, destination, (chunk.first, chunk.shape)
            return
        boxes: Sequence[tuple[torch.Tensor, Sequence[int]]] = (
            [(box.tensor, box.index(destination.shape)) for box in boxes_of(destination)]
            if is_sharded(destination)
            else [(destination, (0,) * destination.dim())]
        )
        for tensor, begin in boxes:
            for chunk in self.entry.chunks:
                common = [
                    (max(a, b), min(a + n, b + m)) for a, n, b, m in zip(begin, tensor.shape, chunk.first, chunk.shape)
                ]
                if any(start >= end for start, end in common):
                    continue
                view = tensor
                for dim, (start, end) in enumerate(common):
                    if end - start != tensor.shape[dim]:
                        view = view.narrow(dim, start - begin[dim], end - start)
                first = [start - at for (start, _), at in zip(common, chunk.first)]
                yield chunk, view, (first, [end - start for start, end in common])

    def _part(self, chunk: Chunk, first: Sequence[int], shape: Sequence[int]) -> StoredTensor:
        """Returns a rectangle of a chunk."""
        stored = self._found(chunk).of(self.folder.file(chunk.file))
        return stored if tuple(shape) == chunk.shape else stored.part(first, shape)

    def _found(self, chunk: Chunk) -> SavedTensor:
        """Returns where a chunk's tensor is; it is found and checked the first time."""
        if id(chunk) in self._saved:
            return self._saved[id(chunk)]
        try:
            file = self.folder.file(chunk.file)
            found = saved_tensor.find(file, chunk.offset, chunk.n_bytes, self.folder.seen)
            dtype, shape = found.kind(file)
            if shape != chunk.shape or dtype != self.entry.dtype:
                raise InitValueError(
                    f"it holds {dtype} of {shape}, where the folder's list says {self.entry.dtype} of {chunk.shape}"
                )
        except OSError:
            raise
        except Exception as error:  # damaged bytes fail in many ways
            raise InitRuntimeError(
                f"{self.folder.path}: {shown(self.key)} can not be read: its chunk at {chunk.first}, in "
                f"{shown(chunk.file)} at byte {chunk.offset:,}, is damaged: {one_line(error)}. Nothing can be loaded "
                f"without it",
                place=self.folder.path,
                hint=": copy the folder again, or save it anew",
            ) from error
        self._saved[id(chunk)] = found
        return found


class Folder:
    """A folder, with its list of contents read and checked.

    Args:
        path: of the folder.
        access: how its files are read.

    Raises:
        OSError: its list cannot be read, or a file in the list is missing.
        RuntimeError: the list is damaged, or does not match the files.
    """

    def __init__(self, path: Path, access: str = "auto") -> None:
        self.path = path
        self.entries = _entries_of(path)
        self.n_chunks = sum(len(entry.chunks) for entry in self.entries.values())
        self.seen = Seen()
        """Archives of chunks that need not be parsed again."""
        self._access = access
        self._files: OrderedDict[str, File] = OrderedDict()
        """The open ones, least recently used first."""
        self._lock = threading.Lock()
        keys_of: dict[str, list[str]] = {}
        end_of: dict[str, tuple[int, str]] = {}
        for key, entry in self.entries.items():
            for chunk in entry.chunks:
                keys = keys_of.setdefault(chunk.file, [])
                if not keys or keys[-1] != key:
                    keys.append(key)
                end_of[chunk.file] = max(end_of.get(chunk.file, (0, "")), (chunk.offset + chunk.n_bytes, key))
        self._found = {name: self._checked(name, keys, *end_of[name]) for name, keys in keys_of.items()}

    @property
    def names(self) -> Collection[str]:
        """The files that hold tensors."""
        return self._found.keys()

    def _checked(self, name: str, keys: list[str], end: int, key: str) -> tuple[Path, int, int]:
        """Returns a file's path, length and modification time."""
        try:
            path, status = status_beside(self.path, name, self.path / LIST)
        except FileNotFoundError:
            raise InitFileNotFoundError(
                f"{self.path}: {shown(name)} can not be found, which {LIST} names for {names_line('keys', keys)}: "
                f"the folder is incomplete",
                place=self.path,
                hint="; copy it again",
            ) from None
        except OSError as error:  # a loop of links, a name that is too long, no permission
            raise InitOSError(error.errno, f"{self.path}: {shown(name)} can not be opened: {error.strerror}") from None
        except ValueError as error:
            listed = names_line("keys", keys)
            raise InitRuntimeError(
                f"{self.path}: {listed} can not be read: {LIST} says they are in {shown(name)}, {error}",
                place=self.path,
                of=error,
            ) from None
        if end > status.st_size:
            raise InitRuntimeError(
                f"{self.path}: {shown(key)} can not be read: it ends at byte {end:,} of {shown(name)}, which has "
                f"{status.st_size:,}: the file was cut off or is another",
                place=self.path,
                hint="; copy the folder again",
            )
        return path, status.st_size, status.st_mtime_ns

    def file(self, name: str) -> File:
        """Opens one of the files, unless it is open, and checks that it is unchanged.

        Raises:
            OSError: it cannot be opened, or was changed since the folder was opened.
        """
        with self._lock:
            file = self._files.pop(name, None)
            if file is None:
                path, n_bytes, changed = self._found[name]
                status = os.stat(path)
                if (status.st_size, status.st_mtime_ns) != (n_bytes, changed):
                    raise InitOSError(
                        f"{path}: the file was changed while it was being loaded",
                        place=path,
                        hint=". Write checkpoints to a new folder",
                    )
                file = File(path, self._access)
                while len(self._files) >= _MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            self._files[name] = file
        file.check()
        return file


def _entries_of(folder: Path) -> dict[str, Entry]:
    try:
        return folder_list.tensors_of(_list_of(folder), folder / LIST)
    except OSError:
        raise
    except Exception as error:  # damaged bytes fail in many ways
        raise InitRuntimeError(
            f"{folder / LIST}: the file is damaged or no list: {one_line(error)}", place=folder / LIST, of=error
        ) from error


def _list_of(folder: Path) -> bytes:
    with (folder / LIST).open("rb") as file:
        head = file.read(len(_PICKLE_HEAD))
        n_bytes = os.fstat(file.fileno()).st_size
        if head != _PICKLE_HEAD or n_bytes > _MAX_LIST_BYTES:
            raise InitValueError(f"a file of {n_bytes:,} bytes that begins with {head!r} is no list of contents")
        return head + file.read()


def _place(chunk: Chunk) -> tuple[str, int]:
    return chunk.file, chunk.offset


def _by_file(chunks: Iterable[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=_place)


def read(path: Path, location: torch.device, access: str = "auto") -> OrderedDict[str, Any]:
    """Returns the tensors of a folder by key; other objects in it (an optimizer's settings) are left out.

    Args:
        path: of the folder.
        location: where the tensors go.
        access: how its files are read.

    Raises:
        As ``Folder``.
    """
    folder = Folder(path, access)
    found: OrderedDict[str, Any] = OrderedDict()
    for key, entry in folder.entries.items():
        try:
            found[key] = FolderStorage(folder, key, entry).tensor(location)
        except Exception as error:  # quantized dtypes, sizes that overflow
            raise InitRuntimeError(
                f"{path}: {shown(key)} can not be read: torch makes no tensor of {entry.dtype} of {entry.shape}: "
                f"{one_line(error)}",
                place=path,
            ) from error
    return found


def why_no_list(names: Iterable[str]) -> str | None:
    """Returns why a folder with these files has no list; None if it is no folder of torch.distributed.checkpoint."""
    names = list(names)
    if any(name.startswith("__") and name.endswith(LIST) for name in names):
        return f"each rank saved a list of its own (use_collectives=False), and there is no {LIST} of all of them"
    if any(name.endswith(_DATA_ENDING) for name in names):
        return f"there is no {LIST}: it was not saved to the end, or not copied whole (a dot hides the file)"
    return None

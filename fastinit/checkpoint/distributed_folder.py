"""Folders of torch.distributed.checkpoint: which tensors they hold, each read by torch's own reader when it is used.

The reader fetches of the files what a destination needs: of a distributed tensor, the chunks that meet its part. Its
list of contents is a pickle; here it is read as data, whatever it asks for.
"""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .stored import Storage, StoredTensor

LIST = ".metadata"
"""The file that lists what the others hold."""

# What a list of contents consists of, in the releases of torch until 2.14.
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
}


class _DataOnly(pickle.Unpickler):
    """Makes nothing but a list of contents."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = getattr(torch, name, None) if module == "torch" else None
        if name in _CLASSES.get(module, ()) or isinstance(dtype, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the list of contents asks for {module}.{name}, which is no part of one")


class FolderStorage(Storage):
    """One tensor of a folder."""

    is_in_one_file = False

    def __init__(self, folder: _Folder, key: str, meta: torch.Tensor) -> None:
        self.folder = folder
        self.key = key
        self.meta = meta
        self.n_bytes = meta.nbytes
        self.memory = None
        self.lock = threading.Lock()

    def check(self) -> None:
        """Raises RuntimeError unless all chunks of it lie within their files: asked before anything is written."""
        try:
            for path, end in self.folder.ends[self.key]:
                size = path.stat().st_size
                if size < end:
                    raise ValueError(f"{path} has {size:,} bytes, where it needs {end:,}")
        except Exception as error:
            raise RuntimeError(f"{self.folder.path}: {self.key!r} can not be read: {error}") from error

    def read_memory(self) -> None:
        """Reads all of it."""
        tensor = torch.empty_like(self.meta, device="cpu")
        self.load_into(tensor)
        self.memory = tensor.untyped_storage()

    def load_into(self, destination: torch.Tensor) -> None:
        """Reads into a tensor, of which a part may be here, what that needs.

        Raises:
            RuntimeError: torch's reader failed.
        """
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            dcp.load(  # type: ignore[attr-defined]
                {self.key: destination.detach()}, storage_reader=self.folder.reader(), no_dist=True
            )
        except (Exception, CheckpointException) as error:  # the latter wraps errors, and is no Exception
            raise RuntimeError(f"{self.folder.path}: {self.key!r} can not be read: {error}") from error


class _Folder:
    """A folder, and what it lists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with (path / LIST).open("rb") as file:
            self.contents = _DataOnly(file).load()

    @cached_property
    def ends(self) -> dict[str, list[tuple[Path, int]]]:
        """The files that each tensor lies in, with the end of its bytes there."""
        found: dict[str, list[tuple[Path, int]]] = {}
        for index, place in self.contents.storage_data.items():
            found.setdefault(index.fqn, []).append((self.path / place.relative_path, place.offset + place.length))
        return found

    def reader(self) -> Any:
        """Returns torch's reader, which would unpickle the list itself."""
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        contents = self.contents

        class Reader(FileSystemReader):
            def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
                return contents

        return Reader(self.path)


def read(path: Path, location: torch.device) -> OrderedDict[str, Any]:
    """Returns the tensors of a folder by their keys; other objects in it (an optimizer's settings) are left out.

    Raises:
        pickle.UnpicklingError: the list of contents is something else.
    """
    folder = _Folder(path)
    found: OrderedDict[str, Any] = OrderedDict()
    for key, entry in folder.contents.state_dict_metadata.items():
        if hasattr(entry, "chunks"):
            meta = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            storage = FolderStorage(folder, key, meta)
            found[key] = StoredTensor.at(storage, 0, meta.shape, meta.stride(), meta.dtype, location)
    return found

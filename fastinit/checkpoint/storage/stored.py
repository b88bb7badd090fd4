"""Tensors that are still in a checkpoint file: known by shape, dtype and place, read when something uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from .current import reading
from .files import File


class Storage(Protocol):
    """The bytes of one tensor, or of several that share memory: a stretch of a file, or the chunks of a folder."""

    n_bytes: int
    memory: torch.UntypedStorage | None
    """The bytes, once they have been read."""
    lock: AbstractContextManager[Any]

    @property
    def path(self) -> Path:
        """The file or the folder, for messages."""

    @property
    def stretch(self) -> tuple[File, int] | None:
        """The file and the offset of the first byte in it; None for a storage in chunks."""

    @property
    def opens_few_files(self) -> bool:
        """Whether all of its files may be open at the same time; otherwise its pieces are read file by file."""

    def whole(self) -> StoredTensor:
        """Returns all of its bytes as one contiguous tensor."""

    def check(self, destination: torch.Tensor | None, unchanged: set[File]) -> None:
        """Checks that the bytes can be read, before anything is written.

        Args:
            destination: where they are to go: a distributed tensor may need only a part; None: all of them are needed.
            unchanged: files that need not be checked again; those that are checked here are added.

        Raises:
            OSError: a file cannot be read, or was changed since it was opened.
            RuntimeError: the bytes are damaged.
        """

    def pieces(self, destination: torch.Tensor, source: StoredTensor) -> Iterable[tuple[torch.Tensor, StoredTensor]]:
        """Returns the copies that fill a destination: (a part of it, the tensor in one file that goes there).

        Args:
            destination: a tensor of the shape of ``source``; of a distributed one, the local part is filled.
            source: a tensor of this storage.

        Raises:
            OSError, RuntimeError: as ``check``; or the destination's placements are not supported.
        """

    def read(self) -> None:
        """Reads all of it into ``memory``."""

    def copy_into(self, destination: torch.Tensor, source: StoredTensor) -> torch.Tensor:
        """Implements ``destination.copy_(source)`` for a tensor of this storage; returns ``destination``."""


class Geometry(NamedTuple):
    """What is known of a tensor without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    dtype: torch.dtype


class StoredTensor(torch.Tensor):
    """A tensor in a file. ``parameter.copy_(stored)`` reads straight into the parameter.

    Anything else that is done to it reads it into memory first (once), and is done to that: it is an ordinary tensor
    to all code that goes through torch.
    """

    storage_in_file: Storage
    offset_in_storage: int
    """In elements."""
    dtype_in_file: torch.dtype
    """What the file holds; ``dtype`` is what it is turned into on the way."""
    location: torch.device
    """Where it goes when it is read."""
    is_parameter: bool
    tensor: torch.Tensor | None
    """What was read."""
    attributes: dict[str, Any] | None
    """Python attributes that were saved with it; they are set on what is read."""
    geometry: Geometry
    """What ``shape``, ``stride()`` and ``dtype`` say, without the detour through ``__torch_function__``."""

    @staticmethod
    def at(
        storage: Storage,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
        dtype: torch.dtype,
        location: torch.device,
        requires_grad: bool = False,
    ) -> StoredTensor:
        """Returns the tensor of a place: ``offset`` in elements from the storage's beginning."""
        geometry = Geometry(tuple(shape), tuple(strides), dtype)
        meta = _meta(geometry)
        made: StoredTensor = torch.Tensor._make_subclass(StoredTensor, meta, requires_grad)  # type: ignore[assignment]
        made.geometry = geometry
        made.storage_in_file, made.offset_in_storage, made.location = storage, offset, location
        made.dtype_in_file, made.is_parameter, made.tensor, made.attributes = dtype, False, None, None
        return made

    def again(self, requires_grad: bool) -> StoredTensor:
        """Returns the same tensor anew, with or without gradients."""
        return StoredTensor.at(
            self.storage_in_file,
            self.offset_in_storage,
            self.size(),
            self.stride(),
            self.dtype,
            self.location,
            requires_grad,
        )

    def turned_into(self, dtype: torch.dtype) -> StoredTensor:
        """Returns the same place with another dtype to present."""
        made = StoredTensor.at(
            self.storage_in_file, self.offset_in_storage, self.size(), self.stride(), dtype, self.location
        )
        made.dtype_in_file, made.is_parameter = self.dtype_in_file, self.is_parameter
        return made

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> StoredTensor:
        """Returns a rectangle of it: ``offset`` is the index of its first element."""
        steps = self.stride()
        first = self.offset_in_storage + sum(index * step for index, step in zip(offset, steps))
        made = StoredTensor.at(self.storage_in_file, first, shape, steps, self.dtype, self.location)
        made.dtype_in_file = self.dtype_in_file
        return made

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Tensors of the file that it is made of besides its own storage."""
        return ()

    @property
    def is_read(self) -> bool:
        """Whether it is in memory."""
        return self.tensor is not None

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it from tensors with other values."""
        geometry = getattr(self, "geometry", None)  # subclasses have a storage each
        return id(self.storage_in_file), self.offset_in_storage, self.dtype_in_file, geometry

    def over(self, memory: torch.UntypedStorage, first_byte: int = 0) -> torch.Tensor:
        """Returns a tensor over memory that holds the bytes of its storage, from ``first_byte`` on."""
        at = first_byte // self.dtype_in_file.itemsize + self.offset_in_storage
        empty = torch.empty(0, dtype=self.dtype_in_file, device="cpu")
        return empty.set_(memory, at, self.size(), self.stride())  # type: ignore[call-overload, no-any-return]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERED_BY_GEOMETRY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _ANSWERS:
            return _ANSWERS[func](args[0])
        if func == torch.Tensor.copy_ and len(args) > 1 and not isinstance(args[0], StoredTensor):
            stored: StoredTensor = args[1]
            return stored.storage_in_file.copy_into(args[0], stored)
        return func(*_in_memory(args), **_in_memory(kwargs))


# The layers of a model are alike, and this is most of what a tensor costs.
_METAS: dict[Geometry, torch.Tensor] = {}
# More shapes than any model has; a file could name as many as it likes.
_MAX_METAS = 4096


def _meta(geometry: Geometry) -> torch.Tensor:
    found = _METAS.get(geometry)
    if found is None:
        found = torch.empty_strided(geometry.shape, geometry.strides, dtype=geometry.dtype, device="meta")
        # Modes that are active (fake tensors, inference) would show in whatever is made of it later.
        if len(_METAS) < _MAX_METAS and type(found) is torch.Tensor and not found.is_inference():
            _METAS[geometry] = found
    return found


def in_memory(stored: StoredTensor) -> torch.Tensor:
    """Returns the tensor itself; it is read from the file the first time."""
    with stored.storage_in_file.lock:
        if stored.tensor is None:
            if stored.storage_in_file.memory is None:
                with reading():
                    stored.storage_in_file.read()
            stored.tensor = _tensor_of(stored)
        return stored.tensor


def _tensor_of(stored: StoredTensor) -> torch.Tensor:
    memory = stored.storage_in_file.memory
    assert memory is not None
    with torch.no_grad():
        return finished(stored, stored.over(memory).to(stored.location, stored.dtype))


def finished(stored: StoredTensor, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor as what it was saved as: a parameter, one with gradients, one with attributes."""
    if stored.is_parameter:
        tensor = nn.Parameter(tensor, stored.requires_grad)
    elif stored.requires_grad:
        tensor.requires_grad_()
    if stored.attributes:
        vars(tensor).update(
            (name, in_memory(value) if isinstance(value, StoredTensor) else value)
            for name, value in stored.attributes.items()
        )
    return tensor


def _in_memory(arguments: Any) -> Any:
    if isinstance(arguments, StoredTensor):
        return in_memory(arguments)
    if isinstance(arguments, (list, tuple)) and not isinstance(arguments, torch.Size):
        items = [_in_memory(each) for each in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    if isinstance(arguments, dict):
        return {key: _in_memory(value) for key, value in arguments.items()}
    return arguments


# Questions that the shape and the dtype answer.
_ANSWERED_BY_GEOMETRY = frozenset(
    {
        *(
            getattr(torch.Tensor, name).__get__
            for name in (
                "shape",
                "dtype",
                "ndim",
                "layout",
                "requires_grad",
                "is_sparse",
                "is_quantized",
                "nbytes",
                "_version",
            )
            if hasattr(torch.Tensor, name)
        ),
        torch.Tensor.size,
        torch.Tensor.dim,
        torch.Tensor.numel,
        torch.Tensor.nelement,
        torch.Tensor.stride,
        torch.Tensor.element_size,
        torch.Tensor.is_floating_point,
        torch.Tensor.is_complex,
        torch.Tensor.is_inference,
        torch.Tensor.is_contiguous,
        torch.Tensor.__len__,
        torch.is_floating_point,
        torch.is_complex,
        torch.numel,
    }
)
_ANSWERS: dict[Any, Callable[[StoredTensor], Any]] = {
    torch.Tensor.device.__get__: lambda stored: stored.location,  # type: ignore[attr-defined]
    torch.Tensor.is_meta.__get__: lambda stored: False,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda stored: stored.location.type == "cuda",  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda stored: stored.location.type == "cpu",  # type: ignore[attr-defined]
}

"""Tensors that still lie in a checkpoint file: known by shape, dtype and place, read when something uses them."""

from __future__ import annotations

import argparse
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

from ...execution.memory import allocate_like
from .batches import Stretch, run
from .current import reading
from .files import File
from .stubs import Foreign, refuse


class Storage:
    """A stretch of a file that one tensor, or several that share memory, are made of."""

    is_in_one_file = True
    """Else it is a ``distributed_folder``'s, in chunks."""

    def __init__(self, file: File, offset: int, n_bytes: int) -> None:
        self.file = file
        self.offset = offset
        """Of the first byte, from the beginning of the file."""
        self.n_bytes = n_bytes
        self.memory: torch.UntypedStorage | None = None
        """The bytes, once they have been read."""
        # A tensor's attributes may be of the same storage.
        self.lock: AbstractContextManager[Any] = threading.RLock()

    @property
    def is_in_few_files(self) -> bool:
        """Whether all files that it lies in may be open at a time; else it can only ``load_into`` a tensor."""
        return True

    def check(self, destination: torch.Tensor | None = None) -> None:
        """Raises OSError if its bytes are not where they were: asked before anything is written.

        Args:
            destination: where they are to go, for storages of which a part may be enough.
        """
        self.file.check()

    def pieces(
        self, destination: torch.Tensor, dtype: torch.dtype | None = None
    ) -> Iterable[tuple[torch.Tensor, StoredTensor]]:
        """Returns the copies out of single files that fill a destination, for storages in chunks."""
        raise NotImplementedError

    def load_into(self, destination: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Reads into a tensor of the same shape, by way of a dtype: for storages that read by themselves."""
        raise NotImplementedError


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
    def is_in_file(self) -> bool:
        """Whether its values are bytes of one file that nobody has read yet."""
        return type(self) is StoredTensor and self.tensor is None and self.storage_in_file.is_in_one_file

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it from tensors with other values."""
        geometry = getattr(self, "geometry", None)  # subclasses have a storage each
        return id(self.storage_in_file), self.offset_in_storage, self.dtype_in_file, geometry

    @property
    def can_be_mapped(self) -> bool:
        """Whether it lies in one file, its elements at multiples of their size: a mapping begins at a page."""
        return self.storage_in_file.is_in_one_file and self.storage_in_file.offset % self.dtype_in_file.itemsize == 0

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
            from .copying import copy_into  # which knows this class

            return copy_into(args[0], args[1])
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
                    read([stored.storage_in_file])
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


def read(storages: Sequence[Storage]) -> None:
    """Reads storages into fresh memory, in parallel."""
    for storage in storages:
        if not storage.is_in_one_file:
            storage.read_memory()  # type: ignore[attr-defined]
    storages = [storage for storage in storages if storage.is_in_one_file]
    metas = [torch.empty(each.n_bytes, dtype=torch.uint8, device="meta") for each in storages]
    tensors = allocate_like(metas, torch.device("cpu"))
    for storage in storages:
        storage.check()
    run(
        Stretch(storage.file, storage.offset, storage.n_bytes, tensor.data_ptr())
        for storage, tensor in zip(storages, tensors)
    )
    for storage, tensor in zip(storages, tensors):
        storage.memory = tensor.untyped_storage()


def read_everything(tree: Any) -> Any:
    """Returns a checkpoint with all its tensors in memory; dicts and lists are changed in place.

    Raises:
        RuntimeError: something in it is not data.
    """
    foreign: list[Foreign] = []
    stored: list[StoredTensor] = []
    replace(tree, (StoredTensor, Foreign), lambda each: (foreign if isinstance(each, Foreign) else stored).append(each))
    if foreign:
        refuse(*reversed(foreign))  # the walk comes from the end
    if not stored:
        return tree
    places = [each for one in stored if not one.is_read for each in one.parts or (one,)]
    storages = {id(each.storage_in_file): each.storage_in_file for each in places}
    read([each for each in storages.values() if each.memory is None])
    return replace(tree, StoredTensor, in_memory)


def replace(tree: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """Returns a tree of containers with ``function`` applied to every leaf of a type; deep trees cost no stack.

    Dicts, lists, deques and attributes of plain objects are changed in place, tuples are made anew where they have to
    be. What ``function`` gives None for stays.
    """
    done: dict[int, Any] = {}
    kept: list[Any] = []  # so that no id is used twice
    # Children before their parents: a container comes up again when all that it holds is done.
    stack: list[tuple[Any, bool]] = [(tree, False)]
    while stack:
        node, children_done = stack.pop()
        if id(node) in done and not children_done:
            continue
        if isinstance(node, kind):
            new = function(node)
            done[id(node)] = node if new is None else new
            kept.append(node)
            continue
        held = _children(node)
        if held is None:
            continue
        if not children_done:
            done[id(node)] = node  # a container that holds itself finds itself here
            kept.append(node)
            stack.append((node, True))
            stack.extend((each, False) for each in held if isinstance(each, (_CONTAINERS, kind)))
            continue
        if isinstance(node, tuple):
            items = [done.get(id(child), child) for child in node]
            if any(new is not old for new, old in zip(items, node)):
                made: Any = type(node)
                done[id(node)] = made(*items) if hasattr(made, "_fields") else made(items)
            continue
        if isinstance(node, (set, frozenset)):  # of keys, none of which is a tensor
            continue
        place: Any = node if isinstance(node, (dict, list, deque)) else vars(node)
        for key, child in list(place.items() if isinstance(place, dict) else enumerate(place)):
            new = done.get(id(child), child)
            if new is not child:
                place[key] = new
    return done.get(id(tree), tree)


def _children(node: Any) -> Iterable[Any] | None:
    if isinstance(node, dict):
        # Stubs may be keys, too.
        keys = [key for key in node if isinstance(key, (Foreign, tuple))]
        return [*node.values(), *keys] if keys else node.values()
    if isinstance(node, torch.Size):
        return None
    if isinstance(node, (list, tuple, deque, set, frozenset)):
        return node
    if isinstance(node, _CONTAINERS):
        return vars(node).values()
    return None


class PlainObject:
    """An object of a checkpoint that is nothing but its attributes."""


_CONTAINERS = (dict, list, tuple, deque, set, frozenset, PlainObject, argparse.Namespace, types.SimpleNamespace)


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

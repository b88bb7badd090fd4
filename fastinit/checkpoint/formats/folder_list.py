"""The list of contents of a folder of torch.distributed.checkpoint: a pickle of torch's classes, read as plain records.

The names in the pickle stand for classes of our own that only hold a state; no object of torch is made or changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch

from ...errors import InitValueError
from ...execution.collector import uncollected
from ..storage.stubs import Foreign, Name, Refusal, name_of, shown
from . import pickles
from .pickles import Kind, Machine, PickleError, containers
from .tiling import why_not_tiled

# torch's operators take no more dimensions.
_MAX_DIMENSIONS = 64
# In messages: enough to see what kind of file it is.
_MAX_NAMES = 5


class Chunk(NamedTuple):
    """A box of a tensor, and the bytes of a file that hold it; none if it has no elements."""

    first: tuple[int, ...]
    """Index of its first element."""
    shape: tuple[int, ...]
    file: str
    """Relative to the folder."""
    offset: int
    n_bytes: int


class Entry(NamedTuple):
    """A tensor of the folder; its chunks tile it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class _Record:
    """An object of the list, which only holds its state; that is checked when it is used."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


class _Metadata(_Record):
    __slots__ = ()


class _Tensor(_Record):
    __slots__ = ()


class _Bytes(_Record):
    __slots__ = ()


class _Box(_Record):
    __slots__ = ()


class _Properties(_Record):
    __slots__ = ()


class _Index(_Record):
    __slots__ = ()


class _Place(_Record):
    __slots__ = ()


class _About(_Record):
    __slots__ = ()


def _set_state(machine: Machine, record: Any, state: Any) -> None:
    record.state = state


def _maker(kind: type[_Record]) -> Any:
    return lambda machine: kind()


def _size(machine: Machine, numbers: Any = ()) -> Any:
    # A long tuple must not be copied, as a pickle could ask for thousands of copies. The numbers are checked later.
    if type(numbers) not in (tuple, list) or len(numbers) > _MAX_DIMENSIONS:
        raise PickleError(f"a torch.Size is made of {shown(numbers)}")
    return tuple(numbers)


def _layout(machine: Machine, name: Any) -> Any:
    return name


def _memory_format(machine: Machine, number: Any) -> Any:
    return number


# torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
_MEMORY_FORMATS = {"TORCH_CONTIGUOUS_FORMAT": 0, "TORCH_CHANNELS_LAST": 1, "TORCH_PRESERVE_FORMAT": 2}


def _attribute(machine: Machine, owner: Any, name: Any) -> Any:
    """The members of enums, as Python 3.11.0 to 3.11.3 write them."""
    is_format = type(owner) is Name and name_of(owner).endswith("MEM_FORMAT_ENCODING") and type(name) is str
    return _MEMORY_FORMATS.get(name) if is_format else containers.attribute(machine, owner, name)


_METADATA = "torch.distributed.checkpoint.metadata"
_OLDER = "torch.distributed._shard.sharded_tensor.metadata"
"""Its module before torch 2.3."""
_FUNCTIONS: dict[tuple[str, str], Any] = {
    **containers.FUNCTIONS,
    ("builtins", "getattr"): _attribute,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _layout,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _memory_format,
    (_OLDER, "MEM_FORMAT_ENCODING"): _memory_format,
}
_RECORDS: dict[tuple[str, str], type[_Record]] = {
    (_METADATA, "Metadata"): _Metadata,
    (_METADATA, "TensorStorageMetadata"): _Tensor,
    (_METADATA, "BytesStorageMetadata"): _Bytes,
    (_METADATA, "ChunkStorageMetadata"): _Box,
    (_METADATA, "TensorProperties"): _Properties,
    (_OLDER, "TensorProperties"): _Properties,
    (_METADATA, "MetadataIndex"): _Index,
    (_METADATA, "StorageMeta"): _About,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Place,
}
_KINDS: dict[type, Kind] = {
    **containers.KINDS,
    **{kind: Kind(build=_set_state) for kind in _RECORDS.values()},
    # A key of the places. Compared by identity, so a file cannot make them collide.
    _Index: Kind(build=_set_state, is_key=True),
}


def tensors_of(data: bytes, path: object) -> dict[str, Entry]:
    """Returns the tensors in a list of contents, all of them checked; other objects are left out.

    Args:
        data: the pickle.
        path: of the file, for messages.

    Raises:
        PickleError, ValueError: it is damaged, or chunks do not tile their tensor or have no place.
    """
    refusal = Refusal(cast(Any, path))

    def find(module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if (module, name) in _RECORDS:
            return Name(full, refusal, _maker(_RECORDS[module, name]))
        if (module, name) in _FUNCTIONS:
            return Name(full, refusal, _FUNCTIONS[module, name])
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        refusal.names[full] = None
        return Foreign(full, refusal)

    with uncollected():
        contents, _ = pickles.load(data, find, refusal=refusal, kinds=_KINDS)
        return _checked(contents, refusal, len(data))


def _checked(contents: Any, refusal: Refusal, n_bytes: int) -> dict[str, Entry]:
    if type(contents) is not _Metadata:
        names = [shown(name)[1:-1] for name in [*refusal.names][:_MAX_NAMES]]
        raise InitValueError(f"it asks for {', '.join(names)}" if names else f"it is {shown(contents)}")
    state = _fields(contents, "the list")
    listed, places = state.get("state_dict_metadata"), state.get("storage_data")
    if type(listed) is not dict or type(places) is not dict:
        raise InitValueError(f"it lists {shown(listed)}, which lie at {shown(places)}")
    return _tensors(listed, _places(places), n_bytes)


def _fields(record: _Record, what: str) -> Mapping[Any, Any]:
    if type(record.state) is not dict:
        raise InitValueError(f"{what} has the state {shown(record.state)}")
    return cast(Mapping[Any, Any], record.state)


def _places(places: dict[Any, Any]) -> dict[str, list[Chunk]]:
    """Returns the places of the chunks of each key; their shapes are not known yet."""
    found: dict[str, list[Chunk]] = {}
    for index, place in places.items():
        if type(index) is not _Index or type(place) is not _Place:
            raise InitValueError(f"it says that {shown(index)} lies at {shown(place)}")
        of, at = _fields(index, "an index"), _fields(place, "a place")
        key, first = of.get("fqn"), of.get("offset")
        name, offset, n_bytes = at.get("relative_path"), at.get("offset"), at.get("length")
        if type(key) is not str or type(of.get("index")) not in (int, type(None)):
            raise InitValueError(f"it has a place for {shown(key)}, of the index {shown(of.get('index'))}")
        if first is None:  # not a tensor
            continue
        if type(name) is not str or type(offset) is not int or type(n_bytes) is not int or min(offset, n_bytes) < 0:
            raise InitValueError(f"{shown(key)} lies in {shown(name)} at {shown(offset)}, {shown(n_bytes)} long")
        changed = at.get("transform_descriptors")
        if changed is not None and not (type(changed) in (list, tuple) and len(changed) == 0):
            raise InitValueError(
                f"{shown(key)} was transformed by extensions when it was saved: {shown(changed)} (compression, "
                f"encryption)",
                hint=": load it with torch.distributed.checkpoint and the same extensions, and save it without",
            )
        found.setdefault(key, []).append(Chunk(_numbers(key, first), (), name, offset, n_bytes))
    return found


def _tensors(listed: dict[Any, Any], places: dict[str, list[Chunk]], n_bytes: int) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    n_chunks = 0
    for key, entry in listed.items():
        if type(key) is not str:
            raise InitValueError(f"it has the key {shown(key)}")
        if type(entry) is _Bytes:
            continue
        if type(entry) is not _Tensor:
            raise InitValueError(f"its key {shown(key)} is {shown(entry)}")
        fields = _fields(entry, shown(key))
        chunks = fields.get("chunks")
        n_chunks += len(chunks) if type(chunks) is list else 0
        if n_chunks > n_bytes:  # many keys can share one list of chunks
            raise InitValueError("it has more chunks than bytes")
        try:
            shape = _numbers(key, fields.get("size"))
            found[key] = Entry(_dtype(fields.get("properties")), shape, ())
            found[key] = found[key]._replace(chunks=_chunks(key, found[key], chunks, places.get(key, [])))
        except ValueError as error:
            raise InitValueError(f"{shown(key)}: {error}", of=error) from None
    return found


def _dtype(properties: Any) -> torch.dtype:
    """Returns the dtype among the properties of a tensor; the others describe its memory."""
    state = properties.state if type(properties) is _Properties else None
    if type(state) is not tuple or len(state) != 5:
        raise InitValueError(f"its properties are {shown(state)}")
    dtype, layout, requires_grad, memory_format, is_pinned = state
    if type(layout) is not str or layout != "torch.strided" or type(dtype) is not torch.dtype:
        raise InitValueError(f"its dtype is {shown(dtype)} and its layout {shown(layout)}, and not torch.strided")
    is_known = type(memory_format) is int and memory_format in _MEMORY_FORMATS.values()
    if not is_known or type(requires_grad) is not bool or type(is_pinned) is not bool:
        raise InitValueError(f"its properties are {shown(state)}")
    return dtype


def _numbers(key: str, numbers: Any) -> tuple[int, ...]:
    is_short = type(numbers) is tuple and len(numbers) <= _MAX_DIMENSIONS
    if not is_short or not all(type(each) is int and 0 <= each < 2**63 for each in numbers):
        raise InitValueError(f"{shown(key)} has a chunk or size of {shown(numbers)}")
    return cast(tuple[int, ...], numbers)


def _chunks(key: str, tensor: Entry, boxes: Any, places: list[Chunk]) -> tuple[Chunk, ...]:
    """Returns the chunks of a tensor that have elements.

    Raises:
        ValueError: they do not tile it, or one has no place, or one that is too short.
    """
    if type(boxes) is not list:
        raise InitValueError(f"its chunks are {shown(boxes)}")
    found = []
    for box in boxes:
        if type(box) is not _Box:
            raise InitValueError(f"it has the chunk {shown(box)}")
        fields = _fields(box, "a chunk")
        found.append((_numbers(key, fields.get("offsets")), _numbers(key, fields.get("sizes"))))
    if (problem := why_not_tiled(tensor.shape, found)) is not None:
        raise InitValueError(problem)
    # Sorted rather than looked up in a dict, where a file could force collisions.
    found = sorted(box for box in found if 0 not in box[1])
    places = sorted(places)
    chunks, at = [], 0
    for first, shape in found:
        while at < len(places) and places[at].first < first:
            at += 1
        if at == len(places) or places[at].first != first:
            raise InitValueError(f"its chunk at {first} has no place in a file")
        if at + 1 < len(places) and places[at + 1].first == first:
            raise InitValueError(f"its chunk at {first} has two places")
        chunk = places[at]._replace(shape=shape)
        n_bytes = math.prod(shape) * tensor.dtype.itemsize
        if chunk.n_bytes < n_bytes:
            raise InitValueError(
                f"its chunk at {first} has {n_bytes:,} bytes, and {chunk.n_bytes:,} in {shown(chunk.file)}"
            )
        chunks.append(chunk)
    return tuple(chunks)

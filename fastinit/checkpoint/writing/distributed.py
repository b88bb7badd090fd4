"""Folders of torch.distributed.checkpoint, as one rank would have saved them: tensors in chunks, and a list of them."""

from __future__ import annotations

import importlib
import math
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

import torch

from ...errors import InitRuntimeError
from .behind import Behind
from .contents import Content, Made, Range, Values
from .safetensors import shards_of
from .whole_files import Layout

# Each chunk is an archive of torch.save, which wants its tensor in memory.
CHUNK_BYTES = 32 << 20
LIST = ".metadata"


def layout_of(
    contents: Sequence[Content], values: Values, *, digest: Callable[[str], str], max_file_bytes: int
) -> Layout:
    """Returns the files of a folder.

    Args:
        contents: in the order of the model's state dict.
        values: brings theirs into memory.
        digest: of the contents, from what more they depend on.
        max_file_bytes: a file holds more only where one tensor has more.
    """
    classes = _classes()
    files = {f"__0_{i}.distcp": shard for i, shard in enumerate(shards_of(contents, max_file_bytes))}
    tables = [(name, [(each.name, each.dtype, each.shape) for each in shard]) for name, shard in files.items()]
    return Layout(
        stem="__0",
        digest=digest(repr((tables, torch.__version__))),
        jobs={name: partial(_write_file, shard, values) for name, shard in files.items()},
        last=(LIST, partial(_write_list, files, classes)),
        markers=(LIST,),
        pattern=re.compile(r"__\d+_\d+\.distcp|\.metadata"),
        redone=frozenset(name for name, shard in files.items() if any(isinstance(each.origin, Made) for each in shard)),
    )


def chunks_of(shape: Sequence[int], max_elements: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields (index of the first element, sizes) of parts of a tensor that lie in one piece, in their order."""
    if math.prod(shape) <= max_elements:
        yield (0,) * len(shape), tuple(shape)
        return
    inner = math.prod(shape[1:])
    n = max_elements // inner
    for row in range(0, shape[0], max(n, 1)):
        if n:
            yield (row, *(0 for _ in shape[1:])), (min(n, shape[0] - row), *shape[1:])
            continue
        for index, sizes in chunks_of(shape[1:], max_elements):
            yield (row, *index), (1, *sizes)


def _chunks(content: Content) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    return chunks_of(content.shape, max(1, CHUNK_BYTES // content.dtype.itemsize))


def _write_file(contents: Sequence[Content], values: Values, file: IO[bytes]) -> list[list[int]]:
    """Writes the chunks of tensors, and returns where each begins and how long it is."""
    places: list[list[int]] = []

    def save(chunk: torch.Tensor) -> None:
        start = file.tell()
        torch.save(chunk, file)
        places.append([start, file.tell() - start])

    with Behind(file) as behind:
        for each in contents:
            first = 0
            for _, sizes in _chunks(each):
                behind.wait_for_room()
                chunk = torch.empty(sizes, dtype=each.dtype, device="cpu")
                values.put([Range(each, first, chunk.view(-1))])
                first += chunk.numel()
                behind.submit(partial(save, chunk))
    return places


def _classes() -> tuple[Any, Any]:
    """Returns torch's modules with the classes that a list of contents is made of.

    They are imported when they are needed: it takes a second, and torch may be built without them.
    """
    try:
        found = [importlib.import_module(f"torch.distributed.checkpoint.{name}") for name in ("metadata", "filesystem")]
    except ImportError as error:
        raise InitRuntimeError(
            f"write: format='dcp' needs torch.distributed.checkpoint, which this torch lacks: {error}"
        ) from error
    return found[0], found[1]


def _write_list(
    files: Mapping[str, Sequence[Content]], classes: tuple[Any, Any], known: Mapping[str, Any], file: IO[bytes]
) -> None:
    """Writes the list of contents."""
    metadata, filesystem = classes
    tensors, places = {}, {}
    for name, contents in files.items():
        left = iter(known[name])
        for each in contents:
            chunks = []
            for number, (index, sizes) in enumerate(_chunks(each)):
                chunks.append(metadata.ChunkStorageMetadata(torch.Size(index), torch.Size(sizes)))
                where = metadata.MetadataIndex(each.name, torch.Size(index), number)
                places[where] = filesystem._StorageInfo(name, *next(left))
            properties = metadata.TensorProperties(dtype=each.dtype)
            tensors[each.name] = metadata.TensorStorageMetadata(properties, torch.Size(each.shape), chunks)
    # What state dicts are nested in, of which these are not.
    paths = {name: (name,) for name in tensors}
    pickle.dump(metadata.Metadata(tensors, paths, places), file)

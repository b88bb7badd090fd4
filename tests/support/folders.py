"""Folders of torch.distributed.checkpoint for tests: real ones, and ones with a changed list of contents."""

from __future__ import annotations

import logging
import pickle
import signal
import warnings
from contextlib import contextmanager

import needs
import torch
from torch import nn

from fastinit.checkpoint import load_checkpoint

# Longer than any of them takes: what waits for ever is stopped.
ALARM_S = 20

needs_dcp = needs.mark(needs.torch_from(2, 5))  # with which it was tried


@contextmanager
def quietly():
    """Silences what torch's writer has to say about a process that is alone."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def save(path, state_dict, **kwargs):
    from torch.distributed import checkpoint

    with quietly():
        checkpoint.save(state_dict, checkpoint_id=path, no_dist=True, **kwargs)


def loaded_by_torch(path, key, like):
    """Returns what torch's own reader reads for a key, into a tensor like one."""
    from torch.distributed import checkpoint

    found = torch.zeros(like.shape, dtype=like.dtype)
    with quietly():
        checkpoint.load({key: found}, checkpoint_id=path, no_dist=True)
    return found


@contextmanager
def changed(path):
    """Yields the list of contents of a folder, which is written back in the end."""
    contents = pickle.loads((path / ".metadata").read_bytes())
    yield contents
    (path / ".metadata").write_bytes(pickle.dumps(contents))


def chunk(first, shape):
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return ChunkStorageMetadata(torch.Size(first), torch.Size(shape))


def place_of(contents, key):
    """Returns where the first chunk of a key lies."""
    return next(place for index, place in contents.storage_data.items() if index.fqn == key)


def in_chunks(path, key, whole, boxes):
    """Writes a folder with one tensor, cut into boxes (first, shape)."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    parts = {
        f"{key}.{i}": whole[tuple(slice(a, a + n) for a, n in zip(*box))].contiguous() for i, box in enumerate(boxes)
    }
    save(path, {**parts, key: torch.zeros(1, dtype=whole.dtype)})
    with changed(path) as contents:
        entry = contents.state_dict_metadata[key]
        entry.size, entry.chunks = whole.shape, [chunk(*box) for box in boxes]
        places = {}
        for i, (first, _) in enumerate(boxes):
            places[MetadataIndex(key, torch.Size(first), i)] = place_of(contents, f"{key}.{i}")
            del contents.state_dict_metadata[f"{key}.{i}"]
        contents.storage_data = places


def good(path):
    """Writes a folder of what ``model`` makes, and returns its path."""
    source = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.Linear(64, 2))
    save(path, {**source.state_dict(), "0.weight": torch.full((64, 64), 7.0), "note": "text"})
    return path


def model():
    return nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.Linear(64, 2))


def refused(folder, message, error="RuntimeError", **kwargs):
    """Loads in a child; the error must say which folder, and nothing may be written, whatever is asked for."""

    def attempt():
        signal.alarm(ALARM_S)
        made = model()
        before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        try:
            load_checkpoint(made, folder, logger="silent", **kwargs)
        finally:
            after = made.state_dict()
            assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "it was written"

    from limited import MOST_BYTES, run_limited  # Linux's

    cost = run_limited(attempt)
    assert cost.result is not None, "it was loaded"
    kind, text, n_characters = cost.result
    assert kind == error and str(folder) in text and message in text and n_characters < 2000, cost.result
    assert cost.peak_bytes < MOST_BYTES, cost


def data_file(folder):
    return folder / "__0_0.distcp"

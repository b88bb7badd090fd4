"""Checkpoint files that tests write, and how they read them whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage.trees import read_everything


def save(content, path, zipped=True, protocol=2):
    """Saves as torch does, and returns the path."""
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def loaded(path):
    """Returns what the checkpoint loader reads."""
    return CheckpointLoader.load_checkpoint(path, logger="silent")


def everything_of(path, **options):
    return read_everything(read(Path(path), Reading(**options)))


def write_zip(path, data, records=(), root="archive", method=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data, compress_type=method)
        for name, content in records:
            archive.writestr(f"{root}/{name}", content, compress_type=method)
        archive.writestr(f"{root}/version", "3\n")

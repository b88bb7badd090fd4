"""Checkpoint files that tests write, and how they read them whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage.stored import read_everything


def everything_of(path, **options):
    return read_everything(read(Path(path), Reading(**options)))


def write_zip(path, data, records=(), root="archive", method=zipfile.ZIP_STORED, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{root}/data.pkl", data, compress_type=method)
        for name, content in records:
            archive.writestr(f"{root}/{name}", content, compress_type=method)
        archive.writestr(f"{root}/version", "3\n")

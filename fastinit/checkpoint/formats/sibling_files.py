"""Files that a list of a checkpoint names: they lie beside it, and are files."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath


def is_beside(name: str) -> bool:
    """Tells whether a relative path stays below the folder that it is relative to, on every system."""
    path = PurePosixPath(name)
    outside = not path.parts or ".." in path.parts or path.is_absolute() or "\\" in name or ":" in name
    return not outside and "\0" not in name


def status_beside(folder: Path, name: str, listed_in: Path) -> tuple[Path, os.stat_result]:
    """Returns the real path of a file below a folder, and what the system says of it.

    It may be a link only within the folder; or, as in the cache of the Hugging Face Hub, where the list is a link too,
    into the folder where that really lies.

    Args:
        folder: that the name is relative to.
        name: as the list has it.
        listed_in: path of the list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lies somewhere else, or is no regular file.
    """
    if not is_beside(name):
        raise ValueError("which is not a path below the folder")
    path = os.path.realpath(folder / name)
    roots = [os.path.realpath(folder), os.path.dirname(os.path.realpath(listed_in))]
    if not any(os.path.commonpath([root, path]) == root for root in roots):
        raise ValueError(f"which is a link out of the folder, to {path}: copy the folder with the files themselves")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("which is no regular file")
    return Path(path), status

"""Checks that the files named by an index are regular files beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from ...errors import InitValueError


def is_beside(name: str) -> bool:
    """Returns whether a relative path stays below its folder, on every operating system."""
    path = PurePosixPath(name)
    outside = not path.parts or ".." in path.parts or path.is_absolute() or "\\" in name or ":" in name
    return not outside and "\0" not in name


def status_beside(folder: Path, name: str, listed_in: Path) -> tuple[Path, os.stat_result]:
    """Returns the real path and the status of a file below a folder.

    Links must stay within the folder, or lead into the folder that really holds the list: in the cache of the Hugging
    Face Hub, the list is a link, too.

    Args:
        folder: that the name is relative to.
        name: as written in the list.
        listed_in: path of the list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is outside the folder, or no regular file.
    """
    if not is_beside(name):
        raise InitValueError("which is not a path below the folder")
    path = os.path.realpath(folder / name)
    roots = [os.path.realpath(folder), os.path.dirname(os.path.realpath(listed_in))]
    if not any(os.path.commonpath([root, path]) == root for root in roots):
        raise InitValueError(
            f"which is a link out of the folder, to {path}", hint=": copy the folder with the files themselves"
        )
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InitValueError("which is no regular file")
    return Path(path), status

"""Readers of checkpoint files, chosen by what a file holds and not by what it is called. None of them runs code."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_ZIP_MAGIC = b"PK\x03\x04"
# A safetensors file begins with the header's length in 8 bytes; then the header, a JSON object.
_SAFETENSORS_HEADER_AT = 8


def local_path(filename: str | os.PathLike[str]) -> Path:
    """Returns the path of an existing local file.

    Raises:
        FileNotFoundError: there is no such file.
        NotImplementedError: it names another scheme than a file's.
        TypeError: it is neither text nor a path.
    """
    text = os.fspath(filename)
    scheme = _SCHEME.match(text)
    if scheme and scheme[1] != "file":
        raise NotImplementedError(
            f"checkpoint {text!r}: the scheme {scheme[1]}:// is not supported yet. Download the file and give its path"
        )
    path = Path(text.removeprefix("file://")).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{filename} can not be found.")
    return path


def read(filename: str | os.PathLike[str], map_location: Any = None, *, mapped: bool = False) -> Any:
    """Returns what a local checkpoint file holds.

    Args:
        filename: the file.
        map_location: as for ``torch.load``; safetensors come to the CPU whatever it says.
        mapped: map the zip files of ``torch.save`` into memory, so that a tensor is read when it is used (safetensors
            files always are; files from before torch 1.6 can not be). For tensors that are copied and let go:
            whoever keeps a mapped tensor and overwrites the file is killed by the next access.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is damaged, is no checkpoint, or holds more than tensors and plain containers.
    """
    path = local_path(filename)
    with path.open("rb") as file:
        head = file.read(_SAFETENSORS_HEADER_AT + 1)
    try:
        if head[_SAFETENSORS_HEADER_AT:] == b"{" and not head.startswith(_ZIP_MAGIC):
            return safetensors.torch.load_file(path)
        mmap = mapped and head.startswith(_ZIP_MAGIC)
        return torch.load(str(path), map_location=map_location, weights_only=True, mmap=mmap or None)
    except pickle.UnpicklingError as error:
        raise RuntimeError(
            f"{filename}: the file holds more than tensors and plain containers, and loading that could run code that "
            f"came with the file. If you trust it: torch.load(..., weights_only=False), then "
            f"fastinit.checkpoint.load_state_dict(model, state_dict). What torch says: {error}"
        ) from error
    except OSError:  # the file cannot be read; what it holds is not to blame
        raise
    except Exception as error:
        # torch's unpickler stumbles over foreign bytes in many ways: IndexError, struct.error, ...
        raise RuntimeError(f"{filename}: the file is damaged or no checkpoint: {error}") from error

"""Module versions, which torch saves with a state dict as ``_metadata``; checked before modules read them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..errors import InitRuntimeError

# torch passes this option to loading code in the same dict; a file must not set it.
_NOT_A_FILES = "assign_to_params_buffers"


def checked_metadata(metadata: Any, source: object) -> dict[str, dict[str, Any]]:
    """Returns the ``_metadata`` of a state dict: one dict per module, whose "version" is a number.

    Args:
        metadata: as read from the file; None: there is none.
        source: the checkpoint, for the message.

    Raises:
        RuntimeError: it is malformed; modules would fail on it in the middle of the load.
    """
    if metadata is None:
        return {}
    problem = None
    if not isinstance(metadata, dict):
        problem = f"it is a {type(metadata).__name__}, not a dict"
    else:
        for path, local in metadata.items():
            if not isinstance(path, str):
                problem = f"it has a key that is a {type(path).__name__}, not the name of a module"
            elif not isinstance(local, dict) or not all(isinstance(name, str) for name in local):
                problem = f"for the module {path[:80]!r} the entry is not a dict with names as keys"
            elif type(local.get("version", 1)) is not int and local["version"] is not None:
                problem = f"the version of the module {path[:80]!r} is a {type(local['version']).__name__}, not an int"
            if problem:
                break
    if problem:
        raise InitRuntimeError(
            f"{source}: the versions of modules in its `_metadata` are damaged: {problem}", place=source
        )
    return {
        path: {name: value for name, value in local.items() if name != _NOT_A_FILES} for path, local in metadata.items()
    }


def with_metadata(
    state_dict: OrderedDict[str, Any], metadata: dict[str, Any], path_of: Callable[[str], str | None] | None = None
) -> OrderedDict[str, Any]:
    """Attaches checked versions to a state dict, under the paths ``path_of`` returns; None drops an entry."""
    if metadata and path_of is not None:
        metadata = {new: local for path, local in metadata.items() if (new := path_of(path)) is not None}
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]
    return state_dict

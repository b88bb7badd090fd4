"""The versions of modules, which torch saves beside a state dict as ``_metadata``: checked before modules see them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

# What torch's loading code is told by the same way, and no file may say.
_NOT_A_FILES = "assign_to_params_buffers"


def checked_metadata(metadata: Any, source: object) -> dict[str, dict[str, Any]]:
    """Returns what stands beside a state dict, for each module a dict, of which "version" is a number.

    Args:
        metadata: as it came; None: nothing.
        source: where it came from, for the message.

    Raises:
        RuntimeError: it is something else: modules would fail on it when a part of the model has been written.
    """
    if metadata is None:
        return {}
    problem = None
    if not isinstance(metadata, dict):
        problem = f"it is a {type(metadata).__name__} and no dict"
    else:
        for path, local in metadata.items():
            if not isinstance(path, str):
                problem = f"it has a key that is a {type(path).__name__} and no name of a module"
            elif not isinstance(local, dict) or not all(isinstance(name, str) for name in local):
                problem = f"for the module {path[:80]!r} it has no dict by names"
            elif type(local.get("version", 1)) is not int and local["version"] is not None:
                problem = f"the version of the module {path[:80]!r} is a {type(local['version']).__name__} and no int"
            if problem:
                break
    if problem:
        raise RuntimeError(f"{source}: the versions of modules in its `_metadata` are damaged: {problem}")
    return {
        path: {name: value for name, value in local.items() if name != _NOT_A_FILES} for path, local in metadata.items()
    }


def with_metadata(
    state_dict: OrderedDict[str, Any], metadata: dict[str, Any], path_of: Callable[[str], str | None] | None = None
) -> OrderedDict[str, Any]:
    """Attaches checked versions to a state dict, by the paths that ``path_of`` gives them; None leaves one out."""
    if metadata and path_of is not None:
        metadata = {new: local for path, local in metadata.items() if (new := path_of(path)) is not None}
    if metadata:
        state_dict._metadata = metadata  # type: ignore[attr-defined]
    return state_dict

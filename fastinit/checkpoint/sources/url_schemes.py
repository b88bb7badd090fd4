"""The table of schemes: the beginning of a checkpoint's name selects its loader."""

from __future__ import annotations

import functools
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...errors import InitFileNotFoundError, InitKeyError, InitRuntimeError, InitTypeError
from ..formats.by_content import Reading, Wants, read
from ..mmengine_log import log
from ..storage.trees import read_everything
from .addresses import as_path, shown_address
from .downloads import NotDownloaded, download
from .further import Loader, further_loaders
from .located import Locate, Located
from .remote import locate_ceph, locate_fsspec, locate_hf, locate_http, locate_pavi
from .zoos import locate_mmcls, locate_openmmlab, locate_torchvision

# The readers' word for a file that is not as its format says; a file that asks for more than data is something else.
_DAMAGED = "is damaged"
_REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hdfs", "webhdfs", "sftp", "ssh", "ftp")


@dataclass(frozen=True)
class Scheme:
    """One of fastinit's own schemes."""

    name: str
    """In the log."""
    prefixes: tuple[str, ...]
    """Regular expressions that the beginning of a checkpoint's name matches."""
    locate: Locate


class CheckpointLoader:
    """The table of schemes. A scheme is a regular expression that the beginning of a checkpoint's name matches.

    The expressions are tried in reverse alphabetical order, and the first match is used. Follows mmengine's class of
    that name.

    Example:
        >>> import torch
        >>> from fastinit.checkpoint import CheckpointLoader
        >>> @CheckpointLoader.register_scheme(prefixes="zeros://")
        ... def load_from_zeros(filename, map_location=None):
        ...     return {"weight": torch.zeros(int(filename.removeprefix("zeros://")))}
        >>> CheckpointLoader.load_checkpoint("zeros://2", logger="silent")
        {'weight': tensor([0., 0.])}
    """

    _schemes: ClassVar[dict[str, Callable[..., Any]]] = {}

    @classmethod
    def register_scheme(
        cls,
        prefixes: str | Sequence[str],
        loader: Callable[..., Any] | None = None,
        force: bool = False,
    ) -> Any:
        """Registers a loader, as a call or as a decorator.

        Args:
            prefixes: one or several expressions.
            loader: called with (filename, map_location), returns the checkpoint; None: decorate one.
            force: replace a loader that is registered already.

        Raises:
            KeyError: one is registered already, and no ``force``.
        """
        if loader is None:
            return functools.partial(cls._register, prefixes, force=force)
        cls._register(prefixes, loader, force=force)
        return None

    @classmethod
    def _register(cls, prefixes: str | Sequence[str], loader: Callable[..., Any], force: bool) -> Callable[..., Any]:
        prefixes = [prefixes] if isinstance(prefixes, str) else list(prefixes)
        for prefix in prefixes:
            if prefix in cls._schemes and not force:
                raise InitKeyError(
                    f"{prefix} is already registered as a loader backend",
                    hint=', add "force=True" if you want to override it',
                )
        cls._schemes.update(dict.fromkeys(prefixes, loader))
        cls._schemes = OrderedDict(sorted(cls._schemes.items(), reverse=True))
        return loader

    @classmethod
    def _get_checkpoint_loader(cls, path: str | os.PathLike[str]) -> Callable[..., Any]:
        """Returns the loader for a checkpoint's name; the loader for local files matches every name.

        Loaders that users registered here go first, then those that they registered in another library.
        """
        text = os.fspath(path)
        loader = next(loader for scheme, loader in cls._schemes.items() if re.match(scheme, text))
        if not any(loader is own for own in SCHEMES):  # loaders of users may be unhashable
            return loader
        return next((found for further in further_loaders if (found := further(text)) is not None), loader)

    @classmethod
    def load_checkpoint(
        cls, filename: str | os.PathLike[str], map_location: Any = None, logger: Any = "current"
    ) -> Any:
        """Reads a checkpoint into memory, whole.

        Args:
            filename: a path, or a name with a scheme.
            map_location: as for ``torch.load``; None: the CPU.
            logger: as for ``print_log``.

        Raises:
            FileNotFoundError, RuntimeError: it is not there, is damaged, or holds more than data.
        """
        return read_everything(tree_of(filename, Reading(map_location), logger=logger))


def tree_of(
    filename: str | os.PathLike[str],
    reading: Reading,
    *,
    wants: Wants | None = None,
    offline: bool = False,
    logger: Any = "current",
) -> Any:
    """Returns the contents of a checkpoint; with fastinit's own schemes, the tensors are still in the file.

    Args:
        filename: a path, or a name with a scheme.
        reading: how the file is read.
        wants: whether a key of a sharded checkpoint is needed.
        offline: download nothing.
        logger: as for ``print_log``.

    Raises:
        NotDownloaded: ``offline``, and it would have to be downloaded.
        TypeError: ``filename`` is neither text nor a path.
        Others: as ``read``.
    """
    text = os.fspath(filename)
    if not isinstance(text, str):
        raise InitTypeError(f"a checkpoint's name must be text or a path, but got {filename!r}")
    loader = CheckpointLoader._get_checkpoint_loader(text)
    scheme = next(
        (scheme for own, scheme in SCHEMES.items() if own is loader), None
    )  # loaders of users may be unhashable
    name = getattr(loader, "__name__", "").removeprefix("load_from_") if scheme is None else scheme.name
    log(f"Loads checkpoint by {name} backend from path: {shown_address(text)}", logger)
    if scheme is not None:
        return _tree_at(scheme.locate(text, offline), reading, wants)
    if offline:
        raise NotDownloaded(text)
    return loader(text, reading.map_location)


def _tree_at(located: Located, reading: Reading, wants: Wants | None = None) -> Any:
    try:
        tree = read(located.path, reading, wants=wants, fetch=located.fetch)
    except RuntimeError as error:
        if not located.is_copy or _DAMAGED not in str(error):
            raise
        link = " and the file it links to" if located.path.is_symlink() else ""  # as in the Hub's cache
        raise InitRuntimeError(
            f"{error}. It is a file of the cache", hint=f": delete it{link}, and the next call gets it again"
        ) from error.__cause__
    return tree if located.below is None else only_below(tree, located.below)


def only_below(tree: Any, prefix: str) -> Any:
    """Returns a checkpoint of those entries whose keys begin with ``prefix``, which is removed."""
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    found = ((key, value) for key, value in state.items() if isinstance(key, str) and key.startswith(prefix))
    return {"state_dict": OrderedDict((key[len(prefix) :], value) for key, value in found)}


def _locate_local(filename: str, offline: bool) -> Located:
    """Locates a local file or folder."""
    path = as_path(filename)
    if path.exists():
        return Located(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", filename)
    known = ", ".join(sorted(prefix for prefix in CheckpointLoader._schemes if prefix.endswith("://")))
    hint = f" The scheme {scheme[1]}:// is not known; known are {known}" if scheme and scheme[1] != "file" else ""
    raise InitFileNotFoundError(
        f"{shown_address(filename)} can not be found.", place=shown_address(filename), hint=hint
    )


# --- the loaders, with mmengine's names ------------------------------------------------------------------------------


def _whole(loader: Loader, filename: str | os.PathLike[str], map_location: Any) -> Any:
    return read_everything(_tree_at(SCHEMES[loader].locate(os.fspath(filename), False), Reading(map_location)))


def load_from_local(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads a file or folder of this machine into memory, whole."""
    return _whole(load_from_local, filename, map_location)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | os.PathLike[str] | None = None, progress: bool = True
) -> Any:
    """Reads a file of a web server into memory, whole; it is downloaded if it is not in the cache.

    Args:
        filename: the address.
        map_location: as for ``torch.load``; None: the CPU.
        model_dir: the cache; None: torch.hub's.
        progress: show a bar.

    Raises:
        RuntimeError: it cannot be downloaded, or read.
    """
    path = download(filename, folder=None if model_dir is None else Path(model_dir), progress=progress)
    return read_everything(_tree_at(Located(path, is_copy=True), Reading(map_location)))


def load_from_torchvision(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads a model of torchvision's zoo into memory, whole."""
    return _whole(load_from_torchvision, filename, map_location)


def load_from_openmmlab(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads a model of OpenMMLab's zoo into memory, whole."""
    return _whole(load_from_openmmlab, filename, map_location)


def load_from_mmcls(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads the backbone of one of mmpretrain's classifiers into memory, whole."""
    return _whole(load_from_mmcls, filename, map_location)


def _process_mmcls_checkpoint(checkpoint: Any) -> Any:
    """Returns a checkpoint of the backbone in one of mmpretrain's classifiers."""
    return only_below(checkpoint, "backbone.")


def load_from_hf(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads a model of the Hugging Face Hub (``hf://org/name[@revision][/file]``) into memory, whole."""
    return _whole(load_from_hf, filename, map_location)


def load_from_fsspec(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Reads a file of a remote file system (``s3://`` and its like) into memory, whole."""
    return _whole(load_from_fsspec, filename, map_location)


def load_from_ceph(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Refuses addresses of petrel, a storage that exists inside one company only."""
    return _whole(load_from_ceph, filename, map_location)


def load_from_pavi(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Refuses addresses of pavi, a model cloud that exists inside one company only."""
    return _whole(load_from_pavi, filename, map_location)


SCHEMES: dict[Loader, Scheme] = {
    load_from_local: Scheme("local", ("",), _locate_local),
    load_from_http: Scheme("http", ("http://", "https://"), locate_http),
    load_from_torchvision: Scheme("torchvision", ("modelzoo://", "torchvision://"), locate_torchvision),
    load_from_openmmlab: Scheme("openmmlab", ("open-mmlab://", "openmmlab://"), locate_openmmlab),
    load_from_mmcls: Scheme("mmcls", ("mmcls://",), locate_mmcls),
    load_from_hf: Scheme("hf", ("hf://",), locate_hf),
    load_from_fsspec: Scheme("fsspec", tuple(f"{name}://" for name in (*_REMOTE, "smb", "memory")), locate_fsspec),
    load_from_ceph: Scheme("ceph", (r"(\S+:)?petrel://", r"(\S+:)s3://"), locate_ceph),
    load_from_pavi: Scheme("pavi", ("pavi://",), locate_pavi),
}
"""By their loaders."""
for _loader, _scheme in SCHEMES.items():
    CheckpointLoader.register_scheme(_scheme.prefixes, _loader)

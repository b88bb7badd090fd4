"""What stands in front of ``://``: from the name of a checkpoint to a file on this machine."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..formats.by_content import NAMES_IN_FOLDER, Fetch, Reading, Wants, chosen_name, read
from ..messages import listed, log, shown
from ..storage.trees import read_everything
from .addresses import as_path, shown_address
from .downloads import NotDownloaded, cache_folder, cached, download
from .zoos import (
    address_of,
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
    home,
    table_of,
)

# What readers say of a file that they cannot understand; not of one that asks for more than data.
_DAMAGED = "is damaged"


@dataclass(frozen=True)
class Located:
    """Where a checkpoint is on this machine."""

    path: Path
    fetch: Fetch | None = None
    """Brings the shards that an index names."""
    below: str | None = None
    """Only the keys that begin with this count, without it."""
    is_copy: bool = False
    """It was fetched from elsewhere, and can be fetched again."""


Locate = Callable[[str, bool], Located]
"""From a checkpoint's name to its place; the second argument forbids downloads."""


class CheckpointLoader:
    """The table of schemes. A scheme is a regular expression that the beginning of a checkpoint's name matches.

    The expressions are tried in reverse alphabetical order; the first that matches counts. Follows mmengine's class of
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
                raise KeyError(
                    f'{prefix} is already registered as a loader backend, add "force=True" if you want to override it'
                )
        cls._schemes.update(dict.fromkeys(prefixes, loader))
        cls._schemes = OrderedDict(sorted(cls._schemes.items(), reverse=True))
        return loader

    @classmethod
    def _get_checkpoint_loader(cls, path: str | os.PathLike[str]) -> Callable[..., Any]:
        """Returns the loader for a checkpoint's name; that for local files matches every name."""
        text = os.fspath(path)
        return next(loader for scheme, loader in cls._schemes.items() if re.match(scheme, text))

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
    """Returns what a checkpoint holds; of fastinit's own schemes with the tensors still in the file.

    Args:
        filename: a path, or a name with a scheme.
        reading: how the file is read.
        wants: tells which keys of a sharded checkpoint are needed.
        offline: download nothing.
        logger: as for ``print_log``.

    Raises:
        NotDownloaded: ``offline``, and it would have to be downloaded.
        TypeError: ``filename`` is neither text nor a path.
        Others: as ``read``.
    """
    text = os.fspath(filename)
    if not isinstance(text, str):
        raise TypeError(f"a checkpoint's name must be text or a path, but got {filename!r}")
    loader = CheckpointLoader._get_checkpoint_loader(text)
    log(f"Loads checkpoint by {loader.__name__[10:]} backend from path: {shown_address(text)}", logger)
    locate: Locate | None = getattr(loader, "locate", None)
    if locate is None:
        if offline:
            raise NotDownloaded(text)
        return loader(text, reading.map_location)
    return _tree_at(locate(text, offline), reading, wants)


def _tree_at(located: Located, reading: Reading, wants: Wants | None = None) -> Any:
    try:
        tree = read(located.path, reading, wants=wants, fetch=located.fetch)
    except RuntimeError as error:
        if not located.is_copy or _DAMAGED not in str(error):
            raise
        link = " with what it links to" if located.path.is_symlink() else ""  # as in the Hub's cache
        raise RuntimeError(
            f"{error}. It is a file of the cache: delete it{link}, and the next call gets it again"
        ) from error.__cause__
    return tree if located.below is None else _below(tree, located.below)


def _below(tree: Any, prefix: str) -> Any:
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    found = ((key, value) for key, value in state.items() if isinstance(key, str) and key.startswith(prefix))
    return {"state_dict": OrderedDict((key[len(prefix) :], value) for key, value in found)}


def _scheme(*prefixes: str) -> Callable[[Locate], Callable[..., Any]]:
    """Registers a loader that is made from a function that locates."""

    def decorate(locate: Locate) -> Callable[..., Any]:
        def load(filename: str | os.PathLike[str], map_location: Any = None) -> Any:
            return read_everything(_tree_at(locate(os.fspath(filename), False), Reading(map_location)))

        load.__name__ = load.__qualname__ = locate.__name__
        load.__doc__ = (locate.__doc__ or "").replace("Locates", "Reads into memory, whole,")
        load.locate = locate  # type: ignore[attr-defined]
        CheckpointLoader.register_scheme(prefixes, load)
        return load

    return decorate


def _after(prefixes: Sequence[str], text: str) -> str:
    return next(text[len(prefix) :] for prefix in prefixes if text.startswith(prefix))


# --- files and addresses ---------------------------------------------------------------------------------------------


@_scheme("")
def load_from_local(filename: str, offline: bool) -> Located:
    """Locates a file or folder of this machine."""
    path = as_path(filename)
    if path.exists():
        return Located(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", filename)
    known = ", ".join(sorted(prefix for prefix in CheckpointLoader._schemes if prefix.endswith("://")))
    hint = f" The scheme {scheme[1]}:// is not known; known are {known}" if scheme and scheme[1] != "file" else ""
    raise FileNotFoundError(f"{shown_address(filename)} can not be found.{hint}")


def _locate_http(filename: str, offline: bool) -> Located:
    base = re.split(r"[?#]", filename, maxsplit=1)[0].rpartition("/")[0]

    def fetch(name: str) -> Path:
        return download(f"{base}/{urllib.parse.quote(name)}", offline=offline)

    return Located(download(filename, offline=offline), fetch, is_copy=True)


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | os.PathLike[str] | None = None, progress: bool = True
) -> Any:
    """Reads into memory, whole, a file of the web, which is downloaded if it is not in the cache.

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


load_from_http.locate = _locate_http  # type: ignore[attr-defined]
CheckpointLoader.register_scheme(("http://", "https://"), load_from_http)


# --- names of model zoos ---------------------------------------------------------------------------------------------


def _at(address: str, offline: bool, below: str | None = None) -> Located:
    """Locates what a table names: an address, or a file in mmengine's home."""
    if address.startswith(("http://", "https://")):
        return Located(download(address, offline=offline), below=below, is_copy=True)
    path = home() / as_path(address)
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} can not be found.")
    return Located(path, below=below)


@_scheme("modelzoo://", "torchvision://")
def load_from_torchvision(filename: str, offline: bool) -> Located:
    """Locates a model of torchvision."""
    if filename.startswith("modelzoo://"):
        log(
            'The URL scheme of "modelzoo://" is deprecated, please use "torchvision://" instead',
            "current",
            logging.WARNING,
        )
    name = _after(("torchvision://", "modelzoo://"), filename)
    table = table_of("torchvision")
    if name not in table:
        name = name.replace("_Weights", "").lower()
        table = get_torchvision_models()
    return _at(address_of(table, name, "torchvision"), offline)


@_scheme("open-mmlab://", "openmmlab://")
def load_from_openmmlab(filename: str, offline: bool) -> Located:
    """Locates a model of OpenMMLab's zoo."""
    name = _after(("open-mmlab://", "openmmlab://"), filename)
    scheme = filename.partition("://")[0]
    current = get_deprecated_model_names().get(name)
    if current is not None:
        log(f"{scheme}://{name} is deprecated in favor of {scheme}://{current}", "current", logging.WARNING)
        name = current
    return _at(address_of(get_external_models(), name, scheme), offline)


@_scheme("mmcls://")
def load_from_mmcls(filename: str, offline: bool) -> Located:
    """Locates a classifier of mmpretrain; of its keys those of the backbone count."""
    return _at(address_of(get_mmcls_models(), _after(("mmcls://",), filename), "mmcls"), offline, below="backbone.")


# --- the Hub and remote file systems ---------------------------------------------------------------------------------


@_scheme("hf://")
def load_from_hf(filename: str, offline: bool) -> Located:
    """Locates ``hf://org/name[@revision][/file]`` in the cache of huggingface_hub, and downloads it if need be."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f"{shown(filename)} needs huggingface_hub: pip install 'torch-fastinit[hf]'") from error
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/(.+))?", filename)
    if found is None:
        raise ValueError(
            f"{shown_address(filename)!r} must be hf://org/name, hf://org/name@revision or either with /path/of/a/file"
        )
    repository, revision, name = found[1], found[2] and found[2].replace("%2F", "/"), found[3]

    def fetch(wanted: str) -> Path:
        try:
            return Path(
                huggingface_hub.hf_hub_download(repository, wanted, revision=revision, local_files_only=offline)
            )
        except LocalEntryNotFoundError:
            if offline:
                raise NotDownloaded(filename) from None
            raise

    if name is None and offline:
        for usual in NAMES_IN_FOLDER:
            try:
                return Located(fetch(usual), fetch, is_copy=True)
            except NotDownloaded:
                continue
        raise NotDownloaded(filename)
    if name is None:
        held = huggingface_hub.HfApi().list_repo_files(repository, revision=revision)
        name = chosen_name(held)
        if name is None:
            raise FileNotFoundError(
                f"{shown(filename)}: none of its files is named as checkpoints are. Name one: "
                f"{listed(sorted(held), 20)}"
            )
    folder = name.rpartition("/")[0]
    return Located(fetch(name), lambda shard: fetch(f"{folder}/{shard}" if folder else shard), is_copy=True)


def fsspec_for(filename: str) -> Any:
    """Returns the module fsspec, or raises ImportError that says what needs it."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(f"{shown_address(filename)} needs fsspec: pip install 'torch-fastinit[remote]'") from error
    return fsspec


_REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hdfs", "webhdfs", "sftp", "ssh", "ftp")


@_scheme(*(f"{protocol}://" for protocol in (*_REMOTE, "smb", "memory")))
def load_from_fsspec(filename: str, offline: bool) -> Located:
    """Locates a file of a remote file system in the cache, and copies it there with fsspec if need be."""
    fsspec = fsspec_for(filename)
    if offline:
        raise NotDownloaded(
            shown_address(filename)
        )  # what the cached file is called depends on what the server has now
    protocol = filename.partition("://")[0]
    try:
        system, remote = fsspec.core.url_to_fs(filename)
    except (ImportError, ValueError) as error:
        raise ImportError(
            f"{shown_address(filename)}: fsspec cannot reach {protocol}:// as it is installed: {shown(error)}"
        ) from None

    def fetch(path: str) -> Path:
        source = shown(f"{protocol}://{path}")
        try:
            version = system.ukey(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{source} can not be found.") from None
        except NotImplementedError:
            version = repr(sorted(system.info(path).items(), key=str))
        folder = hashlib.sha256(f"{protocol}://{path} {version}".encode("utf-8", "surrogatepass")).hexdigest()[:16]

        def copy_to(partial: Path) -> None:
            try:
                system.get_file(path, str(partial))
                n_bytes, size = partial.stat().st_size, system.info(path).get("size")
                if size is not None and n_bytes != size:
                    raise RuntimeError(f"{source}: {n_bytes:,} of {size:,} bytes came. Nothing was kept; try again")
            except BaseException:
                partial.unlink(missing_ok=True)  # nobody could go on from it
                raise

        return cached(cache_folder() / folder / path.rpartition("/")[2], source, copy_to, offline=False)

    parent = remote.rpartition("/")[0]
    return Located(fetch(remote), lambda name: fetch(f"{parent}/{name}"), is_copy=True)


# --- OpenMMLab's own clusters ----------------------------------------------------------------------------------------


@_scheme(r"(\S+:)?petrel://", r"(\S+:)s3://")
def load_from_ceph(filename: str, offline: bool) -> Located:
    """Refuses addresses of petrel, which only runs inside one company."""
    address = shown_address("s3://" + filename.partition("://")[2])
    raise NotImplementedError(
        f"{shown_address(filename)}: petrel's storage is not supported. If the server speaks S3, use {address!r} "
        f"(pip install s3fs; its address is FSSPEC_S3_ENDPOINT_URL), else download the file and give its path"
    )


@_scheme("pavi://")
def load_from_pavi(filename: str, offline: bool) -> Located:
    """Refuses addresses of pavi, which only runs inside one company."""
    raise NotImplementedError(
        f"{shown_address(filename)}: pavi's model cloud is not supported. Download the file and give its path"
    )

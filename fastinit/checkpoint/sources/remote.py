"""Checkpoints elsewhere: on web servers, on the Hugging Face Hub, and on file systems of fsspec."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from pathlib import Path
from typing import Any

from ...errors import InitFileNotFoundError, InitImportError, InitNotImplementedError, InitRuntimeError, InitValueError
from ..formats.by_content import NAMES_IN_FOLDER, chosen_name
from ..messages import listed, shown
from .addresses import shown_address
from .downloads import NotDownloaded, cache_folder, cached, download
from .located import Located


def locate_http(filename: str, offline: bool) -> Located:
    """Locates a file of a web server in the cache, and downloads it if need be."""
    base = re.split(r"[?#]", filename, maxsplit=1)[0].rpartition("/")[0]

    def fetch(name: str) -> Path:
        return download(f"{base}/{urllib.parse.quote(name)}", offline=offline)

    return Located(download(filename, offline=offline), fetch, is_copy=True)


def locate_hf(filename: str, offline: bool) -> Located:
    """Locates ``hf://org/name[@revision][/file]`` in the cache of huggingface_hub, and downloads it if need be."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise InitImportError(
            f"{shown(filename)} needs huggingface_hub", place=shown(filename), hint=": pip install 'torch-fastinit[hf]'"
        ) from error
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/(.+))?", filename)
    if found is None:
        raise InitValueError(
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
            raise InitFileNotFoundError(
                f"{shown(filename)}: none of its files is named as checkpoints are",
                place=shown(filename),
                hint=f". Name one: {listed(sorted(held), 20)}",
            )
    folder = name.rpartition("/")[0]
    return Located(fetch(name), lambda shard: fetch(f"{folder}/{shard}" if folder else shard), is_copy=True)


def fsspec_for(filename: str) -> Any:
    """Returns the module fsspec, or raises ImportError that says what needs it."""
    try:
        import fsspec
    except ImportError as error:
        raise InitImportError(
            f"{shown_address(filename)} needs fsspec",
            place=shown_address(filename),
            hint=": pip install 'torch-fastinit[remote]'",
        ) from error
    return fsspec


def locate_fsspec(filename: str, offline: bool) -> Located:
    """Locates a file of a remote file system in the cache, and copies it there with fsspec if need be."""
    fsspec = fsspec_for(filename)
    if offline:
        # The name of the cached file depends on the version that the server has now.
        raise NotDownloaded(shown_address(filename))
    protocol = filename.partition("://")[0]
    try:
        system, remote = fsspec.core.url_to_fs(filename)
    except (ImportError, ValueError) as error:
        raise InitImportError(
            f"{shown_address(filename)}: fsspec cannot reach {protocol}:// as it is installed: {shown(error)}",
            place=shown_address(filename),
        ) from None

    def fetch(path: str) -> Path:
        source = shown(f"{protocol}://{path}")
        try:
            version = system.ukey(path)
        except FileNotFoundError:
            raise InitFileNotFoundError(f"{source} can not be found.", place=source) from None
        except NotImplementedError:
            version = repr(sorted(system.info(path).items(), key=str))
        folder = hashlib.sha256(f"{protocol}://{path} {version}".encode("utf-8", "surrogatepass")).hexdigest()[:16]

        def copy_to(partial: Path) -> None:
            try:
                system.get_file(path, str(partial))
                n_bytes, size = partial.stat().st_size, system.info(path).get("size")
                if size is not None and n_bytes != size:
                    raise InitRuntimeError(
                        f"{source}: {n_bytes:,} of {size:,} bytes came. Nothing was kept",
                        place=source,
                        hint="; try again",
                    )
            except BaseException:
                partial.unlink(missing_ok=True)  # it cannot be resumed
                raise

        return cached(cache_folder() / folder / path.rpartition("/")[2], source, copy_to, offline=False)

    parent = remote.rpartition("/")[0]
    return Located(fetch(remote), lambda name: fetch(f"{parent}/{name}"), is_copy=True)


# --- OpenMMLab's own clusters ----------------------------------------------------------------------------------------


def locate_ceph(filename: str, offline: bool) -> Located:
    """Refuses addresses of petrel, which only runs inside one company."""
    address = shown_address("s3://" + filename.partition("://")[2])
    raise InitNotImplementedError(
        f"{shown_address(filename)}: petrel's storage is not supported",
        place=shown_address(filename),
        hint=f". If the server speaks S3, use {address!r} "
        f"(pip install s3fs; its address is FSSPEC_S3_ENDPOINT_URL), else download the file and give its path",
    )


def locate_pavi(filename: str, offline: bool) -> Located:
    """Refuses addresses of pavi, which only runs inside one company."""
    raise InitNotImplementedError(
        f"{shown_address(filename)}: pavi's model cloud is not supported",
        place=shown_address(filename),
        hint=". Download the file and give its path",
    )

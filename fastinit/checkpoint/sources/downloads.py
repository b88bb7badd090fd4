"""Files from web servers, kept in torch.hub's cache: whole or not at all, fetched by one process at a time."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch

from ...errors import InitRuntimeError
from ..messages import shown
from ..mmengine_log import log
from .addresses import Address
from .contents import HEAD_BYTES, why_no_checkpoint, why_not_whole
from .partial import Partial, note_of, on_disk
from .transfer import Advance, Changed, Interrupted, no_checkpoint, transfer

# A connection without a byte for this long is dead.
TIMEOUT_S = 30.0
ATTEMPTS = 5
# Seconds before the second attempt; doubled for each further one.
FIRST_PAUSE_S = 1.0
# The longest pause that a server may ask for.
MAX_PAUSE_S = 120.0
# A process that waits longer for another's download logs it.
QUIET_WAIT_S = 5.0
_BLOCK_BYTES = 1 << 20
# By convention the end of a checkpoint's name is the beginning of its SHA-256.
_HASH = re.compile(r"[-_]([0-9a-f]{8,64})(?:\.[A-Za-z0-9]+)+$")
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")


class NotDownloaded(Exception):  # noqa: N818 (plans ask, and go without)
    """The file is not in the cache, and nothing may be downloaded."""


def cache_folder() -> Path:
    """Returns the cache of downloads: torch.hub's folder, so that its downloads are found, too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str | Address, folder: Path | None = None) -> Path:
    """Returns where the file of an address is kept.

    A name that ends with a hash says which file it is. Others (``pytorch_model.bin``) go to a folder of their address.

    Raises:
        ValueError: the address is invalid, or names no file.
    """
    address = url if isinstance(url, Address) else Address.of(url)
    name = address.name
    folder = cache_folder() if folder is None else folder
    if hash_in(name) and not name.startswith("."):  # hidden names belong to partial files and locks
        return folder / name
    return folder / hashlib.sha256(address.url.encode()).hexdigest()[:16] / name


def hash_in(name: str) -> str | None:
    """Returns the beginning of the SHA-256 that a file's name ends with; eight digits that are a date are none."""
    found = _HASH.search(name)
    return None if found is None or _DATE.fullmatch(found[1]) else found[1]


def download(url: str, *, folder: Path | None = None, offline: bool = False, progress: bool = True) -> Path:
    """Returns the path of a file of the web, which is downloaded unless it is in the cache.

    Processes that want the same file (the ranks of a node, jobs that share the folder) wait for the one that fetches
    it. An interrupted download is resumed if the server can, also by a later call, and never with bytes of another
    version of the file.

    Args:
        url: http or https; ``user:password@`` in front of the host is sent as Basic authentication.
        folder: the cache; None: torch.hub's.
        offline: only look into the cache.
        progress: show a bar, where tqdm is installed and stderr is a terminal.

    Raises:
        NotDownloaded: ``offline``, and it is not there.
        RuntimeError: the server does not have the file, does not answer, or sends something that is no checkpoint or
            does not match the hash in its name; or the cache cannot be written.
        ValueError: ``url`` is no address of a file.
    """
    address = Address.of(url)
    path = cached_path(address, folder)

    def fetch(target: Path) -> None:
        _fetch(address, Partial(target, address.place, address.shown), progress)

    return cached(path, address.shown, fetch, offline=offline)


def cached(path: Path, source: str, fetch: Callable[[Path], None], *, offline: bool) -> Path:
    """Returns ``path``; if it is not there, ``fetch`` makes it under another name, with a lock on it.

    Args:
        path: in the cache.
        source: where it comes from, for messages.
        fetch: writes the file to the path that it is given.
        offline: it may not be called.

    Raises:
        NotDownloaded: ``offline``, and it is not there.
        RuntimeError: it is no checkpoint, or does not match the hash in its name; or the cache cannot be written.
    """
    with on_disk(path.parent, source):
        if path.is_file():
            return path
    if offline:
        raise NotDownloaded(source)
    partial = path.with_name(f".{path.name}.partial")
    with _locked(path, source):
        if not path.is_file():  # another process was first
            fetch(partial)
            with on_disk(path.parent, source):
                if (problem := _problem_of(partial, path.name, source)) is not None:
                    partial.unlink()
                    note_of(partial).unlink(missing_ok=True)
                    raise InitRuntimeError(problem)
                partial.replace(path)
                note_of(partial).unlink(missing_ok=True)
    return path


def _problem_of(partial: Path, name: str, source: str) -> str | None:
    """Returns the message about a bad download, None if it is good."""
    with partial.open("rb") as file:
        what = why_no_checkpoint(file.read(HEAD_BYTES))
    expected = hash_in(name)
    if what is None and expected is None:
        what = why_not_whole(partial)
    if what is not None:
        return no_checkpoint(source, what)
    if expected is None or (found := _sha256(partial)).startswith(expected):
        return None
    return (
        f"{source}: the file's SHA-256 is {found[: max(16, len(expected))]}..., but its name says that it begins with "
        f"{expected}. Nothing was kept; try again, or get the file from elsewhere"
    )


@contextmanager
def _locked(path: Path, source: str) -> Iterator[None]:
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    with on_disk(path.parent, source):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=QUIET_WAIT_S)
        except filelock.Timeout:
            log(f"{source}: waiting for another process that is downloading it", "current")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch(address: Address, partial: Partial, progress: bool) -> None:
    """Downloads a file; retries transient failures."""
    source = address.shown
    log(f"Downloading: {source}", "current")
    pause, attempt, is_anew = FIRST_PAUSE_S, 1, False
    with _bar(partial.path, progress) as advance:
        while True:
            had = partial.size
            try:
                transfer(address, partial, TIMEOUT_S, advance)
                return
            except Changed as change:
                partial.forget()
                if is_anew:
                    raise InitRuntimeError(
                        f"{source}: the file does not stay the same while it is downloaded: {change}. Nothing was kept",
                        place=source,
                    ) from None
                is_anew = True
                log(f"{source}: {change}; the download starts over", "current")
                continue
            except Interrupted as interrupted:
                problem, wait = str(interrupted), max(pause, interrupted.wait_s)
            if attempt == ATTEMPTS or wait > MAX_PAUSE_S:
                asks = f" and asks to wait for {wait:,.0f} seconds" if wait > MAX_PAUSE_S else ""
                raise InitRuntimeError(
                    f"{source}: the download failed {attempt} times, at last because: {problem}{asks}. "
                    f"{partial.settled()}",
                    place=source,
                )
            attempt += 1
            log(f"{source}: {problem}; attempt {attempt} of {ATTEMPTS} follows", "current")
            time.sleep(wait)
            pause = FIRST_PAUSE_S if partial.size > had else 2 * pause


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _bar(partial: Path, progress: bool) -> Iterator[Advance]:
    """Shows a progress bar if tqdm is installed and stderr is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda n_bytes, total: None
        return
    name = shown(partial.name.removeprefix(".").removesuffix(".partial"))
    hidden = not progress or not sys.stderr.isatty()
    with tqdm(unit="B", unit_scale=True, desc=name, disable=hidden) as bar:

        def advance(n_bytes: int, total: int | None) -> None:
            bar.total = total
            if n_bytes < bar.n:  # it started over
                bar.reset(total)
            bar.update(n_bytes - bar.n)

        yield advance

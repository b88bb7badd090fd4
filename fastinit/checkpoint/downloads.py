"""Files from web servers, kept in torch.hub's cache: whole or not at all, fetched by one process at a time."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .messages import log

# Seconds without a byte after which a connection counts as dead.
TIMEOUT_S = 30.0
ATTEMPTS = 5
# Seconds before the second attempt; doubled for each further one.
FIRST_PAUSE_S = 1.0
# A server that asks for more patience than this is not waited for.
MAX_PAUSE_S = 120.0
_BLOCK_BYTES = 1 << 20
# By convention the end of a checkpoint's name is the beginning of its SHA-256.
_HASH = re.compile(r"[-_]([0-9a-f]{8,64})(?:\.[A-Za-z0-9]+)+$")
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
# Trying again is of use: the server is busy, or something between it and us broke.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class NotDownloaded(Exception):  # noqa: N818 (plans ask, and go without)
    """The file is not in the cache, and nothing may be downloaded."""


def cache_folder() -> Path:
    """Returns where downloads are kept: torch.hub's folder, so that its downloads are found too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_path(url: str, folder: Path | None = None) -> Path:
    """Returns where the file of an address is kept.

    A name that ends with a hash says which file it is. Others (``pytorch_model.bin``) go to a folder of their address.
    """
    name = urllib.parse.unquote(Path(urllib.parse.urlparse(url).path).name)
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"the address {url!r} names no file")
    folder = cache_folder() if folder is None else folder
    return folder / name if hash_in(name) else folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def hash_in(name: str) -> str | None:
    """Returns the beginning of the SHA-256 that a file's name ends with; eight digits that are a date are none."""
    found = _HASH.search(name)
    return None if found is None or _DATE.fullmatch(found[1]) else found[1]


def download(url: str, *, folder: Path | None = None, offline: bool = False, progress: bool = True) -> Path:
    """Returns the path of a file of the web, which is downloaded unless it is in the cache.

    Processes that want the same file (the ranks of a node, jobs that share the folder) wait for the one that fetches
    it. What was broken off is resumed where the server can, also by a later call.

    Args:
        url: http or https.
        folder: the cache; None: torch.hub's.
        offline: only look into the cache.
        progress: show a bar, where tqdm is installed and stderr is a terminal.

    Raises:
        NotDownloaded: ``offline``, and it is not there.
        RuntimeError: the server does not have the file, does not answer, or sends another one than its name says.
    """
    path = cached_path(url, folder)

    def fetch(partial: Path) -> None:
        _fetch(url, partial, progress)

    return cached(path, url, fetch, offline=offline)


def cached(path: Path, source: str, fetch: Callable[[Path], None], *, offline: bool) -> Path:
    """Returns ``path``; if it is not there, ``fetch`` makes it under another name, with a lock on it.

    Raises:
        NotDownloaded: ``offline``, and it is not there.
        RuntimeError: its name tells another hash.
    """
    if path.is_file():
        return path
    if offline:
        raise NotDownloaded(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.is_file():  # another process was first
            fetch(partial)
            expected = hash_in(path.name)
            if expected is not None:
                found = _sha256(partial)
                if not found.startswith(expected):
                    partial.unlink()
                    _validator_of(partial).unlink(missing_ok=True)
                    raise RuntimeError(
                        f"{source}: the file's SHA-256 is {found[: max(16, len(expected))]}..., but its name says that "
                        f"it begins with {expected}. Nothing was kept; try again, or get the file from elsewhere"
                    )
            partial.replace(path)
            _validator_of(partial).unlink(missing_ok=True)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import filelock

    with filelock.FileLock(path):
        yield


def _fetch(url: str, partial: Path, progress: bool) -> None:
    log(f"Downloading: {url}", "current")
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        had = partial.stat().st_size if partial.exists() else 0
        wait = pause
        try:
            _fetch_rest(url, partial, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise RuntimeError(f"{url}: the server answers {error.code} {error.reason}") from None
            wait, problem = max(pause, _retry_after(error)), f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException, EOFError) as error:
            reason = getattr(error, "reason", error)
            problem = str(reason) or type(reason).__name__
            if isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME:
                raise RuntimeError(f"{url}: the server cannot be found ({reason}). Is this machine offline?") from None
        got = partial.stat().st_size if partial.exists() else 0
        if attempt == ATTEMPTS or wait > MAX_PAUSE_S:
            raise RuntimeError(
                f"{url}: the download failed {attempt} times, at last because: {problem}. {got:,} bytes are kept in "
                f"{partial}, and the next call goes on from there"
            )
        log(f"{url}: {problem}; attempt {attempt + 1} of {ATTEMPTS} follows", "current")
        time.sleep(wait)
        pause = FIRST_PAUSE_S if got > had else 2 * pause


def _fetch_rest(url: str, partial: Path, progress: bool) -> None:
    """Downloads what is missing of a file, in one connection."""
    headers = {"User-Agent": "fastinit", "Accept-Encoding": "identity"}
    n_had, validator = _resumable(partial)
    if n_had:
        headers |= {"Range": f"bytes={n_had}-", "If-Range": validator}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        partial.unlink()  # what we have is longer than the file is now
        raise EOFError("the file has changed on the server") from None
    with answer:
        if n_had and (answer.status != 206 or not _continues(answer.headers.get("Content-Range", ""), n_had)):
            if answer.status == 206:
                partial.unlink()
                raise EOFError("the server sends another part of the file than was asked for")
            n_had = 0  # from the beginning
        length = answer.headers.get("Content-Length")
        expected = None if length is None else n_had + int(length)
        if not n_had:
            strong = answer.headers.get("ETag") or ""
            modified = answer.headers.get("Last-Modified") or ""
            again = strong if strong and not strong.startswith("W/") else modified
            _validator_of(partial).write_text(json.dumps({"url": url, "validator": again}))
        with partial.open("ab" if n_had else "wb") as file, _bar(partial, expected, n_had, progress) as advance:
            while block := answer.read(_BLOCK_BYTES):
                file.write(block)
                advance(len(block))
            n_got = file.tell()
    if expected is not None and n_got != expected:
        raise EOFError(f"the connection ended after {n_got:,} of {expected:,} bytes")


def _continues(content_range: str, n_had: int) -> bool:
    found = re.match(r"bytes (\d+)-", content_range)
    return found is not None and int(found[1]) == n_had


def _validator_of(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _resumable(partial: Path) -> tuple[int, str]:
    """Returns how many bytes are there, and what the server knows that version of the file by; (0, "") to restart."""
    try:
        validator = json.loads(_validator_of(partial).read_text())["validator"]
        n_had = partial.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    return (n_had, validator) if n_had and isinstance(validator, str) and validator else (0, "")


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Returns the seconds that the server asks for."""
    text = error.headers.get("Retry-After", "") if error.headers else ""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _bar(partial: Path, total: int | None, n_had: int, progress: bool) -> Iterator[Callable[[int], Any]]:
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda n_bytes: None
        return
    name = partial.name.removeprefix(".").removesuffix(".partial")
    hidden = not progress or not sys.stderr.isatty()
    with tqdm(total=total, initial=n_had, unit="B", unit_scale=True, desc=name, disable=hidden) as bar:
        yield bar.update

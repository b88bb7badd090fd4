"""Downloads one version of a file completely, or raises an error that says whether to retry."""

from __future__ import annotations

import email.utils
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ...errors import InitRuntimeError
from ..messages import shown
from .addresses import Address
from .contents import HEAD_BYTES, why_no_checkpoint
from .partial import Partial, Version

# Browsers follow 20, curl 50; each is a round trip, and no model zoo needs more than 3.
MAX_REDIRECTS = 10
# A slower connection counts as broken: at this rate 100 MB take a day. A telephone modem of 1998 reached 5,000.
MIN_BYTES_PER_S = 1000
# Over so many seconds: longer than the silence that counts as a dead connection, and than a server needs to wake up.
WINDOW_S = 60.0
# How many parts a server may cut a file into: it is allowed to send less than was asked for, but each costs a request.
_MAX_PARTS, _BYTES_PER_PART = 1000, 64 << 10
# What one read of a connection may bring; a socket seldom has more.
_BLOCK_BYTES = 1 << 18
# Worth a retry: the server is busy, or a proxy failed.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A file of 10^18 bytes is no checkpoint; more digits only cost time.
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
# The server does not speak our TLS, or none at all; a retry will not help.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "HTTP_REQUEST", "TLSV1_ALERT_PROTOCOL_VERSION"})

Advance = Callable[[int, "int | None"], Any]
"""Called with the number of bytes downloaded, and the total."""


class Interrupted(Exception):  # noqa: N818 (a state that the caller acts upon)
    """The download was interrupted and can be retried, after ``wait_s`` seconds at the earliest."""

    def __init__(self, problem: str, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


class Changed(Exception):  # noqa: N818
    """The download cannot be resumed: the server has, or may have, another version of the file now."""


def transfer(address: Address, partial: Partial, timeout_s: float, advance: Advance) -> None:
    """Downloads the rest of a file, in as many parts as the server cuts it into.

    Args:
        address: of the file.
        partial: the bytes downloaded so far.
        timeout_s: a connection without a byte for this long is dead.
        advance: called after each block.

    Raises:
        Interrupted: a retry may help.
        Changed: a retry from the beginning may help.
        RuntimeError: a retry will not help.
    """
    with _Watch() as watch:
        n_parts = 0
        while (total := _part(address, partial, timeout_s, advance, watch)) is not None:
            n_parts += 1
            if n_parts > _MAX_PARTS + total // _BYTES_PER_PART:
                raise InitRuntimeError(
                    f"{address.shown}: the server sends the file in more than {n_parts - 1:,} parts",
                    place=address.shown,
                )


def _part(address: Address, partial: Partial, timeout_s: float, advance: Advance, watch: _Watch) -> int | None:
    """Downloads one response. Returns None if the file is complete, else its size."""
    source = address.shown
    n_had, known = partial.begun()
    if n_had and known.total is not None and n_had >= known.total:
        if n_had > known.total:
            raise Changed(f"{n_had:,} bytes were downloaded of a file of {known.total:,}")
        return None  # complete, only not renamed yet
    headers = {"User-Agent": "fastinit", "Accept-Encoding": "identity"}
    if n_had:
        headers |= {"Range": f"bytes={n_had}-", "If-Range": known.validator}
    with _network(source, watch):
        answer = _answer(address, headers, timeout_s, watch, n_had)
    with answer:
        version, start, n_expected = _announced(answer, n_had, known, source)
        if n_expected is not None:
            partial.check_space(start + n_expected - partial.size)
        n_got = start
        with partial.opened(anew=not start) as file:
            partial.note(
                version
            )  # not before: a process killed here must not leave old bytes marked as the new version
            head = b""
            while True:
                # No more than announced: a server may keep the connection open, and older Pythons would wait.
                n_rest = _BLOCK_BYTES if n_expected is None else min(_BLOCK_BYTES, start + n_expected - n_got)
                with _network(source, watch):
                    block = answer.read1(n_rest) if n_rest else b""
                    watch.saw(len(block))
                n_got += len(block)
                is_all = not block and n_got == (n_got if version.total is None else version.total)
                if start == 0 and len(head) < HEAD_BYTES:
                    head += block[: HEAD_BYTES - len(head)]
                    # Refuse other files before gigabytes of them are downloaded.
                    if (len(head) == HEAD_BYTES or is_all) and (what := why_no_checkpoint(head)) is not None:
                        partial.forget()
                        raise InitRuntimeError(no_checkpoint(source, what))
                if not block:
                    break
                partial.write(file, block)
                advance(n_got, version.total)
    if n_expected is not None and n_got != start + n_expected:
        raise Interrupted(f"the connection ended after {n_got:,} of {version.total or start + n_expected:,} bytes")
    return None if version.total is None or n_got == version.total else version.total


def no_checkpoint(source: str, what: str) -> str:
    """Returns the message about a download that is no checkpoint."""
    return (
        f"{source} leads to {what}, and not to a checkpoint. Nothing was kept, and the next call asks again. Open the "
        f"address in a browser: it may have moved, or ask for a login. Or get the file otherwise, and give its path"
    )


def _announced(answer: Any, n_had: int, known: Version, source: str) -> tuple[Version, int, int | None]:
    """Returns the version of a response, its first byte, and its length (None: unknown)."""
    headers = answer.headers
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise InitRuntimeError(
            f"{source}: the server sends the file compressed ({shown(encoding)}), although fastinit asked for it "
            f"uncompressed. Nothing was kept",
            place=source,
            hint=". Get the file in another way, decompress it, and give its path",
        )
    is_chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
    length = None if is_chunked else _length(headers.get_all("Content-Length") or [], source)
    if answer.status in (200, 203):  # the whole file, even if a part was requested
        return Version.of(headers, length), 0, length
    if answer.status != 206:
        raise InitRuntimeError(
            f"{source}: the server answers {_status(answer.status, answer.reason)}, and no file", place=source
        )
    found = _CONTENT_RANGE.fullmatch((headers.get("Content-Range") or "").strip())
    begin, end = (int(found[1]), int(found[2]) + 1) if found else (-1, -1)
    total = int(found[3]) if found and found[3] != "*" else known.total
    version = Version.of(headers, total)
    if begin != n_had or total is None or not begin < end <= total:
        text = shown(headers.get("Content-Range") or "without saying which")
        raise _unfit(n_had, source, f"the server sends a different part of the file than requested ({text})")
    if length is not None and length != end - begin:
        text = f"{length:,} bytes in its header and {end - begin:,} in its range"
        raise _unfit(n_had, source, f"the server announces {text}")
    if n_had and not known.is_continued_by(version):
        raise Changed("the file has changed on the server, or the server does not say that it has not")
    if not version.validator and not n_had and end < total:
        raise InitRuntimeError(
            f"{source}: the server sends only a part of the file, without anything that identifies its version",
            place=source,
        )
    return (replace(known, total=total) if n_had else version), n_had, end - begin


def _unfit(n_had: int, source: str, problem: str) -> Exception:
    """Returns the error about an unusable part; after a resumed request, the whole file can still be requested."""
    return Changed(problem) if n_had else InitRuntimeError(f"{source}: {problem}", place=source)


def _length(values: list[str], source: str) -> int | None:
    """Returns the value of ``Content-Length``, None if there is none."""
    lengths = {value.strip() for value in values}
    if not lengths:
        return None
    if len(lengths) > 1 or not _NUMBER.fullmatch(text := lengths.pop()):
        text = ", ".join(values)
        raise InitRuntimeError(
            f"{source}: the server says that the file has {shown(text)!r} bytes, which is no number", place=source
        )
    return int(text)


# --- one request, and the redirects that it leads to -----------------------------------------------------------------


def _answer(address: Address, headers: dict[str, str], timeout_s: float, watch: _Watch, n_had: int) -> Any:
    opener = urllib.request.build_opener(_NoRedirects, _Handler(watch), _SecureHandler(watch))
    source, authorization = address.shown, address.authorization
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(address.url, headers=headers)
        if authorization is not None:
            request.add_unredirected_header("Authorization", authorization)
        try:
            return opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            location = error.headers.get("Location") if error.code in _REDIRECTS and error.headers else None
            if location is None:
                raise _refusal(error, source, n_had) from None
        target = _target(address, location, source)
        if target.authorization is not None:
            authorization = target.authorization
        elif not target.may_send_credentials_of(address):
            authorization = None  # for good, even if that server redirects back
        address = target
    raise InitRuntimeError(f"{source}: the server redirects more than {MAX_REDIRECTS} times", place=source)


def _target(address: Address, location: str, source: str) -> Address:
    """Returns the target of a redirect."""
    with suppress(UnicodeError):  # http.client takes bytes for Latin-1; servers that send more than ASCII send UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        target = Address.of(urllib.parse.urljoin(address.url, location))
    except ValueError as error:
        raise InitRuntimeError(f"{source}: the server redirects, but {error}", place=source, of=error) from None
    if address.scheme == "https" and target.scheme == "http":
        raise InitRuntimeError(
            f"{source}: the server redirects from https to {target.shown}, where anybody on the way could replace the "
            f"file",
            place=source,
            hint=". If you want that, give that address",
        )
    return target


def _refusal(error: urllib.error.HTTPError, source: str, n_had: int) -> Exception:
    """Returns the exception for an HTTP error."""
    status = _status(error.code, error.reason)
    if error.code == 416 and n_had:
        return Changed("the local part is longer than the file on the server")
    if error.code in _PASSING:
        return Interrupted(f"the server answers {status}", _retry_after(error))
    hint = ". Credentials go in front of the host: https://user:password@..." if error.code == 401 else ""
    return InitRuntimeError(f"{source}: the server answers {status}", place=source, hint=hint)


def _status(code: int, reason: object) -> str:
    return f"{code} {shown(reason)}".strip()


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Returns the seconds that the server asks for."""
    text = (error.headers.get("Retry-After") or "" if error.headers else "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0


@contextmanager
def _network(source: str, watch: _Watch) -> Iterator[None]:
    """Sorts network errors into those that may be retried (Interrupted) and others (RuntimeError)."""
    try:
        yield
    except (OSError, http.client.HTTPException, EOFError, ValueError) as error:
        watch.check()
        reason = getattr(error, "reason", error) if isinstance(error, urllib.error.URLError) else error
        is_cut = isinstance(reason, (http.client.IncompleteRead, EOFError))
        text = "the connection ended early" if is_cut else shown(reason) or type(reason).__name__
        if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
            raise InitRuntimeError(
                f"{source}: the server cannot be found ({text})", place=source, hint=". Is this machine offline?"
            ) from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InitRuntimeError(
                f"{source}: the server's certificate is not trusted ({text})", place=source
            ) from None
        if isinstance(reason, ssl.SSLError) and getattr(reason, "reason", None) in _NO_TLS:
            raise InitRuntimeError(
                f"{source}: the server does not speak https as this machine does ({text})", place=source
            ) from None
        if not (is_cut or isinstance(reason, OSError)):
            raise InitRuntimeError(
                f"{source}: the server's response is not valid HTTP ({text})", place=source
            ) from error
        raise Interrupted(text) from error
    watch.check()


# --- a connection that is alive and brings nothing -------------------------------------------------------------------


class _Watch:
    """Ends connections that are too slow: with single bytes they could keep a process for years.

    A timeout only notices silence, so another thread counts bytes, and shuts down the socket.
    """

    def __init__(self) -> None:
        self.socket: Any = None
        self._n_bytes = 0
        self._gave_up = False
        self._done = threading.Event()
        self._window_s, self._least = WINDOW_S, MIN_BYTES_PER_S * WINDOW_S
        self._thread = threading.Thread(target=self._count, name="fastinit-download", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def saw(self, n_bytes: int) -> None:
        """Counts received bytes."""
        self._n_bytes += n_bytes

    def check(self) -> None:
        """Raises Interrupted if the connection was ended."""
        if self._gave_up:
            raise Interrupted(f"fewer than {self._least:,.0f} bytes came in {self._window_s:g} seconds")

    def _count(self) -> None:
        before = 0
        while not self._done.wait(self._window_s):
            now = self._n_bytes
            if now - before < self._least:
                self._gave_up = True
                break
            before = now
        while self._gave_up:
            with suppress(OSError, TypeError):  # there may be no socket yet
                # Not SSLSocket's own method, which breaks the reading thread.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
            if self._done.wait(1):
                break


def _watched(kind: Any, watch: _Watch) -> Any:
    """Returns a class of connections that register their socket with a watch."""

    class Watched(kind):  # type: ignore[misc]
        @property
        def sock(self) -> Any:
            return self._own_socket

        @sock.setter
        def sock(self, opened: Any) -> None:
            self._own_socket = opened
            if opened is not None:
                watch.socket = opened

    return Watched


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._connection = _watched(http.client.HTTPConnection, watch)

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._connection = _watched(http.client.HTTPSConnection, watch)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Disables urllib's redirects, which would send credentials anywhere, and follow ftp."""

    def _left(self, *_: Any) -> None:
        return None

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = _left  # type: ignore[assignment]

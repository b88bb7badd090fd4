"""Addresses as users write them: what is sent to a server of them, what is kept secret, and ``file://``."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from ..messages import MAX_SHOWN, shown

# What an address may hold as it is: RFC 3986's reserved and unreserved characters. Others are sent percent-encoded,
# as browsers do; a "%" stays one where two hex digits follow.
_SAFE = "!#$%&'()*+,-./:;=?@[]_~"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# After IDNA: a name or an IPv4 address; else an IPv6 address in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
_NO_PORT = re.compile(r"://[^/?#@\[]*:(?![0-9]*(?:[/?#]|$))[^/?#@]*(?:[/?#]|$)")
_UP_TO_LAST_AT = re.compile(r"(?<=://).*@", re.DOTALL)
# Parts of the names of what must stay secret in a query: X-Amz-Signature, sig, access_token, AWSAccessKeyId, ...
_SECRET = re.compile(r"sig|tok|key|secret|pass|pwd|auth|cred|cookie|session|policy|jwt|code|ticket", re.IGNORECASE)
# Linux's PATH_MAX.
_MAX_PATH = 4096
# A value of a query that is longer is rather a secret of another name than something that a reader looks for.
_LONG_VALUE = 40


@dataclass(frozen=True)
class Address:
    """An http or https address, checked and in the form that is sent.

    Raises (``of``):
        ValueError: it cannot be the address of a file; the message holds no password.
    """

    url: str
    """ASCII, percent-encoded, without credentials and fragment."""
    scheme: str
    host: str
    port: int
    authorization: str | None = field(repr=False)
    """What goes into the header of that name: the address had ``user:password@`` in front of the host."""
    shown: str
    """For messages: secrets are left out, and nothing in it controls a terminal."""

    @staticmethod
    def of(text: str) -> Address:
        """Returns what a user wrote, or a server that redirects."""
        told = shown_address(text)
        if text != text.strip():
            raise ValueError(f"the address {told!r} begins or ends with a blank or a line end")
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise ValueError(f"the address {told} holds a control character, which no address can")
        try:
            text.encode("utf-8")
            parts = urllib.parse.urlsplit(text)
            user, at, host_and_port = parts.netloc.rpartition("@")
            port = urllib.parse.urlsplit(f"//{host_and_port}").port
        except ValueError as error:  # whose message may hold what stands in front of "@"
            why = (
                "a character that cannot be sent" if isinstance(error, UnicodeError) else "a host or port that is none"
            )
            raise ValueError(f"the address {told} holds {why}") from None
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise ValueError(f"the address {told} is neither http nor https")
        host = _ascii_host(host_and_port, told)
        netloc = host if port is None else f"{host}:{port}"
        path = _encoded(parts.path, safe=_SAFE.replace("?", "").replace("#", ""))
        query = "?" + _encoded(parts.query, safe=_SAFE.replace("#", "")) if parts.query else ""
        return Address(
            f"{scheme}://{netloc}{path}{query}",
            scheme,
            host.lower(),
            _DEFAULT_PORTS[scheme] if port is None else port,
            _basic(user) if at else None,
            told,
        )

    @property
    def name(self) -> str:
        """The name of the file that it leads to, as it is called on a disk.

        Raises:
            ValueError: it leads to no file.
        """
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])
        if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
            raise ValueError(f"the address {self.shown!r} names no file")
        return "".join(each if each.isprintable() else urllib.parse.quote(each) for each in name)

    @property
    def place(self) -> str:
        """Server and path without the query, which is another each time where addresses are signed."""
        return self.url.partition("?")[0]

    def may_send_credentials_of(self, other: Address) -> bool:
        """Tells whether credentials for another address may come here: the same server, or https of it after http."""
        here, there = (self.scheme, self.port), (other.scheme, other.port)
        return self.host == other.host and (here == there or (there == ("http", 80) and here == ("https", 443)))


def shown_address(name: object) -> str:
    """Returns an address (or a path) for messages and logs: without credentials, and safe to print.

    What stands in front of ``@`` is left out, and of a query and a fragment the values that may be secrets, such as
    those of signed addresses.
    """
    text = os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
    if "://" not in text:
        return shown(text, _MAX_PATH)
    # A password may hold what ends a host. Then what is left in front of it looks like a port and is none.
    is_cut = _NO_PORT.search(text) is not None
    head, *parameters = re.split(r"([?#&;])", (_UP_TO_LAST_AT if is_cut else _USERINFO).sub("***@", text))
    return shown(head + "".join(map(_without_secret, parameters)), 2 * MAX_SHOWN)


def _without_secret(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not equals:
        return "***" if len(parameter) > _LONG_VALUE and "/" not in parameter else parameter
    return f"{name}={'***' if value and (_SECRET.search(name) or len(value) > _LONG_VALUE) else value}"


def _ascii_host(host_and_port: str, told: str) -> str:
    host = re.sub(r":[0-9]*$", "", host_and_port)
    if not host.startswith("["):
        try:
            host = host.encode("idna").decode("ascii")  # also refuses labels that are empty or too long
        except UnicodeError:
            host = ""
    if not _HOST.fullmatch(host):
        raise ValueError(f"the address {told} has no host that can be asked")
    return host


def _encoded(text: str, safe: str) -> str:
    return urllib.parse.quote(_LONE_PERCENT.sub("%25", text), safe=safe)


def _basic(user_and_password: str) -> str:
    user, _, password = user_and_password.partition(":")
    plain = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    return "Basic " + base64.b64encode(plain.encode("utf-8")).decode("ascii")


def as_path(filename: str | os.PathLike[str]) -> Path:
    """Returns a local path; ``~`` is understood, and ``file://`` as ``Path.as_uri`` writes it.

    In a ``file://`` address blanks and the like may stand percent-encoded or as they are. Where a file has a name that
    looks percent-encoded itself, and was written so, that file is meant.
    """
    text = os.fspath(filename)
    if not text.lower().startswith("file:/"):
        return Path(text).expanduser()
    plain = text[len("file:") :].removeprefix("//")
    if plain.lower().startswith("localhost/"):
        plain = plain[len("localhost") :]
    path = Path(plain).expanduser()
    if "%" not in plain or path.exists():
        return path
    return Path(os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(plain)))).expanduser()

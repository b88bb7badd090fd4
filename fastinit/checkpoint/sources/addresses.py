"""Addresses as users write them: checks and encodes them, hides their secrets, and resolves ``file://``."""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InitValueError
from ..messages import MAX_SHOWN, shown

# RFC 3986's reserved and unreserved characters, which are sent unchanged. Others are percent-encoded, as in browsers;
# so is a "%" unless two hex digits follow.
_SAFE = "!#$%&'()*+,-./:;=?@[]_~"
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# After IDNA: a name or an IPv4 address; else an IPv6 address in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~%-]+)?\]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_USERINFO = re.compile(r"(?<=://)[^/?#]*@")
_NO_PORT = re.compile(r"://[^/?#@\[]*:(?![0-9]*(?:[/?#]|$))[^/?#@]*(?:[/?#]|$)")
_UP_TO_LAST_AT = re.compile(r"(?<=://).*@", re.DOTALL)
# In names of query parameters that are secret: X-Amz-Signature, sig, access_token, AWSAccessKeyId, ...
_SECRET = re.compile(r"sig|tok|key|secret|pass|pwd|auth|cred|cookie|session|policy|jwt|code|ticket", re.IGNORECASE)
# Linux's PATH_MAX.
_MAX_PATH = 4096
# Longer values in a query are probably secrets with another name.
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
    """The header of that name, for addresses with ``user:password@`` before the host."""
    shown: str
    """For messages: without secrets and control characters."""

    @staticmethod
    def of(text: str) -> Address:
        """Parses an address from a user, or from a redirect."""
        safe_text = shown_address(text)
        if text != text.strip():
            raise InitValueError(f"the address {safe_text!r} begins or ends with a blank or a line end")
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise InitValueError(f"the address {safe_text} holds a control character, which no address can")
        try:
            text.encode("utf-8")
            parts = urllib.parse.urlsplit(text)
            user, at, host_and_port = parts.netloc.rpartition("@")
            port = urllib.parse.urlsplit(f"//{host_and_port}").port
        except ValueError as error:  # its message may quote the password
            why = "a character that cannot be sent" if isinstance(error, UnicodeError) else "an invalid host or port"
            raise InitValueError(f"the address {safe_text} holds {why}") from None
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise InitValueError(f"the address {safe_text} is neither http nor https")
        host = _ascii_host(host_and_port, safe_text)
        netloc = host if port is None else f"{host}:{port}"
        path = _encoded(parts.path, safe=_SAFE.replace("?", "").replace("#", ""))
        query = "?" + _encoded(parts.query, safe=_SAFE.replace("#", "")) if parts.query else ""
        return Address(
            f"{scheme}://{netloc}{path}{query}",
            scheme,
            host.lower(),
            _DEFAULT_PORTS[scheme] if port is None else port,
            _basic(user) if at else None,
            safe_text,
        )

    @property
    def name(self) -> str:
        """The name of the file at this address, valid as a local file name.

        Raises:
            ValueError: the address names no file.
        """
        name = urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rpartition("/")[2])
        if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
            raise InitValueError(f"the address {self.shown!r} names no file")
        return "".join(each if each.isprintable() else urllib.parse.quote(each) for each in name)

    @property
    def place(self) -> str:
        """Server and path without the query, which differs each time in signed addresses."""
        return self.url.partition("?")[0]

    def may_send_credentials_of(self, other: Address) -> bool:
        """Returns whether credentials for another address may be sent here: same server, or http upgraded to https."""
        here, there = (self.scheme, self.port), (other.scheme, other.port)
        return self.host == other.host and (here == there or (there == ("http", 80) and here == ("https", 443)))


def shown_address(name: object) -> str:
    """Returns an address or a path for messages and logs: without credentials, and safe to print.

    The part before ``@`` is left out, and so are values in the query and the fragment that may be secrets, such as
    those of signed addresses.
    """
    text = os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
    if "://" not in text:
        return shown(text, _MAX_PATH)
    # A password may contain characters that end a host; the text before them then looks like an invalid port.
    is_cut = _NO_PORT.search(text) is not None
    head, *parameters = re.split(r"([?#&;])", (_UP_TO_LAST_AT if is_cut else _USERINFO).sub("***@", text))
    return shown(head + "".join(map(_without_secret, parameters)), 2 * MAX_SHOWN)


def _without_secret(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not equals:
        return "***" if len(parameter) > _LONG_VALUE and "/" not in parameter else parameter
    return f"{name}={'***' if value and (_SECRET.search(name) or len(value) > _LONG_VALUE) else value}"


def _ascii_host(host_and_port: str, safe_text: str) -> str:
    host = re.sub(r":[0-9]*$", "", host_and_port)
    if not host.startswith("["):
        try:
            host = host.encode("idna").decode("ascii")  # also refuses labels that are empty or too long
        except UnicodeError:
            host = ""
    if not _HOST.fullmatch(host):
        raise InitValueError(f"the address {safe_text} has no valid host")
    return host


def _encoded(text: str, safe: str) -> str:
    return urllib.parse.quote(_LONE_PERCENT.sub("%25", text), safe=safe)


def _basic(user_and_password: str) -> str:
    user, _, password = user_and_password.partition(":")
    plain = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    return "Basic " + base64.b64encode(plain.encode("utf-8")).decode("ascii")


def as_path(filename: str | os.PathLike[str]) -> Path:
    """Returns a local path; ``~`` is understood, and ``file://`` as ``Path.as_uri`` writes it.

    Characters of a ``file://`` address may be percent-encoded or not. If a file with the literal name exists, it is
    used, even if the name looks percent-encoded.
    """
    text = os.fspath(filename)
    if not text.lower().startswith("file:/"):
        return Path(text).expanduser()
    plain = text[len("file:") :].removeprefix("//")
    if plain.lower().startswith("localhost/"):
        plain = plain[len("localhost") :]
    if os.name == "nt":
        plain = from_drive(plain)
    path = Path(plain).expanduser()
    if "%" not in plain or path.exists():
        return path
    return Path(os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(plain)))).expanduser()


def from_drive(path: str) -> str:
    """Returns ``C:/x`` of an address's ``/C:/x``, which names a drive of Windows; other paths as they are."""
    return re.sub(r"^/+(?=[A-Za-z]:[/\\])", "", path)

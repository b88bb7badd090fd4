"""Addresses: what is sent of them, what stays secret, where redirects may lead; and ``file://``."""

from __future__ import annotations

import base64
import json
import logging
import os
import traceback
from pathlib import Path, PureWindowsPath

import pytest
import torch
from bad_servers import answer, checkpoint, loaded, serving, whole
from torch import nn

import fastinit
from fastinit.checkpoint import CheckpointLoader, load_checkpoint, save_checkpoint, shown_address
from fastinit.checkpoint.sources import downloads, transfer
from fastinit.checkpoint.sources.addresses import Address, as_path, from_drive

GOOD = checkpoint(1.0)
SECRET = "s3cr3t%2Fword"
BASIC = "Basic " + base64.b64encode(b"user:s3cr3t/word").decode()


# --- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "sent", "name"),
    [
        ("/модель.pth", "/%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C.pth", "модель.pth"),
        ("/a b/c d.pth", "/a%20b/c%20d.pth", "c d.pth"),
        ("/a%20b.pth", "/a%20b.pth", "a b.pth"),
        ("/100%.pth", "/100%25.pth", "100%.pth"),
        ("/%zz%41.pth", "/%25zz%41.pth", "%zzA.pth"),
        ('/"<>^`{|}.pth', "/%22%3C%3E%5E%60%7B%7C%7D.pth", '"<>^`{|}.pth'),
        ("/c.pth?name=ü&x=a b#part", "/c.pth?name=%C3%BC&x=a%20b", "c.pth"),
        ("/a;v=1,2/@me/c+d~e.pth", "/a;v=1,2/@me/c+d~e.pth", "c+d~e.pth"),
        ("/%1b%5b31m.pth", "/%1b%5b31m.pth", "%1B[31m.pth"),
        ("/c%0a.pth", "/c%0a.pth", "c%0A.pth"),
        ("/\U0001f600.pth", "/%F0%9F%98%80.pth", "\U0001f600.pth"),
    ],
)
def test_addresses_are_sent_as_browsers_send_them(written, sent, name):
    with serving(whole(GOOD)) as server:
        assert loaded(server.url + written) == [1.0] and server.requests[0].path == sent
        assert downloads.cached_path(server.url + written).name == name
        assert loaded(server.url + written) == [1.0] and len(server.requests) == 1


def test_plain_addresses_are_kept_where_they_were_before():
    import hashlib

    url = "https://example.org/a/b.pth?x=1"
    assert downloads.cached_path(url).parent.name == hashlib.sha256(url.encode()).hexdigest()[:16]


def test_hosts_of_other_scripts_are_sent_as_idna():
    assert Address.of("https://Bücher.example/c.pth").url == "https://xn--bcher-kva.example/c.pth"
    assert Address.of("http://[::1]:8080/c.pth").url == "http://[::1]:8080/c.pth"


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("h/a\nb.pth", "holds a control character"),
        ("h/a\r\nX-Header: 1/b.pth", "holds a control character"),
        ("h/a\tb.pth", "holds a control character"),
        ("h/\x7f.pth", "holds a control character"),
        ("h/c.pth ", "begins or ends with a blank"),
        ("h/c.pth\n", "begins or ends with a blank or a line end"),
        ("h /c.pth", "has no valid host"),
        ("/c.pth", "has no valid host"),
        ("a..b/c.pth", "has no valid host"),
        ("a" * 64 + ".org/c.pth", "has no valid host"),
        ("h\\evil/c.pth", "has no valid host"),
        ("[::1/c.pth", "an invalid host or port"),
        ("h:x/c.pth", "an invalid host or port"),
        ("h:99999/c.pth", "an invalid host or port"),
        ("h℀.org/c.pth", "an invalid host or port"),
        ("h/\ud800.pth", "a character that cannot be sent"),
        ("h/..%5cc.pth", "names no file"),
        ("h/%00.pth", "names no file"),
        ("h", "names no file"),
    ],
    ids=ascii,
)
def test_malformed_addresses_are_refused_at_once_without_showing_a_password(monkeypatch, rest, why):
    monkeypatch.setattr(downloads.time, "sleep", None)
    for url in (f"http://{rest}", f"https://user:{SECRET}@{rest}"):
        for call in (loaded, lambda url: fastinit.plan(nn.Linear(2, 2), dict(type="Pretrained", checkpoint=url))):
            with pytest.raises(ValueError, match=why) as raised:
                call(url)
            assert SECRET not in "".join(traceback.format_exception(raised.value)) and str(raised.value).isprintable()


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_credentials_of_an_address_are_sent_as_basic_authentication():
    def guarded(handler):
        good = handler.headers.get("Authorization") == BASIC
        return (whole(GOOD) if good else answer(b"no", 401))(handler)

    with serving(guarded) as server:
        host = server.url.removeprefix("http://")
        assert loaded(f"http://user:{SECRET}@{host}/c.pth") == [1.0]
        with pytest.raises(RuntimeError, match="answers 401 .*Credentials go in front of the host"):
            loaded(f"{server.url}/d.pth")
        with pytest.raises(RuntimeError, match="answers 401"):
            loaded(f"http://token@{host}/e.pth")
        sent = [request.headers.get("Authorization") for request in server.requests]
        assert sent == [BASIC, None, "Basic " + base64.b64encode(b"token:").decode()]


@pytest.mark.parametrize("status", [200, 404, 503, "page", "cut"])
def test_no_secret_of_an_address_is_printed_logged_or_written(cache, caplog, capsys, monkeypatch, status):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    responds = {200: whole(GOOD), "page": answer(b"<html>"), "cut": answer(GOOD, cut=9999, ETag='"v"')}
    respond = responds.get(status) or answer(b"no", status)
    with serving(respond) as server, caplog.at_level(logging.DEBUG, "fastinit"):
        host = server.url.removeprefix("http://")
        url = (
            f"http://user:{SECRET}@{host}/c.pth?download=true&sig={SECRET}&X-Amz-Security-Token={SECRET}&t={SECRET * 9}"
        )
        told = ""
        made = nn.Linear(60_000, 1, bias=False)
        told += str(fastinit.plan(made, dict(type="Pretrained", checkpoint=url)))
        told += fastinit.plan(made, dict(type="Pretrained", checkpoint=url)).to_json()
        try:
            report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=url))
            told += repr(report) + report.summary() + json.dumps(report.provenance)
            load_checkpoint(made, url, logger=None)
        except RuntimeError as error:
            told += str(error) + repr(error.__cause__)
        told += caplog.text + "".join(capsys.readouterr())
        held = list(cache.rglob("*")) if cache.exists() else []
        told += "".join(map(str, held)) + "".join(path.read_text("latin-1") for path in held if ".json" in path.name)
    assert (
        "s3cr3t" not in told and f"http://***@{host}/c.pth?download=true&sig=***&X-Amz-Security-Token=***&t=***" in told
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("https://u:p@h/c.pth", "https://***@h/c.pth"),
        ("https://u:p#q@h/c.pth", "https://***@h/c.pth"),
        ("https://u:p/q@h/c.pth", "https://***@h/c.pth"),
        ("https://u:p?q@h/c.pth", "https://***@h/c.pth"),
        ("s3://key:secret@bucket/c.pth", "s3://***@bucket/c.pth"),
        ("ftp://u:p@h/c.pth", "ftp://***@h/c.pth"),
        (
            "https://h/c.pth?Signature=ab&Expires=3&Key-Pair-Id=K",
            "https://h/c.pth?Signature=***&Expires=3&Key-Pair-Id=***",
        ),
        ("https://h/c.pth?a=1;token=x#access_token=y", "https://h/c.pth?a=1;token=***#access_token=***"),
        ("https://h/c.pth?" + "x" * 50, "https://h/c.pth?***"),
        ("https://h:80/@me/c@2.pth?download=true", "https://h:80/@me/c@2.pth?download=true"),
        ("http://[::1]:80/c.pth", "http://[::1]:80/c.pth"),
        ("hf://org/name@main/c.pth", "hf://org/name@main/c.pth"),
        ("/a/b@c?token=x.pth", "/a/b@c?token=x.pth"),
        ("a\x1b[31m\n\ud800\u202e.pth", "a\\x1b[31m\\n\\ud800\\u202e.pth"),
        (Path("/a/b.pth"), "/a/b.pth"),
        (3, "3"),
    ],
    ids=ascii,
)
def test_an_address_is_shown_without_its_secrets(written, expected):
    assert shown_address(written) == expected


def test_credentials_of_other_file_systems_are_not_printed(caplog, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    for name in ("s3://key:s3cr3t@bucket/c.pth", "petrel://key:s3cr3t@bucket/c.pth", "nope://key:s3cr3t@bucket/c.pth"):
        with caplog.at_level(logging.DEBUG, "fastinit"):
            with pytest.raises((ImportError, NotImplementedError, FileNotFoundError)) as raised:
                CheckpointLoader.load_checkpoint(name)
        assert "s3cr3t" not in str(raised.value) + caplog.text


# --- redirects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_follow_absolute_and_relative_locations(status):
    with serving(whole(GOOD)) as other:
        with serving(answer(b"", status, Location=f"{other.url}/d.pth?x=1")) as server:
            assert loaded(server.url + "/c.pth") == [1.0] and other.requests[0].path == "/d.pth?x=1"
    with serving(answer(b"", status, Location="/e/../d.pth"), whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and server.requests[1].path == "/d.pth"


def test_a_redirected_download_is_resumed():
    with serving(answer(GOOD, cut=100_000, ETag='"v"'), whole(GOOD, ETag='"v"')) as other:
        with serving(answer(b"", 302, Location=f"{other.url}/d.pth")) as server:
            assert loaded(server.url + "/c.pth") == [1.0] and other.requests[1].range == 100_000


@pytest.mark.parametrize(
    "location", ["ftp://h/c.pth", "file:///etc/passwd", "data:,x", "javascript:x", "gopher://h/c.pth", "FTP://h/c.pth"]
)
def test_a_redirect_never_leaves_http(location):
    with serving(answer(b"", 302, Location=location)) as server:
        with pytest.raises(RuntimeError, match="the server redirects, but the address .* is neither http nor https"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1


def test_a_redirect_from_https_to_http_is_refused():
    with pytest.raises(RuntimeError, match="redirects from https to http://h/c.pth, where anybody on the way"):
        transfer._target(Address.of("https://h/c.pth"), "http://h/c.pth", "https://h/c.pth")
    assert transfer._target(Address.of("http://h/c.pth"), "https://h/c.pth", "").scheme == "https"


@pytest.mark.parametrize("location", ["http://a..b/c.pth", "http://h:x/c.pth", "/a\x01b"])
def test_a_redirect_to_a_malformed_address_is_an_error(location):
    with serving(answer(b"", 302, Location=location)) as server:
        with pytest.raises(RuntimeError, match="the server redirects, but the address"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1


def test_a_redirect_may_hold_more_than_ascii():
    with serving(answer(b"", 302, Location="/модель.pth".encode().decode("latin-1")), whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        assert server.requests[1].path == "/%D0%BC%D0%BE%D0%B4%D0%B5%D0%BB%D1%8C.pth"


def test_redirects_in_a_circle_end():
    with serving(answer(b"", 302, Location="/c.pth")) as server:
        with pytest.raises(RuntimeError, match="redirects more than 10 times"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 11


def test_a_redirect_without_a_place_is_an_error():
    with serving(answer(b"", 302)) as server, pytest.raises(RuntimeError, match="the server answers 302"):
        loaded(server.url + "/c.pth")


def test_credentials_stay_with_their_server():
    with serving(whole(GOOD)) as other:
        locations = [answer(b"", 302, Location="/b.pth"), answer(b"", 302, Location=f"{other.url}/d.pth")]
        with serving(*locations) as server:
            host = server.url.removeprefix("http://")
            assert loaded(f"http://user:{SECRET}@{host}/c.pth") == [1.0]
            assert [request.headers.get("Authorization") for request in server.requests] == [BASIC, BASIC]
            assert other.requests[0].headers.get("Authorization") is None


@pytest.mark.parametrize(
    ("one", "two", "may"),
    [
        ("http://h/a", "http://h/b", True),
        ("http://h/a", "http://H:80/b", True),
        ("http://h/a", "https://h/b", True),
        ("https://h/a", "http://h/b", False),
        ("http://h:80/a", "https://h:8443/b", False),
        ("http://h/a", "http://h:8080/b", False),
        ("http://h/a", "http://h.evil/b", False),
        ("http://h/a", "http://evil/h", False),
    ],
)
def test_servers_that_may_share_credentials_are_told_apart(one, two, may):
    assert Address.of(two).may_send_credentials_of(Address.of(one)) is may


# --- file:// ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b.pth", "модель#1?.pth", "100%.pth", "%41.pth", "plain.pth"])
def test_a_path_as_uri_is_that_path(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(GOOD)
    for written in (path, path.as_uri(), f"file://{path}", f"file://localhost{path}", f"file:{path}", f"FILE://{path}"):
        assert loaded(written) == [1.0]
        fastinit.initialize(nn.Linear(60_000, 1, bias=False), dict(type="Pretrained", checkpoint=written))


def test_a_checkpoint_is_saved_to_a_path_as_uri(tmp_path):
    save_checkpoint({"weight": torch.ones(1, 60_000)}, (tmp_path / "ä b.pth").as_uri())
    assert (tmp_path / "ä b.pth").is_file() and loaded(tmp_path / "ä b.pth") == [1.0]


def test_a_file_name_that_looks_encoded_is_taken_literally(tmp_path):
    (tmp_path / "a%20b.pth").write_bytes(GOOD)
    (tmp_path / "a b.pth").write_bytes(checkpoint(2.0))
    assert loaded(f"file://{tmp_path}/a%20b.pth") == [1.0]
    assert loaded((tmp_path / "a b.pth").as_uri()) == [1.0]  # cannot be told apart
    assert as_path("~/x") == Path.home() / "x" and as_path("file://rel/x") == Path("rel/x")
    undecodable = os.fsdecode(b"/nowhere/\xff.pth")
    assert as_path(Path(undecodable).as_uri()) == Path(undecodable)


def test_a_table_of_names_may_hold_any_form(tmp_path, monkeypatch):
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own file.pth").write_bytes(GOOD)
    with serving(whole(GOOD)) as server:
        table = {
            "uri": (tmp_path / "home" / "own file.pth").as_uri(),
            "path": "own file.pth",
            "web": f"{server.url}/модель.pth",
        }
        (tmp_path / "home" / "open_mmlab.json").write_text(json.dumps(table))
        for name in table:
            assert loaded(f"open-mmlab://{name}") == [1.0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PureWindowsPath("C:/a/x.pth").as_uri().removeprefix("file://"), "C:/a/x.pth"),
        ("/c:\\x.pth", "c:\\x.pth"),
        ("/home/c:/x.pth", "/home/c:/x.pth"),
        ("/c:", "/c:"),
    ],
    ids=["drive", "backslash", "no drive", "name"],
)
def test_on_windows_a_files_address_begins_with_the_drive(path, expected):
    assert from_drive(path) == expected

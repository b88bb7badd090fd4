"""What is tried again and what is not, for how long, and what is promised to the next call."""

from __future__ import annotations

import email.utils
import errno
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error

import pytest
from bad_servers import answer, checkpoint, files_in, loaded, part, serving, whole

from fastinit.checkpoint.sources import downloads, transfer

GOOD = checkpoint(1.0)


@pytest.fixture()
def slept(monkeypatch):
    """How long was waited between attempts, without waiting."""
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_http_errors_are_retried(slept, status):
    with serving(answer(b"no", status), whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and len(server.requests) == 2 and len(slept) == 1


@pytest.mark.parametrize("status", [300, 304, 400, 401, 402, 403, 404, 405, 406, 410, 416, 418, 451, 501, 505])
def test_permanent_http_errors_are_not_retried(cache, slept, status):
    with serving(answer(b"no", status)) as server:
        with pytest.raises(RuntimeError, match=rf"/c.pth: the server answers {status} ") as raised:
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1 and not slept and not files_in(cache)
        assert "next call goes on" not in str(raised.value)


def test_a_servers_reason_phrase_is_shown_escaped():
    def respond(handler):
        handler.wfile.write(b"HTTP/1.0 404 gone\x1b[31m\x07" + b"x" * 5000 + b"\r\n\r\n")

    with serving(respond) as server:
        with pytest.raises(RuntimeError, match=r"answers 404 gone\\x1b\[31m\\x07xxx") as raised:
            loaded(server.url + "/c.pth")
        assert str(raised.value).isprintable() and len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7), (" 7 ", 7), ("abc", 0.01), ("²", 0.01), ("-5", 0.01), ("1e9", 0.01), ("", 0.01), ("0", 0.01)],
)
def test_retry_after_in_seconds_is_obeyed(slept, asked, waited):
    with serving(answer(b"", 429, Retry_After=asked), whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and slept == [waited]


def test_retry_after_as_a_date_is_obeyed(slept):
    until = email.utils.formatdate(time.time() + 30, usegmt=True)
    with serving(answer(b"", 503, Retry_After=until), whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and 25 < slept[0] <= 30


@pytest.mark.parametrize("asked", ["3600", "9" * 18, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_an_excessive_retry_after_is_an_error(slept, asked):
    with serving(answer(b"", 429, Retry_After=asked)) as server:
        with pytest.raises(
            RuntimeError, match="failed 1 times, at last because: the server answers 429 .* and asks to wait"
        ):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1 and not slept


@pytest.mark.parametrize(
    ("error", "n_attempts", "message"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 5, "Connection reset by peer"),
        (TimeoutError("timed out"), 5, "timed out"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), 5, "No route to host"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), 5, "Temporary failure"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), 1, "the server cannot be found"),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), 1, "certificate is not trusted"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), 5, "EOF occurred"),
        (http.client.BadStatusLine("SSH-2.0"), 1, "is not valid HTTP .SSH-2.0"),
        (http.client.RemoteDisconnected("Remote end closed connection"), 5, "Remote end closed"),
        (http.client.InvalidURL("bad"), 1, "is not valid HTTP"),
        (http.client.LineTooLong("header line"), 1, "is not valid HTTP"),
        (ValueError("x\x1b"), 1, r"is not valid HTTP .x\\x1b"),
    ],
    ids=str,
)
def test_only_transient_network_errors_are_retried(monkeypatch, slept, error, n_attempts, message):
    n_asked = []

    def fail(self, kind, request, **options):
        n_asked.append(request)
        raise urllib.error.URLError(error) if isinstance(error, OSError) else error

    monkeypatch.setattr(transfer._Handler, "do_open", fail)
    with pytest.raises(RuntimeError, match=message) as raised:
        loaded("http://127.0.0.1:9/c.pth")
    assert len(n_asked) == n_attempts and len(slept) == n_attempts - 1
    assert "next call goes on" not in str(raised.value)
    assert ("Nothing was kept" in str(raised.value)) == (n_attempts == 5)


def test_tls_errors_are_not_retried(slept):
    with serving(whole(GOOD)) as server:
        with pytest.raises(RuntimeError, match="does not speak https as this machine does"):
            loaded(server.url.replace("http", "https") + "/c.pth")
        assert not slept


@pytest.mark.parametrize("resumes", [True, False])
def test_only_resumable_downloads_promise_to_resume(cache, monkeypatch, resumes):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    tag = dict(ETag='"v"') if resumes else {}
    with serving(answer(GOOD, cut=100_000, **tag), whole(GOOD, ETag='"v"')) as server:
        with pytest.raises(RuntimeError) as raised:
            loaded(server.url + "/c.pth")
        told = "100,000 bytes are kept in" if resumes else "Nothing was kept"
        assert told in str(raised.value) and ("the next call goes on from there" in str(raised.value)) == resumes
        assert bool(files_in(cache)) == resumes
        assert loaded(server.url + "/c.pth") == [1.0]
        assert server.requests[1].range == (100_000 if resumes else None)


# --- a trickle -------------------------------------------------------------------------------------------------------


@pytest.fixture()
def hasty(monkeypatch):
    """A window that a test can wait for."""
    monkeypatch.setattr(transfer, "WINDOW_S", 0.5)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)


def raw(head, drop, pause=0.02):
    """Sends ``head`` and then one piece after the other, for ever."""

    def respond(handler):
        handler.wfile.write(head)
        while True:
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(pause)

    return respond


@pytest.mark.parametrize(
    "respond",
    [
        answer(GOOD, pause=0.02),
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + GOOD[:1000], b"x"),
        raw(b"HTTP/1.0 200 OK\r\nX-Long: ", b"x"),
        raw(b"HTTP/1.0 200 OK\r\n", b"X: y\r\n", pause=0.1),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nP\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x"),
    ],
    ids=["body", "body without length", "header", "headers", "chunks", "size of a chunk"],
)
def test_a_trickle_is_given_up(cache, hasty, respond):
    begin = time.monotonic()
    with serving(respond) as server:
        with pytest.raises(RuntimeError, match="at last because: fewer than 500 bytes came in 0.5 seconds"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 2 and not files_in(cache)
    assert time.monotonic() - begin < 10
    assert not [each for each in threading.enumerate() if each.name == "fastinit-download"]


def test_a_trickle_is_resumed_by_the_next_attempt(hasty):
    def slow(handler):
        respond = answer(GOOD[:2000], length=str(len(GOOD)), ETag='"v"')
        respond(handler)
        time.sleep(3)

    with serving(slow, whole(GOOD, ETag='"v"')) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and server.requests[1].range == 2000


def test_many_small_parts_that_come_slowly_are_a_trickle(hasty):
    def slow(handler):
        time.sleep(0.1)
        start = handler.range or 0
        part(GOOD, start, start + 10, ETag='"v"')(handler)

    with serving(slow) as server, pytest.raises(RuntimeError, match="fewer than 500 bytes came in 0.5 seconds"):
        loaded(server.url + "/c.pth")


def test_a_slow_but_steady_download_completes(hasty):
    def steady(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(GOOD)))
        handler.end_headers()
        for start in range(0, len(GOOD), 40_000):
            handler.wfile.write(GOOD[start : start + 40_000])
            time.sleep(0.3)

    with serving(steady) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and len(server.requests) == 1


def test_a_connection_kept_open_after_the_last_byte_is_not_waited_for():
    is_over = threading.Event()

    def open_end(handler):
        answer(GOOD)(handler)
        is_over.wait(20)

    with serving(open_end) as server:
        begin = time.monotonic()
        assert loaded(server.url + "/c.pth") == [1.0] and time.monotonic() - begin < 15
        is_over.set()


def test_a_silent_server_times_out(monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    with serving(lambda handler: time.sleep(1)) as server:
        with pytest.raises(RuntimeError, match="failed 2 times, at last because: timed out"):
            loaded(server.url + "/c.pth")


def test_an_interrupt_leaves_a_resumable_partial_file(cache, monkeypatch):
    write = os.write

    def interrupted(file, block):
        write(file, block)
        raise KeyboardInterrupt

    with serving(whole(GOOD)) as server:
        monkeypatch.setattr("fastinit.checkpoint.sources.partial.os.write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loaded(server.url + "/c.pth")
        monkeypatch.setattr("fastinit.checkpoint.sources.partial.os.write", write)
        assert loaded(server.url + "/c.pth") == [1.0] and server.requests[1].range

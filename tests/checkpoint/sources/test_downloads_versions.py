"""Downloads that break off: what is put together is of one version, and whole."""

from __future__ import annotations

import email.utils
import time

import pytest
import torch
from bad_servers import answer, checkpoint, files_in, loaded, part, serving, whole

from fastinit.checkpoint.sources import downloads

OLD, NEW = checkpoint(1.0), checkpoint(2.0)
CUT = 100_000
YESTERDAY = email.utils.formatdate(time.time() - 86_400, usegmt=True)
TODAY = email.utils.formatdate(time.time() - 3_600, usegmt=True)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (dict(ETag='"v1"'), dict(ETag='"v2"')),
        (dict(Last_Modified=YESTERDAY), dict(Last_Modified=TODAY)),
        (dict(ETag='"v1"', Last_Modified=YESTERDAY), dict(ETag='"v1"', Last_Modified=TODAY)),
        (dict(ETag='"v1"', Last_Modified=YESTERDAY), dict(ETag='"v2"', Last_Modified=YESTERDAY)),
        (dict(ETag='"v1"'), {}),  # which may be any version
        (dict(ETag='"v1"'), dict(Last_Modified=YESTERDAY)),
        (dict(ETag='"v1"'), dict(ETag='W/"v1"')),
    ],
    ids=["tag", "date", "tag and later date", "other tag and date", "none", "date for a tag", "weak tag"],
)
def test_a_part_of_an_unverified_version_is_not_appended(first, later):
    def lax(handler):  # goes on whatever If-Range says
        if handler.range is None:
            return answer(NEW, **later)(handler)
        return part(NEW, handler.range, **later)(handler)

    with serving(answer(OLD, cut=CUT, **first), lax) as server:
        assert loaded(server.url + "/c.pth") == [2.0]
        assert [request.range for request in server.requests] == [None, CUT, None]


@pytest.mark.parametrize("same", [dict(ETag='"v1"'), dict(Last_Modified=YESTERDAY)], ids=["tag", "date"])
def test_a_part_of_the_same_version_is_appended(same):
    with serving(answer(OLD, cut=CUT, **same), part(OLD, CUT, **same)) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        assert [request.range for request in server.requests] == [None, CUT]


def test_a_part_is_appended_where_last_modified_says_so_and_the_etag_is_missing():
    both = dict(ETag='"v1"', Last_Modified=YESTERDAY)
    with serving(answer(OLD, cut=CUT, **both), part(OLD, CUT, Last_Modified=YESTERDAY)) as server:
        assert loaded(server.url + "/c.pth") == [1.0] and len(server.requests) == 2


def test_last_modified_in_the_second_of_the_answer_is_no_validator():
    def now(handler):
        respond = answer(OLD, cut=CUT if len(server.requests) == 1 else None, Last_Modified=handler.date_time_string())
        return respond(handler)

    with serving(now) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        assert [request.range for request in server.requests] == [None, None]


def test_another_total_means_another_version():
    longer = NEW + bytes(64)
    with serving(answer(OLD, cut=CUT, ETag='"v"'), part(longer, CUT, ETag='"v"'), answer(NEW, ETag='"w"')) as server:
        assert loaded(server.url + "/c.pth") == [2.0] and len(server.requests) == 3


def test_a_file_that_keeps_changing_is_given_up(cache):
    n = iter(range(100))

    def changing(handler):
        tag = f'"{next(n)}"'
        if handler.range is not None:
            return part(NEW, handler.range, ETag=tag)(handler)
        return answer(OLD, cut=CUT, ETag=tag)(handler)

    with serving(changing) as server:
        with pytest.raises(RuntimeError, match="does not stay the same while it is downloaded.*Nothing was kept"):
            loaded(server.url + "/c.pth")
        assert [request.range for request in server.requests] == [None, CUT, None, CUT] and not files_in(cache)


@pytest.mark.parametrize("n_bytes", [50_000, 1_000])
def test_parts_shorter_than_asked_for_go_on_until_the_total_is_reached(n_bytes):
    def short(handler):
        start = handler.range or 0
        return part(OLD, start, min(start + n_bytes, len(OLD)), ETag='"v"')(handler)

    with serving(answer(OLD, cut=CUT, ETag='"v"'), short) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        assert len(server.requests) == 1 + -(-(len(OLD) - CUT) // n_bytes)
    with serving(short) as server:  # one that sends parts to who did not ask for one
        assert loaded(server.url + "/d.pth") == [1.0]


def test_parts_of_single_bytes_are_given_up(monkeypatch):
    from fastinit.checkpoint.sources import transfer

    monkeypatch.setattr(transfer, "_MAX_PARTS", 20)

    def byte(handler):
        start = handler.range or 0
        return part(OLD, start, start + 1, ETag='"v"')(handler)

    with serving(byte) as server:
        with pytest.raises(RuntimeError, match="sends the file in more than 2[0-9] parts"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) < 30


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (part(OLD, 0, CUT), "only a part of the file, without anything that identifies its version"),
        (part(OLD, 100, ETag='"v"'), r"a different part of the file than requested \(bytes 100-"),
        (part(OLD, 0, CUT, Content_Range="bytes 0-99999/*", ETag='"v"'), "a different part of the file"),
        (part(OLD, 0, CUT, Content_Range="pages 1-2/3"), "a different part of the file"),
        (answer(OLD, 206), "a different part of the file than requested .without saying which"),
        (part(OLD, 0, total=len(OLD) - 5), "a different part of the file"),
        (part(OLD, 0, Content_Range=f"bytes 5-3/{len(OLD)}"), "a different part of the file"),
        (
            part(OLD, 0, Content_Range=f"bytes 0-{len(OLD) - 9}/{len(OLD)}", ETag='"v"'),
            "announces 241,.* bytes in its header and 241,.* in its range",
        ),
        (answer(OLD, 206, Content_Type="multipart/byteranges; boundary=x"), "a different part of the file"),
    ],
)
def test_a_first_answer_that_is_a_part_is_not_kept(cache, respond, message):
    with serving(respond) as server:
        with pytest.raises(RuntimeError, match=message):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1 and not files_in(cache)
        server.answers = [answer(NEW)]
        assert loaded(server.url + "/c.pth") == [2.0]


@pytest.mark.parametrize(
    "wrong",
    [
        dict(Content_Range=f"bytes {CUT + 1}-{len(OLD) - 1}/{len(OLD)}"),
        dict(Content_Range=f"bytes {CUT}-{len(OLD) - 2}/{len(OLD)}"),
        dict(Content_Range="x"),
        dict(Content_Range=""),
    ],
    ids=str,
)
def test_a_part_of_another_range_restarts_the_download(wrong):
    with serving(answer(OLD, cut=CUT, ETag='"v"'), part(OLD, CUT, ETag='"v"', **wrong), answer(NEW)) as server:
        assert loaded(server.url + "/c.pth") == [2.0] and server.requests[-1].range is None


def chunked(data, *, ends=True, tag='"v"'):
    def respond(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("ETag", tag)
        handler.end_headers()
        for start in range(0, len(data), 30_000):
            block = data[start : start + 30_000]
            handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n" if ends else b"")
        handler.close_connection = True

    return respond


def test_a_chunked_answer_that_breaks_off_is_resumed():
    with serving(chunked(OLD[:CUT], ends=False), whole(OLD, ETag='"v"')) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        assert [request.range for request in server.requests] == [None, CUT]
    with serving(chunked(OLD)) as server:
        assert loaded(server.url + "/d.pth") == [1.0] and len(server.requests) == 1


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_an_answer_without_length_is_kept_only_if_its_end_is_there(cache, kind):
    import safetensors.torch

    data = OLD if kind == "pth" else safetensors.torch.save({"weight": torch.ones(1, 60_000)})
    with serving(answer(data, length=False, cut=CUT), answer(data, length=False)) as server:
        with pytest.raises(RuntimeError, match="leads to a (file of torch.save without its end|part of a safetensors)"):
            loaded(server.url + "/c.pth")
        assert not files_in(cache)
        assert loaded(server.url + "/c.pth") == [1.0]


@pytest.mark.parametrize("length", ["abc", "-5", "1_000", "+7", "²", "9" * 40, "1e3"])
def test_a_malformed_content_length_is_an_error_and_not_retried(cache, length):
    respond = answer(OLD, length=False, **{"Content-Length": length})
    with serving(respond) as server:
        with pytest.raises(RuntimeError, match="the server says that the file has .* bytes, which is no number"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1 and not files_in(cache)


def test_two_lengths_are_an_error():
    def both(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.send_header("Content-Length", str(len(OLD)))
        handler.end_headers()
        handler.wfile.write(OLD)

    with serving(both) as server, pytest.raises(RuntimeError, match="has '10, 241[0-9]+' bytes, which is no number"):
        loaded(server.url + "/c.pth")


def test_a_complete_partial_file_is_renamed_and_not_downloaded_again(cache, monkeypatch):
    with serving(whole(OLD)) as server:
        monkeypatch.setattr(downloads, "_problem_of", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            loaded(server.url + "/c.pth")
        monkeypatch.undo()
        monkeypatch.setattr(torch.hub, "_hub_dir", str(cache.parent))
        assert loaded(server.url + "/c.pth") == [1.0] and len(server.requests) == 1


@pytest.mark.parametrize("step", ["opened", "note"])
def test_a_process_killed_while_restarting_leaves_no_bytes_of_another_version(monkeypatch, step):
    from fastinit.checkpoint.sources.partial import Partial

    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with serving(answer(OLD, cut=CUT, ETag='"v1"'), whole(NEW, ETag='"v2"')) as server:
        with pytest.raises(RuntimeError):
            loaded(server.url + "/c.pth")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Partial, step, lambda *_, **__: exec("raise KeyboardInterrupt"))
            loaded(server.url + "/c.pth")
        assert loaded(server.url + "/c.pth") == [2.0]


def test_a_partial_file_of_another_address_is_not_resumed(cache, monkeypatch):
    import hashlib

    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    name = f"/c-{hashlib.sha256(NEW).hexdigest()[:8]}.pth"
    with serving(answer(OLD, cut=CUT, ETag='"v"')) as first, serving(whole(NEW, ETag='"v"')) as second:
        with pytest.raises(RuntimeError, match="100,000 bytes are kept in .*, and the next call goes on from there"):
            loaded(first.url + name)
        assert loaded(second.url + name) == [2.0] and second.requests[0].range is None


@pytest.mark.parametrize(
    "note",
    ["", "[]", "{", '{"etag": 3}', '{"place": null, "total": "x"}', "[" * 100_000],
    ids=["empty", "list", "cut off", "etag of a number", "total of a text", "deep"],
)
def test_a_damaged_note_beside_a_partial_file_restarts_the_download(cache, monkeypatch, note):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    with serving(answer(OLD, cut=CUT, ETag='"v"'), whole(NEW)) as server:
        with pytest.raises(RuntimeError):
            loaded(server.url + "/c.pth")
        (path,) = cache.rglob("*.partial.json")
        path.write_text(note)
        assert loaded(server.url + "/c.pth") == [2.0] and server.requests[1].range is None

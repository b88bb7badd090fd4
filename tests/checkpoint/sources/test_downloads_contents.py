"""What servers send in place of a checkpoint, and what disks refuse: nothing of it stays in the cache."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys

import fsspec
import pytest
import safetensors.torch
import torch
from bad_servers import answer, checkpoint, files_in, loaded, serving, whole

from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.sources import downloads
from fastinit.checkpoint.sources.contents import why_no_checkpoint, why_not_whole

GOOD = checkpoint(1.0)
LOGIN = b"<!DOCTYPE html>\n<html><head><title>Sign in \x1b[31m</title></head><body>" + b"x" * 2000


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (answer(LOGIN), r"leads to a web page or XML with the title 'Sign in \\\\x1b\[31m', and not to a checkpoint"),
        (answer(b"\xef\xbb\xbf \n<html>"), "a web page or XML"),
        (answer(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"), "a web page or XML"),
        (answer("<!doctype html><title>é</title>".encode("utf-16")), "leads to text"),
        (answer(b'{"error": "rate limit"}'), r'JSON without a `weight_map` \(\'{"error": "rate limit"}\'\)'),
        (answer(b' \n{"error": '), "JSON without a `weight_map`"),
        (answer(b"[1, 2]"), r"leads to text \('\[1, 2\]'\)"),
        (answer(b'"gone"'), "leads to text"),
        (answer(b"Rate limit exceeded\n\x1b[2J"), "leads to a file that begins with b'Rate lim'"),
        (answer("Слишком много запросов".encode() * 40), "leads to text"),
        (answer(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "a Git LFS pointer"),
        (answer(b""), "an empty file"),
        (answer(b"", length=False), "an empty file"),
        (answer(b"", 204, length=False), "the server answers 204 No Content, and no file"),
        (answer(GOOD, 202), "the server answers 202 Accepted, and no file"),
        (
            answer(gzip.compress(GOOD), Content_Encoding="gzip"),
            r"sends the file compressed \(gzip\), although fastinit asked for it uncompressed",
        ),
        (answer(GOOD, Content_Encoding="br"), r"compressed \(br\)"),
        (answer(gzip.compress(GOOD)), "compressed with gzip"),
        (answer(bytes(5000)), "a file that begins with"),
        (answer(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file: convert it"),
        (answer(GOOD[:100_000]), "a file of torch.save without its end"),
        (answer(safetensors.torch.save({"weight": torch.ones(1, 60_000)})[:-4]), "a part of a safetensors file"),
        (answer(safetensors.torch.save({"weight": torch.ones(1, 60_000)})[:40]), "a part of a safetensors file"),
    ],
    ids=[
        *("web page", "page after a mark", "XML", "page in UTF-16", "JSON", "JSON cut off", "JSON list", "JSON string"),
        *("text", "Cyrillic text", "LFS pointer", "empty", "empty without a length", "204", "202", "gzip encoding"),
        *(
            "brotli encoding",
            "gzip file",
            "zeros",
            "HDF5",
            "torch file cut off",
            "safetensors cut off",
            "header cut off",
        ),
    ],
)
def test_an_answer_that_is_not_a_checkpoint_is_refused_and_not_cached(cache, respond, message):
    with serving(respond) as server:
        with pytest.raises(RuntimeError, match=message) as raised:
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1 and not files_in(cache)
        assert "\x1b" not in str(raised.value) and len(str(raised.value)) < 1000
        server.answers = [whole(GOOD)]
        assert loaded(server.url + "/c.pth") == [1.0]


def test_a_web_page_under_a_name_with_a_hash_is_called_one(cache):
    name = f"/c-{hashlib.sha256(GOOD).hexdigest()[:8]}.pth"
    with serving(answer(LOGIN), whole(GOOD)) as server:
        with pytest.raises(RuntimeError, match="a web page"):
            loaded(server.url + name)
        assert loaded(server.url + name) == [1.0]


def test_gigabytes_of_something_else_are_not_downloaded():
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"GGUF" * 100_000)
        raise AssertionError("400 MB were taken")

    with serving(endless) as server:
        with pytest.raises(RuntimeError, match="a GGUF file"):
            loaded(server.url + "/c.pth")
    assert server.n_broken == 1


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "index"])
def test_files_that_readers_accept_are_cached(tmp_path, kind):
    state = {"weight": torch.ones(2, 2)}
    path = tmp_path / "file"
    if kind == "index":
        path.write_text(' \n{"metadata": {}, "weight_map": {"weight": "a.safetensors"}}')
    elif kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert why_no_checkpoint(path.read_bytes()[:512]) is None and why_not_whole(path) is None


@pytest.mark.parametrize(
    "table",
    ["[" * 9000, '{"a": {"data_offsets": [0, "x"]}}', '{"a": 3}', "{}", '{"a": {}}'],
    ids=["deep", "odd offset", "number", "empty", "entry without fields"],
)
def test_a_strange_table_is_left_to_the_reader(tmp_path, table):
    table = table if table.startswith("{") else '{"a": ' + table
    (tmp_path / "file").write_bytes(len(table).to_bytes(8, "little") + table.encode())
    assert why_not_whole(tmp_path / "file") is None


@pytest.mark.parametrize("damage", ["cut", "page", "middle"])
def test_a_damaged_file_of_the_cache_is_named_with_what_to_do(cache, damage):
    with serving(whole(GOOD)) as server:
        assert loaded(server.url + "/c.pth") == [1.0]
        (path,) = files_in(cache)
        path.write_bytes({"cut": GOOD[:1000], "page": LOGIN, "middle": GOOD[:70] + b"x" + GOOD[71:]}[damage])
        for load in (loaded, CheckpointLoader.load_checkpoint):
            with pytest.raises(
                RuntimeError, match=f"{path}: the file is damaged.* delete it, and the next call gets it"
            ):
                load(server.url + "/c.pth")
        path.unlink()
        assert loaded(server.url + "/c.pth") == [1.0]


def test_a_file_with_code_is_not_reported_as_damaged():
    class Foreign:
        def __reduce__(self):
            return os.getenv, ("HOME",)

    import io

    buffer = io.BytesIO()
    torch.save(Foreign(), buffer)
    with serving(whole(buffer.getvalue())) as server:
        with pytest.raises(RuntimeError) as raised:
            loaded(server.url + "/c.pth")
        assert "delete" not in str(raised.value)


def test_a_file_of_another_file_system_is_checked_in_the_same_ways(cache, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/page.pth", LOGIN)
    with pytest.raises(RuntimeError, match="memory:///bucket/page.pth leads to a web page"):
        loaded("memory://bucket/page.pth")
    memory.pipe("/bucket/c.pth", GOOD)
    get_file = type(memory).get_file

    def cut(self, path, local, **options):
        get_file(self, path, local, **options)
        os.truncate(local, 1000)

    monkeypatch.setattr(type(memory), "get_file", cut)
    with pytest.raises(RuntimeError, match=r"memory:///bucket/c.pth: 1,000 of 241,\d+ bytes came. Nothing was kept"):
        loaded("memory://bucket/c.pth")
    assert not files_in(cache)


# --- disks and folders -----------------------------------------------------------------------------------------------


def test_a_full_disk_is_detected_before_the_download(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with serving(whole(GOOD)) as server:
        with pytest.raises(RuntimeError, match="bytes are to be downloaded, and the disk of .* has room for 1,000"):
            loaded(server.url + "/c.pth")
        assert len(server.requests) == 1


@pytest.mark.parametrize(("resumes", "kept"), [(True, "[0-9,]+ bytes are kept"), (False, "Nothing was kept")])
def test_a_disk_that_fills_up_is_an_error_and_not_retried(cache, monkeypatch, resumes, kept):
    write, written = os.write, []

    def full(file, block):
        if sum(written) > 50_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(file, block[:60_000]))
        return written[-1]

    with serving(whole(GOOD) if resumes else answer(GOOD)) as server:
        monkeypatch.setattr("fastinit.checkpoint.sources.partial.os.write", full)
        with pytest.raises(RuntimeError, match=f"the disk of .* is full .No space left on device.*{kept}.* TORCH_HOME"):
            loaded(server.url + "/c.pth")
        monkeypatch.setattr("fastinit.checkpoint.sources.partial.os.write", write)
        assert len(server.requests) == 1 and bool(files_in(cache)) == resumes
        assert loaded(server.url + "/c.pth") == [1.0]
        assert (server.requests[1].range is not None) == resumes


def test_a_file_size_limit_is_reported_like_a_full_disk(cache):
    code = """
import resource, sys, fastinit.checkpoint as c, torch
torch.hub.set_dir(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try: c.load_from_http(sys.argv[1])
except RuntimeError as error: print(error)
"""
    with serving(whole(GOOD)) as server:
        arguments = [sys.executable, "-c", code, server.url + "/c.pth", str(cache.parent)]
        told = subprocess.run(arguments, capture_output=True, text=True).stdout
        assert "is full (File too large). 100,000 bytes are kept in" in told and len(server.requests) == 1


@pytest.mark.parametrize("how", ["file", "missing", "folder"])
def test_a_cache_that_cannot_be_made_or_written_is_named(tmp_path, monkeypatch, how):
    place = tmp_path / "place"
    if how == "file":
        place.write_text("")
    if how == "missing":
        place.symlink_to(tmp_path / "nowhere" / "at" / "all")
    with serving(whole(GOOD)) as server:
        if how == "folder":  # where the file should be
            monkeypatch.setattr(torch.hub, "_hub_dir", str(place))
            downloads.cached_path(server.url + "/c.pth").mkdir(parents=True)
        else:
            monkeypatch.setattr(torch.hub, "_hub_dir", str(place / "hub"))
        with pytest.raises(
            RuntimeError, match=f"the cache of downloads, {place}.*, cannot be made or written .* TORCH_HOME"
        ):
            loaded(server.url + "/c.pth")


def test_a_name_too_long_for_the_disk_is_an_error(tmp_path):
    with serving(whole(GOOD)) as server:
        with pytest.raises(RuntimeError, match="File name too long"):
            loaded(f"{server.url}/{'a' * 250}.pth")
        assert not server.requests


def test_a_file_is_found_in_a_cache_that_cannot_be_written(cache, monkeypatch):
    with serving(whole(GOOD)) as server:
        loaded(server.url + "/c.pth")
        monkeypatch.setattr(os, "open", None)
        assert downloads.download(server.url + "/c.pth").is_file()


def test_waiting_for_another_process_is_logged(cache, monkeypatch, caplog):
    import filelock

    monkeypatch.setattr(downloads, "QUIET_WAIT_S", 0.01)
    acquire = filelock.FileLock.acquire

    with serving(whole(GOOD)) as server:
        path = downloads.cached_path(server.url + "/c.pth")
        path.parent.mkdir(parents=True)
        other = filelock.FileLock(path.with_name(f".{path.name}.lock"))
        other.acquire()

        def then_free(self, timeout=None, **options):
            if timeout is None:
                other.release()
            return acquire(self, timeout, **options)

        monkeypatch.setattr(filelock.FileLock, "acquire", then_free)
        with caplog.at_level("INFO", "fastinit"):
            assert loaded(server.url + "/c.pth") == [1.0]
    assert "c.pth: waiting for another process that is downloading it" in caplog.text


def test_an_index_of_the_web_finds_shards_whose_names_need_encoding(tmp_path):
    name = "model 1%20#?é.safetensors"
    shard = safetensors.torch.save({"weight": torch.full((1, 60_000), 3.0)})
    index = json.dumps({"weight_map": {"weight": name}}).encode()
    with serving(answer(index), answer(shard)) as server:
        assert loaded(server.url + "/a b/model.index.json?x=1#part/of") == [3.0]
        assert [r.path for r in server.requests] == [
            "/a%20b/model.index.json?x=1",
            "/a%20b/model%201%2520%23%3F%C3%A9.safetensors",
        ]

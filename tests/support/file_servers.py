"""A web server of files where something goes wrong when told to, and what is loaded from it."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time

import torch
from torch import nn

import fastinit
from fastinit.checkpoint.sources import downloads


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; what is in ``server.tricks`` for a path goes wrong, in turn."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        path = self.path.partition("?")[0]
        with server.lock:
            server.requests.append((path, self.headers.get("Range")))
            trick = server.tricks[path].pop(0) if server.tricks.get(path) else None
        if isinstance(trick, int):
            return self.answer(trick, b"no", {"Retry-After": "0"})
        if trick == "redirect":
            return self.answer(302, b"", {"Location": "/elsewhere" + path})
        if trick == "slow":
            time.sleep(3)
        data = server.files.get(path.removeprefix("/elsewhere"))
        if data is None:
            return self.answer(404, b"not here")
        extra = {} if server.no_validator else {"ETag": f'"{hashlib.md5(data).hexdigest()}"', **server.extra}
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, extra.get("ETag"))
        start = int(wanted[6:-1]) if wanted and same and server.resumes else 0
        if start > len(data):
            return self.answer(416, b"")
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.send_response(206 if start else 200)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if trick == "break":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def answer(self, code, body, headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(monkeypatch):
    """A fixture's function: yields a server with ``files``, ``tricks`` and the ``requests`` that it got."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.files, made.tricks, made.requests, made.extra = {}, {}, [], {}
    made.lock, made.resumes, made.no_validator = threading.Lock(), True, False
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT_S", 1.0)
    yield made
    made.shutdown()
    made.server_close()


def saved(state, tmp_path):
    torch.save(state, tmp_path / "saved.pth")
    return (tmp_path / "saved.pth").read_bytes()


def hashed(name, data):
    return f"/{name}-{hashlib.sha256(data).hexdigest()[:8]}.pth"


def offer(server, tmp_path, state=None, name="net"):
    """Puts a checkpoint onto the server, under a name with its hash."""
    data = saved(state or {"state_dict": {"weight": torch.full((200, 300), 2.0), "bias": torch.ones(200)}}, tmp_path)
    path = hashed(name, data)
    server.files[path] = data
    return server.url + path, path


def loaded(url, **options):
    made = nn.Linear(300, 200)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=url, **options))
    return made

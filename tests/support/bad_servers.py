"""A web server that answers as it is told, for tests of downloads."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import time
from contextlib import contextmanager

import torch


def checkpoint(value=1.0, n_elements=60_000):
    """Returns the bytes of a checkpoint; those of two values are equally long and differ all over."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.full((1, n_elements), float(value))}, buffer)
    return buffer.getvalue()


def loaded(source, **options):
    """Returns the values that a checkpoint gives a model, each once."""
    from fastinit.checkpoint import load_checkpoint

    model = torch.nn.Linear(60_000, 1, bias=False)
    load_checkpoint(model, source, logger="silent", strict=True, **options)
    return sorted(set(model.weight.flatten().tolist()))


def files_in(cache):
    """Returns the files of a cache, without its locks."""
    return [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def answer(body=b"", status=200, *, cut=None, length=True, pause=None, **headers):
    """Returns what answers a request.

    Args:
        body: its bytes; of more than ``cut`` only so many are sent.
        status: its number.
        cut: bytes that are sent before the connection ends.
        length: whether ``Content-Length`` is sent, or what it says.
        pause: seconds between single bytes.
        headers: further ones, ``_`` for ``-``.
    """

    def respond(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length is True:
            handler.send_header("Content-Length", str(len(body)))
        elif length:
            handler.send_header("Content-Length", length)
        handler.end_headers()
        sent = body[:cut]
        if pause is None:
            handler.wfile.write(sent)
        for byte in sent if pause is not None else b"":
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)

    return respond


def part(data, start, end=None, *, total=None, **options):
    """Returns what answers a request for the bytes from ``start`` to ``end`` of a file."""
    end = len(data) if end is None else end
    options.setdefault("Content_Range", f"bytes {start}-{end - 1}/{len(data) if total is None else total}")
    return answer(data[start:end], 206, **options)


def whole(data, **options):
    """Answers as a good server does: ranges of one version, known by its hash."""
    tag = options.pop("ETag", f'"{hashlib.md5(data).hexdigest()}"')

    def respond(handler):
        wanted = handler.headers.get("Range")
        if wanted and handler.headers.get("If-Range") in (None, tag):
            return part(data, int(wanted[6:-1]), ETag=tag, **options)(handler)
        return answer(data, ETag=tag, **options)(handler)

    return respond


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests in turn; the last answer is given again and again."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append(self)
            respond = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        try:
            respond(self)
        except OSError:  # who asked has gone
            server.n_broken += 1

    @property
    def range(self):
        """Where the part begins that was asked for; None: the whole."""
        wanted = self.headers.get("Range")
        return int(wanted[6:-1]) if wanted else None


@contextmanager
def serving(*answers):
    """Yields a server with ``answers``; ``url`` is its address, ``requests`` what it was asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.requests, server.lock, server.n_broken = list(answers), [], threading.Lock(), 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

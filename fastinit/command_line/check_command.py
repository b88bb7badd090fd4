"""``fastinit check``: what is in a checkpoint, and whether it is whole."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..checkpoint.messages import shown
from ..plans.alike import collapsed
from .contents import Contents, contents_of
from .errors import DamagedError, message_of
from .output import fitted, fitted_lines, size, table, tell, tell_json, width

NAME = "check"
HELP = "what is in a checkpoint, and whether it is whole; never runs anything"
TEXT = """\
Shows a checkpoint's format, tensors, dtypes and sizes, and the names of the code that loading all of it with
Python's unpickler would import and could run. Nothing of it is run, imported or downloaded, whatever the file
says. Its tables are checked whole: lengths, offsets, shapes, shards; the bytes of values are not read
(`fastinit digest` reads them).
Exit code: 0 where it is whole, 1 where it is damaged (and where), 2 where it cannot be read. Names of code
are no damage.

examples:
  fastinit check model.safetensors
  fastinit check downloaded.pth --json
  fastinit check checkpoints/step-1000/"""

_MAX_ROWS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("file", metavar="FILE_OR_FOLDER")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--all-rows", action="store_true", help="a row for each tensor, however many")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    try:
        found = contents_of(Path(options.file))
    except DamagedError as error:
        if not options.json:
            raise
        problem = {"fastinit_check": 1, "path": options.file, "whole": False, "problem": message_of(error)}
        tell_json(json.dumps(problem, indent=1, ensure_ascii=False))
        return 1
    if options.json:
        tell_json(_json(options.file, found))
    else:
        _tell(options.file, found, options.all_rows)
    return 0


def _json(path: str, found: Contents) -> str:
    tensors = [
        {"name": each.name, "shape": list(each.shape), "dtype": each.dtype, "bytes": each.n_bytes}
        for each in found.tensors
    ]
    document = {
        "fastinit_check": 1,
        "path": path,
        "whole": True,
        "format": found.format,
        "files": found.n_files,
        "bytes": found.n_bytes,
        "names": list(found.names),
        "tensors": tensors,
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _tell(path: str, found: Contents, all_rows: bool) -> None:
    files = f"{found.n_files:,} file{'s' * (found.n_files != 1)}"
    tell(f"{path}: {found.format}, {files}, {size(found.n_bytes)}, whole")
    of_dtype: dict[str, int] = {}
    for each in found.tensors:
        of_dtype[each.dtype] = of_dtype.get(each.dtype, 0) + each.n_bytes
    kinds = ", ".join(f"{size(n_bytes)} of {dtype}" for dtype, n_bytes in of_dtype.items())
    tell(f"{len(found.tensors):,} tensors{': ' if kinds else ''}{kinds}")
    if found.names:
        tell(f"it names code, which was not run: {', '.join(map(shown, found.names))}")
    rows = [
        (each.name, ("x".join(map(str, each.shape)) or "()", each.dtype, size(each.n_bytes))) for each in found.tensors
    ]
    lines = [(shown(name), *cells) for name, cells in (rows if all_rows else collapsed(rows))]
    left = 0 if all_rows else max(0, len(lines) - _MAX_ROWS)
    if left:
        lines = lines[:_MAX_ROWS]
    if lines:
        tell("\n" + fitted(table([("tensor", "shape", "dtype", "each"), *lines], right=(3,)), width()))
    if left:
        tell(fitted_lines(f"... {left:,} more rows: --all-rows", width()))

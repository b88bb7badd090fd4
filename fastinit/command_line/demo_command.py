"""``fastinit demo``: a plan, every backend that can run, two ranks with one process's bits, and a tampered file."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..backends import available_backends, device_type
from ..demo import config, demo_shards, digest_of_weights, make
from ..errors import Error
from ..materializing import materialize
from ..planning import plan
from ..weight_init import initialize
from .errors import message_of
from .output import fitted, fitted_lines, tell

NAME = "demo"
# What the screens of most terminals have.
_MOST_CHARACTERS = 80
_MAX_ROWS = 9
_SEED = 0
HELP = "show what fastinit does, on a GPT-like model of 355 million parameters"
TEXT = """\
Shows on one screen, in less than a minute: the plan of a GPT-like model; every backend that can run here; that two
ranks have the bits of one process; and that a tampered checkpoint is refused.

examples:
  fastinit demo --layers 2 --width 64
  torchrun --nproc-per-node 2 -m fastinit demo --shards"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--layers", type=_positive, default=24, help="transformer blocks, 24 if not given")
    parser.add_argument("--width", type=_positive, default=1024, help="width of the model, 1024 if not given")
    parser.add_argument("--shards", action="store_true", help="run as one rank of several, under torchrun")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    if options.shards and "RANK" not in os.environ:
        parser.error("--shards is for several processes: torchrun --nproc-per-node 2 -m fastinit demo --shards")
    if options.shards:
        demo_shards(options.layers, options.width)
        return 0
    n_characters = min(shutil.get_terminal_size((_MOST_CHARACTERS, 0)).columns or _MOST_CHARACTERS, _MOST_CHARACTERS)
    for lines in _scenes(options.layers, options.width):
        for line in lines:
            tell(_fitted(line, n_characters))
        sys.stdout.flush()  # the next scene takes a while
    return 0


def _fitted(text: str, n_characters: int) -> str:
    """Returns a table, or a line of prose or code whose indent goes on where it is too long, in so many characters."""
    if "\n" in text:
        return fitted_lines(fitted(text, n_characters), n_characters)
    indent = " " * (len(text) - len(text.lstrip()) + 2 * text.startswith(" "))
    wrapped = textwrap.wrap(text, n_characters, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(wrapped)


def _scenes(layers: int, width: int) -> Iterator[list[str]]:
    """Yields what is shown, as soon as it is known."""
    model, cfg = make(layers, width), config(layers)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    yield [
        f"A GPT of {layers} layers, {n_parameters:,} parameters, on the meta device.",
        "",
        "1. The plan: what every parameter gets, before there is memory for one.",
        plan(model, cfg, seed=_SEED).table(max_rows=_MAX_ROWS),
        "",
        "2. The backends, one of them torch.nn.init itself, on its generator.",
    ]
    digest = ""
    for backend, missing in available_backends().items():
        if missing is not None:
            yield [f"   {backend:<7}cannot run here: {missing}".split("\n")[0]]
            continue
        # No copy of the model before it stays: a large one would not fit twice.
        model = make(layers, width)
        report = materialize(model, cfg, seed=_SEED, backend=backend, device=device_type(backend))
        rate = f"{report.n_bytes / 1e9:.2f} GB in {report.seconds:.2f} s"
        yield [f"   {backend:<7}{rate}; numbers: {report.numbers}"]
        if backend == "cpp":
            digest = digest_of_weights(model)
    yield ["", "3. The same seed on one process and on two ranks (FSDP2 over gloo, backend cpp)."]
    yield [f"   {line}" for line in _ranks(layers, width, digest)]
    yield ["", "4. A checkpoint that someone tampered with: reading it would run a command."]
    yield [f"   {line}" for line in _tampered()]
    yield [
        "",
        "From here, with a model and rules of your own:",
        "   fastinit plan train.py:make_model --config rules.json",
        "   fastinit check model.safetensors",
        "   fastinit.materialize(model, cfg, seed=0, backend='cpp')  # in Python",
    ]


def _ranks(layers: int, width: int, digest: str) -> list[str]:
    """Runs two ranks in processes of their own, and compares their weights with those of a model in this process."""
    if not digest:
        return ["left out: it needs the backend cpp"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "fastinit", "demo", "--shards", "--layers", str(layers), "--width", str(width)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # as torchrun sets it, which says so in four lines
    # The digest counts, and not the exit status: gloo may abort when a rank leaves.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    found = re.search(r"each rank filled (.*); digest of all weights: (\w+)", done.stdout)
    if found is None:
        # A rank's own message; the launcher's are about the launcher.
        said = re.findall(r"^fastinit.*?: (.*)", done.stderr, re.MULTILINE) or [
            done.stderr.strip()[-200:] or "no message"
        ]
        return [f"the ranks did not run: {said[0]}"]
    verdict = "equal, bit for bit" if found[2] == digest else "DIFFERENT"
    return [
        f"1 process:  digest of all weights {digest}",
        f"2 ranks:    digest of all weights {found[2]}: {verdict}",
        f"            (each rank filled {found[1]})",
    ]


class _Command:
    """Pickled, it is a call of os.mkdir: what any unpickler that trusts the file runs."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def _tampered() -> list[str]:
    """Lets a model load a file whose pickle calls a function; says what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        made, path = os.path.join(folder, "made-by-the-file"), os.path.join(folder, "tampered.pth")
        torch.save({"weight": torch.ones(2, 2), "bias": _Command(made)}, path)
        model = nn.Linear(2, 2)
        before = digest_of_weights(model)
        try:
            initialize(model, dict(type="Pretrained", checkpoint=path), strict=True)
            said = "it was read"
        except Error as error:
            said = f"refused: {message_of(error).replace(folder + os.sep, '')}"
        ran = "RAN" if os.path.exists(made) else "did not run"
        changed = "as it was" if digest_of_weights(model) == before else "CHANGED"
    return [said, f"The command {ran}; the model is {changed}."]


def _positive(text: str) -> int:
    """Returns a positive number; argparse shows the message."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, but got {text!r}")
    return number

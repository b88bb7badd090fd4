"""Parses a command line, runs its command, and turns what goes wrong into one message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from ..checkpoint.messages import printable
from ..execution.defaults import check_default_backend
from ..progress import silent
from ..version import __version__
from . import (
    backends_command,
    check_command,
    demo_command,
    diff_command,
    digest_command,
    doctor_command,
    plan_command,
    verify_command,
    write_command,
)
from .errors import DamagedError, message_of

DIFFERENT = 1
TROUBLE = 2
INTERRUPTED = 130

_COMMANDS: tuple[Any, ...] = (
    plan_command,
    diff_command,
    digest_command,
    verify_command,
    write_command,
    check_command,
    backends_command,
    doctor_command,
    demo_command,
)
"""Modules, each with the command's ``NAME``, ``HELP`` (a line), ``TEXT`` (what --help says), and two functions:
``add_arguments(parser)`` and ``run(options, parser)``, which returns the exit code."""

_ABOUT = """\
Plans how every parameter of a PyTorch model starts: shows the plan, keeps it in a file, compares, checks and
executes it.

Only what is given as package.module:name or file.py:name is run. `check` and `digest FILE` run nothing."""
_EXIT_CODES = """\
exit codes: 0, or 1 where something differs or is damaged, or 2 where a command cannot do its work; 130 after
Ctrl-C"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (None: the process's) and returns its exit code.

    Raises:
        SystemExit: after ``--help`` and ``--version``, and where the command line is wrong (code 2).
    """
    parser, parsers = _parser()
    options = parser.parse_args(arguments)
    try:
        check_default_backend()
    except ValueError as error:
        parser.error(str(error))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may only take ASCII
            stream.reconfigure(errors="backslashreplace")
    with _warnings_as_lines():
        return _run(options, parsers[options.command])


class _HelpFormatter(argparse.HelpFormatter):
    """Fits paragraphs to the terminal, and leaves lists and examples, which are indented, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        found: list[str] = []
        paragraph: list[str] = []
        for line in [*text.split("\n"), ""]:
            if line.startswith("Exit code:") and paragraph:
                found += textwrap.wrap(" ".join(paragraph), width, break_on_hyphens=False)
                paragraph = []
            if line and not line.startswith(" ") and not line.endswith(":"):
                paragraph.append(line)
                continue
            found += textwrap.wrap(" ".join(paragraph), width, break_on_hyphens=False) if paragraph else []
            found.append(line)
            paragraph = []
        return "\n".join(indent + line for line in found[:-1])


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="fastinit", description=_ABOUT, epilog=_EXIT_CODES, formatter_class=_HelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"fastinit {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("for all commands")
    group.add_argument("--traceback", action="store_true", help="show where in the code an error was raised")
    group.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="no bars (as FASTINIT_PROGRESS=0 in the environment)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for command in _COMMANDS:
        added = commands.add_parser(
            command.NAME, help=command.HELP, description=command.TEXT, parents=[common], formatter_class=_HelpFormatter
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
        parsers[command.NAME] = added
    return parser, parsers


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        with nullcontext() if options.progress else silent():
            code: int = options.run(options, parser)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has seen enough
        with suppress(OSError, ValueError):  # or Python's end would try to write the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        _complain(message_of(error))
        return DIFFERENT if isinstance(error, DamagedError) else TROUBLE


def _complain(text: str) -> None:
    with suppress(BrokenPipeError, ValueError):
        print(f"fastinit: {text}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Shows warnings in the block as messages, without lines of code that the user has not written."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        _complain(f"warning: {printable(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield

"""What commands are given: plans of models or from lock files, configs, and the arguments for both."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import presets
from ..backends import AUTO, BACKENDS
from ..contract.streams import check_seed
from ..execution.defaults import use
from ..planning import plan
from ..plans import Plan
from .errors import CommandError
from .models import json_at, literals, model_of, named

CONFIG_HELP = """\
A config is one of
  rules.json                a list of rules as data; it imports nothing (--allow-imports)
  net.plan.json             a plan that was saved
  path/file.py:name         a list of rules, or a function that returns one; runs the file
  gpt2(n_layers=12)         a preset of fastinit.presets"""

_LOCK_KEY = b'"fastinit_lock"'
_HEAD_BYTES = 256


def is_lock_file(text: str) -> bool:
    """Tells whether a path is that of a plan's lock file."""
    head = head_of(text)
    return head.lstrip().startswith(b"{") and _LOCK_KEY in head


def head_of(text: str) -> bytes:
    """Returns the first bytes of a file, by which its kind is known; none where a path is that of no file."""
    path = Path(text)
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def seed(text: str) -> int:
    """Returns a seed; for argparse."""
    try:
        return check_seed(int(text, 0)) or 0
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2^64 - 1, but got {text!r}") from None


def add_model_arguments(parser: argparse.ArgumentParser, *, several_configs: bool = False) -> None:
    """Adds the arguments that say how a MODEL is initialized."""
    how: dict[str, Any] = dict(action="append") if several_configs else {}
    more = "; given twice, the first is OLD's and the second NEW's" if several_configs else ""
    parser.add_argument("--config", metavar="CONFIG", help=f"rules that come after the model's own init{more}", **how)
    parser.add_argument("--allow-imports", action="store_true", help="let `type` in JSON be an import path")
    parser.add_argument("--strict", action="store_true", help="rules that match nothing are an error, not a warning")
    parser.add_argument("--seed", type=seed, metavar="N", help="0 to 2^64 - 1")


def add_backend_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend``."""
    parser.add_argument(
        "--backend", choices=[AUTO, *BACKENDS], help='what draws; "auto", the default, is torch itself on the CPU'
    )


def config_of(text: str | None) -> Any:
    """Returns the config that a text of the command line means; None for None.

    Raises:
        CommandError: it means none.
        Others: as the code that it names.
    """
    if text is None:
        return None
    if is_lock_file(text):
        return Plan.load(text)
    if text.endswith(".json"):
        return _rules(json_at(Path(text), "a rule or a list of rules"), text)
    name, parenthesis, rest = text.partition("(")
    if name.isidentifier() and name in _presets():
        args, kwargs = literals(parenthesis + rest or "()", text)
        return getattr(presets, name)(*args, **kwargs)
    if ":" not in text:
        raise CommandError(
            f"{text!r} is no config: expected a JSON file, path/file.py:name, or a preset: {', '.join(_presets())}"
        )
    found, (args, kwargs) = named(text)
    return found if isinstance(found, (dict, list, tuple)) or not callable(found) else found(*args, **kwargs)


def _presets() -> list[str]:
    functions = [
        name
        for name, each in vars(presets).items()
        if callable(each) and getattr(each, "__module__", "") == presets.__name__
    ]
    return sorted(name for name in functions if not name.startswith("_"))


def _rules(document: Any, path: str) -> Any:
    if not isinstance(document, (dict, list)):
        raise CommandError(
            f"{path}: expected a rule or a list of rules, but it is a {type(document).__name__}", place=path
        )
    return document


@contextmanager
def trusting(options: argparse.Namespace, config: str | None) -> Iterator[None]:
    """Keeps JSON from importing anything, unless the user allows it; and holds ``--strict``."""
    is_data = config is not None and config.endswith(".json") and not options.allow_imports
    how: dict[str, Any] = {"allow_imports": False} if is_data else {}
    if options.strict:
        how["strict"] = True
    with use(**how):
        yield


def plan_of(
    text: str,
    options: argparse.Namespace,
    *,
    config: str | None,
    backend: str | None = None,
    device: str | None = None,
) -> Plan:
    """Returns the plan of a lock file, or of a MODEL as it would be initialized."""
    if is_lock_file(text):
        given = {"--config": config, "--seed": options.seed, "--device": device}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise CommandError(f"{text} is a plan, with its numbers and seed: {', '.join(wrong)} is for models")
        return Plan.load(text)
    model = model_of(text)
    rules = config_of(config)
    with trusting(options, config):
        return plan(model, rules, device=device, seed=options.seed, backend=backend)

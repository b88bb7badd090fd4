"""``fastinit diff``: what differs between two plans, or between two digests."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ..plans import DigestDiff, Plan, PlanDiff
from .digests import digest_at, is_checkpoint, is_digest_file
from .errors import CommandError
from .models import MODEL_HELP, model_of
from .output import fitted_lines, tell, tell_json, width
from .sources import CONFIG_HELP, add_backend_argument, add_model_arguments, is_lock_file, plan_of

NAME = "diff"
HELP = "what differs between two plans or models, or between two checkpoints or their digests"
TEXT = f"""\
Shows what a change of a config, of code or of a library does to how a model starts: by effect, whatever the
rules are called.
Exit code: 0 where nothing differs, 1 where something does, 2 where they cannot be compared.

OLD and NEW are lock files of plans or MODELs; or both are checkpoints or files that `fastinit digest` made.

{MODEL_HELP}

{CONFIG_HELP}

examples:
  fastinit diff net.plan.json train.py:make_model --backend cpp --seed 0
  fastinit diff train.py:make_model train.py:make_model --config old.json --config new.json
  fastinit diff model.digest model.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    add_model_arguments(parser, several_configs=True)
    add_backend_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    configs = options.config or [None]
    if len(configs) > 2:
        parser.error("--config can be given twice, for OLD and for NEW")
    kinds = [_is_of_values(text) for text in (options.old, options.new)]
    if kinds[0] != kinds[1]:
        one, other = (options.old, options.new) if kinds[0] else (options.new, options.old)
        if not is_lock_file(other):
            model_of(other)  # says what is wrong where it is none
        raise CommandError(
            f"{one} holds values, and {other} says how a model starts",
            hint=": compare two plans or two checkpoints. `fastinit "
            "verify` tells whether a checkpoint holds what a plan says",
        )
    sides = _called(options.old, configs[0]), _called(options.new, configs[-1])
    found: PlanDiff | DigestDiff = _values(options) if kinds[0] else _plans(options, configs)
    found = dataclasses.replace(found, sides=sides)
    if options.json:
        document = found.to_json(indent=1) if isinstance(found, PlanDiff) else json.dumps(dataclasses.asdict(found))
        tell_json(document)
    else:
        tell(fitted_lines(str(found), width()))
    return int(bool(found))


def _called(text: str, config: str | None) -> str:
    """Returns what one side is called: as on the command line, a model's config behind it."""
    return text if config is None or is_lock_file(text) else f"{text} with {config}"


def _is_of_values(text: str) -> bool:
    return is_digest_file(text) or is_checkpoint(text)


def _values(options: argparse.Namespace) -> DigestDiff:
    return digest_at(options.old, options, None).diff(digest_at(options.new, options, None))


def _plans(options: argparse.Namespace, configs: list[Any]) -> PlanDiff:
    plans = []
    for text, config in zip((options.old, options.new), (configs[0], configs[-1])):
        plans.append(_plan(text, config, options))
    return plans[0].diff(plans[1])


def _plan(text: str, config: str | None, options: argparse.Namespace) -> Plan:
    if is_lock_file(text):  # what is said of models is for the other one
        return plan_of(text, argparse.Namespace(seed=None), config=None)
    return plan_of(text, options, config=config, backend=options.backend)

"""``fastinit plan``: what every parameter of a model gets; also into a lock file."""

from __future__ import annotations

import argparse

from ..plans import Plan, notes_of
from .errors import CommandError
from .models import MODEL_HELP
from .output import fitted, fitted_lines, tell, tell_json, width
from .sources import CONFIG_HELP, add_backend_argument, add_model_arguments, plan_of

NAME = "plan"
HELP = "show what every parameter of a model gets, or keep it in a lock file"
TEXT = f"""\
Shows what every parameter of a model gets, in the model's order, like layers as one row. Nothing is filled.

{MODEL_HELP}
A lock file of a plan in its place is shown, and runs nothing.

{CONFIG_HELP}

examples:
  fastinit plan 'torch.nn:Linear(64, 64)'
  fastinit plan train.py:make_model --config rules.json --json
  fastinit plan path/to/config.json --backend cpp --seed 0 --save net.plan.json
  fastinit plan net.plan.json --all-rows"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("model", metavar="MODEL")
    add_model_arguments(parser)
    add_backend_argument(parser)
    parser.add_argument("--device", metavar="D", help="where the model is to be, such as cpu or cuda:0")
    parser.add_argument(
        "--json", action="store_true", help="a row for each parameter as JSON, the same for equal plans"
    )
    parser.add_argument("--history", action="store_true", help="all that is written, with what is replaced later")
    parser.add_argument("--all-rows", action="store_true", help="a row for each parameter, however many")
    parser.add_argument("--save", metavar="LOCKFILE", help="write the plan into a file, from which it can be run")
    parser.add_argument(
        "--inexact",
        action="store_true",
        help="save also what promises no bits, to be compared: torch's numbers, no seed",
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    plan = plan_of(options.model, options, config=options.config, backend=options.backend, device=options.device)
    if options.save is not None:
        _save(plan, options)
    if options.json:
        tell_json(plan.to_json(indent=1, history=options.history))
        return 0
    table = plan.table(None if options.all_rows else 60, history=options.history, collapse=not options.all_rows)
    tell(fitted(table, width()))
    tell(fitted_lines(_summary(plan), width()))
    return 0


def _save(plan: Plan, options: argparse.Namespace) -> None:
    if not options.inexact and plan.why_not_exact:
        raise CommandError(
            f"{options.save}: the plan cannot promise its bits: {plan.why_not_exact}",
            place=options.save,
            hint=". Usually --backend cpp and "
            "--seed N are missing; --inexact keeps what can be kept. Nothing was written",
        )
    plan.save(options.save, exact=not options.inexact)


def _summary(plan: Plan) -> str:
    n_values = sum(not row.replaced for row in plan.rows)
    n_elements = sum(row.n_elements for row in plan.rows if not row.replaced)
    replaced = len(plan.rows) - n_values
    line = f"{n_values:,} rows, {n_elements:,} elements; numbers: {plan.numbers}; seed: {plan.seed}"
    return "\n".join(
        [
            line + (f"; {replaced:,} more are replaced (--history)" if replaced else ""),
            *notes_of(plan.items, plan.unreached),
        ]
    )

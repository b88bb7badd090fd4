"""``fastinit verify``: whether a checkpoint holds what a plan says."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

from ..checkpoint import Reading, Request, load_checkpoint
from ..checkpoint.storage.stored import StoredTensor, in_memory
from ..config.kept_plans import bound
from ..execution.calls import new_scope
from ..planning import made_without_memory
from ..plans import Plan, Replay
from ..verifying import Verification, verify
from .errors import CommandError
from .models import MODEL_HELP, model_of
from .output import fitted_lines, tell, tell_json, width
from .sources import add_model_arguments, is_lock_file, plan_of

NAME = "verify"
HELP = "whether a checkpoint holds exactly what a plan says"
TEXT = f"""\
Draws again what a plan says and compares it with a checkpoint, bit for bit, in pieces: no copy of either is
made.
Exit code: 0 where the checkpoint holds all of it (but for buffers: tables that code computes, and those that
no row of the plan writes, which are listed; `fastinit diff` of two checkpoints compares those in them),
1 where it does not, or where parts cannot be verified (such as parameters that no row writes), 2 where it
cannot be compared. Nothing of the checkpoint is run.

Another dtype than the plan's is a difference. With --rounded a checkpoint in another floating-point dtype
must hold the plan's values, rounded to it.

PLAN is a lock file; or a MODEL with --seed, which then must start as the backend cpp fills it. With --model
the checkpoint is loaded into that model first (mapped, not copied), so that tied tensors count under each of
their names.

{MODEL_HELP}

examples:
  fastinit verify model.safetensors net.plan.json
  fastinit verify checkpoints/step-0/ train.py:make_model --seed 0"""


_HINT = (
    ". --model MODEL knows the names of wrappers, and helps where the checkpoint has tensors under more of their tied "
    "names than the plan"
)


class Checkpoint(nn.Module):
    """Stands for the model of a checkpoint: its tensors, by their names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("checkpoint", metavar="FILE_OR_FOLDER")
    parser.add_argument("plan", metavar="PLAN")
    parser.add_argument("--model", metavar="MODEL", help="whose checkpoint it is")
    add_model_arguments(parser)
    parser.add_argument("--rounded", action="store_true", help="values that are rounded to another dtype hold")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    is_model = not is_lock_file(options.plan)
    if is_model and options.seed is None:
        raise CommandError(f"{options.plan} is no lock file; of a MODEL, --seed is missing")
    plan = plan_of(options.plan, options, config=options.config, backend="cpp" if is_model else None)
    text = options.model or (options.plan if is_model else None)
    model = _of_names(options.checkpoint, plan) if text is None else _loaded(text, options.checkpoint)
    try:
        bound(plan, model, new_scope(model, is_dry=True, is_offline=True).names, "")
    except RuntimeError as error:
        hint = "" if text is not None else _HINT
        tell(f"{error}{hint}")
        return 1
    found = verify(model, plan, rounded=options.rounded)
    _tell(found, options)
    return 0 if found else 1


def _tell(found: Verification, options: argparse.Namespace) -> None:
    if options.json:
        tell_json(found.to_json(indent=1))
    else:
        tell(fitted_lines(str(found), width()))


def _of_names(path: str, plan: Plan) -> nn.Module:
    """Returns a module with a checkpoint's tensors, which are mapped."""
    request = Request(path, reading=Reading(access="map"))
    computed = {entry.name: entry.tensor for item in plan.items if isinstance(item, Replay) for entry in item.entries}
    root = Checkpoint()
    for name, tensor in computed.items():  # a checkpoint holds those that are persistent only
        _put(root, name, tensor.to("meta"), is_buffer=True)
    for name, value in request.state_dict(request.tree()).items():
        if isinstance(value, torch.Tensor):
            _put(root, name, in_memory(value) if isinstance(value, StoredTensor) else value, is_buffer=name in computed)
    return root


def _put(root: nn.Module, name: str, tensor: torch.Tensor, *, is_buffer: bool) -> None:
    *path, attribute = name.split(".")
    module = root
    for part in path:
        found = module._modules.setdefault(part, Checkpoint())
        assert found is not None
        module = found
    if is_buffer:
        module._buffers[attribute] = tensor.detach()
    else:
        module._parameters[attribute] = nn.Parameter(tensor.detach(), requires_grad=False)


def _loaded(text: str, path: str) -> nn.Module:
    """Returns a model with the tensors of a checkpoint, mapped."""
    model: Any = model_of(text)
    if not isinstance(model, nn.Module):
        model, _ = made_without_memory(model, "verify")
    load_checkpoint(model, path, assign=True, logger="silent")
    return model  # type: ignore[no-any-return]

"""``fastinit write``: a checkpoint of initial weights, without the model's memory."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from ..plans import Plan
from ..writing import write
from .errors import CommandError
from .models import MODEL_HELP, model_of
from .output import size, tell, tell_json
from .sources import CONFIG_HELP, add_model_arguments, config_of, is_lock_file, trusting

NAME = "write"
HELP = "write a checkpoint of initial weights, in 150 MB of memory for any size"
TEXT = f"""\
Writes the initial weights of a model, drawn while they are written: safetensors, in shards with an index
where they are large, or a folder of torch.distributed.checkpoint. Each file appears whole or not at all, and
what makes a checkpoint of them comes last; after Ctrl-C or a kill, the same command goes on with the shards
that are finished.

{MODEL_HELP}
or the lock file of a plan, of which every tensor is written that a state dict has.

{CONFIG_HELP}

examples:
  fastinit write net.plan.json net/
  fastinit write path/to/config.json seed-checkpoint/ --seed 0 --max-shard-size 2GB
  fastinit write train.py:make_model seed-checkpoint/ --seed 0 --format dcp"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="MODEL_OR_PLAN")
    parser.add_argument("path", metavar="PATH", help="a folder, or a file that ends with .safetensors")
    add_model_arguments(parser)
    parser.add_argument(
        "--format", choices=["safetensors", "dcp"], default="safetensors", help="safetensors if not given"
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", default="5GB", help="such as 200MB; 5GB if not given")
    parser.add_argument("--dtype", metavar="DTYPE", help="the default dtype while a MODEL is made, such as bfloat16")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("--json", action="store_true", help="the files, as JSON")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    source: Any = Plan.load(options.source) if is_lock_file(options.source) else model_of(options.source)
    rules = config_of(options.config)
    if not isinstance(source, Plan) and not isinstance(rules, Plan) and options.seed is None:
        raise CommandError("--seed is missing: without one the same checkpoint could not be made again")
    with trusting(options, options.config):
        try:
            files = write(
                source,
                options.path,
                rules,
                seed=options.seed,
                format=options.format,
                max_shard_size=int(options.max_shard_size)
                if options.max_shard_size.isdigit()
                else options.max_shard_size,
                dtype=_dtype(options.dtype),
                overwrite=options.overwrite,
            )
        except FileExistsError as error:
            raise CommandError(str(error).replace("overwrite=True", "--overwrite")) from None
    sizes = {str(file): file.stat().st_size for file in files}
    if options.json:
        tell_json(json.dumps({"fastinit_written": 1, "files": sizes}, indent=1, ensure_ascii=False))
        return 0
    for name, n_bytes in sizes.items():
        tell(f"{name}  {size(n_bytes)}")
    return 0


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise CommandError(f"--dtype: expected a floating-point dtype of torch, such as bfloat16, but got {name!r}")
    return found

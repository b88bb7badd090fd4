"""``fastinit digest``: what a checkpoint, or a model with its initial values, holds."""

from __future__ import annotations

import argparse

from .digests import digest_at
from .models import MODEL_HELP
from .output import tell, tell_json
from .sources import CONFIG_HELP, add_backend_argument, add_model_arguments

NAME = "digest"
HELP = "64 bits for each tensor of a checkpoint or a model, and 128 for all"
TEXT = f"""\
Shows a digest of each tensor, and one of all. It depends on names, dtypes, shapes and bits alone: the same
for any format of the file, device or mesh. The text fits a repository, and `fastinit diff` compares it with a
checkpoint.

SOURCE is a checkpoint: a file or a folder, of which nothing is run; or a MODEL, which is made and filled in
memory, by the backend cpp unless another is given, and needs --seed. A folder with weights beside its
config.json is a checkpoint. Buffers that no checkpoint has (rotary tables) are left out; from Python,
`fastinit.digest(model, non_persistent_buffers=True)` has them.

{MODEL_HELP}

{CONFIG_HELP}

examples:
  fastinit digest model.safetensors > model.digest
  fastinit diff model.digest model-from-elsewhere/
  fastinit digest train.py:make_model --seed 0 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="SOURCE")
    add_model_arguments(parser)
    add_backend_argument(parser)
    parser.add_argument(
        "--no-tied-names", action="store_true", help="state tied tensors of a MODEL once, as a checkpoint has them"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Runs it."""
    found = digest_at(options.source, options, options.config, tied_names=not options.no_tied_names)
    if options.json:
        tell_json(found.to_json(indent=1))
    else:
        tell(found.to_text().removesuffix("\n"))
    return 0

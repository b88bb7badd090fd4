"""Digests of what the command line names: a file of a digest, a checkpoint, a model with its initial values."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from ..backends import AUTO
from ..config.trees import has_own_configs
from ..digesting import digest
from ..execution.defaults import use
from ..naming import unwrapped
from ..plans import Digest
from ..recording.capturing import build
from ..weight_init import initialize
from .errors import CommandError
from .models import CONFIG, model_of
from .sources import config_of, head_of, trusting

_TEXT_HEAD = b"# fastinit digest "
_JSON_KEY = b'"fastinit_digest"'


def is_digest_file(text: str) -> bool:
    """Tells whether a path is that of a digest's text or JSON."""
    head = head_of(text)
    return head.startswith(_TEXT_HEAD) or (head.lstrip().startswith(b"{") and _JSON_KEY in head)


def is_checkpoint(text: str) -> bool:
    """Tells whether a path is that of a checkpoint rather than of a model's config or code."""
    path = Path(text)
    if path.is_dir():
        names = {each.name for each in path.iterdir()}
        return names != {CONFIG} and not (CONFIG in names and not _has_weights(names))
    is_index = text.endswith(".index.json")
    return path.is_file() and (is_index or path.suffix not in (".json", ".py"))


def _has_weights(names: set[str]) -> bool:
    endings = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".index.json", ".distcp", ".metadata")
    return any(name.endswith(endings) for name in names)


def digest_at(text: str, options: argparse.Namespace, config: str | None, *, tied_names: bool = True) -> Digest:
    """Returns the digest that a file holds, or that of a checkpoint or of a model.

    Args:
        text: of the command line.
        options, config: how a model is made.
        tied_names: whether tied tensors of a model are stated under each of their names.

    Raises:
        CommandError: it is of a model, whose seed is missing.
        Others: as ``fastinit.digest``, and as the model's code.
    """
    if is_digest_file(text):
        document = Path(text).read_text(encoding="utf-8")
        try:
            return Digest.from_json(document) if document.lstrip().startswith("{") else Digest.from_text(document)
        except ValueError as error:
            raise CommandError(f"{text}: {error}", place=text, of=error) from None
    if is_checkpoint(text):
        return digest(text)
    return _of_model(text, options, config, tied_names)


def _of_model(text: str, options: argparse.Namespace, config: str | None, tied_names: bool) -> Digest:
    model = model_of(text)
    if options.seed is None:
        raise CommandError(f"{text} is a model: its initial values depend on a seed, so --seed is missing")
    backend = options.backend if options.backend not in (None, AUTO) else "cpp"
    if isinstance(model, nn.Module):
        raise CommandError(f"{text} is a module that was made already", hint=": give a function that makes it")
    rules = config_of(config)
    made = build(model, backend=backend, seed=options.seed)
    base = unwrapped(made)
    if has_own_configs(base) and not base.is_init:  # as `plan` and `write` do
        with use(backend=backend, seed=options.seed):
            base.init_weights()  # type: ignore[operator]
    if rules is not None:
        with trusting(options, config):
            initialize(made, rules, backend=backend, seed=options.seed)
    return digest(made, tied_names=tied_names)

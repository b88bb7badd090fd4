"""Loading checkpoints: the names of mmengine.runner.checkpoint that users import, for local files."""

from __future__ import annotations

from .loading import (
    _load_checkpoint,
    _load_checkpoint_to_model,
    _load_checkpoint_with_prefix,
    load_checkpoint,
    load_state_dict,
    plan_copy,
    print_log,
)

__all__ = [
    "_load_checkpoint",
    "_load_checkpoint_to_model",
    "_load_checkpoint_with_prefix",
    "load_checkpoint",
    "load_state_dict",
    "plan_copy",
    "print_log",
]

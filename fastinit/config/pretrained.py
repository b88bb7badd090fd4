"""The initializer that copies a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .. import checkpoint as checkpoints
from ..errors import InitValueError
from ..execution.scope import Scope
from ..plans import Item
from ..registry import WEIGHT_INITIALIZERS, imports_allowed
from .running import Planned


@WEIGHT_INITIALIZERS.register_module(name="Pretrained")
class PretrainedInit(Planned):
    """Copies the parameters and buffers of a checkpoint whose names and shapes match the module's.

    Args:
        checkpoint: a path (a file of safetensors or ``torch.save``, the index of a sharded checkpoint, a folder), or a
            name with a scheme, such as ``open-mmlab://resnet50_v1c`` or ``hf://org/name``.
        prefix: load only the keys under ``prefix.``, with that prefix removed.
        map_location: with ``assign``, the device of the adopted tensors; copies always go to the parameters' device.
        key, revise_keys, strict, assign, dtype, access, weights_only, allow: as for
            ``fastinit.checkpoint.load_checkpoint``; ``revise_keys=None`` strips ``module.``.
    """

    wholemodule = False

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        prefix: str | None = None,
        map_location: Any = "cpu",
        *,
        key: str | None = None,
        revise_keys: Sequence[tuple[str, str]] | None = None,
        strict: bool = False,
        assign: bool = False,
        dtype: torch.dtype | str | None = None,
        access: str = "auto",
        weights_only: bool = True,
        allow: Sequence[Any] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        if not imports_allowed():
            _check_runs_no_code(weights_only, allow)
        reading = checkpoints.Reading(map_location, access, weights_only, tuple(allow))
        self._request = checkpoints.Request(checkpoint, prefix, key, revise_keys, strict, assign, dtype, reading)

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns the copy of the checkpoint; only its names and shapes are read.

        A file that is not here yet is downloaded, before the first write; in an offline scope (``plan``) it is not.
        """
        copy = checkpoints.plan_copy(
            module,
            self._request,
            names=scope.names,
            opened=scope.checkpoints,
            rule=rule,
            info=self._get_init_info(),
            asks_fit=scope.checkpoints.is_offline or bool(scope.strict),
        )
        if scope.strict and not (copy.entries or copy.unknown or copy.runs_own_code):  # otherwise its log says so
            hint = "".join(f"; {each}" for each in copy.fit.hints) if copy.fit else ""
            scope.matches_nothing(
                rule, type(self).__name__, f"{copy.source} holds no tensor of {type(module).__name__}", hint
            )
        return [copy]

    def _get_init_info(self) -> str:
        return f"{type(self).__name__}: load from {checkpoints.shown_address(self.checkpoint)}"


def _check_runs_no_code(weights_only: object, allow: Any) -> None:
    """Raises ValueError if loading the checkpoint could run code or import modules."""
    names = [allow] if isinstance(allow, str) else [each for each in allow if isinstance(each, str)]
    if weights_only is not True or names:
        what = f"allow={names!r} imports these names" if names else f"weights_only={weights_only!r} runs a file's code"
        raise InitValueError(f"{what}, which is not allowed here (allow_imports=False)")

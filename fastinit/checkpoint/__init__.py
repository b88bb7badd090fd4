"""Checkpoints: where they come from, their file formats, and loading them into models.

``from fastinit.checkpoint import ...`` replaces ``from mmengine.runner.checkpoint import ...``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.modules.module import _IncompatibleKeys

from ..doors import door

if TYPE_CHECKING:
    from .formats.by_content import Reading
    from .loading import (
        _load_checkpoint,
        _load_checkpoint_to_model,
        _load_checkpoint_with_prefix,
        load_checkpoint,
        load_state_dict,
        map_stored,
    )
    from .mmengine_log import print_log
    from .planned_copies import plan_copy
    from .request import Request
    from .saving import _save_to_state_dict, find_latest_checkpoint, get_state_dict, save_checkpoint, weights_to_cpu
    from .sources.addresses import shown_address
    from .sources.url_schemes import (
        CheckpointLoader,
        _process_mmcls_checkpoint,
        load_from_ceph,
        load_from_fsspec,
        load_from_hf,
        load_from_http,
        load_from_local,
        load_from_mmcls,
        load_from_openmmlab,
        load_from_pavi,
        load_from_torchvision,
    )
    from .sources.zoos import (
        _get_mmengine_home,
        get_deprecated_model_names,
        get_external_models,
        get_mmcls_models,
        get_torchvision_models,
    )
else:  # readers and sources of files take longer to load than all else, and few calls need them
    __getattr__, __dir__ = door(
        __name__,
        {
            "formats.by_content": ("Reading",),
            "loading": (
                "_load_checkpoint",
                "_load_checkpoint_to_model",
                "_load_checkpoint_with_prefix",
                "load_checkpoint",
                "load_state_dict",
                "map_stored",
            ),
            "mmengine_log": ("print_log",),
            "planned_copies": ("plan_copy",),
            "request": ("Request",),
            "saving": (
                "_save_to_state_dict",
                "find_latest_checkpoint",
                "get_state_dict",
                "save_checkpoint",
                "weights_to_cpu",
            ),
            "sources.addresses": ("shown_address",),
            "sources.url_schemes": (
                "CheckpointLoader",
                "_process_mmcls_checkpoint",
                "load_from_ceph",
                "load_from_fsspec",
                "load_from_hf",
                "load_from_http",
                "load_from_local",
                "load_from_mmcls",
                "load_from_openmmlab",
                "load_from_pavi",
                "load_from_torchvision",
            ),
            "sources.zoos": (
                "_get_mmengine_home",
                "get_deprecated_model_names",
                "get_external_models",
                "get_mmcls_models",
                "get_torchvision_models",
            ),
        },
    )

__all__ = [
    "CheckpointLoader",
    "Reading",
    "Request",
    "_IncompatibleKeys",
    "_get_mmengine_home",
    "_load_checkpoint",
    "_load_checkpoint_to_model",
    "_load_checkpoint_with_prefix",
    "_process_mmcls_checkpoint",
    "_save_to_state_dict",
    "find_latest_checkpoint",
    "get_deprecated_model_names",
    "get_external_models",
    "get_mmcls_models",
    "get_state_dict",
    "get_torchvision_models",
    "load_checkpoint",
    "load_from_ceph",
    "load_from_fsspec",
    "load_from_hf",
    "load_from_http",
    "load_from_local",
    "load_from_mmcls",
    "load_from_openmmlab",
    "load_from_pavi",
    "load_from_torchvision",
    "load_state_dict",
    "map_stored",
    "plan_copy",
    "print_log",
    "save_checkpoint",
    "shown_address",
    "weights_to_cpu",
]

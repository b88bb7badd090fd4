"""mmengine's wrapper for test-time augmentation, whose checkpoints are those of the model in it."""

from __future__ import annotations

import sys


def tta_classes() -> tuple[type, ...]:
    """Returns mmengine's ``BaseTTAModel`` if mmengine's models have been imported: only then a model can be one."""
    models = sys.modules.get("mmengine.model")
    return () if models is None else (models.BaseTTAModel,)

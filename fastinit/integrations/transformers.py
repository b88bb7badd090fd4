"""Models of transformers, built from a config or loaded from a checkpoint, with every fill planned."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InitImportError
from ..recording.capturing import build, capture
from ..recording.recipes import Recipe


def from_config(
    config: Any,
    *,
    auto_class: Any = None,
    device: torch.device | str | None = None,
    backend: str | None = None,
    seed: int | None = None,
    strict: bool = False,
    **kwargs: Any,
) -> Any:
    """Builds ``auto_class.from_config(config, **kwargs)``, filling each parameter once.

    Args:
        config: a ``PretrainedConfig``.
        auto_class: e.g. ``AutoModelForCausalLM``, or a model class; None: ``AutoModel``.
        device, backend, seed, strict: as for ``fastinit.build``.
        kwargs: passed to transformers, e.g. ``dtype`` and ``attn_implementation``.

    Raises:
        ImportError: transformers is not installed.
    """
    kind = _transformers().AutoModel if auto_class is None else auto_class
    make = getattr(kind, "from_config", None) or kind._from_config
    return build(lambda: make(config, **kwargs), device=device, backend=backend, seed=seed, strict=strict)


def from_pretrained(
    model_class: Any,
    name_or_path: Any,
    *args: Any,
    backend: str | None = None,
    seed: int | None = None,
    strict: bool = False,
    **kwargs: Any,
) -> tuple[Any, Recipe]:
    """Returns ``model_class.from_pretrained(name_or_path, ...)`` and the recipe of its fills.

    Parameters missing from the checkpoint (a new head) are drawn by name, so their values do not depend on the rest of
    the checkpoint; ``recipe.report.provenance`` lists them.

    Args:
        model_class: e.g. ``AutoModelForSequenceClassification``.
        backend, seed, strict: as for ``fastinit.capture``.

    Raises:
        ImportError: transformers is not installed.
    """
    _transformers()
    with capture(backend=backend, seed=seed, strict=strict) as recipe:
        model = model_class.from_pretrained(name_or_path, *args, **kwargs)
        recipe.bind(model[0] if isinstance(model, tuple) else model)  # with output_loading_info
    return model, recipe


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InitImportError(
            "fastinit.integrations.transformers needs transformers", hint=": pip install transformers"
        ) from error
    return transformers

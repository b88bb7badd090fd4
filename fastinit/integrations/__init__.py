"""Integrations with other libraries; importing them imports none of those libraries."""

from . import mmengine, transformers

__all__ = ["mmengine", "transformers"]

"""Bridges to other libraries, over the public API; importing them imports none of those libraries."""

from . import mmengine, transformers

__all__ = ["mmengine", "transformers"]

"""Names of model zoos: the tables behind ``torchvision://``, ``open-mmlab://`` and ``mmcls://``."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from ..messages import shown

_NAMES = Path(__file__).parent / "names"


def table_of(name: str) -> dict[str, str]:
    """Returns the addresses of a model zoo; ``<name>.json`` in mmengine's home adds to them and overrides them."""
    table: dict[str, str] = json.loads((_NAMES / f"{name}.json").read_text(encoding="utf-8"))
    own = home() / f"{name}.json"
    if own.is_file():
        try:
            added = json.loads(own.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RuntimeError(f"{own}: the file should be JSON, names with addresses: {error}") from error
        if not isinstance(added, dict) or not all(isinstance(value, str) for value in added.values()):
            raise RuntimeError(f"{own}: the file should be a dict of names with addresses")
        table |= added
    return table


def home() -> Path:
    """Returns mmengine's home, where users may put tables and files of their own."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("MMENGINE_HOME", os.path.join(cache, "mmengine"))).expanduser()


def get_external_models() -> dict[str, str]:
    """Returns the names that ``open-mmlab://`` takes, with their addresses.

    ``$MMENGINE_HOME/open_mmlab.json`` (else ``~/.cache/mmengine``) adds to them and overrides them.
    """
    return table_of("open_mmlab")


def get_mmcls_models() -> dict[str, str]:
    """Returns the names that ``mmcls://`` takes, with their addresses; ``mmcls.json`` in mmengine's home overrides."""
    return table_of("mmcls")


def get_deprecated_model_names() -> dict[str, str]:
    """Returns old names of ``open-mmlab://``, with what they are called now."""
    return table_of("deprecated")


def get_torchvision_models() -> dict[str, str]:
    """Returns the names that ``torchvision://`` takes, with their addresses.

    Those of torchvision 0.12 always; of a newer torchvision, where it is installed, also e.g. ``resnet50.default`` and
    ``resnet50.imagenet1k_v2``. ``torchvision.json`` in mmengine's home overrides.
    """
    table = table_of("torchvision")
    try:
        from torchvision import models

        names = models.list_models(models)
    except (ImportError, AttributeError):  # not installed, or older than 0.14
        return table
    for enum in map(models.get_model_weights, names):
        stem = enum.__name__.removesuffix("_Weights").lower()
        for weights in enum:
            table[f"{stem}.{weights.name.lower()}"] = weights.url
        if hasattr(enum, "DEFAULT"):
            table[f"{stem}.default"] = enum.DEFAULT.url
    return table


def address_of(table: Mapping[str, str], name: str, scheme: str) -> str:
    """Returns the address that a table has for a name.

    Raises:
        KeyError: it has none; the message says what is near.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, 3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" Known are: {', '.join(sorted(table))}"
        raise KeyError(f"{scheme}://{shown(name)}: no checkpoint of that name.{hint}")
    return table[name]

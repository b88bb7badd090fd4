"""Model zoos: ``torchvision://``, ``open-mmlab://`` and ``mmcls://``, and the tables with their addresses."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import InitFileNotFoundError, InitKeyError, InitRuntimeError
from ..messages import shown
from ..mmengine_log import log
from .addresses import as_path
from .downloads import download
from .further import further_tables
from .located import Located

_NAMES = Path(__file__).parent / "names"


def table_of(name: str) -> dict[str, str]:
    """Returns the addresses of a model zoo.

    Those of an installed mmengine go before fastinit's, as its forks keep the files elsewhere. ``<name>.json`` in
    mmengine's home adds to them and overrides them.
    """
    table: dict[str, str] = json.loads((_NAMES / f"{name}.json").read_text(encoding="utf-8"))
    for further in further_tables:
        # Torchvision has no weights for some names, which have None in mmengine's table.
        table |= {key: value for key, value in further(name).items() if isinstance(value, str)}
    own = home() / f"{name}.json"
    if own.is_file():
        try:
            added = json.loads(own.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InitRuntimeError(
                f"{own}: the file should be JSON, names with addresses: {error}", place=own
            ) from error
        if not isinstance(added, dict) or not all(isinstance(value, str) for value in added.values()):
            raise InitRuntimeError(f"{own}: the file should be a dict of names with addresses", place=own)
        table |= added
    return table


def home() -> Path:
    """Returns mmengine's home, where users may put tables and files of their own."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("MMENGINE_HOME", os.path.join(cache, "mmengine"))).expanduser()


def _get_mmengine_home() -> str:
    """Returns mmengine's home as text; it is made if it does not exist."""
    home().mkdir(parents=True, exist_ok=True)
    return str(home())


def get_external_models() -> dict[str, str]:
    """Returns the names that ``open-mmlab://`` takes, with their addresses.

    ``$MMENGINE_HOME/open_mmlab.json`` (else ``~/.cache/mmengine``) adds to them and overrides them.
    """
    return table_of("open_mmlab")


def get_mmcls_models() -> dict[str, str]:
    """Returns the names that ``mmcls://`` takes, with their addresses; ``mmcls.json`` in mmengine's home overrides."""
    return table_of("mmcls")


def get_deprecated_model_names() -> dict[str, str]:
    """Returns old names of ``open-mmlab://``, with their new names."""
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
        KeyError: it has none; the message suggests similar names.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, 3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" Known are: {', '.join(sorted(table))}"
        raise InitKeyError(f"{scheme}://{shown(name)}: no checkpoint of that name.", hint=hint)
    return table[name]


# --- from a name to a file --------------------------------------------------------------------------------------------


def _after(prefixes: Sequence[str], text: str) -> str:
    return next(text[len(prefix) :] for prefix in prefixes if text.startswith(prefix))


def _at(address: str, offline: bool, below: str | None = None) -> Located:
    """Locates an entry of a table: an address, or a path relative to mmengine's home."""
    if address.startswith(("http://", "https://")):
        return Located(download(address, offline=offline), below=below, is_copy=True)
    path = home() / as_path(address)
    if not path.is_file():
        raise InitFileNotFoundError(f"{shown(path)} can not be found.", place=shown(path))
    return Located(path, below=below)


def locate_torchvision(filename: str, offline: bool) -> Located:
    """Locates a model of torchvision."""
    if filename.startswith("modelzoo://"):
        log(
            'The URL scheme of "modelzoo://" is deprecated, please use "torchvision://" instead',
            "current",
            logging.WARNING,
        )
    name = _after(("torchvision://", "modelzoo://"), filename)
    table = table_of("torchvision")
    if name not in table:
        name = name.replace("_Weights", "").lower()
        table = get_torchvision_models()
    return _at(address_of(table, name, "torchvision"), offline)


def locate_openmmlab(filename: str, offline: bool) -> Located:
    """Locates a model of OpenMMLab's zoo."""
    name = _after(("open-mmlab://", "openmmlab://"), filename)
    scheme = filename.partition("://")[0]
    current = get_deprecated_model_names().get(name)
    if current is not None:
        log(f"{scheme}://{name} is deprecated in favor of {scheme}://{current}", "current", logging.WARNING)
        name = current
    return _at(address_of(get_external_models(), name, scheme), offline)


def locate_mmcls(filename: str, offline: bool) -> Located:
    """Locates a classifier of mmpretrain, of which the backbone is read."""
    return _at(address_of(get_mmcls_models(), _after(("mmcls://",), filename), "mmcls"), offline, below="backbone.")

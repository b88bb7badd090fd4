"""Imports the compiled extensions, and explains to users why one is missing.

Possible causes: the build failed, and setup.py left the reason in the package; it was built for another Python; the
package is a checkout that was never built, and may hide an installed one that was; or the file does not load.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

PACKAGE = Path(__file__).resolve().parents[1]
# The package's name for pip (pyproject.toml).
DISTRIBUTION = "torch-fastinit"


def imported(name: str, what: str, reason_file: str) -> tuple[ModuleType | None, str]:
    """Imports an extension of the package.

    Args:
        name: The module, e.g. ``_native``.
        what: How messages call it, e.g. ``the native core``.
        reason_file: The package's file in which setup.py leaves the reason of a failed build.

    Returns:
        The module and "", or None and the reason why it is missing.
    """
    package = __name__.partition(".")[0]
    # Not `from .. import`, which reports a missing file as a circular import.
    spec = importlib.util.find_spec(f"{package}.{name}")
    if spec is None or not _is_ours(spec, sys.modules[package]):
        return None, _why_missing(name, what, PACKAGE / reason_file)
    try:
        return importlib.import_module(f"{package}.{name}"), ""
    except ImportError as error:
        return None, f"{what} does not load: {error}"


def _is_ours(spec: ModuleSpec, package: ModuleType) -> bool:
    """Tells whether an extension that Python finds is inside this package.

    The finder of an editable install serves every module under the package's name, even when the Python files come from
    another checkout, which the extension may not match.
    """
    return not spec.has_location or os.path.dirname(str(spec.origin)) in package.__path__


def _why_missing(name: str, what: str, reason: Path) -> str:
    """Returns why the package has no file of an extension that this Python can load."""
    if reason.exists():
        return reason.read_text(encoding="utf-8").strip()
    root = PACKAGE.parent
    is_checkout = (root / "setup.py").exists() and (root / "csrc").is_dir()
    if others := _built(PACKAGE, name, for_this_python=False):
        how = f"run `pip install -e .` in {root}" if is_checkout else "install the package"
        return (
            f"{what} in {PACKAGE} was built for another Python or machine ({', '.join(others)}), and this one loads "
            f"{name}{EXTENSION_SUFFIXES[0]}: {how} with this Python"
        )
    hidden = next((folder for folder in _installed() if _built(folder, name)), None)
    hides = f", and hides the one installed in {hidden}" if hidden is not None else ""
    if is_checkout:
        elsewhere = ", or run from a folder outside of it" if hidden is not None else ""
        return f"{what} is missing: this checkout was not built{hides}; run `pip install -e .` in {root}{elsewhere}"
    return f"{what} is missing: {PACKAGE} holds no {name}{EXTENSION_SUFFIXES[0]}{hides}"


def _built(package: Path, name: str, *, for_this_python: bool = True) -> list[str]:
    """Returns the extension's files in a folder that this Python can load, or those that it cannot."""
    ours = {f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES}
    found = [file.name for ending in ("so", "pyd") for file in package.glob(f"{name}.*{ending}") if file.is_file()]
    return sorted(file for file in found if (file in ours) == for_this_python)


def _installed() -> list[Path]:
    """Returns where else this package is installed for this Python, editable installs included."""
    try:
        folders = [folder for each in distributions(name=DISTRIBUTION) for folder in _folders(each)]
    except (OSError, ValueError):  # broken metadata must not break the import
        return []
    return [folder for folder in folders if folder.is_dir() and folder.resolve() != PACKAGE]


def _folders(distribution: Distribution) -> list[Path]:
    """Returns where a distribution may keep the package: beside its metadata, or where an editable install points."""
    folders = [Path(str(distribution.locate_file(PACKAGE.name)))]
    # PEP 610: pip records where it installed from.
    if origin := distribution.read_text("direct_url.json"):
        url = urlsplit(json.loads(origin).get("url", ""))
        if url.scheme == "file" and json.loads(origin).get("dir_info", {}).get("editable"):
            folders.append(Path(url2pathname(url.path)) / PACKAGE.name)
    return folders

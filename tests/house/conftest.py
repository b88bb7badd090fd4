"""What tests of packages share: copies of the checkout as a clone has it, and compilers that are scripts."""

from __future__ import annotations

import shutil

import pytest
from packages import (
    files_of,
)
from paths import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout as a clone has it."""
    root = tmp_path / "checkout"
    for file in files_of(ROOT):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    return root


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """The only folder on the PATH, and the only place in which CUDA's compiler is looked for: empty."""
    folder = tmp_path / "tools"
    folder.mkdir()
    # What the compilers, which are scripts, are made of.
    for name in ("basename", "cat", "dirname"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTINIT_CUDA", "FASTINIT_CUDA_ARCHS", "FASTINIT_REQUIRE_BUILD"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def project(checkout, tools):
    """The copy of the checkout, whose build does not see this machine's CUDA."""
    setup = (checkout / "setup.py").read_text()
    assert setup.count('"/usr/local/cuda/bin"') == 1
    (checkout / "setup.py").write_text(setup.replace("/usr/local/cuda/bin", str(tools)))
    return checkout

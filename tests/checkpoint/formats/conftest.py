"""What tests of formats share: a good folder of torch.distributed.checkpoint, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import folders
import pytest


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder, written once for a file of tests."""
    return folders.good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the good folder, which a test may damage."""
    return Path(shutil.copytree(good, tmp_path / "folder"))

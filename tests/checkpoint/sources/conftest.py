"""What tests of sources share: a cache of their own, and servers that are asked again at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastinit.checkpoint.sources import downloads


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, and no long pauses."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    return tmp_path / "torch" / "hub" / "checkpoints"

"""What tests of checkpoints share."""

from __future__ import annotations

import pytest

from fastinit.checkpoint.storage import batches


@pytest.fixture(params=[8 << 20, 48], ids=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    for name in ("PIECE_BYTES", "MAPPED_PIECE_BYTES"):
        monkeypatch.setattr(batches, name, request.param)
    if request.param == 48:
        monkeypatch.setattr(batches, "_BLOCK_ELEMENTS", 5)

"""What tests of checkpoints share."""

from __future__ import annotations

import pytest

from fastinit.checkpoint.storage import batches, placing


@pytest.fixture(params=[8 << 20, 48], ids=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    for name in ("PIECE_BYTES", "MAPPED_PIECE_BYTES"):
        monkeypatch.setattr(batches, name, request.param)
    if request.param == 48:
        monkeypatch.setattr(batches, "_BLOCK_ELEMENTS", 5)


@pytest.fixture(params=[False, True], ids=["reading is faster", "mapping is faster"])
def mapping_is_faster(request, monkeypatch):
    """Lets "auto" find one or the other, whatever this machine is like."""
    real = placing.is_faster
    monkeypatch.setattr(
        placing,
        "is_faster",
        lambda file, *place: request.param if file.access == "auto" else real(file, *place),
    )
    return request.param

"""mmengine's other functions of checkpoints: state dicts, saving, the last checkpoint."""

from __future__ import annotations

import pytest
import torch
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

from fastinit import checkpoint as ours


def test_state_dicts_of_wrapped_models_match_mmengine():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))

    made = nn.DataParallel(Wrapped())
    found, expected = ours.get_state_dict(made), theirs.get_state_dict(made)
    assert (
        list(found)
        == list(expected)
        == ["inner.0.weight", "inner.0.bias", *(f"inner.1.{name}" for name in nn.BatchNorm1d(2).state_dict())]
    )
    assert found._metadata == expected._metadata
    assert list(ours.get_state_dict(made, prefix="x.")) == list(theirs.get_state_dict(made, prefix="x."))
    assert ours.get_state_dict(made, keep_vars=True)["inner.0.weight"] is made.module.inner.module[0].weight
    moved = ours.weights_to_cpu(found)
    assert moved._metadata is found._metadata
    assert list(moved) == list(found)


def test_a_checkpoint_is_saved_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "c.pth"
    ours.save_checkpoint({"a": torch.ones(2)}, str(path))
    with pytest.raises(Exception):
        ours.save_checkpoint({"a": torch.zeros(2), "b": lambda: 3}, path)  # which cannot be pickled
    assert [p.name for p in path.parent.iterdir()] == ["c.pth"]
    assert theirs._load_checkpoint(str(path))["a"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="cannot be set at the same time"):
        ours.save_checkpoint({}, str(path), file_client_args={}, backend_args={})
    with pytest.raises(NotImplementedError, match="not supported"):
        ours.save_checkpoint({}, "pavi://x/y")


def test_the_last_checkpoint_is_found_as_mmengine_finds_it(tmp_path, capsys):
    assert ours.find_latest_checkpoint(str(tmp_path)) is None
    assert "Did not find last_checkpoint" in capsys.readouterr().out
    (tmp_path / "last_checkpoint").write_text(f"{tmp_path}/epoch_3.pth\n")
    assert (
        ours.find_latest_checkpoint(tmp_path)
        == theirs.find_latest_checkpoint(str(tmp_path))
        == f"{tmp_path}/epoch_3.pth"
    )


def test_every_name_imported_from_mmengines_module_exists():
    for name in [
        "CheckpointLoader",
        "load_checkpoint",
        "load_state_dict",
        "get_state_dict",
        "save_checkpoint",
        "weights_to_cpu",
        "find_latest_checkpoint",
        "get_torchvision_models",
        "get_external_models",
        "get_mmcls_models",
        "get_deprecated_model_names",
        "_load_checkpoint",
        "_load_checkpoint_with_prefix",
        "_load_checkpoint_to_model",
        "load_from_local",
        "load_from_http",
        "load_from_torchvision",
        "load_from_openmmlab",
        "load_from_mmcls",
        "load_from_pavi",
        "load_from_ceph",
    ]:
        assert callable(getattr(ours, name))
        assert hasattr(theirs, name)

"""Files that change while they are loaded."""

from __future__ import annotations

import os

import needs
import pytest
import torch
from loading import ACCESS
from torch import nn

import fastinit
from fastinit import checkpoint as ours

safetensors = needs.module("safetensors.torch")


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_a_file_that_changes_between_planning_and_loading_is_an_error(tmp_path, access, how):
    path = tmp_path / "c.pth"
    torch.save({"a.weight": torch.ones(500, 500), "b.weight": torch.ones(500, 500)}, path)

    class Writes(fastinit.BaseInit):
        def __call__(self, module):
            if how == "cut":
                os.truncate(path, 1000)
            else:
                with path.open("r+b") as file:
                    file.write(b"x")
                os.utime(path, (1, 1))

    made = nn.ModuleDict({"a": nn.Linear(500, 500, bias=False), "b": nn.Linear(500, 500, bias=False)})
    with pytest.raises(OSError, match=r"c\.pth: the file was changed while it was being loaded"):
        fastinit.initialize(made, [Writes(), dict(type="Pretrained", checkpoint=path, access=access)])


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_that_is_cut_in_the_middle_of_a_load_is_an_error_and_not_a_mismatch(tmp_path, caplog, access):
    path = tmp_path / "c.pth"
    torch.save({"0.weight": torch.ones(500, 500), "1.weight": torch.ones(500, 500)}, path)

    class Cuts(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            os.truncate(path, 1000)

    made = nn.Sequential(Cuts(500, 500, bias=False), nn.Linear(500, 500, bias=False))
    before = made[1].weight.clone()
    with pytest.raises(OSError, match="was changed while it was being loaded"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=path, access=access))
    assert torch.equal(made[1].weight, before)
    assert "it is only partly initialized" in caplog.text


def test_a_file_that_is_replaced_by_another_does_not_disturb_a_load(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"weight": torch.ones(500, 500)}, path)
    request = ours.Request(path)
    state = request.state_dict(request.tree())
    ours.save_checkpoint({"weight": torch.zeros(500, 500)}, path)
    made = nn.Linear(500, 500, bias=False)
    made.weight.data.copy_(state["weight"])
    assert (made.weight == 1).all()
    assert float(ours._load_checkpoint(path)["weight"].sum()) == 0

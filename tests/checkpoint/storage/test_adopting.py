"""A model adopts the tensors of a file: mapped, and not read."""

from __future__ import annotations

from pathlib import Path

import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from loading import ACCESS, net, save, source_of
from torch import nn

import fastinit
from fastinit import checkpoint as ours

safetensors = needs.module("safetensors.torch")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
def test_a_meta_model_adopts_the_files_tensors(tmp_path, access, kind):
    source = source_of(net)
    save(source, tmp_path / "c", kind)
    content = (tmp_path / "c").read_bytes()
    with torch.device("meta"):
        made = net()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c", assign=True, access=access))
    assert_same_tensors(tensors(made), tensors(source))
    assert made["head"].weight is made["tokens"].weight
    assert report.unreached == ()
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in source.parameters()]
    assert all(type(p) is nn.Parameter for p in made.parameters())
    assert sorted(row.parameter for row in report.rows) == sorted(set(made.state_dict()) - {"head.weight"})
    # training does not change the file, and what is saved of one tensor is that tensor
    loss = sum(parameter.sum() for parameter in made.parameters() if parameter.requires_grad)
    loss.backward()
    torch.optim.SGD(made.parameters(), 0.1).step()
    assert not torch.equal(made["conv"].weight, source["conv"].weight)
    assert (tmp_path / "c").read_bytes() == content
    torch.save(made["norm"].weight, tmp_path / "one.pth")
    assert (tmp_path / "one.pth").stat().st_size < 5000


@needs.mark(needs.LINUX)
def test_adopted_tensors_are_mapped_and_not_read(tmp_path):
    torch.save({"weight": torch.ones(1000, 1000), "bias": torch.ones(1000)}, tmp_path / "c.pth")
    with torch.device("meta"):
        made = nn.Linear(1000, 1000)
    ours.load_checkpoint(made, tmp_path / "c.pth", assign=True, logger="silent")
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / "c.pth") in line]
    assert lines
    assert all(" rw-p " in line for line in lines)
    del made
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_adopting_into_a_model_with_memory_gives_it_the_files_dtype(tmp_path):
    torch.save({"weight": torch.ones(2, 2, dtype=torch.bfloat16), "other": torch.ones(1)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2)
    bias = made.bias
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=True))
    assert made.weight.dtype == torch.bfloat16
    assert made.bias is bias
    assert report.checkpoints[0].result.copied == ("weight",)
    assert report.unreached == ("bias",)


def test_rules_behind_an_adopting_one_write_the_adopted_tensors(tmp_path):
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2)
    rules = [
        dict(type="Normal", layer="Linear"),
        dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=True),
        dict(type="Constant", param="bias", val=5),
    ]
    for backend in ("torch", "cpp"):
        report = fastinit.initialize(made, rules, backend=backend, seed=0)
        assert (made.weight == 1).all()
        assert (made.bias == 5).all()
        assert report.provenance["bias"].startswith("ConstantInit: val=5 (")
        assert "load from" in report.provenance["weight"]


def test_a_tree_of_base_modules_adopts(tmp_path):
    class Part(fastinit.BaseModule):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg)
            self.fc = nn.Linear(2, 2)

    torch.save({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, tmp_path / "c.pth")
    tree = fastinit.Sequential(
        Part(dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), assign=True)),
        Part(dict(type="Constant", layer="Linear", val=3)),
    )
    tree.init_weights()
    assert (tree[0].fc.weight == 1).all()
    assert (tree[1].fc.weight == 3).all()
    assert "load from" in tree.last_init_report.provenance["0.fc.weight"]


def test_a_copy_into_a_meta_model_is_refused_with_what_to_do(tmp_path):
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "c.pth")
    with torch.device("meta"):
        made = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"'weight' of Linear is on the meta device .*assign=True"):
        ours.load_checkpoint(made, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match="meta device"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))


def test_materialize_runs_pretrained(tmp_path):
    source = source_of(net)
    save(source, tmp_path / "c.pth", "zip")
    for assign in (False, True):
        with torch.device("meta"):
            made = net()
        fastinit.materialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=assign))
        assert_same_tensors(tensors(made), tensors(source))

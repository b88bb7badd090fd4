"""From a file into a model by copying: values, dtypes, layouts, ties."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from helpers import assert_same_tensors, tensors
from loading import ACCESS, net, save, source_of
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import placing


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
def test_a_model_gets_the_values_of_the_file_bit_for_bit(tmp_path, pieces, access, kind):
    source = source_of(net)
    save(source, tmp_path / "c", kind)
    made, again = net(), net()
    addresses = [p.data_ptr() for p in made.parameters()]
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c", access=access, strict=True))
    assert_same_tensors(tensors(made), tensors(source))
    assert [p.data_ptr() for p in made.parameters()] == addresses
    assert made["head"].weight is made["tokens"].weight
    result = report.checkpoints[0].result
    assert set(result.copied) == set(made.state_dict())
    assert result.missing == result.unexpected == ()
    assert report.unreached == ()
    if kind != "safetensors":
        theirs.load_checkpoint(again, str(tmp_path / "c"), map_location="cpu", logger="silent")
        assert_same_tensors(tensors(made), tensors(again))


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("into", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_values_take_the_models_dtype_as_copy_does(tmp_path, pieces, access, into, stored):
    values = torch.randn(30, 11).mul(3).to(stored)
    torch.save({"a": values}, tmp_path / "c.pth")
    made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(30, 11, dtype=into))})
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    assert made["a"].dtype == into
    assert torch.equal(made["a"], torch.zeros_like(made["a"]).copy_(values))


@pytest.mark.parametrize("access", ACCESS)
def test_layouts_of_both_sides_may_differ(tmp_path, pieces, access):
    base = torch.randn(6, 8, 4)
    sources = {
        "plain": base,
        "transposed": base.transpose(0, 2).contiguous().transpose(0, 2),
        "part": torch.randn(12, 8, 4)[3:9],
        "steps": torch.randn(6, 16, 4)[:, ::2],
        "expanded": torch.randn(1, 8, 1).expand(6, 8, 4),
        "ones": torch.randn(6, 8, 4, 1)[..., 0],
    }
    torch.save(sources, tmp_path / "c.pth")
    destinations = {
        "plain": torch.zeros(6, 8, 4),
        "transposed": torch.zeros(4, 8, 6).transpose(0, 2),
        "part": torch.zeros(10, 8, 4)[2:8],
        "steps": torch.zeros(6, 8, 8)[..., ::2],
    }
    tree = read(tmp_path / "c.pth", Reading(access=access))
    for stored in tree.values():
        for destination in destinations.values():
            before = destination._version
            assert destination.zero_().copy_(stored) is destination
            assert destination._version > before
            assert torch.equal(destination, stored)
    assert torch.zeros(2, 6, 8, 4).copy_(tree["plain"])[1].equal(base)  # broadcast
    with pytest.raises(RuntimeError, match="size"):
        torch.zeros(5).copy_(tree["plain"])


def test_tensors_at_odd_addresses_of_a_file_are_copied_and_adopted(tmp_path):
    table = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[3],"data_offsets":[1,13]}}'
    )
    content = len(table).to_bytes(8, "little") + table + b"\x05" + torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes()
    (tmp_path / "c.safetensors").write_bytes(content)
    for options in (dict(access="map"), dict(access="read"), dict(assign=True)):
        made = nn.ParameterDict({"b": nn.Parameter(torch.zeros(3))})
        made.register_buffer("a", torch.zeros(1, dtype=torch.uint8))
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.safetensors", **options))
        assert made["b"].tolist() == [1, 2, 3]
        assert made.a.item() == 5


def test_a_tied_weight_is_copied_once(tmp_path, monkeypatch):
    source = source_of(net)
    save(source, tmp_path / "c.pth", "zip")
    copied = []
    original = placing.run_copies
    monkeypatch.setattr(
        placing, "run_copies", lambda copies: original(each for each in copies if copied.append(each[0]) or 1)
    )
    made = net()
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert sum(each is made["head"].weight for each in copied) == 1
    # a state dict with other values for the second name: the last one counts, as in torch
    state = OrderedDict(source.state_dict())
    state["head.weight"] = torch.ones(50, 16)
    torch.save(state, tmp_path / "d.pth")
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "d.pth"))
    assert (made["tokens"].weight == 1).all()


def test_a_tied_weight_that_the_file_has_under_one_name_is_not_missing(tmp_path):
    source = source_of(net)
    state = source.state_dict()
    del state["head.weight"]
    torch.save(state, tmp_path / "c.pth")
    made = net()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=True))
    assert report.checkpoints[0].result.missing == ()
    assert torch.equal(made["head"].weight, source["tokens"].weight)


@pytest.mark.parametrize("access", ACCESS)
def test_dtype_rounds_on_the_way(tmp_path, pieces, access):
    values = torch.randn(40, 5)
    torch.save({"weight": values, "bias": torch.ones(40), "n": torch.tensor(3)}, tmp_path / "c.pth")
    made = nn.Linear(5, 40)
    made.register_buffer("n", torch.tensor(0))
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", dtype="bfloat16", access=access))
    assert made.weight.dtype == torch.float32
    assert torch.equal(made.weight, values.bfloat16().float())
    assert made.n == 3
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", dtype=torch.bfloat16, assign=True))
    assert made.weight.dtype == torch.bfloat16
    assert torch.equal(made.weight, values.bfloat16())
    assert made.n.dtype == torch.int64

"""Allowed classes and ``_metadata`` of hostile pickles: a file sets nothing but what a class declares."""

from __future__ import annotations

import needs
import pytest
import torch
from hostile_pickles import (
    write,
)
from limited import needs_linux
from pickle_opcodes import NO_HOOKS, g, pickled, text
from torch import nn

from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.formats.by_content import Reading, read

pytestmark = needs_linux


@needs.mark(needs.torch_from(2, 5))  # which registers classes of its own
def test_classes_registered_as_safe_with_torch_are_not_changed(tmp_path):
    from torch.distributed.tensor._dtensor_spec import DTensorSpec

    state = g(DTensorSpec.__module__, "DTensorSpec") + b"N}" + text("hostile") + b"K\x01s\x86b"
    write(tmp_path / "c.pth", pickled(state), "zip")
    with pytest.raises(RuntimeError, match="cannot be given a state"):
        load_checkpoint(nn.Linear(2, 2), tmp_path / "c.pth", logger="silent")
    assert not hasattr(DTensorSpec, "hostile")


class Allowed:
    __slots__ = ("lr",)


@pytest.mark.parametrize(
    "state",
    [
        b"N}" + text("hostile") + b"K\x01s\x86",
        b"N}" + text("__class__") + b"K\x01s\x86",
        b"}" + text("x") + b"K\x01s",
        b"K\x01",
    ],
)
def test_an_allowed_class_gets_no_attributes_but_its_own(tmp_path, state):
    name = g(Allowed.__module__, "Allowed")
    write(tmp_path / "good.pth", pickled(name + b")\x81N}" + text("lr") + b"K\x01s\x86b"), "zip")
    assert read(tmp_path / "good.pth", Reading(allow=(Allowed,))).lr == 1
    for content in (name + state + b"b", name + b")\x81" + state + b"b"):
        write(tmp_path / "c.pth", pickled(content), "zip")
        with pytest.raises(RuntimeError, match="damaged"):
            read(tmp_path / "c.pth", Reading(allow=(Allowed,)))
    assert not hasattr(Allowed, "hostile")


@pytest.mark.parametrize(
    "damage",
    [None, 3, [], {"": None}, {"": {"version": "2"}}, {"": 3}, {3: {"version": 1}}, {"": {"version": []}}],
    ids=repr,
)
def test_damaged_metadata_of_a_state_dict_are_refused_before_anything_is_written(tmp_path, damage):
    def made():
        return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    state = made().state_dict()
    state._metadata = damage
    torch.save(state, tmp_path / "c.pth")
    model = made()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="damaged or no checkpoint: .*_metadata of a state dict"):
        load_checkpoint(model, tmp_path / "c.pth", logger="silent")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_metadata_damaged_after_they_were_set_are_detected(tmp_path):
    metadata = b"}q\x07"
    content = NO_HOOKS + b"q\x05}" + text("_metadata") + metadata + b"sb0h\x07" + text("") + b"Ns0h\x05"
    write(tmp_path / "c.pth", pickled(content), "zip")
    with pytest.raises(RuntimeError, match="_metadata of a state dict"):
        read(tmp_path / "c.pth", Reading())


class AllowedOpen:
    """It has a __dict__, so that setting any attribute would succeed."""

    def method(self):
        return "its own"


def test_an_allowed_class_has_only_the_slots_it_declares(tmp_path):
    made = g(AllowedOpen.__module__, "AllowedOpen") + b")\x81"
    write(tmp_path / "c.pth", pickled(made + b"N}" + text("method") + b"K\x01s\x86b"), "zip")
    with pytest.raises(RuntimeError, match="a AllowedOpen has no slots a dict"):
        read(tmp_path / "c.pth", Reading(allow=(AllowedOpen,)))
    write(tmp_path / "c.pth", pickled(made + b"}" + text("lr") + b"K\x01sb"), "zip")
    assert read(tmp_path / "c.pth", Reading(allow=(AllowedOpen,))).lr == 1

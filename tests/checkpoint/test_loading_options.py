"""Options of a load: strict, keys under which the weights lie, revised keys."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_same_tensors, tensors
from loading import net, source_of
from torch import nn

import fastinit
from fastinit import checkpoint as ours


@pytest.mark.parametrize("strict", [True, False])
def test_strict_raises_before_any_write(tmp_path, strict):
    state = source_of(net).state_dict()
    state["conv.weight"] = torch.zeros(1, 2)
    state["more"] = torch.zeros(1)
    del state["norm.bias"]
    torch.save(state, tmp_path / "c.pth")
    made = net()
    before = copy.deepcopy(tensors(made))
    load = [
        lambda: fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=strict)),
        lambda: ours.load_checkpoint(made, tmp_path / "c.pth", strict=strict, logger="silent"),
        lambda: ours.load_state_dict(made, state, strict=strict, logger="silent"),
    ]
    for each in load:
        if strict:
            with pytest.raises(
                RuntimeError,
                match=r"(?s)size mismatch for conv.weight.*unexpected key.*: more.*missing keys.*: norm.bias",
            ):
                each()
            assert_same_tensors(tensors(made), before)
        else:
            each()
    if not strict:
        assert torch.equal(made["head"].weight, state["head.weight"])


def test_strict_still_raises_where_modules_have_loading_code_of_their_own(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match="missing keys in source state_dict: bias"):
        ours.load_checkpoint(Own(2, 2), tmp_path / "c.pth", strict=True)


@pytest.mark.parametrize("key", [None, "teacher", "ema.model"])
def test_the_weights_may_lie_under_a_key(tmp_path, key):
    at = {None: 1.0, "teacher": 2.0, "ema.model": 3.0}
    states = {name: {"weight": torch.full((2, 2), value)} for name, value in at.items()}
    torch.save(
        {"model": states[None], "teacher": states["teacher"], "ema": {"model": states["ema.model"]}, "epoch": 1},
        tmp_path / "c.pth",
    )
    made = nn.Linear(2, 2, bias=False)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", key=key))
    assert (made.weight == at[key]).all()
    ours.load_checkpoint(made, tmp_path / "c.pth", key=key, logger="silent", strict=True)


def test_a_missing_key_is_refused_with_the_keys_present(tmp_path):
    torch.save({"model": {"weight": torch.ones(2, 2)}, "ema": {}, "epoch": 1}, tmp_path / "c.pth")
    with pytest.raises(
        RuntimeError, match=r"c\.pth: the checkpoint has no key 'student'. Those that hold dicts are: 'model', 'ema'"
    ):
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth", key="student"))


def test_mmengines_key_takes_precedence_over_other_usual_keys(tmp_path):
    torch.save(
        {"state_dict_ema": {"weight": torch.zeros(1, 1)}, "model": {"weight": torch.ones(1, 1)}}, tmp_path / "a.pth"
    )
    torch.save({"state_dict_ema": {"weight": torch.zeros(1, 1)}, "epoch": 3}, tmp_path / "b.pth")
    torch.save({"model": torch.full((1, 1), 5.0)}, tmp_path / "c.pth")  # a bare state dict with a tensor of that name
    made = nn.Linear(1, 1, bias=False)
    for name, value in (("a", 1), ("b", 0)):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / f"{name}.pth"))
        assert made.weight.item() == value
    bare = nn.ParameterDict({"model": nn.Parameter(torch.zeros(1, 1))})
    fastinit.initialize(bare, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert bare["model"].item() == 5


def test_keys_are_revised_before_the_prefix_counts(tmp_path):
    torch.save({"net.stem.weight": torch.ones(2, 2), "net.head.weight": torch.zeros(2, 2)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2, bias=False)
    revise = [(r"^net\.", "backbone."), (r"\.stem\.", ".first.")]
    cfg = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix="backbone.first", revise_keys=revise)
    fastinit.initialize(made, cfg)
    assert (made.weight == 1).all()
    ours.load_checkpoint(made, tmp_path / "c.pth", prefix="backbone.head.", revise_keys=revise[:1], logger="silent")
    assert (made.weight == 0).all()

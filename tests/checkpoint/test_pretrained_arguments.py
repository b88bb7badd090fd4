"""Arguments of Pretrained are checked when the rule is made."""

from __future__ import annotations

import pytest
from torch import nn

import fastinit


def test_an_unknown_access_is_refused_when_the_rule_is_made():
    with pytest.raises(ValueError, match=r"init_cfg: access must be one of 'auto', 'map', 'read', but got 'mmap'"):
        fastinit.plan(nn.Linear(1, 1), dict(type="Pretrained", checkpoint="x", access="mmap"))
    for wrong, message in [
        (dict(weights_only=1), "weights_only must be True or False"),
        (dict(map_location=[1]), "map_location must be"),
        (dict(map_location="gpu"), "gpu"),
        (dict(prefix=3), "prefix must be a str"),
        (dict(strict="yes"), "strict must be a bool"),
        (dict(revise_keys=["ab"]), "revise_keys must hold"),
        (dict(revise_keys=[("(", "")]), "no regular expression"),
        (dict(dtype="int8"), "dtype must be a floating-point dtype"),
        (dict(dtype="bf16"), "dtype must be a floating-point dtype"),
    ]:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            fastinit.plan(nn.Linear(1, 1), dict(type="Pretrained", checkpoint="x", **wrong))

"""Configs from strangers: with allow_imports=False a type names what is registered, and nothing runs code."""

from __future__ import annotations

import contextvars
import json
import sys
import threading

import pytest
import torch
from torch import nn

import fastinit
from fastinit import WEIGHT_INITIALIZERS


@pytest.fixture()
def module_file(tmp_path, monkeypatch):
    """A module that tells when it is imported."""
    (tmp_path / "stranger.py").write_text("import sys; sys.stranger = True\ndef f(*a, **k): sys.stranger = 'called'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delattr(sys, "stranger", raising=False)
    yield
    sys.modules.pop("stranger", None)


CONFIGS = [
    dict(type="stranger.f"),
    dict(type="stranger.f", layer="Linear"),
    [dict(type="Constant", val=1, layer="Linear"), dict(type="stranger.f")],
    dict(type="Constant", val=1, override=dict(name="0", type="stranger.f")),
    dict(type="Constant", val=1, override=[dict(name="0", type="stranger.f")]),
    dict(type="fastinit.stranger.f"),
    dict(type="mmengine.stranger.f"),
    dict(type="mmengine.model.stranger.f"),
    dict(type="stranger"),
    dict(type="Pretrained", checkpoint="c.pth", allow=["stranger.f"]),
    dict(type="Pretrained", checkpoint="c.pth", allow="stranger.f"),
    dict(type="fastinit.Pretrained", checkpoint="c.pth", weights_only=False),
    dict(type="Pretrained", checkpoint="c.pth", weights_only=0),
    dict(type="Constant", val=1, override=dict(name="0", type="Pretrained", checkpoint="c.pth", weights_only=False)),
]


def calls():
    """Every call that takes a config."""

    class Tree(fastinit.BaseModule):
        def __init__(self, init_cfg):
            super().__init__(init_cfg)
            setattr(self, "0", nn.Linear(2, 2))

    def materialize(cfg):
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(2, 2))
        fastinit.materialize(model, cfg)

    return {
        "initialize": lambda cfg: fastinit.initialize(nn.Sequential(nn.Linear(2, 2)), cfg),
        "plan": lambda cfg: fastinit.plan(nn.Sequential(nn.Linear(2, 2)), cfg),
        "materialize": materialize,
        "init_weights": lambda cfg: fastinit.Sequential(Tree(cfg)).init_weights(),
        "build": lambda cfg: fastinit.build(lambda: (made := Tree(cfg), made.init_weights())[0]),
    }


@pytest.mark.parametrize("call", calls())
@pytest.mark.parametrize("cfg", CONFIGS, ids=json.dumps)
@pytest.mark.parametrize("way", ["use", "environment"])
def test_a_config_imports_and_runs_nothing(module_file, monkeypatch, call, cfg, way):
    monkeypatch.setattr(WEIGHT_INITIALIZERS, "fallback", lambda name: __import__(name.partition(".")[0]).f)
    cfg = json.loads(json.dumps(cfg))
    if way == "environment":
        monkeypatch.setenv("FASTINIT_ALLOW_IMPORTS", "0")
    with fastinit.use(allow_imports=False if way == "use" else None):
        with pytest.raises((KeyError, ValueError), match="allow_imports=False"):
            calls()[call](cfg)
    assert not hasattr(sys, "stranger")


def test_the_same_configs_import_where_imports_are_allowed(module_file, monkeypatch):
    monkeypatch.setattr(WEIGHT_INITIALIZERS, "fallback", lambda name: __import__(name.partition(".")[0]).f)
    with pytest.raises(TypeError, match="builds None"):
        calls()["initialize"](CONFIGS[0])
    assert sys.stranger == "called"


def test_registered_types_work_without_imports(tmp_path):
    @WEIGHT_INITIALIZERS.register_module(name="my.own.Ones")
    class Ones(fastinit.ConstantInit):
        def __init__(self, **options):
            super().__init__(1, **options)

    torch.save({"weight": torch.full((2, 2), 3.0)}, tmp_path / "c.pth")
    layer = nn.Linear(2, 2)
    with fastinit.use(allow_imports=False):
        for kind in ("Normal", "fastinit.Normal", "mmengine.Normal", "mmengine.model.NormalInit", "my.own.Ones", Ones):
            fastinit.initialize(layer, dict(type=kind, layer="Linear"))
        fastinit.initialize(layer, dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), weights_only=True))
    assert (layer.weight == 3).all() and (layer.bias == 0).all()


def test_an_inner_block_cannot_allow_imports_again(monkeypatch):
    cfg = dict(type="fastinit.weight_init.ConstantInit", val=1, layer="Linear")
    with fastinit.use(allow_imports=False):
        with fastinit.use(allow_imports=True, seed=3), pytest.raises(KeyError, match="allow_imports=False"):
            fastinit.initialize(nn.Linear(2, 2), cfg)
    fastinit.initialize(nn.Linear(2, 2), cfg)
    monkeypatch.setenv("FASTINIT_ALLOW_IMPORTS", "false")
    with fastinit.use(allow_imports=True), pytest.raises(KeyError, match="allow_imports=False"):
        fastinit.initialize(nn.Linear(2, 2), cfg)


def test_a_thread_sees_the_environment_and_a_copied_context():
    cfg, seen = dict(type="fastinit.weight_init.ConstantInit", val=1, layer="Linear"), []

    def work():
        try:
            fastinit.initialize(nn.Linear(2, 2), cfg)
            seen.append("done")
        except KeyError:
            seen.append("refused")

    with fastinit.use(allow_imports=False):
        for target in (work, lambda run=contextvars.copy_context().run: run(work)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == ["done", "refused"]


@pytest.mark.parametrize("value", ["no", "2", "yes please"])
def test_an_unknown_value_of_the_variable_is_an_error(monkeypatch, value):
    monkeypatch.setenv("FASTINIT_ALLOW_IMPORTS", value)
    with pytest.raises(ValueError, match="FASTINIT_ALLOW_IMPORTS must be 0 or 1"):
        fastinit.initialize(nn.Linear(2, 2), dict(type="math.floor"))


@pytest.mark.parametrize("value", [0, 1, "no", []])
def test_values_that_are_not_bools_are_refused(value):
    with (
        pytest.raises(TypeError, match="allow_imports must be True or False, but got"),
        fastinit.use(allow_imports=value),
    ):
        pass

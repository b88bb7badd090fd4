"""The table of schemes, and the names of model zoos, are mmengine's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from file_servers import loaded, offer, serve
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.sources import zoos

server = pytest.fixture(serve, name="server")


@pytest.fixture()
def own_schemes(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))


def test_schemes_are_registered_as_in_mmengine(own_schemes):
    calls = []

    @CheckpointLoader.register_scheme(prefixes=["my://", "mine://"])
    def load_from_mine(filename, map_location=None):
        calls.append((filename, map_location))
        return {"state_dict": {"weight": torch.ones(2, 2)}}

    CheckpointLoader.register_scheme("my2://", load_from_mine)
    made = nn.Linear(2, 2)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint="mine://x"))
    assert (made.weight == 1).all()
    assert calls == [("mine://x", "cpu")]
    assert ours.load_checkpoint(nn.Linear(2, 2), "my2://y", map_location="cpu", logger="silent")["state_dict"]
    assert fastinit.plan(made, dict(type="Pretrained", checkpoint="my://z")).rows[0].parameter == ""
    assert len(calls) == 2
    for library in (CheckpointLoader, theirs.CheckpointLoader):
        if library is theirs.CheckpointLoader:
            library.register_scheme("my://", load_from_mine)
        with pytest.raises(KeyError, match='my:// is already registered as a loader backend, add "force=True"'):
            library.register_scheme("my://", load_from_mine)
        library.register_scheme("my://", len, force=True)
        assert library._get_checkpoint_loader("my://q") is len
    theirs.CheckpointLoader._schemes.pop("my://")


def test_the_same_names_go_to_the_same_kind_of_loader_as_in_mmengine():
    for name in [
        "a.pth",
        "/a/b.pth",
        "http://x/y.pth",
        "https://x/y.pth",
        "torchvision://resnet50",
        "modelzoo://resnet50",
        "open-mmlab://vgg16_caffe",
        "openmmlab://vgg16_caffe",
        "mmcls://vgg11",
        "pavi://x/y",
        "petrel://x/y",
        "cluster:s3://x/y",
    ]:
        assert (
            CheckpointLoader._get_checkpoint_loader(name).__name__
            == theirs.CheckpointLoader._get_checkpoint_loader(name).__name__
        )
    assert CheckpointLoader._get_checkpoint_loader("hf://a/b").__name__ == "load_from_hf"
    assert CheckpointLoader._get_checkpoint_loader("s3://a/b").__name__ == "load_from_fsspec"


def test_where_a_checkpoint_comes_from_is_logged_in_mmengines_words(tmp_path, capsys):
    torch.save({"weight": torch.ones(1)}, tmp_path / "c.pth")
    lines = []
    for library in (ours, theirs):
        library.CheckpointLoader.load_checkpoint(str(tmp_path / "c.pth"), logger=None)
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] == f"Loads checkpoint by local backend from path: {tmp_path}/c.pth\n"


def test_the_tables_of_names_are_mmengines():
    assert ours.get_external_models() == theirs.get_external_models()
    assert ours.get_mmcls_models() == theirs.get_mmcls_models()
    assert ours.get_deprecated_model_names() == theirs.get_deprecated_model_names()


def named(server, tmp_path, monkeypatch, table, name, state):
    """Makes an own table send a name to the server."""
    url, path = offer(server, tmp_path, state)
    home = tmp_path / "mmengine"
    home.mkdir(exist_ok=True)
    (home / f"{table}.json").write_text(json.dumps({name: url, "local": "sub/own.pth"}))
    return path


def test_names_of_the_zoos_are_looked_up_and_can_be_overridden(server, tmp_path, monkeypatch, caplog):
    state = {"weight": torch.full((200, 300), 3.0), "bias": torch.ones(200)}
    for table, name, spelt in [
        ("open_mmlab", "detectron/resnet50_caffe", "open-mmlab://detectron/resnet50_caffe"),
        ("open_mmlab", "detectron/resnet50_caffe", "openmmlab://resnet50_caffe"),
        ("torchvision", "resnet50", "torchvision://resnet50"),
        ("torchvision", "resnet50", "modelzoo://resnet50"),
    ]:
        named(server, tmp_path, monkeypatch, table, name, state)
        assert (loaded(spelt).weight == 3).all()
    assert "openmmlab://resnet50_caffe is deprecated in favor of openmmlab://detectron/resnet50_caffe" in caplog.text
    assert 'The URL scheme of "modelzoo://" is deprecated' in caplog.text
    with pytest.raises(FileNotFoundError, match=r"sub/own\.pth can not be found"):
        loaded("open-mmlab://local")
    (tmp_path / "mmengine" / "sub").mkdir()
    torch.save({"weight": torch.full((200, 300), 4.0)}, tmp_path / "mmengine" / "sub" / "own.pth")
    assert (loaded("open-mmlab://local").weight == 4).all()


def test_a_classifier_of_mmcls_gives_its_backbone(server, tmp_path, monkeypatch):
    state = {
        "state_dict": {
            "backbone.weight": torch.full((200, 300), 5.0),
            "backbone.bias": torch.ones(200),
            "head.weight": torch.ones(1),
        }
    }
    named(server, tmp_path, monkeypatch, "mmcls", "vgg11", state)
    assert (loaded("mmcls://vgg11").weight == 5).all()
    found = ours.load_from_mmcls("mmcls://vgg11")
    assert list(found) == ["state_dict"]
    assert list(found["state_dict"]) == ["weight", "bias"]


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    for name, near in [
        ("open-mmlab://resnet50_v1", "resnet50_v1c"),
        ("openmmlab://vgg16_cafe", "vgg16_caffe"),
        ("mmcls://resnet5", "resnet50"),
        ("torchvision://rsnet50", "resnet50"),
    ]:
        with pytest.raises(KeyError, match=f"{name}: no checkpoint of that name. Did you mean .*'{near}'"):
            loaded(name)
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine" / "mmcls.json").write_text("[1]")
    with pytest.raises(RuntimeError, match=r"mmcls\.json: the file should be a dict of names with addresses"):
        loaded("mmcls://resnet50")


def test_a_newer_torchvision_adds_its_names(monkeypatch):
    import enum
    import types

    class ResNet50_Weights(enum.Enum):
        IMAGENET1K_V1 = "a"
        IMAGENET1K_V2 = "b"
        DEFAULT = "b"  # noqa: PIE796 (as torchvision's)

        @property
        def url(self):
            return f"https://x/{self.value}-01234567.pth"

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["resnet50"]
    models.get_model_weights = lambda name: ResNet50_Weights
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    sys.modules["torchvision"].models = models
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    table = ours.get_torchvision_models()
    assert table["resnet50.default"] == table["resnet50.imagenet1k_v2"] == "https://x/b-01234567.pth"
    asked = []
    monkeypatch.setattr(zoos, "download", lambda url, offline: asked.append(url) or Path("/nowhere"))
    for name in ("resnet50.imagenet1k_v2", "ResNet50_Weights.IMAGENET1K_V2", "resnet50"):
        with pytest.raises(FileNotFoundError):
            loaded(f"torchvision://{name}")
    assert asked[:2] == ["https://x/b-01234567.pth"] * 2
    assert asked[2].endswith("resnet50-0676ba61.pth")


def test_a_pickle_with_more_than_data_is_refused_from_everywhere(server, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("code of the file was run",)

    url, _ = offer(server, tmp_path, {"weight": Evil()})
    for load in (loaded, ours.load_from_http, ours.CheckpointLoader.load_checkpoint):
        with pytest.raises(RuntimeError, match="more than tensors and plain containers: it asks for builtins.print"):
            load(url)
    assert "code of the file" not in capsys.readouterr().out

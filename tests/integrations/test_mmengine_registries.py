"""What mmengine's users registered there, and there alone: initializers, scopes, schemes of checkpoints, patches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import needs
import pytest
import torch
from mmengine_parity import MODEL as mm
from torch import nn

import fastinit
from fastinit import checkpoint, weight_init
from fastinit.config.initializers import ConstantInit
from fastinit.integrations import mmengine as with_mmengine
from fastinit.logs import logger

registry = needs.module("mmengine.registry")
ROOT = registry.WEIGHT_INITIALIZERS


@pytest.fixture
def enabled() -> Iterator[None]:
    with_mmengine.enable()
    yield
    with_mmengine.disable()


@pytest.fixture
def child() -> Iterator[Any]:
    """A child registry of the scope mmxyz, with ``Nines`` and a ``Constant`` of its own, which adds 100."""
    made = registry.Registry("weight initializer", parent=ROOT, scope="mmxyz")

    @made.register_module()
    class Nines(mm.ConstantInit):  # type: ignore[misc]
        def __init__(self, layer: str) -> None:
            super().__init__(val=9.0, layer=layer)

    @made.register_module()
    class Constant(mm.ConstantInit):  # type: ignore[misc]
        def __init__(self, val: float, layer: str) -> None:
            super().__init__(val=val + 100, layer=layer)

    yield made
    ROOT.children.pop("mmxyz")


@pytest.fixture
def sevens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An initializer that is registered in mmengine's registry only."""

    class Sevens(mm.ConstantInit):  # type: ignore[misc]
        def __init__(self, layer: str) -> None:
            super().__init__(val=7.0, layer=layer)

    monkeypatch.setitem(ROOT.module_dict, "Sevens", Sevens)


def filled(cfg: dict[str, Any]) -> float:
    layer = nn.Linear(2, 2)
    fastinit.initialize(layer, {"layer": "Linear", **cfg})
    return layer.weight[0, 0].item()


def test_an_initializer_of_a_child_registry_has_the_name_of_its_scope(child: Any) -> None:
    assert filled(dict(type="mmxyz.Nines")) == 9


def test_a_scoped_name_that_the_child_registry_lacks_is_its_parents(child: Any) -> None:
    assert fastinit.WEIGHT_INITIALIZERS.resolve("mmxyz.Normal") is fastinit.NormalInit


def test_a_childs_own_initializer_goes_before_its_parents(child: Any) -> None:
    assert filled(dict(type="mmxyz.Constant", val=1.0)) == 101


def test_the_key_scope_selects_the_child_registry(child: Any) -> None:
    assert filled(dict(type="Constant", val=1.0, _scope_="mmxyz")) == 101


def test_mmengines_default_scope_selects_the_child_registry(child: Any) -> None:
    with registry.DefaultScope.overwrite_default_scope("mmxyz"):
        assert filled(dict(type="Constant", val=1.0)) == 101


def test_without_a_scope_a_name_is_fastinits(child: Any) -> None:
    assert filled(dict(type="Constant", val=1.0)) == 1


def test_fastinits_own_entries_go_before_those_of_mmengines_root(
    monkeypatch: pytest.MonkeyPatch, sevens: None, child: Any
) -> None:
    monkeypatch.setitem(fastinit.WEIGHT_INITIALIZERS._entries, "Sevens", ConstantInit)
    with registry.DefaultScope.overwrite_default_scope("mmxyz"):
        assert fastinit.WEIGHT_INITIALIZERS.resolve("Sevens") is ConstantInit


@pytest.mark.parametrize("name", ["Sevens", "mmengine.Sevens"])
def test_what_only_mmengine_has_is_found_without_enable(sevens: None, name: str) -> None:
    assert filled(dict(type=name)) == 7


def test_a_base_module_finds_what_only_mmengine_has(sevens: None) -> None:
    model = fastinit.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Sevens", layer="Linear"))
    model.init_weights()
    assert model[0].weight[0, 0] == 7


@pytest.mark.parametrize("name", ["Sevens", "mmxyz.Nines"])
def test_mmengines_registry_is_not_asked_where_imports_are_not_allowed(sevens: None, child: Any, name: str) -> None:
    with fastinit.use(allow_imports=False), pytest.raises(KeyError, match="not allowed here"):
        filled(dict(type=name))


def test_no_scope_is_followed_where_imports_are_not_allowed(child: Any) -> None:
    with fastinit.use(allow_imports=False):
        assert filled(dict(type="Constant", val=1.0, _scope_="mmxyz")) == 1


@pytest.mark.parametrize("name", [".x", "a..b", "torch.nn", "nowhere.Normal"])
def test_names_that_mmengine_finds_nothing_for_are_key_errors(name: str) -> None:
    with pytest.raises(KeyError, match="is not in the fastinit::weight initializer registry"):
        filled(dict(type=name))


def test_a_name_without_a_dot_imports_no_module(child: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Nothing.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with registry.DefaultScope.overwrite_default_scope("mmxyz"), pytest.raises(KeyError, match="Nothing is not in"):
        filled(dict(type="Nothing"))
    assert "Nothing" not in sys.modules


# --- what users patch ------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def wrapped(library: Any) -> Any:
    inner = library.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=4.0, layer="Linear"))
    model = library.Sequential(Wrapper(inner))
    with mock.patch("mmengine.model.base_module.is_model_wrapper", lambda module: isinstance(module, Wrapper)):
        model.init_weights()
    return model


def test_a_patched_is_model_wrapper_of_mmengine_is_heard(enabled: None) -> None:
    assert (wrapped(mm)[0].module[0].weight == 4).all()


def test_modules_of_fastinit_do_not_ask_mmengine_about_wrappers(enabled: None) -> None:
    assert not wrapped(fastinit)[0].module.is_init


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scheme(monkeypatch: pytest.MonkeyPatch) -> str:
    """A scheme that is registered in mmengine's CheckpointLoader only."""
    loader = needs.module("mmengine.runner.checkpoint").CheckpointLoader
    monkeypatch.setattr(loader, "_schemes", dict(loader._schemes))
    loader.register_scheme("theirs://", lambda filename, map_location=None: {"weight": torch.full((2, 2), 3.0)})
    return "theirs://x"


def test_schemes_that_are_registered_in_mmengine_are_found(scheme: str) -> None:
    layer = nn.Linear(2, 2, bias=False)
    fastinit.initialize(layer, dict(type="Pretrained", checkpoint=scheme))
    assert (layer.weight == 3).all()


def test_schemes_that_are_registered_in_fastinit_go_before_mmengines(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = checkpoint.CheckpointLoader
    monkeypatch.setattr(loader, "_schemes", dict(loader._schemes))
    loader.register_scheme("theirs://", lambda filename, map_location=None: {"ours": 1})
    assert loader.load_checkpoint(scheme, logger="silent") == {"ours": 1}


def test_mmengines_own_loaders_are_not_used() -> None:
    needs.module("mmengine.runner.checkpoint")
    assert checkpoint.CheckpointLoader._get_checkpoint_loader("https://x/y.pth") is checkpoint.load_from_http


def test_the_tables_of_zoos_are_those_of_the_installed_mmengine() -> None:
    theirs = needs.module("mmengine.runner.checkpoint").get_external_models()
    assert checkpoint.get_external_models() == theirs


def test_an_installed_forks_addresses_go_before_fastinits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "mmcls.json").write_text('{"vgg11": "https://fork/vgg11.pth"}')
    spec = mock.Mock(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("mmengine.__spec__", spec)
    table = checkpoint.get_mmcls_models()
    assert table["vgg11"] == "https://fork/vgg11.pth" and len(table) > 1


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What mmengine's logger gets."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    theirs = needs.module("mmengine.logging").MMLogger.get_current_instance()
    level = theirs.level
    theirs.setLevel(logging.DEBUG)
    theirs.addHandler(handler)
    yield found
    theirs.removeHandler(handler)
    theirs.setLevel(level)


def test_what_a_checkpoint_lacks_is_in_mmengines_log(enabled: None, lines: list[str], tmp_path: Path) -> None:
    torch.save({"0.weight": torch.ones(2, 2)}, tmp_path / "a.pth")
    model = mm.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth")))
    model.init_weights()
    assert any("missing keys in source state_dict: 0.bias" in line for line in lines)


def test_each_modules_config_is_in_mmengines_log_at_debug(enabled: None, lines: list[str]) -> None:
    mm.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear")).init_weights()
    assert any(line.startswith("initialize Sequential with init_cfg") for line in lines)


def test_after_disable_mmengines_logger_gets_nothing_of_fastinits(enabled: None, lines: list[str]) -> None:
    with_mmengine.disable()
    logger.warning("a line")
    assert lines == [] and logger.level == logging.NOTSET


def test_while_enabled_other_handlers_get_what_they_got_before(enabled: None, caplog: pytest.LogCaptureFixture) -> None:
    logger.debug("not this")
    logger.warning("but this")
    assert [record.getMessage() for record in caplog.records if record.name == "fastinit"] == ["but this"]


# --- names that mmengine's modules have, too --------------------------------------------------------------------------


def test_initialize_of_one_dict_may_fill_whole_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    weight_init._initialize(model, dict(type="Constant", val=5.0, layer="Conv2d"), wholemodule=True)
    assert (model[0].weight == 5).all()


def test_initialize_of_an_override_takes_the_given_config_for_a_name_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    cfg = dict(type="Constant", val=5.0)
    weight_init._initialize_override(model, [dict(name="0"), dict(type="Constant", name="1", val=6.0)], cfg)
    assert (model[0].weight == 5).all() and (model[1].weight == 6).all()


def test_initialize_of_an_override_refuses_what_is_none() -> None:
    with pytest.raises(TypeError, match="override must be a dict or a list of dict, but got <class 'str'>"):
        weight_init._initialize_override(nn.Sequential(), "0", dict(type="Constant", val=5.0))


def test_the_names_of_base_classes_are_the_direct_ones() -> None:
    layer = nn.Conv2d(1, 1, 1)
    assert weight_init._get_bases_name(layer) == mm.weight_init._get_bases_name(layer) == ["_ConvNd"]


def test_the_inner_truncated_normal_draws_mmengines_numbers() -> None:
    drawn = []
    for library in (weight_init, mm.weight_init):
        torch.manual_seed(0)
        drawn.append(library._no_grad_trunc_normal_(torch.empty(50), 0.0, 1.0, -2.0, 2.0))
    assert torch.equal(*drawn)


def test_the_home_is_made_as_mmengine_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "new"))
    assert checkpoint._get_mmengine_home() == str(tmp_path / "new") and (tmp_path / "new").is_dir()


@pytest.mark.parametrize("nested", [True, False])
def test_of_a_classifiers_checkpoint_the_backbone_is_kept(nested: bool) -> None:
    state = {"backbone.a": 1, "head.b": 2}
    theirs = needs.module("mmengine.runner.checkpoint")
    given = {"state_dict": state} if nested else state
    assert checkpoint._process_mmcls_checkpoint(given) == theirs._process_mmcls_checkpoint(given)


def test_a_modules_own_state_is_its_parameters_and_persistent_buffers() -> None:
    layer = nn.BatchNorm1d(2)
    layer.register_buffer("passing", torch.zeros(1), persistent=False)
    ours: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    checkpoint._save_to_state_dict(layer, ours, "a.", False)
    needs.module("mmengine.runner.checkpoint")._save_to_state_dict(layer, theirs, "a.", False)
    assert (
        list(ours) == list(theirs) == ["a.weight", "a.bias", "a.running_mean", "a.running_var", "a.num_batches_tracked"]
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("mmengine.model.weight_init", "fastinit.weight_init"),
        ("mmengine.model.base_module", "fastinit.base_module"),
        ("mmengine.runner.checkpoint", "fastinit.checkpoint"),
    ],
)
def test_every_function_and_class_of_mmengines_modules_has_its_namesake(theirs: str, ours: str) -> None:
    names = {name for name, each in vars(needs.module(theirs)).items() if getattr(each, "__module__", "") == theirs}
    readers = {"get_torch_safe_globals", "_safe_torch_load"}  # onedl-mmengine's way around torch.load, not needed here
    assert names - readers <= set(dir(needs.module(ours)))

"""What the core knows of mmengine comes from its integration, through hooks that are empty without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import needs
import pytest
import torch
from paths import PACKAGE
from torch import nn

import fastinit
from fastinit import naming
from fastinit.execution import hosts, ledger

registry = needs.module("mmengine.registry")
WRAPPERS = registry.MODEL_WRAPPERS


class Wrapper(nn.Module):
    """A model wrapper of another library."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture
def child_registry() -> Iterator[object]:
    child = registry.Registry("model wrapper", parent=WRAPPERS, scope="of_a_child")
    yield child
    WRAPPERS.children.pop("of_a_child")


def layer_in_mmengines_books() -> nn.Module:
    """Returns a layer as it is while mmengine's own ``init_weights`` runs, with one parameter added meanwhile."""
    layer = nn.Linear(2, 2)
    books = {each: {"init_info": "old", "tmp_mean_value": each.detach().mean()} for each in layer.parameters()}
    layer._params_init_info = books  # type: ignore[assignment]
    layer.added = nn.Parameter(torch.zeros(2))
    return layer


def test_importing_fastinit_does_not_import_mmengine() -> None:
    code = "import sys, fastinit; print('mmengine' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_classes_in_mmengines_registry_are_model_wrappers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRAPPERS.module_dict, "Wrapper", Wrapper)
    assert fastinit.plan(Wrapper(nn.Linear(2, 2)), dict(type="Constant", val=0, param="weight")).items


def test_classes_in_child_registries_are_model_wrappers(child_registry: registry.Registry) -> None:
    child_registry.register_module(module=Wrapper)
    assert naming.is_model_wrapper(Wrapper(nn.Linear(2, 2)))


def test_classes_that_are_not_registered_are_no_model_wrappers() -> None:
    assert not naming.is_model_wrapper(Wrapper(nn.Linear(2, 2)))


def test_without_integrations_only_torchs_wrappers_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRAPPERS.module_dict, "Wrapper", Wrapper)
    monkeypatch.setattr(naming, "wrapper_sources", naming.wrapper_sources[:1])
    assert {kind.__module__.partition(".")[0] for kind in naming.wrapper_classes()} == {"torch"}


def test_without_integrations_mmengines_books_are_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "hosts", [])
    assert hosts.host_of(layer_in_mmengines_books()) is None


def test_without_integrations_provenance_has_no_further_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "computed_keys", {})
    with pytest.raises(KeyError, match="tmp_mean_value"):
        ledger.ParameterInfo(torch.zeros(2), "")["tmp_mean_value"]


def test_a_parameter_added_during_mmengines_init_weights_is_refused_by_name() -> None:
    with pytest.raises(AssertionError, match="new :obj:`Parameter` named `added`"):
        fastinit.initialize(layer_in_mmengines_books(), dict(type="Constant", val=0, layer="Linear"))


@pytest.mark.parametrize("name", ["MODEL_WRAPPERS", "_dump_init_info", "tmp_mean_value"])
def test_private_names_of_mmengine_are_only_in_its_integration(name: str) -> None:
    files = {path.name for path in PACKAGE.rglob("*.py") if name in path.read_text()}
    assert files <= {"mmengine.py", "mmengine_hooks.py"}

"""The registry, initializers of the user's own, and the bridge into mmengine's registry."""

from __future__ import annotations

import warnings

import needs
import pytest
import torch
from helpers import tensors
from torch import nn

import fastinit
from fastinit import WEIGHT_INITIALIZERS, plans
from fastinit.integrations import mmengine as bridge
from fastinit.registry import Registry


class Orthogonal(fastinit.BaseInit):
    """In mmengine's style: a __call__ of its own."""

    def __init__(self, gain=1, **kwargs):
        super().__init__(**kwargs)
        self.gain = gain

    def __call__(self, module):
        def init(m):
            if self.wholemodule or type(m).__name__ in self.layer:
                if isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.dim() > 1:
                    nn.init.orthogonal_(m.weight, self.gain)

        module.apply(init)
        if hasattr(module, "_params_init_info"):
            fastinit.update_init_info(module, init_info=self._get_init_info())


class Halves(fastinit.BaseInit):
    """In fastinit's style: a distribution."""

    def weight_distribution(self, shape):
        return plans.Uniform(0.5, 0.5 + shape[0])


def test_an_initializer_with_its_own_call_runs_at_its_place():
    WEIGHT_INITIALIZERS.register_module(name="Orthogonal", module=Orthogonal)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    cfg = [
        dict(type="Constant", val=2, layer="Linear"),
        dict(type="Orthogonal", gain=3, override=dict(name="1")),
        dict(type="Constant", val=7, param="1.bias"),
    ]
    plan = fastinit.plan(model, cfg)
    assert [row.action for row in plan.rows] == ["fill"] * 4 + ["call", "call", "fill"]
    assert plan.rows[5].description == "call of Orthogonal(1)" and plan.rows[5].rule == "init_cfg[1].override"
    report = fastinit.initialize(model, cfg)
    assert torch.allclose(model[1].weight @ model[1].weight.t(), 9 * torch.eye(4), atol=1e-5)
    assert (model[0].weight == 2).all() and (model[1].bias == 7).all()
    assert (
        report.provenance["1.weight"] == "Orthogonal, bias=0"
    )  # its code runs for init_cfg[1], too: no place is named
    assert report.provenance["0.weight"] == "ConstantInit: val=2, bias=0 (init_cfg[0])"


def test_an_initializer_with_a_distribution_joins_the_plan():
    @WEIGHT_INITIALIZERS.register_module()
    class Mine(Halves):
        pass

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(2, 4))
    rows = fastinit.plan(model, [dict(type="Mine", layer="Linear", bias=1), dict(type="Mine", param="1.bias")]).rows
    assert [row.description for row in rows] == [
        "uniform(low=0.5, high=4.5)",
        "constant(1)",
        "uniform(low=0.5, high=4.5)",
        "constant(1)",
        "uniform(low=0.5, high=4.5)",
    ]
    fastinit.initialize(model, dict(type=Halves, layer="Linear"))
    assert (model[0].weight >= 0.5).all()


def test_a_function_or_any_callable_serves_as_type():
    def twos(fill=2):
        return lambda module: nn.init.constant_(module.weight, fill)

    layer = nn.Linear(2, 2)
    report = fastinit.initialize(layer, [dict(type=twos), lambda module: nn.init.constant_(module.bias, 3)])
    assert (layer.weight == 2).all() and (layer.bias == 3).all()
    assert report.unreached == ()


def test_mmengines_classes_mean_ours():
    model = needs.module("mmengine.model")
    kinds = [model.NormalInit, "mmengine.model.NormalInit", "mmengine.model.weight_init.NormalInit"]
    for kind in kinds:
        (row, _) = fastinit.plan(nn.Linear(2, 2), dict(type=kind, std=3, layer="Linear")).rows
        assert row.action == "fill" and row.values["std"] == 3


def test_an_override_with_a_name_alone_repeats_the_outer_rule_without_its_layer():
    seen = []

    class Sees(fastinit.BaseInit):
        def __call__(self, module):
            seen.append((type(module).__name__, self.layer, self.bias, self.wholemodule))

    cfg = dict(type=Sees, layer="Linear", bias=3, override=dict(name="0"))
    fastinit.initialize(nn.Sequential(nn.ReLU()), cfg)
    assert seen == [("Sequential", ["Linear"], 3, False), ("ReLU", [], 3, True)]


def test_an_unselective_initializer_acts_alongside_its_override():
    class Everything(fastinit.ConstantInit):
        wholemodule = True

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fastinit.initialize(model, dict(type=Everything, val=1, override=dict(type="Constant", val=0, name="1")))
    assert (model[0].weight == 1).all() and (model[1].weight == 0).all()


def test_a_distribution_must_be_one_of_ours():
    class Wrong(fastinit.BaseInit):
        def weight_distribution(self, shape):
            return torch.distributions.Normal(0, 1)

    with pytest.raises(
        TypeError,
        match="^init_cfg: parameter 'weight': weight_distribution must return a distribution of fastinit.plans",
    ):
        fastinit.initialize(nn.Linear(2, 2), dict(type=Wrong, layer="Linear"))


def test_a_type_must_build_a_callable():
    with pytest.raises(TypeError, match=r"init_cfg: type .* builds 3, which can not be called"):
        fastinit.initialize(nn.Linear(2, 2), dict(type=lambda: 3))


def test_an_initializer_that_replaces_a_parameter_is_followed_by_rules_that_fill_the_new_one():
    class Replace(fastinit.BaseInit):
        def __call__(self, module):
            module[0].weight = nn.Parameter(torch.zeros(3, 5))

    model = nn.Sequential(nn.Linear(5, 3))
    report = fastinit.initialize(model, [dict(type=Replace), dict(type="Constant", val=4, layer="Linear")])
    assert (model[0].weight == 4).all()
    assert report.unreached == () and report.provenance["0.weight"] == "ConstantInit: val=4, bias=0 (init_cfg[1])"
    report = fastinit.initialize(model, dict(type=Replace))
    assert report.provenance == {"0.weight": "Replace, bias=0 (init_cfg)"} and report.unreached == ("0.bias",)


def test_an_initializers_exception_propagates_and_the_log_says_how_far_it_got(caplog):
    class Fails(fastinit.BaseInit):
        def __call__(self, module):
            raise LookupError("mine")

    model = nn.Linear(2, 2)
    with pytest.raises(LookupError, match="mine") as caught:
        fastinit.initialize(model, [dict(type="Constant", val=1, layer="Linear"), dict(type=Fails)])
    assert type(caught.value) is LookupError and caught.value.__notes__ == ["fastinit: at init_cfg[1]"]
    assert "LookupError stopped the initialization of Linear after 2 fills" in caplog.text


def test_registering_is_a_decorator_a_call_and_takes_several_names():
    registry = Registry("toy")

    @registry.register_module()
    class A:
        pass

    @registry.register_module(name=["B", "C"])
    class Other:
        pass

    registry.register_module(module=dict, name="D")
    assert registry.module_dict == {"A": A, "B": Other, "C": Other, "D": dict}
    assert registry.get("A") is A and registry.get("Z") is None and len(registry) == 4 and "B" in registry
    assert registry.build(dict(type="D", x=1)) == {"x": 1}
    assert repr(registry) == "Registry('toy': A, B, C, D)"


def test_a_name_is_not_taken_twice_without_force():
    registry = Registry("toy")
    registry.register_module(module=dict, name="A")
    with pytest.raises(KeyError, match="A is already registered in toy"):
        registry.register_module(module=list, name="A")
    registry.register_module(module=list, name="A", force=True)
    assert registry["A"] is list


@pytest.mark.parametrize(("name", "module"), [(3, dict), (["a", 3], dict), ("a", 3)])
def test_registration_needs_a_callable_and_a_string(name, module):
    with pytest.raises(TypeError):
        Registry("toy").register_module(name=name, module=module)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Norml", "Norml is not in the fastinit::weight initializer registry. Did you mean 'Normal'?"),
        ("foo.bar.Baz", "As an import path it fails: No module named 'foo'"),
        ("math.nope", "As an import path it fails: module 'math' has no attribute 'nope'"),
        (".", "As an import path it fails"),
        ("..x", "As an import path it fails"),
        ("math.pi", "As an import path it leads to 3.14"),
        ("mmengine.Foo", "Registered are: Caffe2Xavier, Constant, DeltaOrthogonal, Dirac, Glorot, He, Identity"),
    ],
)
def test_an_unknown_type_is_refused_with_the_closest_names(kind, message):
    with pytest.raises(KeyError) as error:
        fastinit.initialize(nn.Linear(2, 2), dict(type=kind))
    assert error.value.args[0].startswith("init_cfg: ") and message in error.value.args[0]


def test_import_paths_of_other_packages_are_types():
    layer = nn.Linear(2, 2)
    fastinit.initialize(layer, dict(type="fastinit.weight_init.ConstantInit", val=3, layer="Linear"))
    assert (layer.weight == 3).all()


def test_mmengine_and_its_child_registries_build_ours_once_they_are_registered():
    model, theirs = needs.module("mmengine.model"), needs.module("mmengine.registry")
    THEIRS, TheirRegistry = theirs.WEIGHT_INITIALIZERS, theirs.Registry
    before = THEIRS.module_dict.copy()
    child = TheirRegistry("weight initializer", parent=THEIRS, scope="toydet")
    try:
        bridge.register()
        assert type(child.build(dict(type="Constant", val=1))) is fastinit.ConstantInit
        assert type(child.build(dict(type="Pretrained", checkpoint="x"))) is fastinit.PretrainedInit
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            only_override = dict(type="Constant", val=0, override=dict(name="0"))
            model.initialize(nn.Sequential(nn.Linear(2, 2)), only_override)
        bridge.register()  # once more does no harm

        class Tree(model.BaseModule):
            def __init__(self, cfg):
                super().__init__(cfg)
                self.fc = nn.Linear(8, 8)

            def init_weights(self):
                super().init_weights()

        def run(cfg):
            torch.manual_seed(0)
            root = model.Sequential(Tree(cfg))
            books = {}
            original = model.BaseModule._dump_init_info

            def dump(self):
                books.update({name: self._params_init_info[p]["init_info"] for name, p in self.named_parameters()})

            model.BaseModule._dump_init_info = dump
            try:
                root.init_weights()
            finally:
                model.BaseModule._dump_init_info = original
            return tensors(root), books

        cfg = dict(type="Normal", std=0.3, layer="Linear", override=dict(type="Constant", name="fc", val=2, bias=3))
        ours, our_books = run([cfg, dict(type="Xavier", layer="Linear")])
    finally:
        bridge.unregister()
    assert THEIRS.module_dict == before
    theirs, their_books = run([cfg, dict(type="Xavier", layer="Linear")])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert our_books == their_books and "XavierInit" in our_books["0.fc.weight"]


def test_the_bridge_names_the_package_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mmengine", None)
    with pytest.raises(ImportError, match="pip install mmengine-lite, or onedl-mmengine"):
        bridge.register()


def test_fastinit_imports_no_mmengine_of_its_own():
    import subprocess
    import sys

    code = (
        "import sys, fastinit; assert not [name for name in sys.modules if name.split('.')[0] in ('mmengine', 'scipy')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_type_that_mmengine_has_not_may_be_replaced_once():
    registry = Registry("test")
    registry.register_module("Orthogonal", module=fastinit.OrthogonalInit)
    registry.replaceable.add("Orthogonal")
    registry.register_module("Orthogonal", module=fastinit.ConstantInit)
    assert registry["Orthogonal"] is fastinit.ConstantInit
    with pytest.raises(KeyError, match="already registered"):
        registry.register_module("Orthogonal", module=fastinit.NormalInit)


def test_another_librarys_type_comes_before_a_replaceable_one():
    registry = Registry("test")
    for name in ("Orthogonal", "Constant"):
        registry.register_module(name, module=fastinit.OrthogonalInit)
    registry.replaceable.add("Orthogonal")
    assert registry.resolve("Orthogonal") is fastinit.OrthogonalInit
    registry.fallback = lambda name: fastinit.NormalInit
    assert registry.resolve("Orthogonal") is fastinit.NormalInit
    assert registry.resolve("Constant") is fastinit.OrthogonalInit
    with fastinit.use(allow_imports=False):
        assert registry.resolve("Orthogonal") is fastinit.OrthogonalInit

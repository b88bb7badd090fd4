"""The plan and the report: what they show, that planning writes nothing, and that the JSON form stays as it is."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit import plans

CFG = [
    dict(type="Kaiming", layer="Conv2d"),
    dict(type="TruncNormal", std=0.02, layer="Linear", bias_prob=0.01),
    dict(type="Constant", val=1, layer="BatchNorm2d", override=dict(name="1", type="Normal", mean=2)),
]


def model(**options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, **options), nn.Linear(8, 2, **options), nn.BatchNorm2d(8, **options), nn.PReLU(**options)
    )


def test_planning_writes_nothing_and_draws_nothing():
    made = model()
    before, versions = [p.clone() for p in made.parameters()], [p._version for p in made.parameters()]
    state = torch.get_rng_state()
    fastinit.plan(made, CFG, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters()))
    assert versions == [p._version for p in made.parameters()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_plan_prints_what_each_parameter_gets_in_the_models_order():
    assert str(fastinit.plan(model(), CFG, seed=3)) == "\n".join(
        [
            "parameter  shape    dtype    device  distribution                  rule                  backend",
            "---------  -------  -------  ------  ----------------------------  --------------------  -------",
            "0.weight   8x3x3x3  float32  cpu     normal(mean=0, std=0.166667)  init_cfg[0]           torch",
            "0.bias     8        float32  cpu     constant(0)                   init_cfg[0]           torch",
            "1.weight   2x8      float32  cpu     normal(mean=2, std=1)         init_cfg[2].override  torch",
            "1.bias     2        float32  cpu     constant(0)                   init_cfg[2].override  torch",
            "2.weight   8        float32  cpu     constant(1)                   init_cfg[2]           torch",
            "2.bias     8        float32  cpu     constant(0)                   init_cfg[2]           torch",
            "6 rows, 258 elements; numbers: torch; seed: 3; 2 more are replaced: plan.table(history=True)",
            "1 parameters that no row writes: 3.weight",
        ]
    )


def test_the_history_of_a_plan_has_all_rows_in_the_order_of_their_effect():
    assert fastinit.plan(model(), CFG, seed=3).table(history=True) == "\n".join(
        [
            "parameter  shape    dtype    device  distribution                                                     "
            "rule                  backend",
            "---------  -------  -------  ------  ---------------------------------------------------------------  "
            "--------------------  -------",
            "0.weight   8x3x3x3  float32  cpu     normal(mean=0, std=0.166667)                                     "
            "init_cfg[0]           torch",
            "0.bias     8        float32  cpu     constant(0)                                                      "
            "init_cfg[0]           torch",
            "1.weight   2x8      float32  cpu     trunc_normal(mean=0, std=0.02, low=-2, high=2) (replaced below)  "
            "init_cfg[1]           torch",
            "1.bias     2        float32  cpu     constant(-4.59512) (replaced below)                              "
            "init_cfg[1]           torch",
            "2.weight   8        float32  cpu     constant(1)                                                      "
            "init_cfg[2]           torch",
            "2.bias     8        float32  cpu     constant(0)                                                      "
            "init_cfg[2]           torch",
            "1.weight   2x8      float32  cpu     normal(mean=2, std=1)                                            "
            "init_cfg[2].override  torch",
            "1.bias     2        float32  cpu     constant(0)                                                      "
            "init_cfg[2].override  torch",
        ]
    )


def test_the_json_form_is_stable():
    cfg = [dict(type="Xavier", param="weight"), dict(type="Constant", val=float("inf"), param="bias")]
    text = fastinit.plan(nn.Linear(4, 2, dtype=torch.bfloat16), cfg, prefix="head", seed=5).to_json()
    assert text == (
        '{"fastinit_plan": 1, "numbers": "torch", "seed": 5, "rows": [{"parameter": "head.weight", "shape": [2, 4], '
        '"dtype": "bfloat16", "device": "cpu", "action": "fill", "values": {"kind": "normal", "mean": 0.0, '
        '"std": 0.5773502691896257}, "rule": "init_cfg[0]", "info": "XavierInit: gain=1, distribution=normal", '
        '"backend": "torch", "replaced": false}, {"parameter": "head.bias", "shape": [2], "dtype": "bfloat16", '
        '"device": "cpu", "action": "fill", "values": {"kind": "constant", "value": "inf"}, "rule": "init_cfg[1]", '
        '"info": "ConstantInit: val=inf", "backend": "torch", "replaced": false}], "unreached": []}'
    )


def test_numbers_that_compare_equal_are_told_apart():
    from fastinit.plans import Constant, Normal

    assert Normal(0, 1) == Normal(0.0, 1.0) and hash(Normal(0, 1)) == hash(Normal(0.0, 1.0))
    assert len({Constant(1), Constant(1.0), Constant(True), Constant(1 + 0j), Constant(0.0), Constant(-0.0)}) == 6
    for numbers in ((0, float("nan")), (0, -1)):
        with pytest.raises(RuntimeError, match="std >= 0"):
            Normal(*numbers)
    texts = [
        fastinit.plan(nn.Linear(1, 1), dict(type="Constant", val=value, param="*")).rows[0].description
        for value in (True, 1, 1.0, -0.0, 0.0)
    ]
    assert texts == ["constant(True)", "constant(1)", "constant(1)", "constant(-0)", "constant(0)"]


def test_rows_belong_to_the_caller():
    made = model()
    fastinit.plan(made, CFG).rows[0].values["std"] = "overwritten"
    assert fastinit.plan(made, CFG).rows[0].values["std"] != "overwritten"


def test_plans_can_be_compared_without_an_error():
    made = model()
    assert fastinit.plan(made, CFG) != fastinit.plan(made, CFG)
    assert fastinit.plan(made, CFG).to_json() == fastinit.plan(made, CFG).to_json()


def test_planning_a_computed_weight_disturbs_neither_buffers_nor_the_generator():
    class Draws(nn.Module):
        def forward(self, weight):
            return weight + torch.rand(())

    made = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(made[1], "weight", Draws())
    before, state = {name: buffer.clone() for name, buffer in made.named_buffers()}, torch.get_rng_state()
    with pytest.warns(UserWarning, match="is computed from other parameters"):
        plan = fastinit.plan(made, dict(type="Normal", std=0.1, layer="ParametrizedLinear"))
    assert len(plan.rows) == 4 and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], buffer) for name, buffer in made.named_buffers())


def test_checks_ignore_the_default_device():
    made = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2).half())
    cfg = [dict(type="Constant", val=9, layer="Linear"), dict(type="Constant", val=1e9, layer="LayerNorm")]
    before = made[0].weight.clone()
    with torch.device("meta"), pytest.raises(RuntimeError, match=r"init_cfg\[1\]"):
        fastinit.plan(made, cfg)
    with pytest.raises(RuntimeError, match=r"init_cfg\[1\]"):
        fastinit.initialize(made, cfg)
    assert torch.equal(made[0].weight, before)
    with torch.device("meta"):
        fastinit.initialize(made, cfg[0])
    assert (made[0].weight == 9).all()


def test_a_meta_model_is_planned_like_a_real_one():
    real, meta = (json.loads(fastinit.plan(made, CFG).to_json()) for made in (model(), model(device="meta")))
    assert {row.pop("device") for row in meta["rows"]} == {"meta"}
    assert {row.pop("device") for row in real["rows"]} == {"cpu"}
    assert meta == real


def test_initializing_a_meta_model_is_an_error_that_says_what_to_do():
    with pytest.raises(
        RuntimeError, match=r"init_cfg\[0\]: the parameter '0.weight' is on the meta device.*fastinit.materialize"
    ):
        fastinit.initialize(model(device="meta"), CFG)
    tree = fastinit.Sequential(nn.Linear(2, 2, device="meta"), init_cfg=dict(type="Normal", layer="Linear"))
    with pytest.raises(RuntimeError, match="meta device"):
        tree.init_weights()
    assert len(fastinit.plan(tree).rows) == 2


def test_a_lazy_parameter_is_an_error_that_says_what_to_do():
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(RuntimeError, match="'0.weight' is lazy .* dry forward pass"):
        fastinit.initialize(lazy, dict(type="Normal", layer="LazyLinear"))
    tree = fastinit.Sequential(lazy, nn.Conv1d(2, 2, 1), init_cfg=dict(type="Normal", layer="Conv1d"))
    tree.init_weights()  # mmengine fails on any lazy parameter in the tree
    assert "0.0.weight" in tree.last_init_report.unreached


def test_initialize_does_what_was_planned():
    made = model()
    plan = fastinit.plan(made, CFG)
    report = fastinit.initialize(made, CFG)
    assert report.rows == plan.rows and report.unreached == plan.unreached == ("3.weight",)


def test_the_report_counts_and_sums_up():
    report = fastinit.initialize(model(), CFG, seed=3)
    assert report.n_bytes == 4 * sum(row.n_elements for row in report.rows) == 4 * (216 + 8 + 2 * (16 + 2) + 16)
    assert report.provenance["1.weight"].startswith("NormalInit: mean=2, std=1, bias=0 (")
    assert "6 parameters initialized: 258 elements, 0.000 GB written, in " in str(report)
    assert "; 2 rows were replaced by later ones: report.table(history=True)\n" in str(report)
    assert "6 rows, 258 elements" in str(fastinit.plan(model(), CFG))
    assert json.loads(report.to_json())["unreached"] == ["3.weight"]


def test_a_long_table_shows_its_beginning_and_its_end():
    made = nn.Sequential(*(nn.Linear(1, n) for n in range(1, 51)))
    plan = fastinit.plan(made, dict(type="Normal", layer="Linear"))
    assert len(str(plan).splitlines()) == 60 + 2 + 1 + 1
    assert "... 40 more rows ..." in str(plan)
    assert len(plan.table(max_rows=None).splitlines()) == 102


class Custom(fastinit.BaseModule):
    def __init__(self):
        super().__init__(dict(type="Normal", layer="Linear"))
        self.fc = nn.Linear(2, 2)

    def init_weights(self):
        super().init_weights()
        nn.init.ones_(self.fc.weight)


def test_a_trees_plan_follows_its_order_and_names_opaque_code(tmp_path):
    torch.save({"0.0.weight": torch.zeros(2, 2), "other": torch.zeros(1)}, tmp_path / "c.pth")
    tree = fastinit.Sequential(
        fastinit.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Xavier", layer="Linear")),
        Custom(),
        init_cfg=[
            dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth")),
            dict(type="Constant", val=0, layer="Linear"),
        ],
    )
    plan = fastinit.plan(tree)
    assert [(row.parameter or row.description, row.rule, row.replaced) for row in plan.rows] == [
        ("0.0.weight", "init_cfg[1]", True),
        ("0.0.bias", "init_cfg[1]", True),
        ("1.fc.weight", "init_cfg[1]", False),
        ("1.fc.bias", "init_cfg[1]", False),
        ("0.0.weight", "0.init_cfg", True),
        ("0.0.bias", "0.init_cfg", False),
        ("call of 1.init_weights() of Custom", "1.init_weights", False),
        ("0.0.weight", "init_cfg[0]", False),
    ]
    assert plan.rows[-1].description == f"copy of 0.0.weight in {tmp_path / 'c.pth'}"
    assert tree.is_init is False
    tree.init_weights()
    with pytest.warns(UserWarning, match="^init_weights of Sequential: it has run"):
        assert fastinit.plan(tree).rows == ()
    assert [row.action for row in fastinit.plan(Custom()).rows] == ["call"]


def test_a_plan_without_a_config_needs_a_basemodule():
    with pytest.raises(TypeError, match="plan needs an init_cfg for Linear"):
        fastinit.plan(nn.Linear(2, 2))


def test_plan_raises_the_errors_of_initialize():
    with pytest.raises(RuntimeError, match="std"):
        fastinit.plan(model(device="meta"), dict(type="Normal", std=-1, layer="Linear"))


def test_planning_20_000_parameters_is_linear_in_their_number():
    # Not a timing: a quadratic step would take minutes here. The time itself is in benchmarks/bench_initialize.py.
    with torch.device("meta"):
        made = nn.Sequential(*(nn.Linear(8, 8) for _ in range(10_000)))
    began = time.perf_counter()
    plan = fastinit.plan(made, [dict(type="Normal", layer="Linear"), dict(type="Kaiming", param="*.weight")])
    assert len(plan.rows) == 30_000
    assert time.perf_counter() - began < 60


def test_distributions_are_found_again_in_a_process_with_other_hashes():
    found = plans.TruncatedNormal(0, 1, -2, float("inf"))
    code = "import pickle, sys; from fastinit import plans; found = pickle.load(sys.stdin.buffer)\n"
    code += "print(found in {plans.TruncatedNormal(0, 1, -2, float('inf')): 1}, found)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(found), capture_output=True, env=environment
        )
        assert ran.stdout.decode().startswith(f"True {found}"), ran.stderr.decode()
    assert hash(copy.deepcopy(found)) == hash(found) and copy.copy(found) == found


# --- a model that is cast after it was planned ------------------------------------------------------------------------


def cast(dtype: torch.dtype) -> tuple[nn.Module, plans.Plan, plans.Plan]:
    """Returns a model in another dtype than when it was planned, that plan, and one of it as it is."""
    made = nn.Linear(4, 2)
    rule = dict(type="Normal", param="*")
    before = fastinit.plan(made, rule, backend="cpp", seed=0)
    made.to(dtype)
    return made, before, fastinit.plan(made, rule, backend="cpp", seed=0)


def test_a_plan_keeps_the_dtypes_that_it_was_made_with(tmp_path):
    _, before, after = cast(torch.bfloat16)
    before.save(tmp_path / "plan.json")
    loaded = plans.Plan.load(tmp_path / "plan.json")
    assert [{row.dtype for row in each.rows} for each in (before, loaded, after)] == [
        {"float32"},
        {"float32"},
        {"bfloat16"},
    ]
    assert not before.diff(loaded) and len(before.diff(after).changed) == 2


def test_a_plan_in_place_of_a_config_says_that_the_dtype_has_changed():
    made, before, _ = cast(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"2 tensors of another dtype than in the plan: weight \(float32, here bfl"):
        fastinit.initialize(made, before)
    made, before, _ = cast(torch.float64)
    with pytest.raises(RuntimeError, match="2x4 float32 in the plan, 2x4 float64 here, which has other numbers"):
        fastinit.initialize(made, before)


# --- what was warned of ------------------------------------------------------------------------------------------------


def test_a_plan_tells_what_was_warned_of() -> None:
    with pytest.warns(fastinit.InitWarning) as given:
        plan = fastinit.plan(nn.Linear(2, 2), [dict(type="Normal", layer="Conv3d"), dict(type="Ones", layer="Linear")])
    assert plan.warnings == tuple(str(each.message) for each in given)
    assert str(plan).splitlines()[-1] == f"warning: {plan.warnings[0]}" and "init_cfg[0] (NormalInit)" in str(plan)
    assert json.loads(plan.to_json())["warnings"] == list(plan.warnings)


def test_a_plan_without_warnings_says_nothing_of_them() -> None:
    plan = fastinit.plan(model(), CFG)
    assert plan.warnings == () and "warning" not in str(plan) and "warnings" not in json.loads(plan.to_json())


@pytest.mark.filterwarnings("ignore::fastinit.InitWarning")
def test_warnings_of_a_plan_that_is_made_within_another_are_in_both() -> None:
    inner: list[fastinit.Plan] = []

    def make() -> nn.Module:
        inner.append(fastinit.plan(nn.Linear(2, 2), dict(type="Normal", layer="Conv3d")))
        return nn.Linear(2, 2)

    outer = fastinit.plan(make)
    assert inner[0].warnings == outer.warnings != ()
    assert fastinit.plan(nn.Linear(2, 2), dict(type="Ones", layer="Linear")).warnings == ()


@needs.mark(needs.CPP)
def test_the_file_of_a_plan_is_the_same_with_warnings_and_without(tmp_path: Path) -> None:
    texts = []
    rule = dict(type="Normal", layer="Linear")
    for rules in ([rule], [rule, dict(type="Normal", layer="Conv3d")]):
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            plan = fastinit.plan(nn.Linear(2, 2), rules, backend="cpp", seed=0)
        plan.save(path := tmp_path / "plan.json")
        texts.append((path.read_text(), len(plan.warnings)))
        assert fastinit.Plan.load(path).warnings == ()
    assert texts[0][0] == texts[1][0] and [n for _, n in texts] == [0, 1]

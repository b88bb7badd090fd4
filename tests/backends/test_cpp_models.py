"""Models on the cpp backend: what decides the values, version counters, shared memory, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cpp_core import (
    ISAS,
    NATIVE,
)
from torch import nn

import fastinit
from fastinit.backends import cpp_backend
from fastinit.contract import records as lowering


def test_fills_ignore_the_default_device():
    lowering._raw.cache_clear()
    layer = nn.Linear(2, 2)
    with torch.device("meta"):
        fastinit.initialize(layer, dict(type="Constant", val=2.5, layer="Linear"), backend="cpp", seed=0)
    assert (layer.weight == 2.5).all()


def model():
    made = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 40, bias=False), nn.LayerNorm(40))
    made[1].weight = nn.Parameter(made[1].weight.t().contiguous().t())
    return made


CFG = [
    dict(type="Normal", std=0.5, layer="Linear"),
    dict(type="Uniform", param="2.*"),
    dict(type="Xavier", param="0.weight"),
]


def run(made, **options):
    return fastinit.initialize(made, CFG, backend="cpp", **options)


def test_values_depend_on_seed_and_name_alone():
    a, b = model(), model()
    report = run(a, seed=3)
    rng = torch.get_rng_state()
    fastinit.initialize(b, CFG[::-1][1:] + [CFG[2]], backend="cpp", seed=3)  # another order
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert report.numbers == "contract 1"
    assert report.seed == 3
    alone = nn.Linear(40, 30)
    fastinit.initialize(alone, dict(type="Xavier", layer="Linear"), backend="cpp", seed=3, prefix="0")
    assert torch.equal(alone.weight, a[0].weight)
    run(b, seed=4)
    assert not torch.equal(a[0].weight, b[0].weight)


def test_replaced_fills_are_not_run_and_each_byte_is_written_once():
    report = run(model(), seed=3)
    assert [row.parameter for row in report.rows] == ["0.bias", "1.weight", "2.weight", "2.bias", "0.weight"]
    assert report.n_bytes == 4 * (30 + 1200 + 80 + 1200)


def test_a_missing_seed_is_drawn_from_torchs_generator_and_reported():
    torch.manual_seed(5)
    expected = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(5)
    a, b, c = model(), model(), model()
    torch.manual_seed(5)
    first, second = run(a), run(b)
    assert first.seed == expected != second.seed
    run(c, seed=first.seed)
    assert torch.equal(a[0].weight, c[0].weight)
    assert not torch.equal(a[0].weight, b[0].weight)
    assert fastinit.plan(model(), CFG, backend="cpp").seed is None


def test_version_counters_are_bumped_as_an_in_place_operation_would():
    made = model()
    before = [parameter._version for parameter in made.parameters()]
    run(made, seed=0)
    assert all(parameter._version > version for parameter, version in zip(made.parameters(), before))
    x = torch.ones(2, 40)
    loss = made[0](x).pow(2).sum()
    run(made, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        made[1](torch.ones(2, 30))
        loss.backward()
        (made[0].weight * made[0].weight).sum().backward()
        y = (made[0].weight * made[0].weight).sum()
        run(made, seed=2)
        y.backward()


@pytest.mark.parametrize(
    ("tensor", "rule", "message"),
    [
        (torch.zeros(3).expand(4, 3), dict(type="Normal"), "share memory"),
        (torch.zeros(9).as_strided((4, 4), (1, 1)), dict(type="Constant", val=1), "share memory"),
        (torch.zeros(3, dtype=torch.int64), dict(type="Normal"), "no random numbers into torch.int64"),
        (torch.zeros(3), dict(type="TruncNormal", std=1e-9, a=1, b=2), "standard deviations from the mean"),
        (torch.zeros(3), dict(type="TruncNormal", std=math.inf), "not finite"),
        (
            torch.zeros(3, dtype=torch.bfloat16),
            dict(type="TruncNormal", a=0.7001, b=0.7002),
            "no number of torch.bfloat16",
        ),
        (torch.zeros(3, dtype=torch.int64), dict(type="TruncNormal"), "no random numbers into torch.int64"),
        (torch.zeros(3), dict(type="Normal", mean=math.inf), "not finite"),
        (torch.zeros(3), dict(type="Normal", std=1e39), "numbers beyond float32's"),
        (torch.zeros(3), dict(type="TruncNormal", mean=1e39, a=0, b=2e39), "numbers beyond float32's"),
        (torch.zeros(3, dtype=torch.float16), dict(type="Uniform", a=-1e5, b=1e5), "out of bounds"),
        (torch.eye(3).to_sparse(), dict(type="Constant", val=1), "plain strided tensors"),
    ],
    ids=str,
)
def test_unsupported_tensors_are_refused_by_name_before_any_write(tensor, rule, message):
    made = nn.Linear(2, 2)
    made.bad = nn.Parameter(tensor, requires_grad=False)
    before = made.weight.clone()
    with pytest.raises(
        RuntimeError, match=rf"init_cfg\[1\]: the backend 'cpp' cannot fill the parameter 'bad'.*{message}"
    ):
        fastinit.initialize(made, [dict(type="Normal", layer="Linear"), dict(**rule, param="bad")], backend="cpp")
    assert torch.equal(made.weight, before)


def test_tensors_sharing_memory_are_filled_in_rule_order(monkeypatch):
    records = []

    class Spy:
        instruction_sets = staticmethod(NATIVE.instruction_sets)

        @staticmethod
        def fill(table, threads, **options):
            records.append(len(table) // NATIVE.RECORD_BYTES)
            NATIVE.fill(table, threads, **options)

    monkeypatch.setattr(cpp_backend, "_native", Spy)
    memory = torch.zeros(8)
    made = nn.ParameterDict({"whole": nn.Parameter(memory), "part": nn.Parameter(memory[2:4])})
    rules = [dict(type="Constant", val=1, param="whole"), dict(type="Constant", val=2, param="part")]
    fastinit.initialize(made, rules, backend="cpp", seed=0)
    assert memory.tolist() == [1, 1, 2, 2, 1, 1, 1, 1]
    fastinit.initialize(made, rules[::-1], backend="cpp", seed=0)
    assert memory.tolist() == [1] * 8
    assert records == [1, 1, 1, 1]  # not in one call, where threads would race
    run(model(), seed=0)
    assert records[4:] == [5]


def test_a_tree_is_one_plan_and_user_code_sees_earlier_fills():
    seen = []

    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            seen.append(self.fc.weight.detach().clone())
            fastinit.uniform_init(self.fc, 5, 6)
            seen.append(self.fc.weight.detach().clone())
            fastinit.initialize(self.fc, dict(type="Constant", val=3, layer="Linear"))
            seen.append(self.fc.weight.detach().clone())

    root = fastinit.Sequential(Custom(), nn.Linear(2, 2), init_cfg=dict(type="Constant", val=7, layer="Linear"))
    with fastinit.use(backend="cpp", seed=1):
        root.init_weights()
    assert (seen[0] == 7).all()
    assert ((seen[1] >= 5) & (seen[1] < 6)).all()
    assert (seen[2] == 3).all()
    assert root.last_init_report.seed == 1
    assert (root[1].weight == 7).all()
    info = root.last_init_report.provenance
    assert info["0.fc.weight"].startswith("ConstantInit: val=3, bias=0")
    assert info["1.weight"] == "ConstantInit: val=7, bias=0 (init_cfg)"


def test_twin_blocks_and_unnamed_tensors_get_different_values():
    with fastinit.use(backend="cpp", seed=1):
        root = fastinit.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), init_cfg=dict(type="Normal", layer="Linear"))
        root.init_weights()
        layers = [nn.Linear(9, 9), nn.Linear(9, 9)]
        for layer in layers:
            fastinit.normal_init(layer)
    assert not torch.equal(root[0].weight, root[1].weight)
    assert not torch.equal(layers[0].weight, layers[1].weight)


def test_names_with_the_same_stream_are_an_error(monkeypatch):
    monkeypatch.setattr("fastinit.execution.runner.streams_of", lambda names: np.full(len(names), 7, np.uint64))
    with pytest.raises(RuntimeError, match="have the same random stream"):
        run(model(), seed=0)


def test_the_report_says_which_instruction_set_ran():
    assert ISAS[0] in str(run(model(), seed=0))
    assert ISAS[-1] == "baseline"

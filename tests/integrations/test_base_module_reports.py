"""Where BaseModule trees say that parameters came from: reports, the log, mmengine's books."""

from __future__ import annotations

import io
import logging
import pickle
from unittest import mock

import pytest
import torch
from base_modules import NORMAL, ONES, XAVIER, leaf, tree
from mmengine_parity import FASTINIT
from torch import nn

import fastinit


def test_provenance_names_the_last_writer_of_every_parameter():
    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__(XAVIER)
            for name in ("data", "view", "exchanged", "function", "untouched", "told"):
                setattr(self, name, nn.Linear(2, 2, bias=False))

        def init_weights(self):
            super().init_weights()
            self.data.weight.data.fill_(1)
            with torch.no_grad():
                self.view.weight[0] = 1
            self.exchanged.weight.data = torch.ones(2, 2)
            fastinit.normal_init(self.function)
            nn.init.zeros_(self.told.weight)
            fastinit.update_init_info(self.told, "zeroed, says the user")

    model = tree(
        FASTINIT, [NORMAL, dict(type="Constant", val=1, layer="LayerNorm")], custom=Custom(), ln=nn.LayerNorm(3)
    )
    model.init_weights()
    by_user = "Initialized by user-defined `init_weights` in Custom (custom.init_weights)"
    assert model.last_init_report.provenance == {
        "fc.weight": "NormalInit: mean=0, std=0.1, bias=0 (init_cfg[0])",
        "fc.bias": "NormalInit: mean=0, std=0.1, bias=0 (init_cfg[0])",
        "custom.data.weight": by_user,
        "custom.view.weight": by_user,
        "custom.exchanged.weight": by_user,
        "custom.function.weight": by_user,
        "custom.untouched.weight": "XavierInit: gain=1, distribution=normal, bias=0 (custom.init_cfg)",
        "custom.told.weight": "zeroed, says the user",
        "ln.weight": "ConstantInit: val=1, bias=0 (init_cfg[1])",
        "ln.bias": "ConstantInit: val=1, bias=0 (init_cfg[1])",
    }
    assert model.last_init_report.unreached == ()
    assert "call of custom.init_weights() of Custom" in str(model.last_init_report)


def test_nested_calls_appear_in_the_report_of_the_outer_call():
    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            self.own = fastinit.initialize(self.fc, XAVIER)
            fastinit.constant_init(self.fc, 3)

    model = tree(FASTINIT, NORMAL, custom=Custom())
    model.init_weights()
    assert [(row.parameter, row.description, row.rule) for row in model.last_init_report.rows][-5:] == [
        ("custom.fc.weight", "normal(mean=0, std=0.707107)", "init_cfg"),
        ("custom.fc.bias", "constant(0)", "init_cfg"),
        ("custom.fc.weight", "constant(3)", "constant_init"),
        ("custom.fc.bias", "constant(0)", "constant_init"),
        ("", "call of custom.init_weights() of Custom", "custom.init_weights"),
    ]
    assert [row.parameter for row in model.custom.own.rows] == ["custom.fc.weight", "custom.fc.bias"]
    assert model.custom.own.unreached == ()


def test_unwritten_parameters_are_listed():
    model = tree(FASTINIT, dict(type="Normal", layer="Conv2d", override=dict(name="fc")), other=nn.Linear(2, 2))
    model.init_weights()
    assert model.last_init_report.unreached == ("other.weight", "other.bias")


def test_parameters_sharing_memory_are_told_apart():
    class Fused(fastinit.BaseModule):
        def __init__(self):
            super().__init__()
            memory = torch.zeros(10)
            self.a, self.b, self.c = (nn.Parameter(part) for part in (memory[:4], memory[4:8], memory[8:]))

        def init_weights(self):
            self.b.data.fill_(1)

    model = tree(FASTINIT, NORMAL, fused=Fused())
    model.init_weights()
    assert model.last_init_report.unreached == ("fused.a", "fused.c")


def test_provenance_reads_no_parameter_back():
    model = tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER), b=leaf(FASTINIT, ONES))
    with mock.patch.object(torch.Tensor, "mean", side_effect=AssertionError("a parameter was read")):
        model.init_weights()


def test_one_line_is_logged_for_each_parameter_and_can_be_silenced(caplog):
    make = lambda: tree(FASTINIT, NORMAL, a=leaf(FASTINIT, ONES, layer=nn.Conv2d(1, 2, 3)))  # noqa: E731
    with caplog.at_level(logging.INFO, "fastinit"):
        make().init_weights()
    assert [record.getMessage() for record in caplog.records] == [
        "fc.weight - (4, 4): NormalInit: mean=0, std=0.1, bias=0",
        "fc.bias - (4,): NormalInit: mean=0, std=0.1, bias=0",
        "a.layer.weight - (2, 1, 3, 3): The value is the same before and after calling `init_weights` of Tree ",
        "a.layer.bias - (2,): The value is the same before and after calling `init_weights` of Tree ",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fastinit"), pytest.warns(UserWarning, match="matches layer 'Linear'"):
        make().init_weights()
    assert caplog.records == []


def test_mmengines_keys_are_there_while_initializing_and_gone_afterwards():
    seen = []

    class Custom(fastinit.BaseModule):
        def __init__(self):
            super().__init__(ONES)
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            super().init_weights()
            entry = self._params_init_info[self.fc.weight]
            seen.append((entry["init_info"], float(entry["tmp_mean_value"])))

    model = tree(FASTINIT, NORMAL, custom=Custom())
    model.init_weights()
    assert seen == [("ConstantInit: val=1, bias=2", 1.0)]
    assert not any(hasattr(module, "_params_init_info") for module in model.modules())


def test_update_init_info_needs_an_initialization_in_progress():
    with pytest.raises(AssertionError, match="Can not find `_params_init_info`"):
        fastinit.update_init_info(nn.Linear(2, 2), "x")


def test_update_init_info_compares_means_in_foreign_init_info():
    layer = nn.Linear(2, 2)
    layer._params_init_info = {
        parameter: {"init_info": "old", "tmp_mean_value": parameter.detach().mean()} for parameter in layer.parameters()
    }
    layer.weight.data.fill_(9)
    fastinit.update_init_info(layer, "new")
    assert layer._params_init_info[layer.weight]["init_info"] == "new"
    assert layer._params_init_info[layer.weight]["tmp_mean_value"] == 9
    assert layer._params_init_info[layer.bias]["init_info"] == "old"


def test_a_report_holds_no_tensors_and_survives_pickling():
    model = tree(FASTINIT, NORMAL, a=leaf(FASTINIT, XAVIER))
    model.init_weights()
    report = pickle.loads(pickle.dumps(model.last_init_report))
    assert report.rows == model.last_init_report.rows
    assert report.to_json() == model.last_init_report.to_json()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert "last_init_report" not in model.state_dict()

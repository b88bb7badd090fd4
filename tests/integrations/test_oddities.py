"""Every oddity of mmengine that the semantics page lists (its section 7), and which way we went, number by number."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers import tensors
from mmengine_parity import FASTINIT, MMENGINE, initialize_both
from torch import nn

import fastinit


def test_1_truncated_normals_keep_mmengines_clamped_tails_in_float32_and_have_none_in_half_precision():
    def on_the_bound(library, dtype, seed):
        torch.manual_seed(seed)
        tensor = library.trunc_normal_(torch.empty(1 << 22, dtype=dtype), std=0.02)
        return int((tensor.abs() > 1).sum())

    assert on_the_bound(MMENGINE, torch.bfloat16, 0) > 1000  # the control: 0.2% of values at 100 sigma
    assert on_the_bound(FASTINIT, torch.bfloat16, 0) == 0
    assert on_the_bound(FASTINIT, torch.float16, 0) == 0
    seed = next(seed for seed in range(200) if on_the_bound(MMENGINE, torch.float32, seed))
    assert on_the_bound(FASTINIT, torch.float32, seed) == on_the_bound(MMENGINE, torch.float32, seed)
    assert on_the_bound(FASTINIT, torch.bfloat16, seed) == 0  # drawn in float32, so the same draw came up here


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_1_truncated_normals_in_half_precision_have_the_right_distribution(dtype):
    from math import erf, sqrt

    tensor = fastinit.trunc_normal_(torch.empty(1 << 20, dtype=dtype), mean=0.5, std=1.0, a=-1.0, b=2.0).float()
    assert tensor.min() >= -1 and tensor.max() <= 2
    low, high = (0.5 * (1 + erf(x / sqrt(2))) for x in (-1.5, 1.5))
    for point in (-0.75, 0.0, 0.5, 1.25):
        expected = (0.5 * (1 + erf((point - 0.5) / sqrt(2))) - low) / (high - low)
        # 4.5 standard errors of a proportion of 2^20 draws, and half a step of the dtype's grid around the point
        found = float((tensor < point).float().mean() + (tensor == point).float().mean() / 2)
        assert abs(found - expected) < 4.5 * 0.5 / 1024 + 1e-3
    control = fastinit.trunc_normal_(torch.empty(1 << 20, dtype=dtype), mean=0.6, std=1.0, a=-1.0, b=2.0).float()
    expected = (0.5 * (1 + erf(-0.5 / sqrt(2))) - low) / (high - low)
    assert abs(float((control < 0).float().mean()) - expected) > 4.5 * 0.5 / 1024 + 1e-3


@pytest.mark.parametrize(
    "spelling", ["Pretrained", "mmengine.Pretrained", "fastinit.weight_init.PretrainedInit", "subclass"]
)
def test_2_a_checkpoint_is_loaded_last_under_any_spelling_of_its_type(tmp_path, spelling):
    class Subclass(fastinit.PretrainedInit):
        pass

    torch.save({"0.0.weight": torch.full((2, 2), 7.0)}, tmp_path / "c.pth")
    kind = Subclass if spelling == "subclass" else spelling
    child = fastinit.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear"))
    root = fastinit.Sequential(child, init_cfg=dict(type=kind, checkpoint=str(tmp_path / "c.pth")))
    root.init_weights()
    assert (child[0].weight == 7).all()


def test_3_an_exception_leaves_no_books_behind():
    def fails(lib):
        return lib.Sequential(lib.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Nope")))

    root = fails(FASTINIT)
    with pytest.raises(KeyError):
        root.init_weights()
    assert not any(hasattr(module, "_params_init_info") for module in root.modules())
    root = fails(MMENGINE)
    with pytest.raises(KeyError):
        root.init_weights()
    assert hasattr(root, "_params_init_info")  # the oddity itself


def test_4_a_child_may_add_a_module_without_parameters():
    def adds(lib):
        class Adds(lib.BaseModule):
            def init_weights(self):
                self.extra = nn.ReLU()

        return lib.Sequential(Adds())

    adds(FASTINIT).init_weights()
    with pytest.raises(AttributeError, match="_params_init_info"):
        adds(MMENGINE).init_weights()


def test_5_parameters_without_a_mean_are_accepted():
    def made(lib):
        root = lib.Sequential(nn.Linear(2, 2), init_cfg=dict(type="Constant", val=1, layer="Linear"))
        root.counts = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        root.mask = nn.Parameter(torch.zeros(3, dtype=torch.bool), requires_grad=False)
        return root

    root = made(FASTINIT)
    root.init_weights()
    assert root.last_init_report.unreached == ("counts", "mask")
    with pytest.raises(RuntimeError):
        made(MMENGINE).init_weights()
    report = fastinit.initialize(root, [dict(type="Constant", val=1, param=["counts", "mask"])])
    assert len(report.rows) == 2 and root.mask.all() and root.counts.tolist() == [1, 1, 1]


def test_6_a_bias_that_is_a_switch_is_left_alone():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.bias = True

    for kind in (Recurrent, lambda: nn.LSTM(3, 3)):
        model = nn.Sequential(kind())
        fastinit.initialize(model, dict(type="Constant", val=2, bias=3, layer=["Recurrent", "LSTM"]))
        assert model[0].bias is True
    with pytest.raises(AttributeError, match="fill_"):
        MMENGINE.initialize(nn.Sequential(Recurrent()), dict(type="Constant", val=2, layer="Recurrent"))


@pytest.mark.parametrize("how", ["parametrization", "weight_norm", "spectral_norm"])
def test_7_a_weight_that_is_computed_from_others_warns_and_draws_as_mmengine_does(how):
    def made():
        layer = nn.Linear(4, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "parametrization":
                nn.utils.parametrizations.weight_norm(layer)
            else:
                getattr(nn.utils, how)(layer)
        return nn.Sequential(layer, nn.Linear(4, 4))

    cfg = dict(type="Normal", layer=["Linear", "ParametrizedLinear"], bias=3)
    initialize_both(made, cfg)
    model = made()
    with pytest.warns(UserWarning, match="'0.weight' is computed from other parameters"):
        report = fastinit.initialize(model, cfg)
    assert set(report.unreached) == {name for name, _ in model[0].named_parameters(prefix="0")} - {"0.bias"}


def test_8_strict_raises(monkeypatch):
    from fastinit import checkpoint

    monkeypatch.setattr("fastinit.checkpoint.loading.is_rank_zero", lambda: False)
    with pytest.raises(RuntimeError, match="missing keys"):
        checkpoint.load_state_dict(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)}, strict=True)


def test_9_a_prefix_is_found_behind_module_and_logged(tmp_path, capsys, caplog):
    torch.save({"module.net.weight": torch.ones(2, 2)}, tmp_path / "c.pth")
    with caplog.at_level("INFO", "fastinit"):
        found = fastinit.checkpoint._load_checkpoint_with_prefix("net", str(tmp_path / "c.pth"))
    assert list(found) == ["weight"] and capsys.readouterr().out == ""
    assert "Loads checkpoint by local backend from path" in caplog.text
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(RuntimeError, match="No state_dict found"):
        fastinit.checkpoint._load_checkpoint_with_prefix("net", str(tmp_path / "list.pth"))


def test_10_schemes_are_tried_in_reverse_alphabetical_order(monkeypatch):
    from fastinit.checkpoint import CheckpointLoader

    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme("odd://", lambda *_: "short")
    CheckpointLoader.register_scheme("odd://[a-z]*", lambda *_: "any")
    CheckpointLoader.register_scheme("odd:/.*long", lambda *_: "long")
    for name, expected in (("odd://x", "any"), ("odd://long", "any"), ("odd:/long", "long")):
        assert CheckpointLoader._get_checkpoint_loader(name)() == expected


def test_11_pickles_of_more_than_data_give_their_weights_and_are_refused_as_a_whole_with_the_way_out(tmp_path):
    import numpy as np

    path, model = str(tmp_path / "c.pth"), nn.Linear(2, 2)
    torch.save({"state_dict": {"weight": torch.full((2, 2), 3.0)}, "meta": np.random.RandomState(0)}, path)
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path))
    assert (model.weight == 3).all()
    with pytest.raises(RuntimeError, match="weights_only=False"):
        fastinit.checkpoint.CheckpointLoader.load_checkpoint(path)


def test_12_caffe2xavier_is_uniform_whatever_the_docs_say():
    (row, _) = fastinit.plan(nn.Linear(4, 2), dict(type="Caffe2Xavier", layer="Linear")).rows
    assert row.values == {"kind": "uniform", "low": -(0.75**0.5), "high": 0.75**0.5}


def test_13_messages_have_mmengines_leading_words():
    for make, words in [
        (lambda lib: lib.initialize(nn.Linear(2, 2), "x"), "init_cfg must be a dict or a list of dict,"),
        (lambda lib: lib.NormalInit(bias=[1]), "bias must be a number, but got a <class 'list'>"),
        (lambda lib: lib.NormalInit(bias_prob=1), "bias_prob type must be float,"),
        (lambda lib: lib.NormalInit(layer=1), "layer must be a str or a list of str,"),
    ]:
        for lib in (FASTINIT, MMENGINE):
            with pytest.raises(TypeError) as error:
                make(lib)
            assert str(error.value).startswith(words)


def test_14_an_override_with_arguments_but_no_type_is_an_error_though_a_bare_name_inherits():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r'init_cfg\.override: `override` need "type" key'):
        fastinit.initialize(model, dict(type="Constant", val=1, override=dict(name="0", val=2)))
    fastinit.initialize(model, dict(type="Constant", val=1, override=dict(name="0")))
    assert (model[0].weight == 1).all()


def test_15_a_second_call_warns_without_a_dump(caplog):
    root = fastinit.Sequential(nn.Linear(2, 2))
    root.init_weights()
    with caplog.at_level("INFO", "fastinit"):
        root.init_weights()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_constant_that_leaves_the_mean_unchanged_is_recorded():
    root = fastinit.Sequential(nn.LayerNorm(3), init_cfg=dict(type="Constant", val=1, layer="LayerNorm"))
    before = copy.deepcopy(tensors(root))
    root.init_weights()
    assert root.last_init_report.provenance["0.weight"] == "ConstantInit: val=1, bias=0 (init_cfg)"
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(root).items())

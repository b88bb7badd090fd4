"""Names of wrappers (DDP, torch.compile, averaged models, ...) in checkpoints and in models match both ways."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from helpers import assert_same_tensors
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint.wrappers import below, plain


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 3)))


class Fsdp1(nn.Module):
    """Names as FSDP1's, which needs a process group itself."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


class Fabric(nn.Module):
    """Names as Lightning Fabric's: it has the model twice."""

    def __init__(self, module):
        super().__init__()
        self._forward_module = self._original_module = module


def part(index, wrap):
    def change(module):
        module[index] = wrap(module[index])
        return module

    return change


WRAPS = {
    "plain": lambda module: module,
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "DataParallel of compiled": lambda module: nn.DataParallel(torch.compile(module)),
    "compiled DataParallel": lambda module: torch.compile(nn.DataParallel(module)),
    "checkpointed part": part(2, checkpoint_wrapper),
    "compiled with a checkpointed part": lambda module: torch.compile(part(0, checkpoint_wrapper)(module)),
    "averaged": AveragedModel,
    "averaged compiled": lambda module: AveragedModel(torch.compile(module)),
    "FSDP1": Fsdp1,
    "Fabric": Fabric,
    "compiled part": part(2, torch.compile),
}


def values_in(model):
    """The tensors of a model in order, without an averaged model's counter and what Fabric has twice."""
    values = {key: value for key, value in model.state_dict().items() if not key.endswith("n_averaged")}
    return [value for key, value in values.items() if "_original_module" not in key]


def saved(wrap, path):
    model = net()
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.uniform_(tensor, 1, 2) if tensor.is_floating_point() else tensor.fill_(7)
    wrapped = wrap(model)
    torch.save(wrapped.state_dict(), path)
    return values_in(wrapped)


@pytest.mark.parametrize("of_model", WRAPS)
@pytest.mark.parametrize("of_file", WRAPS)
def test_every_file_loads_into_every_model(tmp_path, of_file, of_model):
    values = saved(WRAPS[of_file], tmp_path / "c.pth")
    for options in (dict(), dict(assign=True)):
        made = WRAPS[of_model](net())
        plan = fastinit.plan(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
        assert sum(row.parameter != "n_averaged" for row in plan.rows) == 9
        report = fastinit.initialize(
            made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=True, **options)
        )
        assert [value.tolist() for value in values_in(made)] == [value.tolist() for value in values]
        assert report.unreached == () and report.checkpoints[0].result.missing == ()
        if of_file == of_model and "module." not in "".join(torch.load(tmp_path / "c.pth")):
            assert report.checkpoints[0].result.stripped == ()


def test_the_report_says_what_was_stripped_and_one_line_logs_it(tmp_path, caplog, capsys):
    saved(WRAPS["DataParallel of compiled"], tmp_path / "c.pth")
    report = fastinit.initialize(net(), dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    stripped = report.checkpoints[0].result.stripped
    assert stripped == ("'_orig_mod' in 9 of the checkpoint's keys",)
    assert stripped[0] in report.summary() and json.loads(report.to_json())["checkpoints"][0]["result"]["stripped"]
    assert [row.values["key"] for row in report.rows][:2] == ["module._orig_mod.0.weight", "module._orig_mod.0.bias"]
    ours.load_checkpoint(net(), tmp_path / "c.pth")
    line = "names were matched without the parts that wrappers add: '_orig_mod' in 9 of the checkpoint's keys\n"
    assert capsys.readouterr().out.count(line) == 1
    saved(WRAPS["plain"], tmp_path / "c.pth")
    ours.load_checkpoint(net(), tmp_path / "c.pth")
    assert "matched without" not in capsys.readouterr().out


def test_a_name_that_the_model_has_wins_over_one_without_wrappers(tmp_path):
    made = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False), "fc": nn.Linear(2, 2, bias=False)})
    state = {"module.weight": torch.full((2, 2), 1.0), "fc.weight": torch.full((2, 2), 2.0)}
    torch.save(state, tmp_path / "c.pth")
    ours.load_checkpoint(made, tmp_path / "c.pth", revise_keys=[], strict=True, logger="silent")
    assert (made["module"].weight == 1).all() and (made["fc"].weight == 2).all()
    # the file's own name goes first, and the other is left over
    torch.save({"fc.weight": torch.ones(2, 2), "_orig_mod.fc.weight": torch.zeros(2, 2)}, tmp_path / "c.pth")
    part = nn.ModuleDict({"fc": nn.Linear(2, 2, bias=False)})
    report = fastinit.initialize(part, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert (part["fc"].weight == 1).all()
    assert report.checkpoints[0].result.unexpected == ("_orig_mod.fc.weight",)


@pytest.mark.parametrize(
    ("state", "model"),
    [
        ({"module.a.weight": 1, "_orig_mod.a.weight": 2}, lambda: nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)})),
        (
            {"a.weight": 1},
            lambda: nn.ModuleDict(
                {
                    "module": nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)}),
                    "_orig_mod": nn.ModuleDict({"a": nn.Linear(1, 1, bias=False)}),
                }
            ),
        ),
    ],
    ids=["two in the file", "two in the model"],
)
def test_ambiguous_keys_match_no_tensor(tmp_path, state, model):
    torch.save({key: torch.full((1, 1), float(value)) for key, value in state.items()}, tmp_path / "c.pth")
    made = model()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", revise_keys=[]))
    result = report.checkpoints[0].result
    assert result.copied == () and set(result.unexpected) == set(state) and result.stripped == ()


@pytest.mark.parametrize("prefix", ["backbone", "backbone.", "backbone.stem"])
def test_a_prefix_is_found_behind_and_between_wrappers(tmp_path, prefix):
    state = {"_orig_mod.backbone.module.stem.weight": torch.ones(2, 2), "_orig_mod.head.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "c.pth")
    made = nn.Linear(2, 2, bias=False) if prefix.endswith("stem") else nn.ModuleDict({"stem": nn.Linear(2, 2, False)})
    report = fastinit.initialize(
        made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix=prefix, strict=True)
    )
    assert all((parameter == 1).all() for parameter in made.parameters()) and report.unreached == ()
    with pytest.raises(AssertionError, match=r"^init_cfg: neck\. is not in the pretrained model|neck\. is not"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix="neck"))
    # revisions that are given are the user's own, and nothing is looked for besides
    with pytest.raises(AssertionError, match="is not in the pretrained model"):
        ours.load_checkpoint(made, tmp_path / "c.pth", prefix=prefix, revise_keys=[], logger="silent")


def test_only_shards_with_keys_below_the_prefix_are_opened_behind_wrappers_too(tmp_path):
    import safetensors.torch

    safetensors.torch.save_file({"_orig_mod.backbone.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    weight_map = {"_orig_mod.backbone.weight": "a.safetensors", "_orig_mod.head.weight": "gone.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = nn.Linear(2, 2, bias=False)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path, prefix="backbone"))
    assert (made.weight == 1).all()


def test_loading_code_below_a_wrapper_gets_its_old_keys_and_version(tmp_path):
    seen = []

    class Renames(nn.Linear):
        _version = 3

        def _load_from_state_dict(self, state, prefix, local, *args):
            seen.append((prefix, local.get("version"), sorted(state)))
            state[prefix + "weight"] = state.pop(prefix + "old")
            super()._load_from_state_dict(state, prefix, local, *args)

    state = OrderedDict({"fc.old": torch.ones(2, 2), "fc.bias": torch.ones(2)})
    state._metadata = {"": {"version": 1}, "fc": {"version": 3}}
    torch.save(state, tmp_path / "c.pth")
    for made in (
        torch.compile(nn.ModuleDict({"fc": Renames(2, 2)})),
        nn.ModuleDict({"fc": torch.compile(Renames(2, 2))}),
    ):
        ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, logger="silent")
        assert all((parameter == 1).all() for parameter in made.parameters())
        prefix, version, keys = seen.pop()
        assert version == 3 and keys == [f"{prefix}bias", f"{prefix}old"]


def test_unmatched_keys_are_reported_as_before(tmp_path):
    torch.save({"_orig_mod.fc.weight": torch.ones(2, 2), "_orig_mod.more": torch.ones(1)}, tmp_path / "c.pth")
    made = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    with pytest.raises(RuntimeError, match=r"(?s)unexpected key.*: _orig_mod\.more.*missing keys.*: fc\.bias"):
        ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, logger="silent")


def test_names_without_wrappers():
    assert plain("module._orig_mod.a._checkpoint_wrapped_module.module.b") == "a.b"
    assert plain("modules.module_a.orig_mod") == "modules.module_a.orig_mod"
    assert below("module.a._orig_mod.b.c", "a.b.") == "c" and below("a.b", "a.b") == ""
    assert below("x.a.b", "a") is below("ab.c", "a") is below("module", "a") is None


# --- lazy modules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(assign=True), dict(strict=True), dict(access="map")], ids=str)
def test_lazy_modules_take_the_shapes_of_the_file(tmp_path, options):
    source = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Conv2d(2, 3, 3))
    for parameter in source.parameters():
        nn.init.uniform_(parameter)
    torch.save(source.state_dict(), tmp_path / "c.pth")

    def make():
        return nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3), nn.LazyConv2d(3, 3))

    made, again = make(), make()
    cfg = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", **options)
    assert [row.shape for row in fastinit.plan(made, cfg).rows] == [
        tuple(v.shape) for v in source.state_dict().values()
    ]
    report = fastinit.initialize(made, cfg)
    ours.load_checkpoint(again, tmp_path / "c.pth", logger="silent", **options)
    for model in (made, again):
        assert_same_tensors(dict(model.state_dict()), dict(source.state_dict()))
        assert type(model[1].weight) is nn.Parameter and model[1].weight.requires_grad
        assert torch.equal(model[1](torch.ones(1, 4)), source[1](torch.ones(1, 4)))
    assert report.unreached == () and report.checkpoints[0].result.missing == ()


def test_lazy_parameters_missing_from_the_file_stay_lazy(tmp_path):
    torch.save({"0.weight": torch.ones(3, 4)}, tmp_path / "c.pth")
    made = nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2))
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert (made[0].weight == 1).all() and nn.parameter.is_lazy(made[1].weight)
    assert report.checkpoints[0].result.copied == ("0.weight",)
    assert set(report.checkpoints[0].result.missing) == {"0.bias", "1.weight", "1.bias"}


def test_a_lazy_parameter_outside_of_lazy_modules_is_adopted_and_not_copied_into(tmp_path):
    class Holds(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.UninitializedParameter()

    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "c.pth")
    made = Holds()
    with pytest.raises(RuntimeError, match=r'parameter named "weight".*it has no shape yet'):
        ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, logger="silent")
    assert nn.parameter.is_lazy(made.weight)
    ours.load_checkpoint(made, tmp_path / "c.pth", strict=True, assign=True, logger="silent")
    assert made.weight.shape == (2, 3) and (made.weight == 1).all() and type(made.weight) is nn.Parameter

"""Whether a checkpoint fits is known, and told, before the first write."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fastinit
from fastinit import checkpoint as ours

STRICT = dict(strict=True)
ONES = dict(type="Constant", val=1, bias=1, layer="Linear")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def odd_file(folder: Path) -> Path:
    """Writes a checkpoint that lacks a key of ``net``, and has one more and another shape."""
    state = {"0.weight": torch.zeros(2, 2), "1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(2)}
    torch.save({"state_dict": {**state, "extra": torch.zeros(1)}}, folder / "odd.pth")
    return folder / "odd.pth"


class Part(fastinit.BaseModule):
    def __init__(self, init_cfg: object) -> None:
        super().__init__(init_cfg)
        self.layers = net()


class Own(nn.Linear):
    """Has loading code of its own."""

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)  # type: ignore[arg-type]


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_tells_which_keys_do_not_fit(tmp_path):
    path = odd_file(tmp_path)
    plan = fastinit.plan(net(), [ONES, dict(type="Pretrained", checkpoint=path)])
    told = "1 missing: 0.bias; 1 unexpected: extra; 1 of another shape: 1.weight"
    assert str(plan).splitlines()[-1] == f"{path} (init_cfg[1]): {told}"
    (fit,) = json.loads(plan.to_json())["checkpoints"]
    found = {"missing": ["0.bias"], "unexpected": ["extra"], "mismatched": ["1.weight"], "hints": []}
    assert fit == {"source": str(path), "rule": "init_cfg[1]", **found}


def test_a_plan_of_a_checkpoint_that_fits_has_no_line_about_it(tmp_path):
    torch.save(net().state_dict(), tmp_path / "c.pth")
    plan = fastinit.plan(net(), dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert str(plan).splitlines()[-1].startswith("4 rows, ")


def test_a_plan_says_where_loading_code_decides_what_fits(tmp_path):
    plan = fastinit.plan(nn.Sequential(Own(2, 2)), dict(type="Pretrained", checkpoint=odd_file(tmp_path)))
    told = "what fits is up to modules that have loading code or hooks of their own"
    assert f"odd.pth (init_cfg): {told}" in str(plan)
    assert json.loads(plan.to_json())["checkpoints"][0]["missing"] is None


def test_a_plan_and_the_report_tell_the_same(tmp_path):
    rule, model = dict(type="Pretrained", checkpoint=odd_file(tmp_path)), net()
    (copy,) = fastinit.plan(model, rule).items
    result = fastinit.initialize(model, rule).checkpoints[0].result
    assert copy.fit == result


def test_a_plan_shows_the_keys_of_the_file(tmp_path):
    state = {f"module.encoder.{key}": value for key, value in net().state_dict().items()}
    torch.save(state, tmp_path / "c.pth")
    revise = [(r"^module\.", ""), (r"^encoder\.", "backbone.")]
    for options in (dict(prefix="encoder"), dict(prefix="backbone", revise_keys=revise)):
        plan = fastinit.plan(net(), dict(type="Pretrained", checkpoint=tmp_path / "c.pth", **options))
        assert [row.values["key"] for row in plan.rows] == list(state)
        plan.save(tmp_path / "plan.json")
        model = net()
        fastinit.initialize(model, fastinit.Plan.load(tmp_path / "plan.json"))
        assert torch.equal(model[1].weight, state["module.encoder.1.weight"])
        assert '"key": "module.encoder.0.weight"' in (tmp_path / "plan.json").read_text()


# --- strict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [fastinit.plan, fastinit.initialize])
def test_strict_refuses_before_an_earlier_rule_writes(tmp_path, caplog, call):
    path, model = odd_file(tmp_path), net()
    before = model[0].weight.clone()
    with pytest.raises(RuntimeError) as caught:
        call(model, [ONES, dict(type="Pretrained", checkpoint=path, strict=True)])
    error = caught.value
    assert str(error).startswith(f"init_cfg[1]: {path} does not fit Sequential: ")
    assert error.place == f"init_cfg[1], {path}" and error.hint.startswith("Leave strict out")
    assert "missing keys in source state_dict: 0.bias" in str(error) and "Nothing was copied" in str(error)
    assert torch.equal(model[0].weight, before) and "partly initialized" not in caplog.text


def test_strict_refuses_before_another_module_of_the_tree_is_written(tmp_path, caplog):
    late = Part(dict(type="Pretrained", checkpoint=odd_file(tmp_path), strict=True))
    root = fastinit.Sequential(Part(ONES), late)
    before = root[0].layers[0].weight.clone()
    with pytest.raises(RuntimeError, match=r"^1\.init_cfg: .*odd\.pth does not fit Part: "):
        root.init_weights()
    assert torch.equal(root[0].layers[0].weight, before) and "partly initialized" not in caplog.text


@pytest.mark.parametrize(
    "rule",
    [dict(checkpoint="nope.pth"), dict(checkpoint="damaged.pth"), dict(checkpoint="odd.pth", prefix="head")],
    ids=["missing", "damaged", "prefix"],
)
@pytest.mark.parametrize("where", ["rule", "override"])
def test_a_checkpoint_that_cannot_be_loaded_is_refused_before_the_tree_is_written(tmp_path, rule, where):
    odd_file(tmp_path)
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and no more")
    pretrained = dict(type="Pretrained", **{**rule, "checkpoint": tmp_path / rule["checkpoint"]})
    if where == "override":
        pretrained = dict(ONES, override=dict(pretrained, name="layers"))
    root = fastinit.Sequential(Part(ONES), Part(pretrained))
    before = root[0].layers[0].weight.clone()
    with pytest.raises((OSError, RuntimeError, AssertionError), match=r"^1\.init_cfg"):
        root.init_weights()
    assert torch.equal(root[0].layers[0].weight, before)


def test_a_checkpoint_may_be_made_by_init_code_that_runs_before(tmp_path):
    class Makes(fastinit.BaseModule):
        def init_weights(self) -> None:
            torch.save({f"layers.{k}": torch.full_like(v, 7) for k, v in net().state_dict().items()}, path)

    path = tmp_path / "made.pth"
    root = fastinit.Sequential(Makes(), Part(dict(type="Pretrained", checkpoint=path, strict=True)))
    root.init_weights()
    assert bool((root[1].layers[1].weight == 7).all())


def test_a_checkpoint_of_a_tree_is_read_once(tmp_path):
    state, reads = net().state_dict(), []

    def reader(filename: str, map_location: object) -> dict[str, object]:
        reads.append(filename)
        return {f"layers.{key}": value for key, value in state.items()}

    ours.CheckpointLoader.register_scheme("fitting://", reader)
    root = fastinit.Sequential(Part(ONES), Part(dict(type="Pretrained", checkpoint="fitting://x", strict=True)))
    root.init_weights()
    assert reads == ["fitting://x"] and torch.equal(root[1].layers[1].weight, state["1.weight"])


def test_two_modules_may_load_the_same_checkpoint(tmp_path):
    torch.save({f"layers.{key}": value for key, value in net().state_dict().items()}, tmp_path / "c.pth")
    rule = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=True)
    root = fastinit.Sequential(Part(rule), Part(rule))
    root.init_weights()
    assert torch.equal(root[0].layers[1].weight, root[1].layers[1].weight)


def test_a_load_that_fails_before_its_first_write_is_not_said_to_leave_half_a_model(tmp_path, caplog):
    path, model = odd_file(tmp_path), net()

    class Removes(fastinit.BaseInit):
        wholemodule = True

        def plan_items(self, module: nn.Module, scope: object, rule: str) -> list[fastinit.plans.Item]:
            path.write_bytes(b"changed")
            return []

    rules = [dict(type="Pretrained", checkpoint=path), dict(type=Removes)]
    with pytest.raises(OSError, match="was changed"):
        fastinit.initialize(model, rules)
    assert "partly initialized" not in caplog.text


# --- messages --------------------------------------------------------------------------------------------------------


def test_the_warning_names_rule_file_and_module(tmp_path, caplog):
    path = odd_file(tmp_path)
    fastinit.initialize(net(), [dict(type="Pretrained", checkpoint=path)])
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert record.message.startswith(f"init_cfg[0]: {path} does not fit Sequential: The model and loaded state dict")


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("bakbone", r"Did you mean 'backbone'\?"),
        ("backbone.2", r"Did you mean 'backbone\.1' or 'backbone\.0'\?"),
        ("teacher", "Its keys begin with 'backbone', 'head'"),
    ],
)
def test_a_wrong_prefix_is_refused_with_the_file_and_those_that_exist(tmp_path, prefix, hint):
    state = {f"backbone.{key}": value for key, value in net().state_dict().items()}
    torch.save({**state, "head.weight": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(AssertionError, match="not in the pretrained model") as caught:
        fastinit.plan(net(), dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix=prefix))
    assert re.search(rf" {tmp_path}/c\.pth: no key begins with prefix='{prefix}'\. {hint}$", str(caught.value))
    assert caught.value.place == f"init_cfg, {tmp_path}/c.pth"


def test_hints_about_prefixes_of_a_hostile_file_are_short(tmp_path):
    state = {f"\x1b[2J{n}." * 40 + "w" * 10_000: torch.zeros(1) for n in range(50)}
    torch.save({**state, **{f"p{n}.w": torch.zeros(1) for n in range(3000)}}, tmp_path / "c.pth")
    with pytest.raises(AssertionError) as caught:
        fastinit.plan(net(), dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix="zzz"))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_prefix_that_is_too_short_is_told_whole(tmp_path):
    state = {f"policy.net.{key}": value for key, value in net().state_dict().items()}
    torch.save(state, tmp_path / "c.pth")
    rule = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix="policy")
    assert "would fit with prefix='policy.net'" in str(fastinit.plan(net(), rule))
    for strictly in (
        lambda: fastinit.initialize(net(), rule, strict=True),
        lambda: fastinit.plan(net(), rule | STRICT),
        lambda: fastinit.checkpoint.load_checkpoint(net(), str(tmp_path / "c.pth"), prefix="policy.", strict=True),
    ):
        with pytest.raises(RuntimeError, match=r"prefix='policy\.net'"):
            strictly()
    fastinit.initialize(net(), rule | dict(prefix="policy.net") | STRICT)


@pytest.mark.parametrize(("before", "after", "hint"), [("", "net.", "prefix='net'"), ("net.", "", "revise_keys=[(")])
def test_a_prefix_that_would_make_the_keys_fit_is_named(tmp_path, caplog, before, after, hint):
    model = nn.ModuleDict({"net": net()}) if before else net()
    state = {f"{after}{key}": value for key, value in net().state_dict().items()}
    torch.save(state, tmp_path / "c.pth")
    rule = dict(type="Pretrained", checkpoint=tmp_path / "c.pth")
    fastinit.initialize(model, rule)
    assert f"nothing was copied; the keys would fit with {hint}" in caplog.text
    assert f"; the keys would fit with {hint}" in str(fastinit.plan(model, rule))
    for strictly in (
        lambda: fastinit.initialize(model, rule, strict=True),
        lambda: fastinit.plan(model, rule | STRICT),
    ):
        with pytest.raises(RuntimeError) as caught:
            strictly()
        assert hint in caught.value.hint
    given = dict(prefix="net") if after else dict(revise_keys=[("^", "net.")])
    assert not fastinit.initialize(model, rule | given | STRICT).checkpoints[0].result.missing

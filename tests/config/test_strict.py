"""Strict calls: what has no effect is an error, before anything is written."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

import fastinit

NORMAL = dict(type="Normal", std=0.5, layer="Linear")
TYPO = dict(type="Constant", val=3, layer="Linaer")
CASES = {
    "no module of a layer": (TYPO, r"init_cfg\[1\]: ConstantInit: no module of Sequential matches layer 'Linaer'"),
    "no parameter of a name": (
        dict(type="Constant", val=3, param="0.wieght"),
        r"init_cfg\[1\]: ConstantInit: no parameter of Sequential matches param '0.wieght'.*Did you mean '0.weight'",
    ),
    "no target": (
        dict(type="Constant", val=3),
        r"init_cfg\[1\]: ConstantInit: neither `layer`, `param` nor `override`",
    ),
    "no tensor": (
        dict(type="Constant", val=3, layer="ReLU"),
        r"init_cfg\[1\]: ConstantInit: no ReLU in Sequential has a tensor `weight` or `bias`",
    ),
}


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@contextlib.contextmanager
def nothing_written(made):
    before = [(parameter.detach().clone(), parameter._version) for parameter in made.parameters()]
    state = torch.get_rng_state()
    yield
    for (values, version), parameter in zip(before, made.parameters()):
        assert torch.equal(values, parameter) and parameter._version == version
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("case", CASES)
def test_a_rule_without_a_match_is_an_error_before_anything_is_written(case):
    rule, message = CASES[case]
    made = model()
    with nothing_written(made), pytest.raises(RuntimeError, match=message + r".*\(an error under strict\)"):
        fastinit.initialize(made, [NORMAL, rule], strict=True)
    with nothing_written(made), pytest.raises(RuntimeError, match=message):
        fastinit.plan(made, [NORMAL, rule], strict=True)


@pytest.mark.parametrize("case", CASES)
def test_without_strict_it_is_a_warning(case):
    rule, _ = CASES[case]
    with pytest.warns(UserWarning, match=r"init_cfg\[1\] \(ConstantInit\): "):
        fastinit.initialize(model(), [NORMAL, rule])


def test_matching_rules_pass_under_strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fastinit.initialize(model(), NORMAL, strict=True, seed=0)
    assert report.unreached == ()


def test_complete_requires_a_rule_for_every_parameter():
    made = model()
    rules = dict(type="Normal", param="*.weight")
    assert fastinit.initialize(made, rules, strict=True).unreached == ("0.bias", "2.bias")
    for call in (fastinit.initialize, fastinit.plan):
        with (
            nothing_written(made),
            pytest.raises(
                RuntimeError, match=r"strict='complete': 2 parameters that no rule reaches: 0.bias, 2.bias. Add rules"
            ),
        ):
            call(made, rules, strict="complete")
    fastinit.initialize(made, [rules, dict(type="Constant", val=0, param="*.bias")], strict="complete")


def test_foreign_init_code_counts_as_reaching_its_whole_module():
    made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    fastinit.initialize(made, [lambda module: None], strict="complete")


@pytest.mark.parametrize("strict", ["yes", 1, 0, "Complete", None])
def test_strict_is_one_of_three_values(strict):
    if strict is None:
        assert fastinit.initialize(model(), NORMAL, strict=strict).seed is None
        return
    with pytest.raises(ValueError, match="strict must be False, True or 'complete', but got"):
        fastinit.initialize(model(), NORMAL, strict=strict)


# --- where it comes from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "raises"), [("1", True), ("true", True), ("complete", True), ("0", False), ("", False), ("False", False)]
)
def test_the_environment_makes_calls_strict(monkeypatch, text, raises):
    monkeypatch.setenv("FASTINIT_STRICT", text)
    with pytest.raises(RuntimeError, match="Linaer") if raises else pytest.warns(UserWarning, match="Linaer"):
        fastinit.initialize(model(), [NORMAL, TYPO])


def test_an_unknown_value_is_refused(monkeypatch):
    monkeypatch.setenv("FASTINIT_STRICT", "yes please")
    with pytest.raises(ValueError, match="FASTINIT_STRICT must be one of 0, 1 and complete, but it is 'yes please'"):
        fastinit.initialize(model(), NORMAL)


def test_the_innermost_of_argument_block_and_environment_counts(monkeypatch):
    monkeypatch.setenv("FASTINIT_STRICT", "1")
    with fastinit.use(strict=False):
        with pytest.warns(UserWarning, match="Linaer"):
            fastinit.initialize(model(), [NORMAL, TYPO])
        with fastinit.use(seed=3), pytest.warns(UserWarning, match="Linaer"):  # blocks inherit
            fastinit.initialize(model(), [NORMAL, TYPO])
        with pytest.raises(RuntimeError, match="Linaer"):
            fastinit.initialize(model(), [NORMAL, TYPO], strict=True)
    with pytest.warns(UserWarning, match="Linaer"):
        fastinit.initialize(model(), [NORMAL, TYPO], strict=False)


# --- modules that initialize themselves -------------------------------------------------------------------------------


def tree(*children, **options):
    return fastinit.Sequential(*children, **options)


def test_a_tree_is_planned_before_its_first_write():
    made = tree(nn.Linear(2, 2), tree(nn.Linear(2, 2), init_cfg=TYPO), init_cfg=NORMAL)
    with nothing_written(made), pytest.raises(RuntimeError, match=r"1.init_cfg: ConstantInit: no module of Sequential"):
        made.init_weights(strict=True)
    assert not made.is_init and not made[1].is_init
    with pytest.warns(UserWarning, match="Linaer"):
        made.init_weights()


def test_a_complete_tree_has_a_rule_for_every_parameter():
    made = tree(nn.Linear(2, 2), nn.PReLU(), init_cfg=NORMAL)
    with nothing_written(made), pytest.raises(RuntimeError, match=r"strict='complete': .*no rule reaches: 1.weight"):
        made.init_weights(strict="complete")
    made.init_cfg = [NORMAL, dict(type="Constant", val=0.25, layer="PReLU")]
    made.init_weights(strict="complete")
    assert made.last_init_report.unreached == ()


def test_strict_reaches_the_calls_within_a_call():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            fastinit.initialize(self, TYPO)

    made = tree(Own())
    with pytest.raises(RuntimeError, match="Linaer"):
        made.init_weights(strict=True)
    with pytest.raises(RuntimeError, match="Linaer"):
        fastinit.build(lambda: (made := Own(), made.init_weights())[0], strict=True)


def test_materialize_leaves_the_model_on_the_meta_device():
    with torch.device("meta"):
        made = model()
    with pytest.raises(RuntimeError, match="Linaer"):
        fastinit.materialize(made, [NORMAL, TYPO], strict=True, backend="torch")
    assert all(parameter.is_meta for parameter in made.parameters())
    rest = dict(type="Normal", param="0.weight")
    fastinit.materialize(made, rest, strict="complete", backend="torch")  # the others have values of their modules' own


def test_a_recipe_of_other_parameters_is_an_error():
    with fastinit.capture() as recipe:
        nn.Linear(2, 2)
    other = nn.Sequential(nn.Sequential(nn.PReLU()))
    with nothing_written(other), pytest.raises(RuntimeError, match="init_cfg: the recipe holds no parameter"):
        fastinit.initialize(other, recipe, strict=True)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def pretrained(path, **options):
    return dict(type="Pretrained", checkpoint=str(path), **options)


def test_a_checkpoint_without_a_matching_key_is_an_error(tmp_path):
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "other.pth")
    made = model()
    with (
        nothing_written(made),
        pytest.raises(RuntimeError, match=r"init_cfg\[1\]: PretrainedInit: .*other.pth holds no tensor of Sequential"),
    ):
        fastinit.initialize(made, [NORMAL, pretrained(tmp_path / "other.pth")], strict=True)
    fastinit.initialize(made, [NORMAL, pretrained(tmp_path / "other.pth")])


def test_a_partial_checkpoint_passes_and_counts_for_complete(tmp_path):
    made = model()
    torch.save({"0.weight": torch.full((4, 3), 2.0)}, tmp_path / "part.pth")
    fastinit.initialize(made, pretrained(tmp_path / "part.pth"), strict=True)
    assert (made[0].weight == 2).all()
    with pytest.raises(RuntimeError, match="3 parameters that no rule reaches: 0.bias"):
        fastinit.initialize(made, pretrained(tmp_path / "part.pth"), strict="complete")


def test_loading_code_that_takes_nothing_is_reported_after_it_ran(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            pass

    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match=r"init_cfg: nothing is copied from .*a.pth.*\(an error under strict\)"):
        fastinit.initialize(Own(2, 2), pretrained(tmp_path / "a.pth"), strict=True)


def test_load_checkpoint_follows_the_enclosing_block(tmp_path):
    torch.save({"head.weight": torch.zeros(2)}, tmp_path / "other.pth")
    made = model()
    with fastinit.use(strict=True), nothing_written(made):
        with pytest.raises(
            RuntimeError, match=r"nothing is copied from .*other.pth: 1 keys of the checkpoint that nothing"
        ):
            fastinit.checkpoint.load_checkpoint(made, tmp_path / "other.pth", logger="silent")
    fastinit.checkpoint.load_checkpoint(made, tmp_path / "other.pth", logger="silent")
    torch.save({"0.weight": torch.zeros(4, 3)}, tmp_path / "part.pth")
    with fastinit.use(strict=True):
        fastinit.checkpoint.load_checkpoint(made, tmp_path / "part.pth", logger="silent")

"""A plan of a model that ties other names than the model that it is given for: the error says what is tied where."""

from __future__ import annotations

import pytest
from torch import nn

import fastinit
from fastinit.config.tied_plans import differing_ties

CFG = [dict(type="Normal", std=0.02, layer=["Embedding", "Linear"])]


class Model(nn.Module):
    def __init__(self, *, ties: bool) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        if ties:
            self.head.weight = self.embed.weight


def plan_of(model: nn.Module, prefix: str = "") -> fastinit.Plan:
    return fastinit.plan(model, CFG, backend="cpp", seed=0, prefix=prefix)


@pytest.mark.parametrize("call", [fastinit.verify, fastinit.initialize, fastinit.redraw])
def test_a_tied_model_is_told_apart_from_the_plan_of_an_untied_one(call: object) -> None:
    with pytest.raises(
        fastinit.Error, match=r"Model ties head\.weight to embed\.weight \(one tensor\), and the plan ha"
    ) as info:
        call(Model(ties=True), plan_of(Model(ties=False)))  # type: ignore[operator]
    assert info.value.hint is not None and info.value.hint.startswith("Use a plan of a model that ties the same names")


def test_an_untied_model_is_told_apart_from_the_plan_of_a_tied_one() -> None:
    with pytest.raises(
        fastinit.Error, match=r"plan is of a model that ties head\.weight to embed\.weight, Model does n"
    ):
        fastinit.verify(Model(ties=False), plan_of(Model(ties=True)))


def test_names_are_the_plans_where_a_prefix_is_given() -> None:
    with pytest.raises(fastinit.Error, match=r"Model ties a\.head\.weight to a\.embed\.weight"):
        fastinit.verify(Model(ties=True), plan_of(Model(ties=False), "a"), prefix="a")


def test_modules_that_are_shared_are_tied() -> None:
    shared = nn.Linear(2, 2)
    one, two = nn.Sequential(shared, shared), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(fastinit.Error, match=r"Sequential ties 1\.weight to 0\.weight"):
        fastinit.verify(one, plan_of(two))


def test_what_lacks_for_another_reason_is_not_called_tied() -> None:
    model, other = nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    for one, plan in ((model, plan_of(other)), (other, plan_of(model))):
        with pytest.raises(fastinit.Error, match="does not fit") as info:
            fastinit.verify(one, plan)
        assert " tie" not in str(info.value) and info.value.hint is None


def test_another_model_is_not_guessed_to_be_tied() -> None:
    shapes = {f"l.{at}.weight": (at + 2, 3) for at in range(9)}
    lacking = {f"other.{name}": shape for name, shape in shapes.items()}
    assert differing_ties(nn.Linear(1, 1), "", shapes, [], lacking) == []
    (first,) = differing_ties(nn.Linear(1, 1), "", shapes, [], dict([*lacking.items()][:1]))
    assert "ties other.l.0.weight to l.0.weight" in first

"""Whose an argument of ``build`` is that the factory might take as well."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import fastinit


class Takes(nn.Module):
    """Has arguments of the names of ``build``'s."""

    def __init__(self, seed: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> None:
        super().__init__()
        self.seed, self.weight = seed, nn.Parameter(torch.zeros(3, dtype=dtype, device=device))


@pytest.mark.parametrize("given", [dict(seed=3), dict(dtype=torch.float64)], ids=["seed", "dtype"])
def test_an_argument_of_build_that_the_factory_would_take_is_an_error_that_says_how_to_give_it(
    given: dict[str, Any],
) -> None:
    (name,) = given
    with pytest.raises(
        TypeError, match=rf"^{name} is an argument of build and of Takes, .*lambda: Takes\(\.\.\., {name}="
    ):
        fastinit.build(Takes, **given)
    assert fastinit.build(lambda: Takes(**given), **given).weight.dtype == given.get("dtype", torch.float32)


def test_arguments_that_cannot_be_mistaken_are_builds() -> None:
    assert fastinit.build(Takes, device="cpu").seed == 1  # None there means what it means for `build`
    assert fastinit.build(functools.partial(Takes, seed=5), seed=3).seed == 5
    assert fastinit.build(Takes, 7, seed=3).seed == 7
    assert fastinit.build(lambda **rest: Takes(**rest), seed=3).seed == 1


class HandsOn(Takes):
    """Has them by its base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class HandsOnTwice(HandsOn):
    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@pytest.mark.parametrize("factory", [HandsOn, HandsOnTwice, functools.partial(HandsOnTwice, 4)])
def test_what_a_class_hands_on_to_its_base_would_be_taken_too(factory: Any) -> None:
    name = getattr(factory, "func", factory).__name__
    with pytest.raises(TypeError, match=rf"^seed is an argument of build and of {name}, which would not get it"):
        fastinit.build(factory, seed=3)
    assert fastinit.build(lambda: factory(seed=3), seed=0).seed == 3
    assert fastinit.build(factory, device="cpu").seed == 1


def test_what_a_base_gets_by_position_or_does_not_get_is_builds() -> None:
    class Ends(HandsOn):
        def __init__(self, width: int = 3) -> None:
            super().__init__()

    assert fastinit.build(HandsOn, 7, seed=3).seed == 7
    assert fastinit.build(functools.partial(HandsOn, 7), seed=3).seed == 7
    assert fastinit.build(functools.partial(HandsOnTwice, seed=5), seed=3).seed == 5
    assert fastinit.build(Ends, seed=3).seed == 1

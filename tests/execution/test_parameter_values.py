"""``values``: what a parameter starts with, or a part of it, without the model."""

from __future__ import annotations

import re
from typing import Any

import needs
import numpy as np
import pytest
import torch
from helpers import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastinit
from fastinit import plans
from fastinit.parameter_values import _part

pytestmark = needs.mark(needs.CPP)
NORMAL = plans.Normal(0, 0.02)
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
RULES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "Constant": (dict(type="Constant", val=1.5), (6, 4)),
    "Normal": (dict(type="Normal", mean=1, std=0.5), (6, 4)),
    "an expression": (dict(type="Normal", std="0.02 / sqrt(fan_in)"), (6, 4)),
    "vars": (dict(type="Normal", std="scale * n_elements", vars={"scale": 0.5}), (6, 4)),
    "TruncNormal": (dict(type="TruncNormal", std=0.5, a=-1, b=1), (6, 4)),
    "a tail": (dict(type="TruncNormal", a=2, b=9), (6, 4)),
    "Uniform": (dict(type="Uniform", a=-3, b=5), (6, 4)),
    "Xavier": (dict(type="Xavier"), (6, 4)),
    "Kaiming": (dict(type="Kaiming", nonlinearity="gelu"), (6, 4, 3)),
    "Caffe2Xavier": (dict(type="Caffe2Xavier"), (6, 4, 3, 3)),
    "experts": (dict(type="Xavier", batch_dims=1, fan_axes=(1, 2)), (3, 6, 4)),
    "VarianceScaling": (dict(type="VarianceScaling"), (6, 4)),
    "Lecun": (dict(type="Lecun"), (6, 4)),
    "Zeros": (dict(type="Zeros"), (6, 4)),
    "Orthogonal": (dict(type="Orthogonal", gain=2), (14, 9)),
    "a wide Orthogonal": (dict(type="Orthogonal"), (9, 14)),
    "Orthogonal experts": (dict(type="Orthogonal", batch_dims=1), (5, 8, 6)),
    "DeltaOrthogonal": (dict(type="DeltaOrthogonal"), (8, 5, 3)),
    "Identity": (dict(type="Identity"), (14, 9)),
    "Dirac": (dict(type="Dirac", groups=2), (8, 5, 3)),
    "Sparse": (dict(type="Sparse", sparsity=0.3, std=1), (14, 9)),
    "blocks": (dict(type="Xavier", blocks=3), (9, 4)),
    "Orthogonal blocks": (dict(type="Orthogonal", blocks=[3, 2]), (12, 8)),
    "torch's": (dict(type="torch.nn.init.xavier_uniform_"), (6, 4)),
}

# What is filled with a constant, all or most of it.
CONSTANTS = ("Constant", "Zeros", "Identity", "Dirac")


def initialized(shape: tuple[int, ...], rule: dict[str, Any], dtype: torch.dtype, seed: int = 5) -> torch.Tensor:
    """Returns what ``initialize`` gives a parameter called ``w``."""
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
    fastinit.initialize(module, dict(rule, param="w"), backend="cpp", seed=seed)
    return module.w.data


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", RULES)
def test_they_are_those_that_initialize_gives(kind: str, dtype: torch.dtype) -> None:
    rule, shape = RULES[kind]
    assert same_bits(fastinit.values("w", shape, rule, seed=5, dtype=dtype), initialized(shape, rule, dtype))


@pytest.mark.parametrize("kind", RULES)
def test_those_of_a_part_are_that_part_of_the_whole(kind: str) -> None:
    rule, shape = RULES[kind]
    whole = fastinit.values("w", shape, rule, seed=5)
    for box in [(slice(2, 5),), (1,), (..., slice(1, None, 2)), (slice(None, None, -1), 2)]:
        assert same_bits(
            fastinit.values("w", shape, rule, seed=5, box=box), torch.from_numpy(whole.numpy()[box].copy())
        )


def test_the_numbers_of_a_rule_and_of_its_distribution_are_the_same() -> None:
    rule = fastinit.values("w", (6, 4), dict(type="Normal", std=0.02), seed=1)
    assert same_bits(rule, fastinit.values("w", (6, 4), NORMAL, seed=1))


def test_an_initializer_that_is_built_serves_as_a_rule() -> None:
    built = fastinit.NormalInit(std=0.02)
    assert same_bits(fastinit.values("w", (6, 4), built, seed=1), fastinit.values("w", (6, 4), NORMAL, seed=1))


def test_expressions_use_what_param_captures_from_the_name() -> None:
    rule = dict(type="Normal", std="0.02 * (i + 1)", param=r"re:layers\.(?P<i>\d+)\.w")
    found = fastinit.values("layers.3.w", (6, 4), rule, seed=1)
    assert same_bits(found, fastinit.values("layers.3.w", (6, 4), plans.Normal(0, 0.08), seed=1))


def test_float32_masters_round_to_the_bfloat16_parameter() -> None:
    master = fastinit.values("w", (64, 64), NORMAL, seed=5)
    assert same_bits(master.bfloat16(), initialized((64, 64), dict(type="Normal", std=0.02), torch.bfloat16))


def test_names_and_seeds_tell_values_apart() -> None:
    found = [fastinit.values(name, (8,), NORMAL, seed=seed) for name in "ab" for seed in (0, 1)]
    assert len({tuple(each.tolist()) for each in found}) == 4


def test_a_row_of_a_tensor_that_no_machine_holds_is_drawn() -> None:
    row = fastinit.values("w", (2**40, 2**20), NORMAL, seed=0, box=(2**40 - 1, slice(-8, None)))
    assert row.shape == (8,) and row.std() > 0


def test_values_do_not_change_with_the_backend_that_is_in_use() -> None:
    with fastinit.use(backend="cpp", seed=9):
        assert same_bits(fastinit.values("w", (8,), NORMAL, seed=0), fastinit.values("w", (8,), NORMAL, seed=0))


def test_they_are_drawn_at_once_within_a_recorded_block() -> None:
    with fastinit.capture(backend="cpp", seed=0) as recipe:
        layer = nn.Linear(4, 4)
        layer.weight.data.copy_(fastinit.values("other", (4, 4), NORMAL, seed=3))
    assert same_bits(layer.weight.data, fastinit.values("other", (4, 4), NORMAL, seed=3))
    assert recipe.report.seed == 0


def test_torchs_generator_stays_as_it_is() -> None:
    state = torch.get_rng_state()
    fastinit.values("w", (8,), NORMAL, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


# --- boxes ------------------------------------------------------------------------------------------------------------


def slices(size: int) -> st.SearchStrategy[slice]:
    bound = st.one_of(st.none(), st.integers(-size - 3, size + 3))
    return st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))


@st.composite
def boxes(draw: Any) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """A shape, and an index of it as numpy takes it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    n = draw(st.integers(0, len(shape)))
    index = [draw(st.one_of(st.integers(-size, size - 1), slices(size))) for size in shape[:n]]
    if draw(st.booleans()):
        index.insert(draw(st.integers(0, n)) if n == len(shape) else n, ...)
    return shape, tuple(index)


@given(boxes())
@settings(max_examples=300, deadline=None)
def test_a_box_is_an_index_as_numpy_takes_it(case: tuple[tuple[int, ...], tuple[Any, ...]]) -> None:
    shape, box = case
    whole = fastinit.values("w", shape, NORMAL, seed=5).numpy()
    found = fastinit.values("w", shape, NORMAL, seed=5, box=box)
    assert same_bits(found, torch.from_numpy(np.array(whole[box])))


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        (3, "index 3 is out of bounds for dimension 0 of size 3"),
        ((0, -6), "index -6 is out of bounds for dimension 1 of size 5"),
        ((0, 0, 0), "too many indices: the shape (3, 5) has 2 dimensions"),
        ((..., 0, ...), "only have a single ellipsis"),
    ],
)
def test_boxes_beyond_the_shape_are_refused(box: Any, problem: str) -> None:
    with pytest.raises(IndexError, match=re.escape(problem)):
        fastinit.values("w", (3, 5), NORMAL, seed=0, box=box)


@pytest.mark.parametrize("box", [None, True, [0, 1], torch.tensor(1), 1.0, "0"])
def test_a_box_holds_integers_and_slices_only(box: Any) -> None:
    with pytest.raises(TypeError, match="box must hold integers, slices"):
        fastinit.values("w", (3, 5), NORMAL, seed=0, box=(box,))


def test_steps_of_a_box_are_those_of_the_full_tensor() -> None:
    assert _part((slice(None, None, -2), 3), (5, 7)) == (3, (3,), (14,), (0,))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_the_backend_torch_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="'torch' a parameter's values depend on all that was drawn before"):
        fastinit.values("w", (3,), NORMAL, seed=0, backend="torch")


def test_the_backend_torch_in_use_is_refused_too() -> None:
    with fastinit.use(backend="torch"), pytest.raises(ValueError, match="choose from cpp, triton, cuda"):
        fastinit.values("w", (3,), NORMAL, seed=0)


def test_a_device_without_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="device must be a CPU or a CUDA device, but got 'meta'"):
        fastinit.values("w", (3,), NORMAL, seed=0, device="meta")


@pytest.mark.parametrize("beside", [dict(layer="Linear"), dict(bias=1), dict(override=dict(name="a"))])
def test_selectors_of_modules_are_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"no module is known here: leave out {next(iter(beside))!r}"):
        fastinit.values("w", (3, 3), dict(type="Xavier", **beside), seed=0)


def test_a_rule_for_a_part_of_the_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is for a part of 'w', and the rest has another rule's values"):
        fastinit.values("w", (6, 4), dict(type="Xavier", param="w[0:3]"), seed=0)


def test_fans_of_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="fan='layer' asks the parameter's module"):
        fastinit.values("w", (3, 3), dict(type="Xavier", fan="layer"), seed=0)


def test_a_rule_for_other_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"param \['\*.bias'\] does not match the name 'w'"):
        fastinit.values("w", (3, 3), dict(type="Zeros", param="*.bias"), seed=0)


@pytest.mark.parametrize("given", [0.02, None, "Normal", nn.Linear(1, 1), fastinit.PretrainedInit(checkpoint="a.pth")])
def test_what_is_no_distribution_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="distribution must be one of fastinit.plans"):
        fastinit.values("w", (3, 3), given, seed=0)


def test_a_shape_that_a_distribution_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="orthogonal needs at least 2 dimensions"):
        fastinit.values("w", (3,), dict(type="Orthogonal"), seed=0)


def test_a_dtype_that_has_no_random_numbers_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"draws no random numbers into torch\.int8"):
        fastinit.values("w", (3,), NORMAL, seed=0, dtype=torch.int8)


@pytest.mark.parametrize("shape", [3, (3, 0.5), (-1, 2), (2**40, 2**40)])
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="shape must be"):
        fastinit.values("w", shape, NORMAL, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seed must be an integer"):
        fastinit.values("w", (3,), NORMAL, seed=seed)

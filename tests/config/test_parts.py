"""Rules for parts of a parameter: ``param="*.qkv.weight[0:64]"``, and equal blocks of a weight."""

from __future__ import annotations

import json
from typing import Any

import needs
import pytest
import torch
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans

CPP = needs.mark(needs.CPP)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.experts = nn.Parameter(torch.zeros(4, 6, 10))


def model() -> nn.ModuleList:
    return nn.ModuleList([Attention(), Attention()])


def rows(cfg: Any) -> list[tuple[str, tuple[int, ...], Any]]:
    plan = fastinit.plan(model(), cfg, seed=0)
    return [(row.parameter, row.shape, row.values.get("part")) for row in plan.rows]  # type: ignore[misc]


def filled(cfg: Any, **how: Any) -> nn.ModuleList:
    made = model()
    for parameter in made.parameters():
        nn.init.constant_(parameter, 7.0)
    fastinit.initialize(made, cfg, **{"seed": 0, "backend": "cpp", **how})
    return made


# --- which part ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[0:32]", [[0, 32], [0, 16]]),
        ("[32:]", [[32, 48], [0, 16]]),
        ("[:32]", [[0, 32], [0, 16]]),
        ("[-16:-8]", [[32, 40], [0, 16]]),
        ("[:, 4:8]", [[0, 48], [4, 8]]),
        ("[ 8 : 16 ,-4: ]", [[8, 16], [12, 16]]),
    ],
)
def test_brackets_with_colons_select_a_part_as_slices_do(text: str, part: list[list[int]]) -> None:
    shape = tuple(end - start for start, end in part)
    expected = [(f"{i}.qkv.weight", shape, part) for i in (0, 1)]
    assert rows(dict(type="Normal", param=f"*.qkv.weight{text}")) == expected
    assert rows(dict(type="Normal", param=rf"re:\d\.qkv\.weight{text}")) == expected


def test_all_of_a_parameter_is_no_part() -> None:
    assert rows(dict(type="Normal", param="0.qkv.weight[0:48, :]")) == [("0.qkv.weight", (48, 16), None)]


def test_brackets_without_a_colon_are_characters_of_a_glob() -> None:
    assert [name for name, _, _ in rows(dict(type="Normal", param="[1].qkv.weigh[st]"))] == ["1.qkv.weight"]


def test_a_class_at_the_end_of_a_regular_expression_stays_one() -> None:
    assert [name for name, _, _ in rows(dict(type="Normal", param=r"re:1\.qkv\.weigh[^:]"))] == ["1.qkv.weight"]


def test_a_name_with_brackets_is_that_parameter() -> None:
    named = nn.ParameterDict({"a[0:1]": nn.Parameter(torch.zeros(4)), "a": nn.Parameter(torch.zeros(4))})
    plan = fastinit.plan(named, dict(type="Constant", val=1, param=["a[0:1]", "a[2:3]"]))
    assert {(row.parameter, row.shape) for row in plan.rows} == {("a[0:1]", (4,)), ("a", (1,))}


def test_several_parts_of_a_parameter_are_filled_by_one_rule() -> None:
    patterns = ["0.qkv.weight[0:16]", "*.qkv.weight[32:48]", "0.*.weight[0:16]"]
    assert [part for _, _, part in rows(dict(type="Normal", param=patterns))] == [
        [[0, 16], [0, 16]],
        [[32, 48], [0, 16]],
        [[32, 48], [0, 16]],
    ]


def test_groups_are_those_of_the_pattern_that_selects_the_part() -> None:
    patterns = [r"re:(?P<i>\d)\.qkv\.weight[0:16]", r"re:\d\.qkv\.(?P<i>w)eight[16:32]"]
    plan = fastinit.plan(model(), dict(type="Constant", param=patterns[0], val="i + shape[0]"))
    assert [row.values["value"] for row in plan.rows] == [16, 17]
    with pytest.raises(ValueError, match="the group 'i' captured 'w'"):
        fastinit.plan(model(), dict(type="Constant", param=patterns, val="i"))


# --- values ----------------------------------------------------------------------------------------------------------


@CPP
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_are_those_of_the_whole_parameter_there(dtype: torch.dtype) -> None:
    made = model().to(dtype)
    cfg = [
        dict(type="Normal", std=2, param="0.qkv.weight[8:24]"),
        dict(type="Uniform", a=-1, param="0.qkv.weight[:, 12:]"),
        dict(type="TruncNormal", param="1.experts[1:3, 2:4, 5:]"),
    ]
    fastinit.initialize(made, cfg, backend="cpp", seed=0)
    normal = named_fill("0.qkv.weight", (48, 16), plans.Normal(0, 2), dtype)
    uniform = named_fill("0.qkv.weight", (48, 16), plans.Uniform(-1, 1), dtype)
    cut = named_fill("1.experts", (4, 6, 10), plans.TruncatedNormal(0, 1, -2, 2), dtype)
    assert same_bits(made[0].qkv.weight[8:24, :12], normal[8:24, :12])  # type: ignore[union-attr,index]
    assert same_bits(made[0].qkv.weight[:, 12:], uniform[:, 12:])  # type: ignore[union-attr,index]
    assert same_bits(made[1].experts[1:3, 2:4, 5:], cut[1:3, 2:4, 5:])  # type: ignore[index]


@CPP
def test_what_no_part_holds_keeps_its_values() -> None:
    weight = filled(dict(type="Normal", param="0.qkv.weight[8:24, 3:5]"))[0].qkv.weight
    assert bool((weight[8:24, 3:5] != 7).all())  # type: ignore[operator,index]
    weight.data[8:24, 3:5] = 7  # type: ignore[index,operator]
    assert bool((weight == 7).all())  # type: ignore[operator,union-attr]


@CPP
def test_a_later_rule_wins_where_parts_meet() -> None:
    cfg = [dict(type="Constant", val=v, param=f"0.qkv.weight[{p}]") for v, p in ((1, ":"), (2, "4:20"), (3, "10:30"))]
    column = filled(cfg)[0].qkv.weight[:, 0].tolist()  # type: ignore[index,union-attr]
    assert column == [1.0] * 4 + [2.0] * 6 + [3.0] * 20 + [1.0] * 18
    assert torch.equal(filled([*cfg, dict(type="Constant", val=5, param="*")])[0].qkv.weight, torch.full((48, 16), 5.0))  # type: ignore[union-attr,arg-type]


def test_torch_fills_a_part_with_its_own_numbers() -> None:
    made = nn.Linear(16, 48)
    nn.init.constant_(made.weight, 7.0)
    torch.manual_seed(3)
    fastinit.initialize(made, dict(type="Xavier", param="weight[:16]"), backend="torch")
    torch.manual_seed(3)
    assert same_bits(made.weight[:16], nn.init.xavier_normal_(torch.empty(16, 16)))
    assert bool((made.weight[16:] == 7).all())


@CPP
def test_a_parameter_in_any_layout_gets_the_same_values() -> None:
    made = model()
    made[0].qkv.weight = nn.Parameter(torch.zeros(16, 48).T)
    cfg = [dict(type="Normal", param="0.qkv.weight[8:24]"), dict(type="Orthogonal", param="0.qkv.weight[32:, 2:]")]
    fastinit.initialize(made, cfg, backend="cpp", seed=0)
    plain = filled(cfg)
    for part in (slice(8, 24), (slice(32, 48), slice(2, 16))):
        assert same_bits(made[0].qkv.weight[part], plain[0].qkv.weight[part])  # type: ignore[index,union-attr]


@CPP
def test_a_meta_model_gets_memory_with_the_parts_values() -> None:
    cfg = [
        dict(type="Constant", val=7, param="*"),
        dict(type="Orthogonal", param="*.qkv.weight[32:]"),
        dict(type="Xavier", param="*.experts[:, 2:]", batch_dims=1),
    ]
    with torch.device("meta"):
        made = model()
    fastinit.materialize(made, cfg, backend="cpp", seed=0)
    for mine, expected in zip(made.parameters(), filled(cfg).parameters()):
        assert same_bits(mine, expected)


# --- fans and blocks -------------------------------------------------------------------------------------------------


def stds(cfg: Any) -> list[float]:
    return [round(row.values["std"], 6) for row in fastinit.plan(model(), cfg).rows]


def test_fans_are_the_parts() -> None:
    assert stds(dict(type="Xavier", param="*.qkv.weight[0:16]")) == [0.25, 0.25]  # sqrt(2 / (16 + 16))
    expected = [round((2 / (6 + 5)) ** 0.5, 6)] * 2
    assert stds(dict(type="Xavier", param="*.experts[1:2, :, :5]", batch_dims=1)) == expected


def test_blocks_have_the_fans_of_one() -> None:
    assert stds(dict(type="Xavier", param="*.qkv.weight", blocks=3)) == [0.25, 0.25]
    expected = [round((2 / (3 + 5)) ** 0.5, 6)] * 2
    assert stds(dict(type="Xavier", param="*.experts", blocks=[1, 2, 2], batch_dims=1)) == expected


def test_a_layers_weight_is_in_blocks_and_its_bias_is_not() -> None:
    plan = fastinit.plan(model(), dict(type="Orthogonal", layer="Linear", blocks=3))
    assert [row.shape for row in plan.rows][:4] == [(16, 16), (16, 16), (16, 16), (48,)]


def test_a_part_is_cut_into_blocks() -> None:
    plan = fastinit.plan(model(), dict(type="Orthogonal", param="0.qkv.weight[16:]", blocks=[2, 2]))
    assert [row.values["part"] for row in plan.rows] == [
        [[16, 32], [0, 8]],
        [[16, 32], [8, 16]],
        [[32, 48], [0, 8]],
        [[32, 48], [8, 16]],
    ]


@CPP
def test_blocks_of_independent_values_are_those_of_the_whole() -> None:
    made = filled(dict(type="Normal", std="fan_out", param="0.qkv.weight", blocks=3))
    assert same_bits(made[0].qkv.weight, named_fill("0.qkv.weight", (48, 16), plans.Normal(0, 16), torch.float32))  # type: ignore[union-attr,arg-type]


# --- matrices --------------------------------------------------------------------------------------------------------


def factor(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the orthogonal factor of a matrix, with a positive diagonal of the other."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q, r = torch.linalg.qr(tall.double())
    q = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q if matrix.shape[0] >= matrix.shape[1] else q.T


@CPP
@pytest.mark.parametrize("part", ["16:32", "5:48", "0:48, 3:16", "7:9, 2:15"])
def test_an_orthogonal_part_is_the_factor_of_the_parameters_numbers_there(part: str) -> None:
    where = tuple(slice(*map(int, each.split(":"))) for each in part.split(","))
    made = filled(dict(type="Orthogonal", param=f"0.qkv.weight[{part}]"))[0].qkv.weight.double()  # type: ignore[operator,union-attr]
    numbers = named_fill("0.qkv.weight", (48, 16), plans.Normal(0, 1), torch.float32)
    assert (made[where] - factor(numbers[where])).abs().max() < 1e-7
    made = made.detach().clone()
    made[where] = 7
    assert bool((made == 7).all())


@CPP
def test_orthogonal_blocks_are_independent_matrices() -> None:
    weight = filled(dict(type="Orthogonal", gain=2, param="0.qkv.weight", blocks=3))[0].qkv.weight.double()  # type: ignore[operator,union-attr]
    numbers = named_fill("0.qkv.weight", (48, 16), plans.Normal(0, 1), torch.float32)
    for made, own in zip(weight.chunk(3), numbers.chunk(3)):
        assert (made - 2 * factor(own)).abs().max() < 1e-6


@CPP
def test_stacked_matrices_of_a_part_are_those_of_their_own_numbers() -> None:
    cfg = dict(type="Orthogonal", batch_dims=1, param="0.experts[1:3, 2:, 3:8]")
    experts = filled(cfg)[0].experts.double()  # type: ignore[operator,union-attr]
    numbers = named_fill("0.experts", (4, 6, 10), plans.Normal(0, 1), torch.float32)
    for i in (1, 2):
        assert (experts[i, 2:, 3:8] - factor(numbers[i, 2:, 3:8])).abs().max() < 1e-7


@CPP
def test_more_matrices_of_a_part_than_are_made_together_are_those_of_their_own_numbers() -> None:
    stack = nn.ParameterDict({"w": nn.Parameter(torch.zeros(80, 40, 32))})
    fastinit.initialize(stack, dict(type="Orthogonal", batch_dims=1, param="w[3:76, 2:, :30]"), backend="cpp", seed=0)
    numbers = named_fill("w", (80, 40, 32), plans.Normal(0, 1), torch.float32)
    for i in range(3, 76):
        assert (stack["w"][i, 2:, :30].double() - factor(numbers[i, 2:, :30])).abs().max() < 1e-6


@CPP
def test_columns_that_are_apart_in_a_kernel_are_drawn_from_their_own_places() -> None:
    convolution = nn.Conv2d(5, 4, 3)
    fastinit.initialize(convolution, dict(type="Orthogonal", param="weight[:, 1:4, 1:, :2]"), backend="cpp", seed=0)
    numbers = named_fill("weight", (4, 5, 3, 3), plans.Normal(0, 1), torch.float32)
    part = convolution.weight[:, 1:4, 1:, :2].flatten(1).double()
    assert (part - factor(numbers[:, 1:4, 1:, :2].flatten(1))).abs().max() < 1e-7


@CPP
def test_patterns_stand_in_the_part() -> None:
    made = filled(
        [
            dict(type="Identity", param="0.qkv.weight[16:32]"),
            dict(type="Sparse", sparsity=0.25, std=1, param="0.qkv.weight[32:, 4:8]"),
        ]
    )[0].qkv.weight
    assert torch.equal(made[16:32], torch.eye(16))  # type: ignore[index]
    assert torch.equal((made[32:, 4:8] == 0).sum(0), torch.full((4,), 4))  # type: ignore[index,union-attr]
    numbers = named_fill("0.qkv.weight", (48, 16), plans.Normal(0, 1), torch.float32)[32:, 4:8]
    assert torch.equal(torch.where(made[32:, 4:8] == 0, 0, numbers), made[32:, 4:8])  # type: ignore[index,operator]
    convolution = nn.Conv1d(4, 8, 3)
    fastinit.initialize(convolution, dict(type="Dirac", param="weight[2:6]"), backend="cpp", seed=0)
    assert torch.equal(convolution.weight[2:6], nn.init.dirac_(torch.empty(4, 4, 3)))


# --- what is said of them --------------------------------------------------------------------------------------------


def test_a_plan_and_its_json_tell_the_part() -> None:
    plan = fastinit.plan(model(), dict(type="Normal", param="1.qkv.weight[:, 0:4]"), seed=1)
    assert "normal(mean=0, std=1), part [0:48, 0:4]" in str(plan)
    (row,) = json.loads(plan.to_json())["rows"]
    assert row["shape"] == [48, 4] and row["values"]["part"] == [[0, 48], [0, 4]]


def test_a_parameter_that_parts_do_not_cover_is_not_reached() -> None:
    cfg: list[dict[str, Any]] = [dict(type="Constant", val=0, param="*.experts")]
    cfg += [dict(type="Normal", param=f"0.qkv.weight[{part}]") for part in ("0:16", "16:32, :8", "16:, 8:")]
    assert "0.qkv.weight" in fastinit.plan(model(), cfg).unreached
    assert "0.qkv.weight" in fastinit.initialize(model(), cfg).unreached
    cfg.append(dict(type="Normal", param="0.qkv.weight[32:, 0:8]"))
    assert "0.qkv.weight" not in fastinit.plan(model(), cfg).unreached
    assert "0.qkv.weight" not in fastinit.initialize(model(), cfg).unreached


def test_a_recorded_copy_of_one_part_onto_another_is_told_by_its_own_place() -> None:
    def make() -> nn.Module:
        made = nn.ParameterDict({"w": nn.Parameter(torch.empty(4, 4))})
        with torch.no_grad():
            nn.init.normal_(made["w"][2:4])
            made["w"][0:2].copy_(made["w"][2:4])
        return made

    plan = fastinit.plan(make, backend="cpp", seed=0)
    assert [row.values.get("part") for row in plan.rows] == [[[2, 4], [0, 4]], [[0, 2], [0, 4]]]
    assert plan.unreached == ()


def test_strict_complete_minds_what_parts_leave() -> None:
    cfg = [dict(type="Constant", val=0, param=["*.experts", "*.bias"]), dict(type="Normal", param="*.weight[1:]")]
    with pytest.raises(RuntimeError, match="2 parameters that no rule reaches: 0.qkv.weight, 1.qkv.weight"):
        fastinit.initialize(model(), cfg, strict="complete")


def test_a_meta_model_gets_no_parameter_of_which_a_part_has_no_values() -> None:
    with torch.device("meta"):
        made = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="1 parameters? of which rules fill a part only: weight.*Add rules for"):
        fastinit.materialize(made, dict(type="Normal", param="weight[:2]"))
    assert made.weight.is_meta


@pytest.mark.parametrize(
    ("cfg", "kind", "message"),
    [
        (dict(param="*.qkv.weight[40:49]"), ValueError, "'0.qkv.weight': the part .40:49. goes from 40 to 49 along"),
        (dict(param="*.qkv.weight[:, 20:]"), ValueError, "goes from 20 to 16 along dimension 1"),
        (dict(param="*.qkv.weight[-50:]"), ValueError, "goes from -2 to 48 along dimension 0, which has the indices 0"),
        (dict(param="*.qkv.weight[4:4]"), ValueError, "goes from 4 to 4"),
        (dict(param="*.bias[:, 1:]"), ValueError, "has 2 dimensions, but the shape is .48,."),
        (dict(param="*.qkv.weight[0:8:2]"), ValueError, "ends in .0:8:2., which is no part of a parameter: write"),
        (dict(param="*.qkv.weight[3, 0:8]"), ValueError, "one index is a part, too: .3:4."),
        (dict(param="*.qkv.weight[a:b]"), ValueError, "which is no part"),
        (dict(param="*.qkv.weight", blocks=5), ValueError, "5 equal blocks cannot be cut from dimension 0 .* 48 is no"),
        (dict(param="*.bias", blocks=[1, 2]), ValueError, "are along 2 dimensions, but the shape is .48,."),
        (dict(param="*", blocks=0), ValueError, "blocks are one or more along each dimension, but got 0"),
        (dict(param="*", blocks=[]), ValueError, "blocks are one or more"),
        (dict(param="*", blocks="3"), TypeError, "blocks must be a whole number, or a list of one for each dimension"),
        (dict(param="*", blocks=True), TypeError, "blocks must be a whole number"),
        (dict(param="*", blocks=[2.0]), TypeError, "blocks must be a whole number"),
    ],
)
def test_bad_parts_are_refused_before_anything_is_written(
    cfg: dict[str, Any], kind: type[Exception], message: str
) -> None:
    made = model()
    before = [parameter.clone() for parameter in made.parameters()]
    with pytest.raises(kind, match=message) as error:
        fastinit.initialize(made, [dict(type="Constant", val=3, param="*"), dict(type="Normal", **cfg)])
    assert str(error.value).startswith("init_cfg[1]")
    assert all(map(torch.equal, before, made.parameters()))


def test_layers_fans_and_parts_do_not_go_together() -> None:
    grouped = nn.Conv2d(4, 8, 3, groups=2)
    with pytest.raises(ValueError, match="fan='layer' counts in whole layers, but 'weight.0:4.' is a part"):
        fastinit.plan(grouped, dict(type="Xavier", fan="layer", param="weight[0:4]"))
    with pytest.raises(ValueError, match="nor can blocks"):
        fastinit.plan(grouped, dict(type="Xavier", fan="layer", param="weight", blocks=2))


def test_a_part_of_nothing_is_told_with_near_names() -> None:
    with pytest.warns(UserWarning, match=r"matches param '\*.qvk.weight\[0:3\]'.*Did you mean '\*.qkv.weight'"):
        fastinit.plan(model(), dict(type="Normal", param="*.qvk.weight[0:3]"))

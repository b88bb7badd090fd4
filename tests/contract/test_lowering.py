"""Lowering many fills at once: the same records as one by one, in groups that do not write each other's memory."""

from __future__ import annotations

import math

import needs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastinit import plans
from fastinit.contract import records as lowering
from fastinit.contract import streams
from fastinit.execution import version_counters as versions

NORMAL = plans.Normal(0, 1)
SEED = 11


def whole(name, tensor, distribution=NORMAL):
    return plans.Fill.whole(name, tensor, distribution, "", "")


def part(name, tensor, shape, *boxes):
    return plans.Fill(
        name, tensor, NORMAL, "", "", shape, tuple(plans.Box.at(memory, index, shape) for memory, index in boxes)
    )


def several():
    """Fills of every kind: in order, transposed, empty, in several boxes, of constants, under another's name."""
    matrix, flat = torch.empty(6, 8), torch.empty(40)
    rows = torch.empty(5, 4)
    return [
        whole("a", torch.empty(3, 5)),
        whole("b", torch.empty(4, 6).t()),
        whole("empty", torch.empty(0, 3)),
        whole("c", torch.empty(7), plans.Constant(2)),
        part("d", matrix, (12, 8), (matrix[:3], (2, 0)), (matrix[3:], (9, 0))),
        whole("scalar", torch.empty(())),
        part("nothing here", torch.empty(0), (9,)),
        plans.Fill("e", flat, NORMAL, "", "", (5, 4), (plans.Box(flat[:20], 3, (2,)),)),
        whole("channels last", torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        part("f", rows, (5, 4), (rows, (0, 0))),
        whole("g", torch.empty(9, dtype=torch.bfloat16), plans.Normal(0, 1)),
        plans.Fill("h", torch.empty(9), plans.Normal(0, 1), "", "", (9,), stream="a"),
    ]


def test_batched_records_match_single_ones():
    fills = several()
    together = lowering.lowered(fills, SEED)
    one_by_one = np.concatenate([lowering.lowered([fill], SEED) for fill in fills])
    assert together.tobytes() == one_by_one.tobytes()
    assert len(together) == 11  # ten have elements, one of them in two boxes


@given(st.permutations(range(len(several()))))
def test_records_come_in_the_order_of_the_fills(order):
    fills = several()
    shuffled = [fills[i] for i in order]
    expected = np.concatenate([lowering.lowered([fill], SEED) for fill in shuffled])
    assert lowering.lowered(shuffled, SEED).tobytes() == expected.tobytes()


def test_a_fill_that_names_its_only_box_has_the_record_of_one_that_does_not():
    tensor = torch.empty(5, 4)
    assert (
        lowering.lowered([part("w", tensor, (5, 4), (tensor, (0, 0)))], SEED).tobytes()
        == lowering.lowered([whole("w", tensor)], SEED).tobytes()
    )
    (box,) = whole("w", tensor).boxes
    assert box.tensor is tensor and box.index((5, 4)) == (0, 0) and box.steps == (4, 1)


def test_equal_distributions_share_a_template_whichever_objects_they_are():
    fills = [whole(f"p{i}", torch.empty(2), plans.Normal(0, 0.5)) for i in range(5)]
    fills.append(whole("p5", torch.empty(2, dtype=torch.float64), plans.Normal(0, 0.5)))
    template_of, templates = lowering._templates(fills)
    assert template_of.tolist() == [0] * 5 + [1] and len(templates) == 2


def test_disjoint_fills_form_one_group():
    base = torch.empty(100)
    fills = [whole(f"p{i}", base[i * 10 : i * 10 + 10]) for i in (3, 0, 9, 5)]
    ((group, records),) = lowering.launches(fills, SEED)
    assert list(group) == fills and records.tobytes() == lowering.lowered(fills, SEED).tobytes()


def groups(fills):
    return ["".join(fill.name for fill in group) for group, _ in lowering.launches(fills, SEED)]


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (lambda m: [m[:5], m[5:9], m[4:6]], ["0", "1", "2"]),  # a chain
        (lambda m: [m[20:], m[:3], m[2:4], m[10:12]], ["03", "1", "2"]),
        (lambda m: [m[0:10:2], m[1:10:2], m[10:]], ["2", "0", "1"]),  # interleaved: spans meet, elements do not
        (lambda m: [m[:0], m[:5], m[:0], m[5:]], ["0123"]),  # what is empty meets nobody
        (lambda m: [m[:30], m[3:4], m[20:21], m[31:]], ["3", "0", "1", "2"]),  # within a longer one
    ],
    ids=["chain", "neighbours", "interleaved", "empty", "within a longer one"],
)
def test_fills_with_overlapping_spans_run_one_after_another(views, expected):
    fills = [whole(str(i), view) for i, view in enumerate(views(torch.empty(40)))]
    assert groups(fills) == expected


def test_a_fill_of_several_boxes_stays_in_one_group():
    memory = torch.empty(20)
    boxes = plans.Box(memory[0:20:2], 0, (2,)), plans.Box(memory[1:20:2], 1, (2,))
    fill = plans.Fill("0", memory, NORMAL, "", "", (20,), boxes)
    assert groups([fill, whole("1", torch.empty(3))]) == ["01"]


def test_spans_of_strided_tensors_end_at_their_last_element():
    memory = torch.empty(64)
    column, behind = memory[:57].as_strided((8,), (8,)), memory[57:]
    assert groups([whole("0", column), whole("1", behind)]) == ["01"]
    assert groups([whole("0", column), whole("1", memory[56:])]) == ["0", "1"]


@given(st.lists(st.text(max_size=200), max_size=20))
def test_batched_streams_match_single_ones(names):
    assert streams.streams_of(names).tolist() == [streams.stream_of(name) for name in names]


@pytest.mark.parametrize("takes_many", [True, False])
def test_every_write_is_counted(monkeypatch, takes_many):
    if takes_many:
        needs.torch_from(2, 8).check()  # 2.4.1 takes one; those between were not tried
    monkeypatch.setattr(versions, "_TAKES_MANY", takes_many)
    fills = [whole(str(i), torch.empty(2)) for i in range(3)]
    versions.count_writes(fills)
    versions.count_writes(fills[:1])
    assert [fill.tensor._version for fill in fills] == [2, 1, 1]


def test_a_record_says_how_many_elements_it_has():
    records = lowering.lowered(several(), SEED)
    assert (records["n_elements"] == [math.prod(size) for size in records["size"].tolist()]).all()

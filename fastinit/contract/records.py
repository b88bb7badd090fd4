"""From fills to the records of csrc/fill.h that kernels execute: memory, random stream, walk and numbers of each.

The same records for the kernels of the CPU and of GPUs; all are made here, in numpy, from the contract's rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from ..plans import Box, Constant, Distribution, Fill, Normal, TruncatedNormal, Uniform, byte_span
from ..plans.arithmetic import element_of
from ..plans.geometry import merged, row_major
from .streams import parameter_keys, streams_of
from .tails import Centre, truncation

NUMBERS = "contract 1"
"""The version of the number contract. The bits of float32 and narrower stay as they are; docs/reproducibility.md."""

Records = np.ndarray[Any, np.dtype[np.void]]
Column = np.ndarray[Any, np.dtype[Any]]

# Positions in csrc/fill.h's enumerations.
CONSTANT, UNIFORM, NORMAL, TRUNCATED_INSIDE, TRUNCATED_WIDE, TRUNCATED_TAIL, WORDS = range(7)
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
# Torch 2.1 has the first two only.
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
DTYPES |= {getattr(torch, name): 4 + i for i, name in enumerate(FLOAT8) if hasattr(torch, name)}
DOUBLE, RAW = 3, 8
MAX_DIMS = 6
MAX_PARAMS = 36
_WHOLE = (None,)
# Sizes but the last, and strides, of what lies in order.
_ONES, _ONE_STEP = (1,) * (MAX_DIMS - 1), (0,) * (MAX_DIMS - 1) + (1,)

# csrc/fill.h's FillDesc, field by field.
RECORD = np.dtype(
    [
        ("data", np.uint64),
        ("key", np.uint64, 2),
        ("first_index", np.uint64),
        ("n_elements", np.int64),
        ("size", np.int64, MAX_DIMS),
        ("stride", np.int64, MAX_DIMS),
        ("index_stride", np.int64, MAX_DIMS),
        ("params", np.float64, MAX_PARAMS),
        ("raw", np.uint8, 16),
        ("distribution", np.int32),
        ("dtype", np.int32),
        ("element_bytes", np.int32),
        ("blocks_per_row", np.int32),
    ]
)


def launches(fills: Sequence[Fill], seed: int) -> Iterator[tuple[Sequence[Fill], Records]]:
    """Yields groups of fills within which none writes another's memory, with their records, in their order.

    Nearly always it is one group. Fills whose spans of memory meet (interleaved views, say) come one by one behind the
    rest, in their own order.
    """
    boxes = Boxes.of(fills)
    meeting = boxes.meeting()
    if not meeting:
        yield fills, _records(boxes, seed)[0]
        return
    together = [fill for i, fill in enumerate(fills) if i not in meeting]
    for group in ([together] if together else []) + [[fills[i]] for i in sorted(meeting)]:
        yield group, lowered(group, seed)


def lowered(fills: Sequence[Fill], seed: int) -> Records:
    """Returns the records of the fills, one or more for each box that has elements."""
    return lowered_by_fill(fills, seed)[0]


def lowered_by_fill(fills: Sequence[Fill], seed: int) -> tuple[Records, Column]:
    """Returns the records of the fills as ``lowered``, and of each the number of its fill."""
    return _records(Boxes.of(fills), seed)


class Boxes(NamedTuple):
    """The boxes of fills, column by column: Python takes longer for one tensor than a GPU for filling it."""

    fills: Sequence[Fill]
    parts: Sequence[Box | None]
    """None: a whole tensor."""
    tensors: Sequence[torch.Tensor]
    """Of the boxes."""
    fill: Column
    """The number of a box's fill."""
    n_elements: Column
    data: Column
    """Address of the first element."""
    is_contiguous: Column

    @staticmethod
    def of(fills: Sequence[Fill]) -> Boxes:
        """Returns the columns of the fills' boxes."""
        of_one: list[Sequence[Box | None]] = [_WHOLE if fill.parts is None else fill.parts for fill in fills]
        parts = list(chain.from_iterable(of_one))
        numbers = np.repeat(np.arange(len(fills)), np.fromiter(map(len, of_one), np.int64, len(fills)))
        tensors = [fills[i].tensor if part is None else part.tensor for i, part in zip(numbers.tolist(), parts)]
        n = len(tensors)
        # The methods of the class, so that no step of the loops is Python's.
        n_elements = np.fromiter(map(torch.Tensor.numel, tensors), np.int64, n)
        data = np.fromiter(map(torch.Tensor.data_ptr, tensors), np.uint64, n)
        is_contiguous = np.fromiter(map(torch.Tensor.is_contiguous, tensors), np.bool_, n)
        return Boxes(fills, parts, tensors, numbers, n_elements, data, is_contiguous)

    def is_simple(self) -> Column:
        """Tells of each box whether it is a whole tensor that lies in order."""
        return self.is_contiguous & np.fromiter((part is None for part in self.parts), np.bool_, len(self.parts))

    def meeting(self) -> set[int]:
        """Returns the numbers of the fills whose spans of memory meet another's."""
        element_bytes = np.fromiter(map(torch.Tensor.element_size, self.tensors), np.uint64, len(self.tensors))
        end = self.data + self.n_elements.astype(np.uint64) * element_bytes
        for i in np.flatnonzero(~self.is_contiguous).tolist():
            end[i] = byte_span(self.tensors[i])[1]
        order = np.flatnonzero(self.n_elements)
        order = order[np.argsort(self.data[order], kind="stable")]
        start, reach = self.data[order], np.maximum.accumulate(end[order])
        begins = np.ones(len(order), np.bool_)  # a stretch of spans that hang together
        begins[1:] = start[1:] >= reach[:-1]
        if begins.all():
            return set()
        stretches = np.split(self.fill[order], np.flatnonzero(begins)[1:])
        return {fill for stretch in stretches if len(set(stretch.tolist())) > 1 for fill in stretch.tolist()}


def _records(boxes: Boxes, seed: int) -> tuple[Records, Column]:
    """Returns the records of the boxes in their order, and of each the number of its fill."""
    fills = boxes.fills
    template_of, templates = _templates(fills)
    is_simple = boxes.is_simple()
    simple = np.flatnonzero(is_simple & (boxes.n_elements > 0))
    others: list[int] = []  # the box of each record that takes a walk of its own
    walks: list[Walk] = []
    for i in np.flatnonzero(~is_simple).tolist():
        fill = fills[boxes.fill[i]]
        for walk in _walks(boxes.parts[i] or fill.boxes[0], isinstance(fill.distribution, Constant)):
            walks.append(walk)
            others.append(i)
    box_of = np.concatenate([simple, np.array(others, np.int64)])
    n_simple = len(simple)
    if not len(box_of):
        return np.zeros(0, RECORD), box_of
    records: Records = templates[template_of[boxes.fill[box_of]]]
    last = MAX_DIMS - 1
    records["data"][:n_simple] = boxes.data[simple]
    records["n_elements"][:n_simple] = records["size"][:n_simple, last] = boxes.n_elements[simple]
    if walks:
        data, index, size, stride, index_stride = zip(*walks)
        rest = records[n_simple:]
        rest["data"], rest["first_index"] = np.array(data, np.uint64), np.array(index, np.uint64)
        rest["size"], rest["stride"], rest["index_stride"] = size, stride, index_stride
        rest["n_elements"] = rest["size"].prod(axis=1)
        by_box = np.argsort(box_of, kind="stable")
        records, box_of = records[by_box], box_of[by_box]
    keys = parameter_keys(seed, streams_of([fill.stream or fill.name for fill in fills]))
    is_random = records["distribution"] != CONSTANT
    records["key"] = np.where(is_random[:, None], keys[boxes.fill[box_of]], 0)
    return records, boxes.fill[box_of]


def _templates(fills: Sequence[Fill]) -> tuple[Column, Records]:
    """Returns the number of each fill's template, and the templates: records without memory and stream."""
    numbers: dict[tuple[Distribution, torch.dtype], int] = {}
    # Nearly all fills share a few objects, and comparing distributions takes longer than comparing addresses.
    objects = [(id(fill.distribution), fill.tensor.dtype) for fill in fills]
    number_of = {
        each: numbers.setdefault((fill.distribution, each[1]), len(numbers))
        for each, fill in dict(zip(objects, fills)).items()
    }
    template_of = np.fromiter(map(number_of.__getitem__, objects), np.int64, len(fills))
    return template_of, np.array([_template(*key) for key in numbers], RECORD)


def _template(distribution: Distribution, dtype: torch.dtype) -> tuple[object, ...]:
    """Returns the record of a fill without its memory and its stream."""
    kind, params = _params(distribution, dtype)
    nowhere = (0, (0, 0), 0, 0, (1,) * MAX_DIMS, _ONE_STEP, _ONE_STEP)
    return (*nowhere, params, _raw(distribution, dtype), kind, DTYPES.get(dtype, RAW), dtype.itemsize, 0)


def _params(distribution: Distribution, dtype: torch.dtype) -> tuple[int, tuple[float, ...]]:
    """Returns the kind and the numbers of a record, as csrc/fill.h lists them."""
    kind, numbers, rest = CONSTANT, (), ()  # type: tuple[int, tuple[float, ...], tuple[float, ...]]
    if isinstance(distribution, Uniform):
        # The scale makes two multiplications one, where it has no digits below float32's smallest.
        low, high = np.float32(distribution.low), np.float32(distribution.high)
        scale = np.float32(high - low) * np.float32(2.0**-24)
        is_exact = float(scale) * 2**24 == float(high - low)
        kind, numbers = UNIFORM, (distribution.low, distribution.high, float(scale) if is_exact else 0.0)
    elif isinstance(distribution, Normal):
        kind, numbers = NORMAL, (distribution.mean, distribution.std)
    elif isinstance(distribution, TruncatedNormal):
        mean, std = distribution.mean, distribution.std
        form = truncation(mean, std, distribution.low, distribution.high, double=dtype == torch.float64)
        # The signs of zeros: what instruction sets make of -0 and 0 in a clamp differs, but not with these.
        bounds = (inward(distribution, dtype, True) or -0.0, inward(distribution, dtype, False) or 0.0)
        if isinstance(form, Centre):
            # Words count in half steps from the end: u = (word + 1/2) 2^-32. Scaling by powers of two is exact.
            lower, upper, width, half_step = form.lower, form.upper, form.width, form.width * 2.0**-33
            if dtype == torch.float64:
                kind, rest = TRUNCATED_WIDE, (lower, upper, width)
            elif form.inside:  # 2 u width + lower - upper - width, of the word less 2^31
                kind, rest = TRUNCATED_INSIDE, (width * 2.0**-31, lower - upper + 2 * half_step)
            else:
                kind, rest = TRUNCATED_WIDE, (lower + half_step, upper + half_step, width * 2.0**-32)
        else:
            std = -std
            steps, coefficients = (form.rho, form.one_minus_rho), form.coefficients
            if dtype != torch.float64:  # the polynomial gives the value itself
                steps = (form.rho + form.one_minus_rho * 2.0**-33, form.one_minus_rho * 2.0**-32)
                first, *others = (std * form.sign * c for c in coefficients)
                coefficients = (first + mean, *others)
            kind, rest = TRUNCATED_TAIL, (*steps, form.k, form.scale, form.shift, *coefficients)
        numbers = (mean, std * form.sign, *bounds, *rest)
    return kind, numbers + (0.0,) * (MAX_PARAMS - len(numbers))


@lru_cache(maxsize=4096)  # asked for by the check and again by the lowering, for every fill of a model
def inward(distribution: TruncatedNormal, dtype: torch.dtype, up: bool) -> float:
    """Returns the lower bound rounded up to a number of the dtype, or the upper one rounded down."""
    bound = distribution.low if up else distribution.high
    if dtype.itemsize == 1:  # what torch makes of numbers beyond those of a float8 depends on its release
        limits = torch.finfo(dtype)
        if bound > limits.max if up else bound < limits.min:
            return math.inf if up else -math.inf
        bound = min(max(bound, limits.min), limits.max)
    nearest = torch.tensor(bound, dtype=torch.float64, device="cpu").to(dtype)
    if nearest.item() < bound if up else nearest.item() > bound:
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
        bits = nearest.view(integer)  # sign and magnitude
        towards_zero = nearest.item() < 0 if up else nearest.item() > 0
        if nearest.item() == 0:
            bits = torch.tensor(1 if up else torch.iinfo(integer).min + 1, dtype=integer, device="cpu")
        else:
            bits = bits - 1 if towards_zero else bits + 1
        nearest = bits.view(dtype)
    return nearest.item()


@lru_cache(maxsize=4096)
def _raw(distribution: Distribution, dtype: torch.dtype) -> tuple[int, ...]:
    """Returns the bytes of a constant's element, filled up to 16."""
    if not isinstance(distribution, Constant):
        return (0,) * 16
    element = element_of(distribution.value, dtype)
    return tuple(element.view(torch.uint8).tolist()) + (0,) * (16 - element.element_size())


Walk = tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Dim = tuple[int, ...]  # size, stride, index stride


def _walks(box: Box, is_constant: bool) -> Iterator[Walk]:
    """Yields (address, index, size, stride, index stride) of nested loops that visit the box, of MAX_DIMS dimensions.

    Dimensions that can be walked as one are merged; what is left is cut where a kernel could not count it.
    """
    tensor = box.tensor
    n_elements = tensor.numel()
    if n_elements == 0:
        return
    if tensor.is_contiguous() and box.steps == row_major(tensor.shape):  # all of a tensor, or rows of one
        yield tensor.data_ptr(), box.first_index, (*_ONES, n_elements), _ONE_STEP, _ONE_STEP
        return
    if is_constant:  # in the order of the memory; the index does not matter
        by_stride = sorted(zip(tensor.stride(), tensor.shape), reverse=True)
        strides = [stride for stride, _ in by_stride]
        dims = merged([size for _, size in by_stride], strides, strides)
    else:
        dims = merged(tensor.shape, tensor.stride(), box.steps)
    for offset, index_offset, inner in _cut(dims or [(1, 1, 1)]):
        padded = [(1, 0, 0)] * (MAX_DIMS - len(inner)) + inner
        sizes, steps, index_steps = (tuple(column) for column in zip(*padded))
        yield (
            tensor.data_ptr() + tensor.element_size() * offset,
            box.first_index + index_offset,
            sizes,
            steps,
            index_steps,
        )


# The GPU kernels number the blocks of a box of several rows with 32 bits; half of them, so that sums do not overflow.
_MAX_BLOCKS = 1 << 31


def _cut(dims: list[Dim]) -> Iterator[tuple[int, int, list[Dim]]]:
    """Yields (offset, index offset, dimensions) of parts of at most MAX_DIMS dimensions and _MAX_BLOCKS blocks."""
    # At most one block for two elements (of float64), and one more at each end of a row.
    n_blocks = math.prod(n for n, _, _ in dims[:-1]) * (dims[-1][0] // 2 + 2 if dims[-1][2] == 1 else dims[-1][0])
    if len(dims) == 1 or (len(dims) <= MAX_DIMS and n_blocks < _MAX_BLOCKS):
        yield 0, 0, dims
        return
    (n, stride, index_stride), inner = dims[0], dims[1:]
    at_once = 1 if len(dims) > MAX_DIMS else max(1, (_MAX_BLOCKS - 1) // (n_blocks // n))
    for start in range(0, n, at_once):
        count = min(at_once, n - start)
        for offset, index_offset, rest in _cut(inner if count == 1 else [(count, stride, index_stride), *inner]):
            yield start * stride + offset, start * index_stride + index_offset, rest

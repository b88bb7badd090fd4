"""Recipes: what a block of code did to the parameters of a model, by name, to be done again elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..execution.by_memory import ByMemory
from ..execution.memory_book import PendingFill
from ..execution.owners import Owner, Owners, index_in, stream_of
from ..execution.reports import Report
from ..execution.scope import Scope
from ..naming import Names, Prefix, join, renamed, walk
from ..plans import Box, Constant, Distribution, Fill, Item, describe, row_major
from ..plans.arithmetic import Chain
from ..shards.dtensor import boxes_of, fill_of, is_sharded


@dataclass(frozen=True)
class RecordedFill:
    """One fill of a parameter or of a part of it, without memory: it fits any tensor of that shape."""

    distribution: Distribution
    full_shape: tuple[int, ...]
    """Of the parameter."""
    shape: tuple[int, ...]
    """Of the part that is filled."""
    first_index: int
    """Row-major index in the parameter of the part's first element."""
    steps: tuple[int, ...]
    """What a step along each dimension of the part adds to that index."""
    key: str
    """The name whose stream gives the values, where it is not the parameter's own."""
    key_index: tuple[int, tuple[int, ...]]
    """``first_index`` and ``steps`` in the tensor that the stream is for."""
    order: int
    """Its position in what was recorded."""
    rule: str
    info: str

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter."""
        return self.shape == self.full_shape and self.first_index == 0 and self.steps == row_major(self.full_shape)

    def fill(self, name: str, tensor: torch.Tensor) -> Fill:
        """Returns it as a fill of a tensor.

        Raises:
            RuntimeError: the shape is another, or a part does not fit the tensor's layout.
        """
        if tuple(tensor.shape) != self.full_shape:
            raise RuntimeError(
                f"recipe: {name!r} was recorded with shape {self.full_shape}, but is {tuple(tensor.shape)} here"
            )
        if self.is_whole and is_sharded(tensor):
            return replace(fill_of(name, tensor, self.distribution, self.rule, self.info), key=self.key)
        if is_sharded(tensor):
            boxes = tuple(self._boxes_in(name, tensor))
            return Fill(name, tensor, self.distribution, self.rule, self.info, self.shape, boxes, self.key)
        target = tensor
        if not self.is_whole:
            if not tensor.is_contiguous():
                raise RuntimeError(f"recipe: a part of {name!r} was recorded, and the tensor is not contiguous here")
            target = tensor.detach().as_strided(self.shape, self.steps, tensor.storage_offset() + self.first_index)
        index, steps = self.key_index
        plain = index == 0 and steps == row_major(self.shape)
        box = Box(target, (0,) * len(self.shape)) if plain else Box(target, (index,), steps)
        return Fill(name, tensor, self.distribution, self.rule, self.info, self.shape, (box,), self.key)

    def _boxes_in(self, name: str, tensor: torch.Tensor) -> Iterator[Box]:
        """Yields what is here of the part, in the boxes that are here of a distributed tensor."""
        rectangle = self._rectangle()
        if rectangle is None or (self.key and self.key_index != (self.first_index, self.steps)):
            raise RuntimeError(
                f"recipe: a part of {name!r} was recorded that is no rectangle of it ({self.shape}, steps "
                f"{self.steps}), and the tensor is distributed here"
            )
        steps = row_major(self.full_shape)
        for box in boxes_of(tensor):
            view, index = box.tensor, 0
            for dim, (start, end) in enumerate(rectangle):
                first = max(start, box.offset[dim])
                last = min(end, box.offset[dim] + box.tensor.shape[dim])
                if first >= last:
                    break
                view = view.narrow(dim, first - box.offset[dim], last - first)
                index += first * steps[dim]
            else:
                yield Box(view, (index,), steps)

    def _rectangle(self) -> list[tuple[int, int]] | None:
        """Returns from where to where the part reaches in each dimension; None if it is no rectangle."""
        left = {step: size for step, size in zip(self.steps, self.shape) if size > 1}
        found, index = [], self.first_index
        for size, step in zip(self.full_shape, row_major(self.full_shape)):
            start, index = index // step, index % step
            length = left.pop(step, 1) if size > 1 else 1
            if start + length > size:
                return None
            found.append((start, start + length))
        return None if left else found


class Recipe:
    """What ``capture`` recorded. In the block it takes names, after it it has fills and a report."""

    def __init__(self, names: Names | None, prefix: Prefix, is_part: bool) -> None:
        self._names = names
        self._is_part = is_part
        self._prefix = prefix
        self._report: Report | None = None
        self.is_open = True
        self.bound: list[nn.Module] = []
        self.fills: Mapping[str, tuple[RecordedFill, ...]] = {}
        """Parameter or buffer -> what gave it its values, in order, where that was fills only."""
        self.unknown: Mapping[str, str] = {}
        """Parameter or buffer -> what else wrote it, where that was no fill."""

    def of(self, name: str, prefix: Prefix = "") -> tuple[RecordedFill, ...] | None:
        """Returns the fills of a tensor by its name in a model: the recipe may be of a larger one, or of it alone."""
        return self.fills.get(renamed(name, prefix), self.fills.get(name))

    def plan_items(self, module: nn.Module, scope: Scope, rule: str) -> list[Item]:
        """Returns what was recorded for the parameters and buffers under a module; a tied one is filled once.

        This makes a recipe an initializer among others: ``init_cfg`` may be one, or hold one.
        """
        found: dict[torch.Tensor, tuple[str, torch.Tensor, Sequence[RecordedFill]]] = {}
        for path, each in walk(module):
            for attribute, tensor in (*each._parameters.items(), *each._buffers.items()):
                if tensor is not None and tensor not in found:
                    recorded = self.of(join(path, attribute), scope.prefix)
                    if recorded is not None:
                        found[tensor] = scope.names.name_of(tensor, each, attribute), tensor, recorded
        if not found:
            message = f"the recipe holds no parameter of {type(module).__name__}"
            scope.matches_nothing(rule, "", message)
        return list(in_order(found.values()))

    def bind(self, module: nn.Module, prefix: Prefix = "") -> None:
        """Names what was captured: parameters and buffers by their place under ``module``, ``prefix`` in front.

        Call it in the block, once for each model that is made there. In a part of a larger block it does nothing: there
        the larger one's names count.

        Raises:
            TypeError: ``module`` is no module.
            RuntimeError: the block is over or got its module at the start, or two parameters would have one name.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"bind needs a torch.nn.Module, but got {type(module)}")
        if self._is_part:  # names are those of the larger block
            return
        if self._names is None:
            raise RuntimeError("bind: the module was given to capture itself")
        if not self.is_open and self._report is not None:
            raise RuntimeError("bind: the block is over, and its draws have been made. Call it in the block")
        prefix = prefix or self._prefix
        self._names.add(module, prefix)
        self.bound.append(module)

    @property
    def report(self) -> Report:
        """What was done.

        Raises:
            RuntimeError: the block is not over, or is part of a larger one, which has the report.
        """
        if self._report is None:
            raise RuntimeError(
                "the report is made when the block ends; that of a part of a larger block is the larger's"
            )
        return self._report

    def finish(self, report: Report) -> None:
        """Sets the report."""
        self._report = report

    def __repr__(self) -> str:
        n = sum(map(len, self.fills.values()))
        return f"<Recipe of {n} fills of {len(self.fills)} tensors; {len(self.unknown)} written by other code>"

    def __str__(self) -> str:
        lines = [repr(self)]
        for name, fills in self.fills.items():
            for fill in fills:
                part = "" if fill.is_whole else f", part of {'x'.join(map(str, fill.shape))}"
                lines.append(f"{name}: {describe(fill.distribution)}{part}")
        lines += [f"{name}: {what}" for name, what in self.unknown.items()]
        return "\n".join(lines)


def in_order(recorded: Iterable[tuple[str, torch.Tensor, Sequence[RecordedFill]]]) -> list[Fill]:
    """Returns recorded fills of tensors (name, tensor, what was recorded of it) as fills, in their order."""
    fills = [(each.order, each.fill(name, tensor)) for name, tensor, found in recorded for each in found]
    return [fill for _, fill in sorted(fills, key=lambda each: each[0])]


def recorded_fills(pending: ByMemory, scope: Scope) -> tuple[dict[str, tuple[RecordedFill, ...]], dict[str, str]]:
    """Returns what a call's code did to the parameters and buffers under its roots: fills, and what was none."""
    book, owners = pending.book, pending.owners(scope)
    fills: dict[str, tuple[RecordedFill, ...]] = {}
    unknown: dict[str, str] = {}
    for owner in owners:
        found = book.fills_at(owner.place)
        if others := book.others_at(owner.place):
            unknown[owner.name] = others[-1].info
        elif any(isinstance(each.values, Chain) for each in found):
            unknown[owner.name] = found[-1].info
        elif found:
            recorded = [_recorded(each, owner, owners) for each in found]
            if all(recorded):
                fills[owner.name] = tuple(each for each in recorded if each is not None)
            else:
                unknown[owner.name] = f"{found[-1].info}, on a view that is no part of the parameter"
    return fills, unknown


def _recorded(pending: PendingFill, owner: Owner, owners: Owners) -> RecordedFill | None:
    place = pending.place
    index = index_in(owner, place)
    if index is None or place.dtype != owner.place.dtype:
        return None
    key, key_index = "", (0, row_major(place.shape))
    if not isinstance(pending.distribution, Constant):
        stream = stream_of(pending, owners)
        key, key_index = stream.name, (stream.first_index, stream.steps)
    return RecordedFill(
        pending.distribution,
        owner.place.shape,
        place.shape,
        *index,
        "" if key == owner.name else key,
        key_index,
        pending.order,
        pending.rule,
        pending.info,
    )

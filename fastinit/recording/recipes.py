"""Recipes: what a block of code did to the parameters of a model, by name, to be done again elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..execution.deferred import Entry, Owner, index_in, key_as_given, keyed
from ..execution.reports import Report
from ..execution.session import Session
from ..naming import Names, Prefix, join, renamed, walk
from ..plans import Box, Constant, Distribution, Fill, Strided, describe, row_major
from ..shards.dtensor import boxes_of, is_sharded, shard_fill


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
            return replace(shard_fill(name, tensor, self.distribution, self.rule, self.info), stream=self.key)
        if is_sharded(tensor):
            boxes = tuple(self._boxes_in(name, tensor))
            return Fill(name, tensor, self.distribution, self.rule, self.info, self.shape, boxes, self.key)
        target = tensor
        if not self.is_whole:
            if not tensor.is_contiguous():
                raise RuntimeError(f"recipe: a part of {name!r} was recorded, and the tensor is not contiguous here")
            target = tensor.detach().as_strided(self.shape, self.steps, tensor.storage_offset() + self.first_index)
        box = Box(target, *self.key_index)
        return Fill(name, tensor, self.distribution, self.rule, self.info, self.shape, (box,), self.key)

    def _boxes_in(self, name: str, tensor: torch.Tensor) -> Iterator[Box]:
        """Yields what is here of the part, in the boxes that are here of a distributed tensor."""
        rectangle = Strided(self.first_index, self.shape, self.steps).rectangle(self.full_shape)
        if rectangle is None or (self.key and self.key_index != (self.first_index, self.steps)):
            raise RuntimeError(
                f"recipe: a part of {name!r} was recorded that is no rectangle of it ({self.shape}, steps "
                f"{self.steps}), and the tensor is distributed here"
            )
        for box in boxes_of(tensor):
            view, index = box.tensor, []
            for dim, ((start, end), here) in enumerate(zip(rectangle, box.index(self.full_shape))):
                first, last = max(start, here), min(end, here + box.tensor.shape[dim])
                if first >= last:
                    break
                view = view.narrow(dim, first - here, last - first)
                index.append(first)
            else:
                yield Box.at(view, index, self.full_shape)


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


def fills_under(root: nn.Module, recipe: Recipe, names: Names, prefix: Prefix) -> list[Fill]:
    """Returns what a recipe has for the parameters and buffers under a root; a tied one is filled once."""
    found: dict[torch.Tensor, tuple[str, torch.Tensor, Sequence[RecordedFill]]] = {}
    for path, module in walk(root):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor not in found:
                recorded = recipe.of(join(path, key), prefix)
                if recorded is not None:
                    found[tensor] = names.name_of(tensor, module, key), tensor, recorded
    return in_order(found.values())


def recorded_fills(opened: Session) -> tuple[dict[str, tuple[RecordedFill, ...]], dict[str, str]]:
    """Returns what a session's code did to the parameters and buffers under its roots: fills, and what was none."""
    deferred = opened.deferred
    assert deferred is not None, "it was recorded"
    fills: dict[str, tuple[RecordedFill, ...]] = {}
    unknown: dict[str, str] = {}
    for owner in opened.owners():
        foreign = deferred.foreign_of(owner.place)
        entries = deferred.entries_of(owner.place)
        if foreign:
            unknown[owner.name] = foreign[-1][0]
        elif entries and any(entry.chain is not None for entry in entries):
            unknown[owner.name] = entries[-1].info
        elif entries:
            found = [_recorded(entry, owner, opened) for entry in entries]
            if all(found):
                fills[owner.name] = tuple(each for each in found if each is not None)
            else:
                unknown[owner.name] = f"{entries[-1].info}, on a view that is no part of the parameter"
    return fills, unknown


def _recorded(entry: Entry, owner: Owner, opened: Session) -> RecordedFill | None:
    place = entry.place
    index = index_in(owner, place)
    if index is None or place.dtype != owner.place.dtype:
        return None
    key, key_index = "", (0, row_major(place.shape))
    if not isinstance(entry.distribution, Constant):
        if entry.fill is not None:
            found = key_as_given(entry.fill)
            key, key_index = found.name, (found.first_index, found.steps)
        else:
            found = keyed(entry, opened.owner_of, opened.names.ordinal)
            key, key_index = found.name, (found.first_index, found.steps)
    return RecordedFill(
        entry.distribution,
        owner.place.shape,
        place.shape,
        *index,
        "" if key == owner.name else key,
        key_index,
        entry.order,
        entry.rule,
        entry.info,
    )

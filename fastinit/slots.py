"""Slots: where modules hold tensors without memory, what is put there, and items for what took their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .config.trees import has_own_configs
from .errors import InitRuntimeError
from .execution.allocation import allocate_like
from .execution.memory_book import MemoryBook
from .naming import Names, Walk, join
from .plans import Copy, Fill, Item, Replay
from .shards.dtensor import is_sharded, like, local_part


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a module holds a tensor."""

    module: nn.Module
    path: str
    tensors: dict[str, Any]
    """The module's parameters, or its buffers."""
    attribute: str

    @property
    def name(self) -> str:
        """The tensor's name from the model's root."""
        return join(self.path, self.attribute)

    @property
    def place(self) -> str:
        """What errors call the place."""
        return f"{'parameter' if self.tensors is self.module._parameters else 'buffer'} {self.name!r}"

    def name_in(self, names: Names) -> str:
        """Returns the tensor's name in a call, behind its prefix; a tied tensor has that of its first slot."""
        return names.name_of(self.tensor, self.module, self.attribute)

    @property
    def tensor(self) -> torch.Tensor:
        """What the module holds there now."""
        return self.tensors[self.attribute]  # type: ignore[no-any-return]

    @property
    def is_distributed(self) -> bool:
        """Whether only a part of the tensor is here."""
        return is_sharded(self.tensor)


@contextmanager
def restoring(places: Walk) -> Iterator[list[Slot]]:
    """Yields the slots of a walk, as ``slots_in``, and puts the meta tensors back if the block fails."""
    slots = list(slots_in(places))
    before = [(slot, slot.tensor) for slot in slots]
    trees: list[Any] = [module for module in dict.fromkeys(module for _, module in places) if has_own_configs(module)]
    done = [(module, module._is_init) for module in trees]
    try:
        yield slots
    except BaseException:
        put_back(before)
        for module, is_init in done:
            module._is_init = is_init
        raise


def slots_in(places: Walk) -> Iterator[Slot]:
    """Yields where the modules of a walk hold meta tensors; one for each holder of a tied tensor.

    Raises:
        RuntimeError: one of them cannot get memory.
    """
    seen: set[nn.Module] = set()
    for path, module in places:
        if module in seen:
            continue
        seen.add(module)
        for tensors in (module._parameters, module._buffers):
            for attribute, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                slot = Slot(module, path, tensors, attribute)
                if nn.parameter.is_lazy(tensor):
                    raise InitRuntimeError(
                        f"{slot.name!r} is lazy: it has no shape before the model has seen an input", place=slot.place
                    )
                if is_sharded(tensor):
                    yield slot
                    continue
                if is_traceable_wrapper_subclass(tensor) or tensor.layout != torch.strided:
                    kind = type(tensor).__name__ if tensor.layout == torch.strided else tensor.layout
                    raise InitRuntimeError(
                        f"materialize makes plain strided tensors, but {slot.name!r} is a {kind}", place=slot.place
                    )
                yield slot


def allocate(slots: Sequence[Slot], device: torch.device) -> dict[torch.Tensor, torch.Tensor]:
    """Puts tensors with memory into the slots, one for each meta tensor; of a distributed one only what is here.

    Returns the new tensors by the old ones.
    """
    olds = list({id(slot.tensor): slot.tensor for slot in slots}.values())
    here = [local_part(old) if is_sharded(old) else old for old in olds]
    new: dict[torch.Tensor, torch.Tensor] = {}
    for old, tensor in zip(olds, allocate_like(here, device)):
        if is_sharded(old):
            tensor = like(old, tensor)
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, old.requires_grad)
        elif isinstance(old, nn.Parameter):
            tensor = torch.Tensor._make_subclass(type(old), tensor, old.requires_grad)  # type: ignore[arg-type]
        noted = {key: value for key, value in vars(old).items() if key not in ("_local_tensor", "_spec")}
        vars(tensor).update(noted)
        new[old] = tensor
    for slot in slots:
        slot.tensors[slot.attribute] = new[slot.tensor]
    return new


def rebound(items: Sequence[Item], new: Mapping[torch.Tensor, torch.Tensor]) -> list[Item]:
    """Returns items that were planned for tensors without memory, for those that took their places."""
    return [_rebound(item, new) for item in items]


def _rebound(item: Item, new: Mapping[torch.Tensor, torch.Tensor]) -> Item:
    if isinstance(item, Replay):
        return replace(item, entries=tuple(replace(e, tensor=new.get(e.tensor, e.tensor)) for e in item.entries))
    if isinstance(item, Copy):
        return replace(item, entries=tuple(replace(e, tensor=new.get(e.tensor, e.tensor)) for e in item.entries))
    if not isinstance(item, Fill) or item.tensor not in new:
        return item
    tensor = new[item.tensor]
    if item.parts is None:
        return replace(item, tensor=tensor)
    old, here = (local_part(each) if is_sharded(each) else each for each in (item.tensor, tensor))
    boxes = []
    for box in item.parts:
        view, offset = box.tensor, box.tensor.storage_offset() - old.storage_offset() + here.storage_offset()
        boxes.append(replace(box, tensor=here.detach().as_strided(view.shape, view.stride(), offset)))
    return replace(item, tensor=tensor, parts=tuple(boxes))


def adopt(replaced: Sequence[Slot], device: torch.device) -> None:
    """Takes tensors that modules' own code has put in the place of those that were allocated: tables made anew."""
    for slot in replaced:
        tensor = slot.tensors.get(slot.attribute)
        if tensor is None:
            continue
        if tensor.is_meta:
            raise InitRuntimeError(
                f"materialize: {slot.name!r} has no values: code of {type(slot.module).__name__} has replaced it by a "
                f"tensor on the meta device",
                place=slot.place,
                hint=". Have it made on the device of the module's parameters",
            )
        if tensor.device != device:
            moved = tensor.detach().to(device)
            is_parameter = isinstance(tensor, nn.Parameter)
            slot.tensors[slot.attribute] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved


def put_stand_ins(slots: Sequence[Slot]) -> list[tuple[Slot, torch.Tensor]]:
    """Puts tensors without memory into the slots, and returns what was there."""
    held = [(slot, slot.tensor) for slot in slots]
    stand_ins: dict[int, torch.Tensor] = {}
    for slot, tensor in held:
        if id(tensor) not in stand_ins:
            meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            stand_ins[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if is_parameter else meta
        slot.tensors[slot.attribute] = stand_ins[id(tensor)]
    return held


def put_back(held: Sequence[tuple[Slot, torch.Tensor]]) -> None:
    """Puts tensors back into their slots."""
    for slot, tensor in held:
        slot.tensors[slot.attribute] = tensor


@contextmanager
def hiding(slots: Sequence[Slot], book: MemoryBook) -> Iterator[None]:
    """Puts tensors without memory into the slots for the block, so that what is done to them is in vain."""
    with book.paused():
        held = put_stand_ins(slots)
    try:
        yield
    finally:
        put_back(held)
        if held:
            book.generation += 1

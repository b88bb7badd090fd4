"""Modules' own code (``reset_parameters``), run for what no rule reaches when a model gets memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import InitRuntimeError
from .execution.calls import OpenCall
from .execution.memory_book import MemoryBook
from .execution.recorded_fills import RecordedFill
from .naming import join, walk
from .plans import Call, Item, names_line, tensors_of, written_in_full
from .recording.libraries import own_code, tied_to_others
from .recording.recipes import in_order, recorded_fills
from .recording.watch import Watch
from .shards.dtensor import is_sharded


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a module holds a tensor that is on the meta device."""

    module: nn.Module
    path: str
    tensors: dict[str, Any]
    """The module's parameters, or its buffers."""
    attribute: str

    @property
    def name(self) -> str:
        """The tensor's name from the root."""
        return join(self.path, self.attribute)

    @property
    def tensor(self) -> torch.Tensor:
        """What the module holds there now."""
        return self.tensors[self.attribute]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OwnCode:
    """What a module fills itself, and perhaps its children, with."""

    module: nn.Module
    path: str
    name: str
    function: Callable[[], object]


def by_reach(slots: Sequence[Slot], items: Iterable[Item]) -> tuple[list[Slot], list[Slot]]:
    """Returns the slots that no item reaches and that own code is to fill, and those that items do.

    Raises:
        RuntimeError: items fill a part of a tensor only, which would leave the rest without values.
    """
    items = list(items)
    reached = {id(tensor) for item in items for tensor in tensors_of(item)}
    in_full = {id(tensor) for tensor in written_in_full(items)}
    if left := [slot.name for slot in slots if id(slot.tensor) in reached - in_full]:
        raise InitRuntimeError(
            f"materialize: {names_line('parameters of which rules fill a part only', left)}. Add rules for the rest, "
            f"e.g. one for all of it before them"
        )
    rest = [slot for slot in slots if id(slot.tensor) not in reached and slot.tensor.numel()]
    return rest, [slot for slot in slots if id(slot.tensor) in reached]


def own_code_for(model: nn.Module, slots: Sequence[Slot]) -> tuple[list[OwnCode], list[Slot]]:
    """Returns the code of the modules that hold the slots, or hold modules that do, and the slots without any.

    Children come before their parents, as in constructors: a parent may set what belongs to a child.
    """
    holders = {slot.module for slot in slots}
    places = {module: path for path, module in reversed(walk(model))}
    found: dict[nn.Module, OwnCode | None] = {}
    covered: set[nn.Module] = set()

    def visit(module: nn.Module, above: bool) -> bool:
        """Tells whether slots are below; visits each module once."""
        function = own_code(module)
        if above or function is not None:
            covered.add(module)
        below = module in holders
        for child in module._modules.values():
            if child is not None and child not in visited:
                visited.add(child)
                below = visit(child, above or function is not None) or below
        if below and function is not None:
            found[module] = OwnCode(module, places.get(module, ""), function.__name__, function)
        return below

    visited = {model}
    visit(model, False)
    return [each for each in found.values() if each is not None], [s for s in slots if s.module not in covered]


def run_own_code(
    rest: Sequence[Slot],
    hidden: Sequence[Slot],
    of_models: Mapping[nn.Module, Callable[[], object]],
    call: OpenCall,
    watch: Watch,
) -> None:
    """Runs the own code of the modules that hold what neither a rule nor the recipe reaches.

    Args:
        rest: what it is to fill.
        hidden: what has no values yet that it could read, and gets others anyway; that is on the meta device meanwhile:
            drawing values for it would be in vain. So is what is distributed, in full: the code sees the tensor that it
            was written for, and what it does is done to the parts.
        of_models: the code of models of transformers for their modules.
        call, watch: that it is part of.
    """
    root: Any = call.scope.root
    is_contract = call.scope.backends.is_contract
    in_parts = [slot for slot in rest if is_sharded(slot.tensor) and is_contract(slot.tensor.device)]
    codes, _ = own_code_for(root, rest)
    with watch.book.paused():
        call.ledger()  # with the names of what is about to be taken out
        held = put_stand_ins((*hidden, *in_parts))
    recorded: Mapping[str, tuple[RecordedFill, ...]] = {}
    try:
        for each in codes:
            _call(each.function, each.name, each.module, each.path, call)
        if rest:  # a model's code for a module may set what belongs to another
            _run_code_of_models(of_models, call, watch)
        if in_parts:
            watch.book.generation += 1
            with watch.book.paused():
                recorded, _ = recorded_fills(watch.pending, call.scope)
    finally:
        put_back(held)
        if held:
            watch.book.generation += 1
    if in_parts:
        names = call.scope.names
        once = {names.name_of(slot.tensor, slot.module, slot.attribute): slot.tensor for slot in in_parts}
        call.fill(in_order((name, tensor, recorded.get(name, ())) for name, tensor in once.items()))


def _run_code_of_models(of_models: Mapping[nn.Module, Callable[[], object]], call: OpenCall, watch: Watch) -> None:
    """Runs the code that models of transformers have for their modules, children first.

    Their constructors tie weights after that: what a module fills a tensor of another's with (a head, the embedding's)
    does not last. So it goes first, and the other's code has the last word, if it has any. Where a model does not say
    whose a tensor is, it is the first holder's.
    """
    root: Any = call.scope.root
    holders: dict[int, list[Slot]] = {}
    paths: dict[nn.Module, str] = {}
    for path, module in walk(root):
        if module in paths:
            continue
        paths[module] = path
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append(Slot(module, path, module._parameters, attribute))
    tied = tied_to_others(root)
    ties: dict[nn.Module, list[Slot]] = {}
    for slots in holders.values():
        owner = next((slot for slot in slots if (slot.module, slot.attribute) not in tied), slots[0])
        for slot in slots:
            if slot.module is not owner.module:
                ties.setdefault(slot.module, []).append(slot)
    first = [module for module in of_models if module in ties and not module._modules]  # others come after children
    for module in first:
        _call(of_models[module], "_init_weights", module, paths[module], call)
    with watch.book.paused():
        held = put_stand_ins([slot for slots in ties.values() for slot in slots])  # a parent may fill them, too
    try:
        for module, function in of_models.items():
            if module not in first:
                _call(function, "_init_weights", module, paths[module], call)
    finally:
        put_back(held)


def _call(function: Callable[[], object], what: str, module: nn.Module, path: str, call: OpenCall) -> None:
    info = f"`{what}` of {type(module).__name__}"
    before = len(call.ledger().written)
    with call.attributing(module, info), torch.no_grad():
        function()
    # Most modules of a model have nothing to do in its `_init_weights`.
    if len(call.ledger().written) > before or what != "_init_weights":
        label = f"{join(path, what)}() of {type(module).__name__}"
        call.done.add([Call(module, label, "materialize", info, function)])


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
def protecting(slots: Sequence[Slot], call: OpenCall, book: MemoryBook) -> Iterator[None]:
    """Drops what is written into the slots in the block: they have their values, which code may read."""
    ledger = call.ledger()
    with book.paused():
        ledger.protected = {slot.tensor for slot in slots}
        places = [book.place_of(slot.tensor) for slot in slots]
        book.protected = {place.storage_id for place in places if place is not None}
    try:
        yield
    finally:
        book.protected = set()
        ledger.protected = set()


def adopt(replaced: Sequence[Slot], target: torch.device, call: OpenCall, watch: Watch) -> None:
    """Takes tensors that modules' own code has put in the place of those that were allocated: tables made anew."""
    for slot in replaced:
        tensor = slot.tensors.get(slot.attribute)
        if tensor is None:
            continue
        if tensor.is_meta:
            raise InitRuntimeError(
                f"materialize: {slot.name!r} has no values: code of {type(slot.module).__name__} has replaced it by a "
                f"tensor on the meta device. Have it made on the device of the module's parameters"
            )
        if tensor.device != target:
            moved = tensor.detach().to(target)
            is_parameter = isinstance(tensor, nn.Parameter)
            slot.tensors[slot.attribute] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    if replaced:
        watch.book.generation += 1
        call.scope.names.renew()

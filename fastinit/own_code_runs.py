"""Runs modules' own code when a model gets memory: recorded, and without harm to what has values already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .execution.calls import OpenCall
from .execution.ledger import Ledger
from .execution.memory_book import MemoryBook
from .execution.recorded_fills import RecordedFill
from .naming import join
from .own_code import OF_MODELS, ModuleCode, OwnCode
from .plans import Call, Fill
from .recording.recipes import in_order, recorded_fills
from .recording.watch import Watch
from .slots import Slot, hiding


def run_own_code(own: OwnCode, hidden: Sequence[Slot], call: OpenCall, watch: Watch) -> list[Fill]:
    """Runs the own code of the modules that hold what neither a rule nor the recipe reaches.

    Args:
        own: the code.
        hidden: what has no values yet that it could read, and gets others anyway; that is on the meta device meanwhile:
            drawing values for it would be in vain. So is what is distributed, in full: the code sees the tensor that it
            was written for.
        call, watch: that it is part of.

    Returns:
        What the code has done to distributed tensors: fills for their parts, which are still to run.
    """
    is_contract = call.scope.backends.is_contract
    in_parts = [slot for slot in own.rest if slot.is_distributed and is_contract(slot.tensor.device)]
    with watch.book.paused():
        ledger = call.ledger()  # with the names of what is about to be taken out
    recorded: Mapping[str, tuple[RecordedFill, ...]] = {}
    with hiding((*hidden, *in_parts), watch.book):
        for each in own.rounds:
            with hiding(each.hidden, watch.book):
                for code in each.codes:
                    _run(code, ledger, call)
        if in_parts:
            watch.book.generation += 1
            with watch.book.paused():
                recorded, _ = recorded_fills(watch.pending, call.scope)
    names = call.scope.names
    once = {names.name_of(slot.tensor, slot.module, slot.attribute): slot.tensor for slot in in_parts}
    return in_order((name, tensor, recorded.get(name, ())) for name, tensor in once.items())


def _run(code: ModuleCode, ledger: Ledger, call: OpenCall) -> None:
    info = f"`{code.name}` of {type(code.module).__name__}"
    before = len(ledger.written)
    with call.attributing(code.module, info), torch.no_grad():
        code.function()
    # Most modules of a model have nothing to do in its `_init_weights`.
    if len(ledger.written) > before or code.name != OF_MODELS:
        label = f"{join(code.path, code.name)}() of {type(code.module).__name__}"
        call.done.add([Call(code.module, label, "materialize", info, code.function)])


@contextmanager
def protecting(slots: Sequence[Slot], ledger: Ledger, book: MemoryBook) -> Iterator[None]:
    """Drops what is written into the slots in the block: they have their values, which code may read."""
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
            raise RuntimeError(
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

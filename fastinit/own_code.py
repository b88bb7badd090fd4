"""Modules' own code (``reset_parameters``), for what no rule reaches when a model gets memory: which it is, and runs.

It runs recorded, and without harm to what has values already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .errors import InitRuntimeError
from .execution.calls import OpenCall
from .execution.ledger import Ledger
from .execution.memory_book import MemoryBook
from .naming import Walk, join
from .plans import Call, Fill, Item, names_line, tensors_of, written_in_full
from .recording.libraries import models_own_code, own_code
from .recording.recipes import Recorded, in_order, recorded_fills
from .recording.watch import Watch
from .shards.dtensor import PLAIN
from .slots import Slot, hiding
from .tied_names import tied_to_others


@dataclass(frozen=True)
class Round:
    """Code that runs in order, and what it is not to fill."""

    codes: list[Call]
    hidden: list[Slot]
    is_of_models: bool
    """It is a model of transformers' (``_init_weights``), once for each module, most of which it does nothing to; else
    it is each module's own, and may fill the module's children too."""


@dataclass(frozen=True)
class OwnCode:
    """What modules fill themselves with, where items leave something to them."""

    rest: list[Slot]
    """What it is to fill: no item reaches these."""
    reached: list[Slot]
    """What items fill."""
    kept: list[Slot]
    """What has values, and is not to get others: code that fills one tensor of a module may fill all of them."""
    rounds: list[Round]

    @property
    def without(self) -> list[Slot]:
        """The part of the rest that no code is for."""
        covered: set[nn.Module] = set()
        for each in self.rounds:
            for code in each.codes:
                covered.update([code.module] if each.is_of_models else code.module.modules())
        return [slot for slot in self.rest if slot.module not in covered]


def own_code_for(places: Walk, slots: Sequence[Slot], items: Iterable[Item]) -> OwnCode:
    """Returns the own code of the modules that hold what no item reaches.

    Args:
        places: the walk over the model.
        slots: what is to get values.
        items: what gives them to some.

    Raises:
        RuntimeError: as ``by_reach``.
    """
    rest, reached = by_reach(slots, items)
    if not rest:
        return OwnCode(rest, reached, [], [])
    paths: dict[nn.Module, str] = {}
    for path, module in places:
        paths.setdefault(module, path)
    of_modules = Round(_code_of_modules(paths, {slot.module for slot in rest}), [], is_of_models=False)
    return OwnCode(rest, reached, _kept(paths, slots), [of_modules, *_rounds_of_models(places[0][1], paths)])


def _kept(paths: Mapping[nn.Module, str], slots: Sequence[Slot]) -> list[Slot]:
    """Returns where modules hold what is not to get values."""
    to_fill = {id(slot.tensor) for slot in slots}
    return [
        Slot(module, path, tensors, attribute)
        for module, path in paths.items()
        for tensors in (module._parameters, module._buffers)
        for attribute, tensor in tensors.items()
        if not (tensor is None or id(tensor) in to_fill or is_lazy(tensor))
    ]


def by_reach(slots: Sequence[Slot], items: Iterable[Item]) -> tuple[list[Slot], list[Slot]]:
    """Returns the slots that no item reaches and that own code is to fill, and those that items do.

    Raises:
        RuntimeError: items fill a part of a tensor only, which would leave the rest without values.
    """
    items = list(items)
    reached = {id(tensor) for item in items for tensor in tensors_of(item)}
    in_part = reached - {id(tensor) for tensor in written_in_full(items)}
    if left := [slot.name for slot in slots if id(slot.tensor) in in_part]:
        raise InitRuntimeError(
            f"materialize: {names_line('parameters of which rules fill a part only', left)}",
            hint=". Add rules for the rest, e.g. one for all of it before them",
        )
    rest = [slot for slot in slots if id(slot.tensor) not in reached and slot.tensor.numel()]
    return rest, [slot for slot in slots if id(slot.tensor) in reached]


def _code_of_modules(paths: Mapping[nn.Module, str], holders: Set[nn.Module]) -> list[Call]:
    """Returns the code of the modules that are holders, or hold modules that are.

    Children come before their parents, as in constructors: a parent may set what belongs to a child.
    """
    found: list[Call] = []

    def visit(module: nn.Module) -> bool:
        """Tells whether holders are here or below; visits each module once."""
        below = module in holders
        for child in module._modules.values():
            if child is not None and child not in visited:
                visited.add(child)
                below = visit(child) or below
        function = own_code(module) if below else None
        if function is not None:
            found.append(_call(module, paths, function.__name__, function))
        return below

    root = next(iter(paths))
    visited = {root}
    visit(root)
    return found


def _call(module: nn.Module, paths: Mapping[nn.Module, str], name: str, function: Callable[[], object]) -> Call:
    kind = type(module).__name__
    label = f"{join(paths.get(module, ''), name)}() of {kind}"
    return Call(module, label, "materialize", f"`{name}` of {kind}", function)


def _rounds_of_models(root: nn.Module, paths: Mapping[nn.Module, str]) -> list[Round]:
    """Returns the code that models of transformers have for their modules, children first, in two rounds.

    Their constructors tie weights after that: what a module fills a tensor of another's with (a head, the embedding's)
    does not last. So it goes first, and the other's code has the last word, if it has any. Where a model does not say
    whose a tensor is, it is the first holder's.
    """
    functions, tied_elsewhere = models_own_code(root), tied_to_others(root)
    holders: dict[int, list[Slot]] = {}
    for module, path in paths.items() if functions else ():
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append(Slot(module, path, module._parameters, attribute))
    tied: list[Slot] = []
    for slots in holders.values():
        owner = next((slot for slot in slots if (slot.module, slot.attribute) not in tied_elsewhere), slots[0])
        tied += [slot for slot in slots if slot.module is not owner.module]
    codes = [_call(module, paths, "_init_weights", function) for module, function in functions.items()]
    early = {slot.module for slot in tied if not slot.module._modules}  # others come after their children
    first = [code for code in codes if code.module in early]
    others = [code for code in codes if code.module not in early]
    # A parent may fill what is tied, too.
    return [Round(first, [], is_of_models=True), Round(others, tied, is_of_models=True)]


def run_own_code(own: OwnCode, call: OpenCall, ledger: Ledger, watch: Watch, *, is_reached_there: bool) -> list[Fill]:
    """Runs the own code of the modules that hold what no item reaches.

    What is distributed is on the meta device meanwhile, in full: the code sees the tensor that it was written for.

    Args:
        own: the code.
        call, watch: that it is part of.
        ledger: the call's, which has the names of what the code does not see.
        is_reached_there: what items reach has its values, and keeps them, as does what had memory before; the code may
            read it. If not, that is on the meta device meanwhile: drawing values for it would be in vain.

    Returns:
        What the code has done to distributed tensors: fills for their parts, which are still to run.
    """
    book, is_contract = watch.book, call.scope.backends.is_contract
    readable = [slot for slot in own.reached if is_reached_there and not slot.is_distributed]
    readable += [slot for slot in own.kept if type(slot.tensor) in PLAIN]
    hidden = [slot for slot in own.reached if not is_reached_there or slot.is_distributed]
    hidden += [slot for slot in own.kept if slot.is_distributed]
    in_parts = [slot for slot in own.rest if slot.is_distributed and is_contract(slot.tensor.device)]
    whole = {slot: slot.tensor for slot in in_parts}
    recorded: list[Recorded] = []
    with _protecting([slot.tensor for slot in readable], ledger, book), hiding((*hidden, *in_parts), book):
        for each in own.rounds:
            with hiding(each.hidden, book):
                for code in each.codes:
                    if call.run_code(code) or not each.is_of_models:
                        call.done.add([code])
        if in_parts:
            book.generation += 1
            with book.paused():
                seen, _ = recorded_fills(watch.pending, call.scope)
            real = {slot.tensor: tensor for slot, tensor in whole.items()}
            recorded = [each._replace(tensor=real[each.tensor]) for each in seen if each.tensor in real]
    return in_order(recorded)


@contextmanager
def _protecting(tensors: Sequence[torch.Tensor], ledger: Ledger, book: MemoryBook) -> Iterator[None]:
    """Drops what is written into tensors in the block: they have their values, which code may read."""
    with book.paused():
        storages = [tensor.untyped_storage() for tensor in tensors]  # held, so that no other gets an identity of theirs
        book.protected = {storage._cdata for storage in storages}
        ledger.protected = set(tensors)
    try:
        yield
    finally:
        book.protected = set()
        ledger.protected = set()

"""Modules' own code (``reset_parameters``), run for what no rule reaches when a model gets memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from .naming import Walk
from .plans import Item, names_line, tensors_of, written_in_full
from .recording.libraries import models_own_code, own_code, tied_to_others
from .slots import Slot

# What models of transformers have for their modules.
OF_MODELS = "_init_weights"


@dataclass(frozen=True)
class ModuleCode:
    """What a module fills itself, and perhaps its children, with."""

    module: nn.Module
    path: str
    name: str
    function: Callable[[], object]


@dataclass(frozen=True)
class Round:
    """Code that runs in order, and what it is not to fill."""

    codes: list[ModuleCode]
    hidden: list[Slot]


@dataclass(frozen=True)
class OwnCode:
    """What modules fill themselves with, where items leave something to them."""

    rest: list[Slot]
    """What it is to fill: no item reaches these."""
    reached: list[Slot]
    """What items fill."""
    rounds: list[Round]

    @property
    def without(self) -> list[Slot]:
        """The part of the rest that no code is for."""
        codes = [code for each in self.rounds for code in each.codes]
        covered = {code.module for code in codes if code.name == OF_MODELS}
        for code in codes:
            if code.name != OF_MODELS:  # which is for a module's children, too
                covered.update(code.module.modules())
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
        return OwnCode(rest, reached, [])
    paths: dict[nn.Module, str] = {}
    for path, module in places:
        paths.setdefault(module, path)
    of_modules = _code_of_modules(paths, {slot.module for slot in rest})
    root = places[0][1]
    of_models, tied_elsewhere = models_own_code(root), tied_to_others(root)
    rounds = [Round(of_modules, []), *_rounds_of_models(paths, of_models, tied_elsewhere)]
    return OwnCode(rest, reached, rounds)


def by_reach(slots: Sequence[Slot], items: Iterable[Item]) -> tuple[list[Slot], list[Slot]]:
    """Returns the slots that no item reaches and that own code is to fill, and those that items do.

    Raises:
        RuntimeError: items fill a part of a tensor only, which would leave the rest without values.
    """
    items = list(items)
    reached = {id(tensor) for item in items for tensor in tensors_of(item)}
    in_full = {id(tensor) for tensor in written_in_full(items)}
    if left := [slot.name for slot in slots if id(slot.tensor) in reached - in_full]:
        raise RuntimeError(
            f"materialize: {names_line('parameters of which rules fill a part only', left)}. Add rules for the rest, "
            f"e.g. one for all of it before them"
        )
    rest = [slot for slot in slots if id(slot.tensor) not in reached and slot.tensor.numel()]
    return rest, [slot for slot in slots if id(slot.tensor) in reached]


def _code_of_modules(paths: Mapping[nn.Module, str], holders: Set[nn.Module]) -> list[ModuleCode]:
    """Returns the code of the modules that are holders, or hold modules that are.

    Children come before their parents, as in constructors: a parent may set what belongs to a child.
    """
    found: list[ModuleCode] = []

    def visit(module: nn.Module) -> bool:
        """Tells whether holders are here or below; visits each module once."""
        below = module in holders
        for child in module._modules.values():
            if child is not None and child not in visited:
                visited.add(child)
                below = visit(child) or below
        function = own_code(module) if below else None
        if function is not None:
            found.append(ModuleCode(module, paths.get(module, ""), function.__name__, function))
        return below

    root = next(iter(paths))
    visited = {root}
    visit(root)
    return found


def _rounds_of_models(
    paths: Mapping[nn.Module, str],
    functions: Mapping[nn.Module, Callable[[], object]],
    tied_elsewhere: Set[tuple[nn.Module, str]],
) -> list[Round]:
    """Returns the code that models of transformers have for their modules, children first, in two rounds.

    Their constructors tie weights after that: what a module fills a tensor of another's with (a head, the embedding's)
    does not last. So it goes first, and the other's code has the last word, if it has any. Where a model does not say
    whose a tensor is, it is the first holder's.
    """
    holders: dict[int, list[Slot]] = {}
    for module, path in paths.items() if functions else ():
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                holders.setdefault(id(tensor), []).append(Slot(module, path, module._parameters, attribute))
    tied: list[Slot] = []
    for slots in holders.values():
        owner = next((slot for slot in slots if (slot.module, slot.attribute) not in tied_elsewhere), slots[0])
        tied += [slot for slot in slots if slot.module is not owner.module]
    codes = [ModuleCode(module, paths[module], OF_MODELS, function) for module, function in functions.items()]
    early = {slot.module for slot in tied if not slot.module._modules}  # others come after their children
    first = [code for code in codes if code.module in early]
    others = [code for code in codes if code.module not in early]
    return [Round(first, []), Round(others, tied)]  # a parent may fill what is tied, too

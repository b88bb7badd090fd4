"""Canonical names: what a parameter is called from a root, without what wrappers add to its path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Union

import torch
from torch import nn

# Children under these names stand for the wrapped module itself: torch.compile, FSDP1, activation checkpointing,
# Lightning Fabric (which has it twice, as given and as its strategy made it).
WRAPPED = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)


def is_model_wrapper(module: object) -> bool:
    """Tells whether ``module`` only wraps the model in its ``.module`` (DataParallel, DDP, mmengine's wrappers)."""
    return isinstance(module, wrapper_classes())


def wrapper_classes() -> tuple[type, ...]:
    """Returns the classes whose ``.module`` is the model, as far as they have been imported."""
    classes: list[type] = [nn.DataParallel, nn.parallel.DistributedDataParallel]
    # A module can only be an instance of what has been imported; we import nothing for it.
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        classes.append(fsdp.FullyShardedDataParallel)
    if mmengine := sys.modules.get("mmengine.registry"):
        registries = [mmengine.MODEL_WRAPPERS]
        for registry in registries:  # the list grows: child registries, such as mmdet's, and theirs
            classes.extend(each for each in registry.module_dict.values() if isinstance(each, type))
            registries.extend(registry.children.values())
    return tuple(classes)


def walk(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns (canonical path, module) for every place in the tree, parents first, a shared module for each place."""
    wrappers = wrapper_classes()
    found: list[tuple[str, nn.Module]] = []
    above: set[nn.Module] = set()  # a module that refers back to one it is in is not followed

    def visit(path: str, module: nn.Module) -> None:
        found.append((path, module))
        above.add(module)
        wraps = isinstance(module, wrappers)
        for name, child in module._modules.items():
            if child is not None and child not in above:
                skip = name in WRAPPED or (wraps and name == "module")
                visit(path if skip else join(path, name), child)
        above.discard(module)

    visit("", root)
    return found


def without_wrappers(name: str) -> str:
    """Returns the key of a state dict without what torch.compile and its like put into it."""
    if not any(part in name for part in WRAPPED):  # nearly always, and a model has thousands of names
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def original(module: nn.Module) -> nn.Module:
    """Returns the module that torch.compile and its like stand for, else ``module`` itself."""
    inside = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    return module if inside is None else original(inside)


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the model that a model wrapper, torch.compile and their like stand for, else ``module`` itself."""
    module = original(module)
    return unwrapped(module.module) if is_model_wrapper(module) else module  # type: ignore[arg-type]


def join(path: str, name: str) -> str:
    """Returns ``path.name``, or ``name`` where the path is empty."""
    return f"{path}.{name}" if path else name


def named_parameters(root: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Returns every parameter under ``root`` with its canonical names, the first (the key of its stream) in front.

    The order is that of ``root.named_parameters()``.
    """
    names: dict[torch.Tensor, list[str]] = {}
    for path, module in walk(root):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(join(path, name))
    return names


Prefix = Union[str, Mapping[str, str]]
"""What stands in front of the names under a root; or for each part of it, by its own name, its name in the whole."""


def renamed(name: str, prefix: Prefix) -> str:
    """Returns the name that a parameter has in the whole model.

    Of a map the longest entry counts that is the name itself or what it begins with, "" for all that no other is for.
    """
    if isinstance(prefix, str):
        return join(prefix.removesuffix("."), name)
    parts = name.split(".")
    for n in range(len(parts), -1, -1):
        whole = prefix.get(".".join(parts[:n]))
        if whole is not None:
            return join(whole.removesuffix("."), ".".join(parts[n:])) if n < len(parts) else whole
    return name


class Names:
    """The names of one outermost call: canonical from its root, with its prefix in front."""

    def __init__(self, root: nn.Module | None, prefix: Prefix = "") -> None:
        self.root = root
        self.prefix = prefix
        """As it was given: of the root."""
        self._roots = [] if root is None else [(root, prefix)]
        self._unnamed = 0
        self._tensors: dict[torch.Tensor, str] | None = None
        self._buffers: dict[torch.Tensor, str] = {}
        self._paths: dict[nn.Module, tuple[Prefix, str]] = {}

    def add(self, root: nn.Module, prefix: Prefix) -> None:
        """Takes in one more root, which came to be known while the call was running.

        Raises:
            RuntimeError: two parameters would have one name.
        """
        taken = set(self._table().values())
        if both := sorted(taken & {renamed(names[0], prefix) for names in named_parameters(root).values()}):
            raise RuntimeError(
                f"two roots have a parameter called {both[0]!r}: give each a prefix of its own, e.g. "
                f"recipe.bind({type(root).__name__.lower()}, prefix={type(root).__name__.lower()!r})"
            )
        self._roots.append((root, prefix))
        self.root = root if len(self._roots) == 1 else None
        self.renew()

    @property
    def n_roots(self) -> int:
        """How many roots are known so far."""
        return len(self._roots)

    def _table(self) -> dict[torch.Tensor, str]:
        # Made when first asked for: many calls (a functional init on one layer) need no names.
        if self._tensors is None:
            self._tensors = {}
            for root, prefix in self._roots:
                for path, module in walk(root):
                    self._paths.setdefault(module, (prefix, path))
                    for names, tensors in ((self._tensors, module._parameters), (self._buffers, module._buffers)):
                        for name, tensor in tensors.items():
                            if tensor is not None and tensor not in names:
                                whole = f"{path}.{name}" if path else name
                                names[tensor] = renamed(whole, prefix) if prefix else whole
        return self._tensors

    def renew(self) -> None:
        """Forgets the names: code that may have changed the modules has run."""
        self._tensors = None
        self._buffers.clear()
        self._paths.clear()

    def parameters(self) -> dict[torch.Tensor, str]:
        """Returns the parameters under the root, with their names."""
        return self._table()

    def buffers(self) -> dict[torch.Tensor, str]:
        """Returns the buffers under the root, with their names."""
        self._table()
        return self._buffers

    def knows(self, module: nn.Module) -> bool:
        """Tells whether ``module`` is under the root."""
        self._table()
        return module in self._paths

    def path_of(self, module: object) -> str:
        """Returns the canonical path of a module, "" for the root and for a module that is not under it."""
        self._table()
        return self._paths.get(module, ("", ""))[1] if isinstance(module, nn.Module) else ""

    def name_of(self, tensor: torch.Tensor, module: object, attribute: str) -> str:
        """Returns the name of ``module.attribute``; ``#k`` for the k-th tensor of the call that has none."""
        name = self._table().get(tensor)
        if name is None and isinstance(module, nn.Module) and module in self._paths:
            prefix, path = self._paths[module]
            name = renamed(join(path, attribute), prefix)
        return self.ordinal() if name is None else name

    def ordinal(self) -> str:
        """Returns ``#k``, the name of the k-th tensor of the call that has none."""
        self._unnamed += 1
        return f"#{self._unnamed - 1}"

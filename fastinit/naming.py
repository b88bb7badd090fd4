"""Canonical names: the path of a parameter from a root, without the parts that wrappers add."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Union

import torch
from torch import nn

from .errors import InitRuntimeError

# A child under one of these names is the wrapped module itself: torch.compile, FSDP1, activation checkpointing,
# Lightning Fabric (which keeps two, the original and its strategy's).
WRAPPED = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)


def is_model_wrapper(module: object) -> bool:
    """Tells whether ``module`` only wraps a model, which is its ``.module`` (DataParallel, DDP, FSDP1, mmengine's)."""
    return isinstance(module, wrapper_classes())


def wrapper_classes() -> tuple[type, ...]:
    """Returns the model wrapper classes that have been imported: those whose ``.module`` is the model."""
    return tuple(kind for source in wrapper_sources for kind in source())


def _wrappers_of_torch() -> Iterator[type]:
    yield nn.DataParallel
    yield nn.parallel.DistributedDataParallel
    # Importing it takes long, and a module can only be an instance of an imported class.
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        yield fsdp.FullyShardedDataParallel


wrapper_sources: list[Callable[[], Iterable[type]]] = [_wrappers_of_torch]
"""Functions that return model wrapper classes; integrations append their library's."""


Walk = list[tuple[str, nn.Module]]
"""Every place in a tree of modules: its canonical path and the module there."""


def walk(root: nn.Module) -> Walk:
    """Returns (canonical path, module) for every place in the tree, parents first; shared modules appear repeatedly."""
    wrappers = wrapper_classes()
    found: Walk = []
    _visit("", root, wrappers, set(), found)
    return found


def _visit(path: str, module: nn.Module, wrappers: Any, above: set[nn.Module], found: list[Any]) -> None:
    found.append((path, module))
    if not module._modules:
        return
    above.add(module)  # cycles are not followed
    for name, child in module._modules.items():
        if child is not None and child not in above:
            # The check of classes comes last: some are abstract, which makes it slow.
            skip = name in WRAPPED or (name == "module" and isinstance(module, wrappers))
            _visit(path if skip else join(path, name), child, wrappers, above, found)
    above.discard(module)


def without_wrappers(name: str) -> str:
    """Returns a key of a state dict without the parts that torch.compile and other wrappers insert."""
    if not any(part in name for part in WRAPPED):  # the common case, and a model has thousands of names
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def original(module: nn.Module) -> nn.Module:
    """Returns the module inside torch.compile's wrapper (or another of ``WRAPPED``), else ``module`` itself."""
    inside = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    return module if inside is None else original(inside)


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the model inside all wrappers (``original``, ``is_model_wrapper``), else ``module`` itself."""
    module = original(module)
    return unwrapped(module.module) if is_model_wrapper(module) else module  # type: ignore[arg-type]


def join(path: str, name: str) -> str:
    """Returns ``path.name``, or ``name`` if the path is empty."""
    return f"{path}.{name}" if path else name


def named_parameters(root: nn.Module) -> dict[torch.Tensor, list[str]]:
    """Returns every parameter under ``root`` with its canonical names, in the order of ``root.named_parameters()``.

    The first name of a parameter is its stream name.
    """
    names: dict[torch.Tensor, list[str]] = {}
    for path, module in walk(root):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(join(path, name))
    return names


Prefix = Union[str, Mapping[str, str]]
"""A prefix for all names under a root; or a map from names of its parts to their names in the larger model."""


def renamed(name: str, prefix: Prefix) -> str:
    """Returns a parameter's name in the larger model.

    In a map the longest matching entry applies: the name itself or one of its parents. "" matches every name.
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
    """The names of one outermost call: canonical paths from its root, behind its prefix."""

    def __init__(self, root: nn.Module | None, prefix: Prefix = "") -> None:
        self.root = root
        self.prefix = prefix
        """The root's, as the user gave it."""
        self._roots = [] if root is None else [(root, prefix)]
        self._unnamed = 0
        self._tensors: dict[torch.Tensor, str] | None = None
        self._buffers: dict[torch.Tensor, str] = {}
        self._in_order: list[str] = []
        self._paths: dict[nn.Module, tuple[Prefix, str]] = {}

    def add(self, root: nn.Module, prefix: Prefix) -> None:
        """Adds a root that became known during the call.

        Raises:
            RuntimeError: two parameters would have the same name.
        """
        taken = set(self._table().values())
        if taken and (both := sorted(taken & {renamed(names[0], prefix) for names in named_parameters(root).values()})):
            raise InitRuntimeError(
                f"two roots have a parameter called {both[0]!r}",
                hint=f": give each its own prefix, e.g. "
                f"recipe.bind({type(root).__name__.lower()}, prefix={type(root).__name__.lower()!r})",
            )
        self._roots.append((root, prefix))
        self.root = root if len(self._roots) == 1 else None
        self.renew()

    @property
    def n_roots(self) -> int:
        """The number of roots known so far."""
        return len(self._roots)

    def _table(self) -> dict[torch.Tensor, str]:
        # Computed on first use: many calls (a functional init on one layer) need no names.
        if self._tensors is None:
            self._tensors = {}
            for root, prefix in self._roots:
                for path, module in walk(root):
                    self._paths.setdefault(module, (prefix, path))
                    if module._parameters:
                        self._note(module._parameters, self._tensors, path, prefix)
                    if module._buffers:
                        self._note(module._buffers, self._buffers, path, prefix)
        return self._tensors

    def _note(
        self,
        tensors: Mapping[str, torch.Tensor | None],
        names: dict[torch.Tensor, str],
        path: str,
        prefix: Prefix,
    ) -> None:
        """Adds the names of a module's own tensors; the first name of a tensor counts."""
        for name, tensor in tensors.items():
            if tensor is not None and tensor not in names:
                whole = join(path, name)
                names[tensor] = whole = renamed(whole, prefix) if prefix else whole
                self._in_order.append(whole)

    def renew(self) -> None:
        """Drops the cached names, after code has run that may have changed the modules."""
        self._tensors = None
        self._buffers.clear()
        self._in_order.clear()
        self._paths.clear()

    def parameters(self) -> dict[torch.Tensor, str]:
        """Returns the parameters under the roots, with their names."""
        return self._table()

    def buffers(self) -> dict[torch.Tensor, str]:
        """Returns the buffers under the roots, with their names."""
        self._table()
        return self._buffers

    def in_order(self) -> tuple[str, ...]:
        """Returns the names of parameters and buffers, those of a module together, modules in the model's order."""
        self._table()
        return tuple(self._in_order)

    def non_persistent(self) -> tuple[str, ...]:
        """Returns the names of the buffers under the roots that ``state_dict()`` leaves out."""
        parameters = self._table()
        kept = {
            tensor
            for module in self._paths
            for attribute, tensor in module._buffers.items()
            if attribute not in module._non_persistent_buffers_set
        }
        return tuple(name for tensor, name in self._buffers.items() if tensor not in kept and tensor not in parameters)

    def knows(self, module: nn.Module) -> bool:
        """Tells whether ``module`` is under one of the roots."""
        self._table()
        return module in self._paths

    def path_of(self, module: object) -> str:
        """Returns the canonical path of a module, "" for a root and for an unknown module."""
        self._table()
        return self._paths.get(module, ("", ""))[1] if isinstance(module, nn.Module) else ""

    def name_of(self, tensor: torch.Tensor, module: object, attribute: str) -> str:
        """Returns the name of ``module.attribute``, or ``#k`` for the k-th unnamed tensor of the call."""
        name = self._table().get(tensor)
        if name is None and isinstance(module, nn.Module) and module in self._paths:
            prefix, path = self._paths[module]
            name = renamed(join(path, attribute), prefix)
        return self.ordinal() if name is None else name

    def ordinal(self) -> str:
        """Returns ``#k`` behind the prefix, for the next unnamed tensor of the call."""
        self._unnamed += 1
        ordinal = f"#{self._unnamed - 1}"
        if not self.prefix or isinstance(self.prefix, str):
            return renamed(ordinal, self.prefix)
        # A map gives no tensor without a name a new one; but parts of a model that differ in it must differ here, too.
        parts = ", ".join(f"{name}: {whole}" for name, whole in sorted(self.prefix.items()))
        return join(f"{{{parts}}}", ordinal)

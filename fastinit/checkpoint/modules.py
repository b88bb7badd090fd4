"""Loads a state dict into a model: finds the modules' tensors and loading code, and walks through the modules.

The walk reproduces torch's own loading code in one pass, but collects the copies instead of making them. If a module
has loading code or hooks of its own, the pending copies run first, so that its code finds all earlier values in place.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..errors import InitRuntimeError
from ..naming import WRAPPED, wrapper_classes
from ..plans import names_line
from .messages import listed
from .mmengine_tta import tta_classes
from .storage.copying import Copies, Failed, partly_loaded
from .storage.current import Loading
from .storage.stored import StoredTensor

_EXTRA_STATE = "_extra_state"
# torch's own loading code, which the walk reproduces.
_KNOWN_CODE = (nn.Module._load_from_state_dict, nn.BatchNorm1d._load_from_state_dict)


class Slot(NamedTuple):
    """Where a module holds a parameter or a persistent buffer."""

    path: str
    """Of the module in the model."""
    attribute: str
    """The tensor's name in the module."""
    tensors: dict[str, Any]
    """The module's parameters, or its buffers."""
    tensor: torch.Tensor
    name_in_file: str
    """Its key in a state dict for this model: wrappers with hooks add their part to keys themselves."""
    name: str
    """Path and attribute, joined: its name in the model."""


@dataclass
class Tree:
    """The tensors and modules of a model."""

    slots: list[Slot] = field(default_factory=list)
    """The parameters and persistent buffers, by the keys of the model's state dict."""
    paths: dict[str, nn.Module] = field(default_factory=dict)
    """All modules by their path."""
    own_code: dict[str, nn.Module] = field(default_factory=dict)
    """Modules with loading code or hooks of their own, by their path in a state dict for this model."""
    extra_states: list[str] = field(default_factory=list)
    """Keys of the modules' extra state."""

    @staticmethod
    def of(module: nn.Module) -> Tree:
        """Collects the tensors and modules of a model; wrappers such as DDP are unwrapped."""
        tree = Tree()
        tree._visit(module, "", "", unwrapper())
        return tree

    # A method, as a recursive inner function is a reference cycle that would keep the model alive until a collection.
    def _visit(self, here: nn.Module, prefix: str, asked: str, unwrap: Callable[[nn.Module], nn.Module]) -> None:
        path = prefix[:-1]
        here = self.paths[path] = unwrap(here)
        for name, tensor in here._parameters.items():
            if tensor is not None:
                self.slots.append(Slot(path, name, here._parameters, tensor, asked + name, prefix + name))
        for name, buffer in here._buffers.items():
            if buffer is not None and name not in here._non_persistent_buffers_set:
                self.slots.append(Slot(path, name, here._buffers, buffer, asked + name, prefix + name))
        if has_own_code(here):
            self.own_code[asked[:-1]] = here
            if type(here).get_extra_state is not nn.Module.get_extra_state:
                self.extra_states.append(asked + _EXTRA_STATE)
        for name, child in here._modules.items():
            if child is not None:
                by_itself = name in WRAPPED and here._load_state_dict_pre_hooks
                self._visit(child, f"{prefix}{name}.", asked if by_itself else f"{asked}{name}.", unwrap)


def unwrapper() -> Callable[[nn.Module], nn.Module]:
    """Returns a function that unwraps a model from DDP or another wrapper; it looks at each class once."""
    wrappers = (*wrapper_classes(), *tta_classes())
    known: dict[type, bool] = {}

    def unwrap(module: nn.Module) -> nn.Module:
        kind = type(module)
        if kind not in known:
            known[kind] = issubclass(kind, wrappers)
        return module.module if known[kind] else module  # type: ignore[return-value]

    return unwrap


def has_own_code(module: nn.Module) -> bool:
    """Returns whether loading this module involves more than torch's own code."""
    kind = type(module)
    return bool(
        kind._load_from_state_dict not in _KNOWN_CODE
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
        or kind.set_extra_state is not nn.Module.set_extra_state
        or kind.get_extra_state is not nn.Module.get_extra_state
        or "_load_from_state_dict" in vars(module)
    )


def swaps_parameters() -> bool:
    """Returns whether torch is set to load by swapping parameters, which only its own code does."""
    # Before torch 2.3 there is no such setting.
    swaps = getattr(torch.__future__, "get_swap_module_params_on_conversion", None)
    return bool(swaps and swaps())


@dataclass
class Mismatches:
    """The keys and tensors that do not match."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """In torch's words."""
    source: str = ""
    """What does not match what, for the message; "": a state dict that nothing is known of."""

    @property
    def of_other_shape(self) -> tuple[str, ...]:
        """The names whose shapes differ."""
        found = (re.match(r"size mismatch for (\S+):", error) for error in self.errors)
        return tuple(each[1] for each in found if each)

    def text(self, missing: Sequence[str]) -> str:
        """Returns one message about all mismatches, "" if there are none."""
        problems = [*self.errors]
        if self.unexpected:
            problems.append(f"unexpected key in source state_dict: {listed(self.unexpected)}\n")
        if missing:
            problems.append(f"missing keys in source state_dict: {', '.join(missing)}\n")
        if not problems:
            return ""
        return "\n".join([f"{self.source}The model and loaded state dict do not match exactly\n", *problems])


class Descent:
    """One walk through a model: each module takes its part of a state dict, at once or as pending copies.

    Args:
        metadata: the versions of modules in the file.
        current: the load; None: only mismatches are wanted, of a model without own code, and nothing is committed.
        assign: the file's tensors replace the model's.
        strict: a mismatch is an error.
        source: as of ``Mismatches``.
    """

    def __init__(
        self, metadata: Mapping[str, Any], current: Loading | None, assign: bool, strict: bool, source: str = ""
    ) -> None:
        self.found = Mismatches(source=source)
        self._metadata = metadata
        self._current = current
        self._assign = assign
        self._strict = strict
        self._unwrap = unwrapper()
        self._copies = Copies()
        self._assigned: list[tuple[nn.Module, str, torch.Tensor]] = []
        self._ran: list[str] = []
        """The modules whose own code ran."""
        self._has_written = False
        self._swaps = swaps_parameters()

    def run(self, module: nn.Module, state: OrderedDict[str, Any]) -> None:
        """Walks through ``module``, whose code may change the state dict."""
        self._visit(module, state, "")

    def commit(self) -> None:
        """Runs the pending copies and assignments.

        Raises:
            RuntimeError: ``strict``, and something does not match.
            OSError, RuntimeError: as ``Copies.make``.
        """
        self._stop_if_strict()
        if self._copies:
            try:
                refused = self._copies.make(all_or_nothing=self._strict)
            except (OSError, RuntimeError) as error:
                raise (partly_loaded(error) if self._has_written else error) from error.__cause__
            self._has_written = True
            if self._current is not None and self._current.failure is not None:  # in a copy that another library made
                raise self._current.failure
            self.found.errors.extend(map(_refusal, refused))
            self._stop_if_strict()
        assigned, self._assigned = self._assigned, []
        for module, name, tensor in assigned:
            setattr(module, name, tensor)

    def _stop_if_strict(self) -> None:
        if self._strict and self.found.errors:
            raise InitRuntimeError(self.found.text([]) + self.own_code_line())

    def own_code_line(self) -> str:
        """Returns the line for an error about modules whose own code has already run, "" if none has."""
        if not self._ran:
            return ""
        line = names_line("modules ran loading code or hooks of their own", self._ran)
        return f"\nThe model may be partly loaded: {line}"

    def _visit(self, here: nn.Module, state: dict[str, Any], prefix: str) -> None:
        here = self._unwrap(here)
        local = self._metadata.get(prefix[:-1], {})
        children: Mapping[str, dict[str, Any]]
        if self._swaps or has_own_code(here):
            self.commit()
            self._by_own_code(here, state, prefix, local)
            _, children = _split(state, prefix)
        else:
            children = self._by_torchs_code(here, state, prefix, local)
        for name, child in here._modules.items():
            if child is not None:
                inner = f"{prefix}{name}."
                if "." in name:  # add_module refuses such names
                    below = {key: value for key, value in state.items() if key.startswith(inner)}
                else:
                    below = children.get(name, {})
                self._visit(child, below, inner)
        if here._load_state_dict_post_hooks:
            self.commit()
            keys = _IncompatibleKeys(self.found.missing, self.found.unexpected)
            for hook in here._load_state_dict_post_hooks.values():
                result = hook(here, keys)
                assert result is None, (
                    "a load_state_dict post hook must change the lists of keys in place and return None, but "
                    f"{hook} returned {result!r}"
                )

    def _by_own_code(self, here: nn.Module, state: dict[str, Any], prefix: str, local: Mapping[str, Any]) -> None:
        given = {**local, "assign_to_params_buffers": True} if self._assign else dict(local)
        found = self.found
        self._ran.append(f"{type(here).__name__} {prefix[:-1]!r}")
        here._load_from_state_dict(  # type: ignore[no-untyped-call]
            state, prefix, given, True, found.missing, found.unexpected, found.errors
        )
        if self._current is not None and (failure := self._current.failure) is not None:
            raise (partly_loaded(failure) if self._has_written else failure) from failure.__cause__
        self._has_written = True

    def _by_torchs_code(
        self, here: nn.Module, state: dict[str, Any], prefix: str, local: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Does the work of ``nn.Module._load_from_state_dict`` with pending copies; returns each child's part."""
        held: dict[str, torch.Tensor] = {name: each for name, each in here._parameters.items() if each is not None}
        transient = here._non_persistent_buffers_set
        for name, each in here._buffers.items():
            if each is not None and name not in transient:
                held[name] = each
        own, children = _split(state, prefix)
        absent = _counter_of_old_files(here, local)
        for name, tensor in held.items():
            if name in own:
                self._note(here, name, tensor, prefix + name, own[name])
            elif name != absent:
                self.found.missing.append(prefix + name)
        if own or children:
            self._note_unexpected(here, state, prefix, held)
        return children

    def _note_unexpected(
        self, here: nn.Module, state: dict[str, Any], prefix: str, held: Mapping[str, torch.Tensor]
    ) -> None:
        extra = prefix + _EXTRA_STATE
        if extra in state:
            self.found.unexpected.append(extra)
        for key in state:
            if key.startswith(prefix) and key != extra:
                name, dot, _ = key[len(prefix) :].partition(".")
                if name not in (here._modules if dot else held):
                    self.found.unexpected.append(key)

    def _note(self, here: nn.Module, name: str, tensor: torch.Tensor, key: str, value: Any) -> None:
        errors = self.found.errors
        if not isinstance(value, torch.Tensor) and not torch.overrides.is_tensor_like(value):  # type: ignore[no-untyped-call]
            errors.append(
                f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like object from '
                f"checkpoint but received {type(value)}"
            )
            return
        shape = value.geometry.shape if type(value) is StoredTensor else value.shape
        if not nn.parameter.is_lazy(tensor) and shape != tensor.shape:
            if tensor.dim() == 0 and tuple(shape) == (1,):  # scalars had one dimension before torch 0.4
                value = value[0]
            else:
                errors.append(
                    f"size mismatch for {key}: copying a param with shape {torch.Size(shape)} from checkpoint, "
                    f"the shape in current model is {tensor.shape}."
                )
                return
        try:
            if self._assign:
                if self._current is None:
                    return
                with torch.no_grad():
                    self._assigned.append((here, name, _as_held(tensor, value)))
            else:
                self._copies.add(tensor, value, key)
        except Exception as error:
            errors.append(_refusal(Failed(key, tensor, value, error)))


def _split(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Splits a module's part of a state dict: its own values by name, and its children's by child name and key."""
    own: dict[str, Any] = {}
    children: dict[str, dict[str, Any]] = {}
    n = len(prefix)
    for key, value in state.items():
        if key.startswith(prefix):
            name, dot, _ = key[n:].partition(".")
            if dot:
                children.setdefault(name, {})[key] = value
            else:
                own[name] = value
    return own, children


def _counter_of_old_files(module: nn.Module, local: Mapping[str, Any]) -> str | None:
    """Returns the counter of batch normalization if the file predates it (version 2); torch then keeps its value."""
    if type(module)._load_from_state_dict is not nn.BatchNorm1d._load_from_state_dict:
        return None
    version = local.get("version")
    tracks = (version is None or version < 2) and module.track_running_stats
    return "num_batches_tracked" if tracks else None


def _as_held(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Returns the tensor that replaces ``tensor`` in its module when ``value`` is adopted."""
    if not isinstance(tensor, nn.Parameter):
        return value
    if not isinstance(value, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value.requires_grad_(tensor.requires_grad)  # type: ignore[return-value]


def _refusal(failed: Failed) -> str:
    size = "unknown" if nn.parameter.is_lazy(failed.destination) else failed.destination.size()
    return (
        f'While copying the parameter named "{failed.name}", whose dimensions in the model are {size} and '
        f"whose dimensions in the checkpoint are {failed.source.size()}, an exception occurred : {failed.error.args}."
    )

"""Where every parameter's values came from, known from what was written and not from reading parameters back.

fastinit knows its own fills. Code that it cannot see into (a user's ``init_weights``, an initializer with a
``__call__`` of its own) is watched: which parameters does it write in place, which get other memory
(``p.data = ...``)? Writes to ``.data`` that torch's Python functions do not see stay unseen: through numpy views, by
``apply_``, in scripted functions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..plans import byte_span

logger = logging.getLogger("fastinit")


class ParameterInfo(dict[str, Any]):
    """``init_info`` of one parameter, and ``tmp_mean_value``, which mmengine keeps and we compute only when asked."""

    __slots__ = ("_parameter",)  # there is one for each parameter

    def __init__(self, parameter: torch.Tensor, init_info: str) -> None:
        self["init_info"] = init_info
        self._parameter = parameter

    def __missing__(self, key: str) -> Any:
        if key != "tmp_mean_value":
            raise KeyError(key)
        return self._parameter.detach().mean().cpu()


class Provenance(dict[torch.Tensor, ParameterInfo]):
    """Maps every parameter under a root to its ``ParameterInfo``.

    It stands in the ``_params_init_info`` of the modules while a BaseModule tree is initialized, as mmengine's does.
    """

    def __init__(self, parameters: Mapping[torch.Tensor, str], default_info: str) -> None:
        super().__init__((parameter, ParameterInfo(parameter, default_info)) for parameter in parameters)
        self.written: set[torch.Tensor] = set()
        """Parameters that were written since the beginning, by whom ever."""
        self._watch: _Watch | None = None
        """Made when foreign code first runs."""
        self.is_closed = False
        """The initialization is over; a copy of a module that was made meanwhile may still refer to these books."""

    def __deepcopy__(self, memo: object) -> Provenance:
        copied = Provenance({}, "")  # the copy of a module is not being initialized
        copied.is_closed = True
        return copied

    def record(self, tensor: torch.Tensor, info: str) -> None:
        """Notes that ``info`` wrote a tensor; one that is no parameter of the root is not tracked."""
        if tensor in self:
            self[tensor]["init_info"] = info
            self.written.add(tensor)
            if self._watch is not None:
                self._watch.attributed(tensor)

    def adopt(self, parameters: Iterable[torch.Tensor], info: str) -> None:
        """Takes in parameters that foreign code has put into the modules."""
        for parameter in parameters:
            if parameter not in self:
                self[parameter] = ParameterInfo(parameter, info)
                self.written.add(parameter)
                if self._watch is not None:
                    self._watch.add(parameter)

    @contextmanager
    def attributing(self, module: nn.Module, info: str) -> Iterator[None]:
        """Attributes what the code in the block writes to ``info``, unless something within it claims it first.

        ``module`` is the one whose parameters may also get other memory (``p.data = ...``) in the block.
        """
        if self._watch is None:
            self._watch = _Watch(self)
        watch = self._watch
        watch.unclaimed.append(set())
        try:
            if len(watch.unclaimed) > 1:  # nested: the mode is installed already
                yield
            else:
                with watch:
                    yield
            self.claim(module, info)
            for parameter in tuple(watch.unclaimed[-1]):
                self.record(parameter, info)
        finally:
            watch.unclaimed.pop()

    def claim(self, module: nn.Module, info: str) -> None:
        """Attributes to ``info`` what the foreign code that is running wrote so far in the parameters of ``module``."""
        if self._watch is not None and self._watch.unclaimed:
            for parameter in module.parameters():
                if parameter in self and self._watch.saw_a_write(parameter):
                    self.record(parameter, info)


class _Watch(TorchFunctionMode):
    """Collects which of the given parameters the code in a block writes.

    An in-place operation counts up the version of the tensor that it is called on. For a parameter itself and its
    views that is the parameter's own; ``p.data`` has another, so the arguments of every call are looked at. (A
    dispatch mode would see the operators themselves, but its first use imports 800 modules: most of a second.)
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.unclaimed: list[set[torch.Tensor]] = []
        """What was written and not yet attributed, one set for each block that is being watched, the innermost last."""
        self._marks: dict[torch.Tensor, tuple[int, int]] = {}
        """(version, address of the storage) when last looked at."""
        self._parameters_in: dict[int, list[torch.Tensor]] = {}
        for parameter in parameters:
            self.add(parameter)

    def add(self, parameter: torch.Tensor) -> None:
        """Watches one more parameter from here on."""
        self._marks[parameter] = _mark(parameter)
        self._parameters_in.setdefault(self._marks[parameter][1], []).append(parameter)

    def attributed(self, parameter: torch.Tensor) -> None:
        """Forgets the writes to ``parameter`` so far."""
        for unclaimed in self.unclaimed:
            unclaimed.discard(parameter)
        before, now = self._marks[parameter][1], _mark(parameter)
        if before != now[1]:
            self._parameters_in[before] = [other for other in self._parameters_in[before] if other is not parameter]
            self._parameters_in.setdefault(now[1], []).append(parameter)
        self._marks[parameter] = now

    def saw_a_write(self, parameter: torch.Tensor) -> bool:
        """Tells whether ``parameter`` was written, or got other memory, and nobody has claimed that yet."""
        return parameter in self.unclaimed[-1] or self._marks[parameter] != _mark(parameter)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [(tensor, version_of(tensor)) for tensor in tensors_in((*args, *kwargs.values()))]
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # others may watch who asks for addresses
            for tensor, version in tensors:
                if version_of(tensor) != version:
                    self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        if tensor in self._marks:
            self.unclaimed[-1].add(tensor)
        storage = _storage_address(tensor)
        if storage:  # views, `.data` and fused memory: whatever shares bytes with what was written
            start, end = byte_span(tensor)
            for parameter in self._parameters_in.get(storage, ()):
                other_start, other_end = byte_span(parameter)
                if start < other_end and other_start < end:
                    self.unclaimed[-1].add(parameter)


def tensors_in(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yields the tensors among arguments, those in lists and tuples too."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from tensors_in(argument)


def version_of(tensor: torch.Tensor) -> int:
    """Returns how often a tensor was written in place; -1 for a lazy parameter, until it has a shape."""
    if nn.parameter.is_lazy(tensor):
        return -1
    # Inference tensors count no versions; they are no parameters that anyone trains.
    return 0 if tensor.is_inference() else tensor._version


def _mark(parameter: torch.Tensor) -> tuple[int, int]:
    return version_of(parameter), _storage_address(parameter)


def _storage_address(tensor: torch.Tensor) -> int:
    """Returns where the tensor's storage begins, 0 where it has none to compare (meta, uninitialized, wrappers)."""
    try:
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_nested:
            return 0
        with torch._C.DisableTorchFunction():  # others may watch who asks for addresses
            return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):
        return 0


def update_init_info(module: nn.Module, init_info: str) -> None:
    """Attributes what was written in the parameters of ``module`` since the last attribution to ``init_info``.

    For code within an ``init_weights``: it says in the log where the values came from. Follows
    ``mmengine.model.update_init_info``; under an mmengine tree it compares means, as that does.

    Raises:
        AssertionError: ``module`` is not being initialized, or it has a parameter that was not there in the beginning.
    """
    if not hasattr(module, "_params_init_info"):
        raise AssertionError(f"Can not find `_params_init_info` in {module}")
    known: Any = module._params_init_info
    check_no_new_parameters(module, known)
    if isinstance(known, Provenance):
        known.claim(module, init_info)
        return
    for parameter in module.parameters():
        mean = parameter.detach().mean().cpu()
        entry = known[parameter]
        if entry["tmp_mean_value"] != mean:
            entry["init_info"] = init_info
            entry["tmp_mean_value"] = mean


def check_no_new_parameters(module: nn.Module, known: Mapping[torch.Tensor, Any]) -> None:
    """Raises AssertionError if ``module`` has a parameter that was not there when initialization began."""
    for name, parameter in module.named_parameters():
        if parameter not in known:
            raise AssertionError(
                f"Find a new :obj:`Parameter` named `{name}` during executing the `init_weights` of "
                f"`{type(module).__name__}`. Please do not add or replace parameters during executing the "
                f"`init_weights`. "
            )


def log_provenance(provenance: Provenance, names: Mapping[torch.Tensor, str]) -> None:
    """Logs one line for each parameter at INFO on the logger ``fastinit``, on rank 0 only.

    ``logging.getLogger("fastinit").setLevel("WARNING")`` silences it; a FileHandler writes it to a file.
    """
    if not logger.isEnabledFor(logging.INFO) or not is_rank_zero():
        return
    for parameter, name in names.items():
        if parameter in provenance:
            shape = "uninitialized" if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
            logger.info("%s - %s: %s", name, shape, provenance[parameter]["init_info"])


def is_rank_zero() -> bool:
    """Tells whether this process is the one that reports."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0

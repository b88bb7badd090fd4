"""The scope of a call: whose names, seed and backend count, and how strict it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import nn

from ..backends import AUTO, BACKENDS, Choice, device_type
from ..contract.streams import check_seed
from ..errors import InitRuntimeError, InitTypeError, warn_user
from ..naming import Names, Prefix
from ..plans import Call, Copy, Item, names_line, written_in_full
from ..shards.dtensor import is_sharded, mesh_of
from .defaults import Strict, check_strict, default_backend, default_seed, default_strict
from .seeds import CallSeed


class OpenCheckpoints:
    """The checkpoints that a call has opened to plan with, and is going to load."""

    def __init__(self, is_offline: bool = False) -> None:
        self.is_offline = is_offline
        """Nothing may be downloaded."""
        self._opened: dict[int, tuple[object, Any]] = {}
        """By the id of a request: it, and what was read of its checkpoint."""
        self._ahead: list[tuple[object, Any]] = []

    def tree(self, request: object, read: Callable[[], Any]) -> Any:
        """Returns what ``read`` gives of a request's checkpoint, which is read once."""
        if id(request) not in self._opened:
            at = next((at for at, (each, _) in enumerate(self._ahead) if each == request), None)
            self._opened[id(request)] = request, read() if at is None else self._ahead.pop(at)[1]
        return self._opened[id(request)][1]

    def take(self, request: object) -> Any:
        """Returns what was read of a request's checkpoint, and forgets it; None if nothing was."""
        return self._opened.pop(id(request), (None, None))[1]

    def keep_ahead(self) -> None:
        """Keeps what was read so far for equal requests: those of configs that are going to be parsed again."""
        self._ahead += self._opened.values()
        self._opened.clear()


class Scope:
    """What holds for one call. A call within a larger one that initializes a part of it shares the larger one's names.

    Args:
        root: the module whose names count; None for tensors that have no names.
        outer: the scope of the innermost call that is open.
        backend, seed, prefix, strict: as the user gave them.
        devices: of the tensors that will be filled; None: those of ``root``.
        is_dry: only a plan is wanted: the call takes no seed of ``use``.
        is_offline: nothing may be downloaded.
        meta: the device for which the meta device stands in a plan.
    """

    def __init__(
        self,
        root: nn.Module | None,
        outer: Scope | None,
        *,
        backend: str | None = None,
        seed: int | None = None,
        prefix: Prefix = "",
        strict: Strict | None = None,
        devices: Set[torch.device] | None = None,
        is_dry: bool = False,
        is_offline: bool = False,
        meta: torch.device | None = None,
    ) -> None:
        if not isinstance(prefix, (str, Mapping)):
            raise InitTypeError(f"prefix must be a str or a map of names, but got {prefix!r} of {type(prefix)}")
        # A block in another one that brings a seed has names of its own: under two seeds, one name is two streams.
        is_part = outer is not None and not prefix
        if is_part:
            is_part = seed is None if root is None else outer.names.knows(root)  # type: ignore[union-attr]
        self.root = root
        self.outer = outer
        self._devices = devices
        self.names: Names = outer.names if outer is not None and is_part else Names(root, prefix)
        if backend is None:
            backend = outer.backends.asked if outer is not None else default_backend()
        self.backends: Choice = Choice(backend, meta, "" if outer is None else outer.backends.needed)
        given = None if seed is None else check_seed(seed)
        self.asked_seed = given
        """The seed that this very call was given; None where it is that of ``use`` or of a larger call."""
        if given is None and outer is None:
            given = default_seed(own_names=bool(prefix), take=not is_dry)
        draws = backend == AUTO or BACKENDS[backend].IS_CONTRACT
        self.seed: CallSeed = CallSeed(
            given, draws=draws, outer=None if outer is None else outer.seed, shares_fills=is_part
        )
        if strict is None:
            strict = default_strict() if outer is None else outer.strict
        self.strict: Strict = check_strict(strict)
        """What has no effect is an error: a rule that matches nothing, a checkpoint that nothing is copied from; and an
        unnamed draw. "complete": a parameter that nothing is known to write, too."""
        self.warned: set[str] = set() if outer is None else outer.warned
        self.launches: dict[torch.device, int] = outer.launches if outer is not None and is_part else {}
        """How often kernels were started, device by device; torch's own are not counted."""
        self.checkpoints = OpenCheckpoints(is_offline)
        self.has_written = False
        """Something may have been written, here or in a call within this one."""

    @property
    def is_part(self) -> bool:
        """Whether what the outer call initializes holds what is initialized here."""
        return self.outer is not None and self.names is self.outer.names

    @property
    def path(self) -> str:
        """Where this call's own root is: its path in the names."""
        return self.names.path_of(self.root)

    @property
    def effective(self) -> Scope:
        """The scope whose seed and backend count: that of the larger call, unless this one brings its own."""
        outer = self.outer
        is_own = self.seed.given is not None or outer is None or self.backends.differs_from(outer.backends)
        return self if is_own or outer is None or not self.is_part else outer.effective

    @property
    def prefix(self) -> Prefix:
        """What the user put in front of the names under ``root``."""
        return "" if self.is_part else self.names.prefix

    def note_write(self) -> None:
        """Notes that something is going to be written, in the larger calls too."""
        scope: Scope | None = self
        while scope is not None and not scope.has_written:
            scope.has_written = True
            scope = scope.outer

    def parameters(self) -> dict[torch.Tensor, str]:
        """Returns the parameters under this call's own root, with their names."""
        names = self.names.parameters()
        if self.root is None or self.root is self.names.root:
            return names
        return {tensor: names[tensor] for tensor in self.root.parameters() if tensor in names}

    def meshes(self) -> dict[Any, list[str]]:
        """Returns the meshes of the distributed parameters and buffers under this call's own root, with their names."""
        found: dict[Any, list[str]] = {}
        for tensor in self._tensors():
            if is_sharded(tensor):
                name = self.names.parameters().get(tensor) or self.names.buffers().get(tensor, "")
                found.setdefault(mesh_of(tensor), []).append(name)
        return found

    @property
    def devices(self) -> Set[torch.device]:
        """Of the tensors that are filled: those under this call's own root, if none were given."""
        return {tensor.device for tensor in self._tensors()} if self._devices is None else self._devices

    def _tensors(self) -> Iterable[torch.Tensor]:
        """Returns the parameters and buffers under this call's own root."""
        if self.root is None:
            return ()
        if self.root is self.names.root:  # whose tensors are known by name already
            return (*self.names.parameters(), *self.names.buffers())
        return (*self.root.parameters(), *self.root.buffers())

    # --- what has no effect -------------------------------------------------------------------------------------------

    def matches_nothing(self, rule: str, kind: str, message: str, hint: str = "") -> None:
        """Warns that a rule has no effect; in a strict call, raises RuntimeError.

        Args:
            rule: its place in the config, which the caller puts in front of errors.
            kind: the class of its initializer; "": it is none's.
            message: what it does not match.
            hint: the end of the message: what was probably meant.
        """
        if self.strict:
            error = InitRuntimeError(f"{f'{kind}: ' if kind else ''}{message}{hint} (an error under strict)")
            error.hint = hint.strip().lstrip(" .,;:") or None
            raise error
        self.warn_once(f"{rule} ({kind})" if kind else rule, message + hint)

    def check_complete(self, items: Iterable[Item]) -> None:
        """Raises RuntimeError in a "complete" call if none of the items is known to write a parameter.

        Code of others may write whatever is below the module that it is called for.
        """
        if self.strict == "complete" and (left := self.not_reached(items)):
            raise InitRuntimeError(
                f"strict='complete': {names_line('parameters that no rule reaches', left)}",
                hint=f". Add rules for them, e.g. dict(type='Constant', val=0, param={left[0]!r})",
            )

    def not_reached(self, items: Iterable[Item]) -> list[str]:
        """Returns the names of the parameters that no item can write."""
        items = list(items)
        written = written_in_full(items)
        for item in items:
            if isinstance(item, Call) or (isinstance(item, Copy) and (item.unknown or item.runs_own_code)):
                written.update(item.module.parameters())
        return [name for tensor, name in self.parameters().items() if tensor not in written]

    def warn_once(self, where: str, message: str, cause: str = "") -> None:
        """Issues a UserWarning, for the same cause only once in an outermost call, wherever it comes up again.

        Args:
            where: the place, which is put in front.
            message: what is wrong.
            cause: what stands for all messages of one cause; "": the message does.
        """
        if (cause or message) not in self.warned:
            self.warned.add(cause or message)
            warn_user(f"{where}: {message}")

    def torch_draws_on_mesh(self, where: str, what: str, device: torch.device) -> None:
        """Warns of a draw by torch into a distributed tensor if only "auto" chose torch; once in an outermost call.

        Args:
            where: the place that asks for the draw.
            what: the tensor, as the message has it.
            device: where it is.
        """
        device = self.backends.placed(device)
        if self.backends.asked != AUTO or device.type == "meta":  # who plans without a device may fill on another
            return
        able = [name for name, each in BACKENDS.items() if each.IS_CONTRACT and device_type(name) == device.type]
        hint = f": pass backend={' or '.join(map(repr, able))} for the same values on every mesh" if able else ""
        self.warn_once(
            where,
            f"{what} is distributed over ranks, and 'auto' has torch draw it on {device.type!r}. What torch draws into "
            f"distributed tensors depends on the mesh{hint}",
            "torch draws on a mesh",
        )

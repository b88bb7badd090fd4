"""One outermost call of fastinit, from its seed to its report: checks items, runs them, notes what they wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from . import backends
from .defaults import default_backend, default_seed
from .errors import warn_user
from .naming import Names
from .plans import Call, Copy, Fill, Item, Plan, describe, rows_of, tensors_of
from .provenance import Provenance, logger
from .reports import CheckpointReport, Report
from .streams import check_seed, stream_of

_current: ContextVar[Session | None] = ContextVar("fastinit_session", default=None)


def looking_only() -> Any:
    """Returns a context for code of ours that only looks at tensors.

    Every look at a shape or a dtype would go through the watch on user code (and through the user's own modes).
    """
    return torch._C.DisableTorchFunction()


def exchanges_parameters(item: Item) -> bool:
    """Tells whether an item may put other parameters into the modules."""
    return isinstance(item, Call) or (isinstance(item, Copy) and item.replaces)


class Session:
    """The state of one call. A call nested in a larger one shares the larger one's names, seed and provenance."""

    def __init__(
        self,
        root: nn.Module | None,
        *,
        backend: str | None,
        seed: int | None,
        prefix: str,
        dry: bool = False,
        offline: bool = False,
    ) -> None:
        self.root = root
        self.dry = dry
        """Only a plan is wanted: tensors need no memory."""
        self.offline = offline
        """Nothing may be downloaded."""
        outer: Session | None = _current.get()
        self.outer = outer
        self._is_part = outer is not None and not prefix and (root is None or outer.names.knows(root))
        """What ``outer`` initializes holds what is initialized here."""
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, but got {prefix!r} of {type(prefix)}")
        self.names: Names = outer.names if outer is not None and self._is_part else Names(root, _with_dot(prefix))
        self.provenance: Provenance | None = outer.provenance if outer is not None and self._is_part else None
        if backend is None:
            backend = outer.backend if outer is not None else default_backend()
        self.backend: str = backends.checked(backend)
        """As it was asked for: a backend's name or "auto"."""
        self._chosen: dict[Fill, str] = {}
        self._on_device: dict[torch.device, str] = {}
        self.new_seed = None if seed is None else check_seed(seed)
        """The seed to begin with here; None: go on with the generators as they are."""
        if self.new_seed is None and outer is None:
            self.new_seed = default_seed(own_names=bool(prefix), take=not dry)
        self.seed: int | None = outer.seed if self.new_seed is None and outer is not None else self.new_seed
        self.checkpoint_trees: dict[int, Any] = {}
        """Checkpoints that were opened to be planned and are to be loaded."""
        self.items: list[Item] = []
        """What was executed."""
        self.has_begun = False
        """Something may have been written."""
        self._waiting: list[Fill] = []
        self.checkpoints: list[CheckpointReport] = []
        self.warned: set[str] = set() if outer is None else outer.warned
        self._began = time.perf_counter()

    # --- checking -----------------------------------------------------------------------------------------------------

    def check(self, items: Iterable[Item]) -> None:
        """Raises RuntimeError if an item cannot run; nothing is written."""
        why_not_device: dict[tuple[str, torch.device], str | None] = {}  # a driver takes its time to answer
        for item in items:
            if not self.dry and not (isinstance(item, Copy) and item.replaces):
                for tensor in tensors_of(item):
                    if tensor.is_meta:
                        name = self.parameters().get(tensor, "")
                        raise RuntimeError(
                            f"{item.rule}: the parameter {name!r} is on the meta device and has no memory to write: "
                            f"fastinit.materialize(model, init_cfg) gives it memory and values; fastinit.plan works on "
                            f"meta models as they are"
                        )
            if isinstance(item, Fill):
                name, device = self.backend_of(item), item.tensor.device
                backend = backends.BACKENDS[name]
                if (name, device) not in why_not_device:
                    why_not_device[name, device] = None if self.dry else backend.why_not(device)
                reason = why_not_device[name, device] or backend.why_not_fill(item)
                if reason is not None:
                    raise RuntimeError(
                        f"{item.rule}: the backend {name!r} cannot fill the parameter {item.name!r} "
                        f"({tuple(item.shape)}, {item.tensor.dtype}, {item.tensor.device}) with "
                        f"{describe(item.distribution)}: {reason}"
                    )

    def backend_of(self, fill: Fill) -> str:
        """Returns the name of the backend that executes a fill."""
        if fill not in self._chosen:
            device = fill.tensor.device
            if device not in self._on_device:
                self._on_device[device] = backends.on_device(self.backend, device)
            self._chosen[fill] = backends.for_fill(self.backend, self._on_device[device], fill)
        return self._chosen[fill]

    def warn_once(self, where: str, message: str) -> None:
        """Issues a UserWarning, for the same cause only once in an outermost call, wherever it comes up again."""
        if message not in self.warned:
            self.warned.add(message)
            warn_user(f"{where}: {message}")

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, items: Sequence[Item]) -> None:
        """Executes checked items in order, and notes what they wrote."""
        self.has_begun = self.has_begun or bool(items)
        for is_fill, group in groupby(items, key=lambda item: isinstance(item, Fill)):
            if is_fill:
                self._fill([item for item in group if isinstance(item, Fill)])
                continue
            self.flush()
            for item in group:
                if isinstance(item, Copy):
                    self._copy(item)
                elif isinstance(item, Call):
                    with self.track().attributing(item.module, item.info):
                        item.function()
                    self.did([item])
                if exchanges_parameters(item):
                    self.names.renew()
                    self.track().adopt(self.names.parameters(), item.info)

    def _copy(self, item: Copy) -> None:
        provenance = self.track()
        # Watching what is written takes longer than loading a small model: only code of others is watched.
        with provenance.attributing(item.module, item.info) if item.runs_own_code else nullcontext():
            result, entries = item.load()
        for entry in entries:
            provenance.record(entry.tensor, item.info)
        self._loaded(CheckpointReport(item.source, item.rule, result))
        self.did([replace(item, entries=entries)])

    def _fill(self, fills: list[Fill]) -> None:
        """Runs fills at once, or lets them wait where a later fill of the same tensor may replace them."""
        for name, group in groupby(fills, key=self.backend_of):
            if backends.BACKENDS[name].IS_CONTRACT:
                self._waiting.extend(group)
                continue
            now = list(group)
            if {fill.tensor.device for fill in now} & {fill.tensor.device for fill in self._waiting}:
                self.flush()  # they may be of the same tensor
            self._run_fills(name, now)

    def flush(self) -> None:
        """Runs the fills that wait, of each tensor the last."""
        if self._waiting:
            last = {id(fill.tensor): fill for fill in self._waiting}
            fills = [fill for fill in self._waiting if last[id(fill.tensor)] is fill]
            self._waiting.clear()
            self._check_streams(fills)
            for name in dict.fromkeys(map(self.backend_of, fills)):
                self._run_fills(name, [fill for fill in fills if self.backend_of(fill) == name])

    def _run_fills(self, name: str, fills: list[Fill]) -> None:
        backend = backends.BACKENDS[name]
        backend.run(fills, self._drawn_seed() if backend.IS_CONTRACT else self.seed)
        if self.provenance is not None:
            for fill in fills:
                if fill.info:
                    self.provenance.record(fill.tensor, fill.info)
        self.did(fills)

    def _drawn_seed(self) -> int | None:
        """Returns the seed for a contract backend; where none was given, one of torch's generator, once a call."""
        if self.seed is None and (self.backend == backends.AUTO or backends.BACKENDS[self.backend].IS_CONTRACT):
            outer = self.outer
            self.seed = outer._drawn_seed() if outer is not None else None
            if self.seed is None:
                self.seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        return self.seed

    def _check_streams(self, fills: list[Fill]) -> None:
        names: dict[int, str] = {}
        for fill in fills:
            if names.setdefault(stream_of(fill.name), fill.name) != fill.name:
                raise RuntimeError(
                    f"{fill.rule}: the names {fill.name!r} and {names[stream_of(fill.name)]!r} have the same random "
                    f"stream: rename one of them"
                )

    def track(self) -> Provenance:
        """Returns the provenance of the parameters under the root, from here on."""
        if self.provenance is None and self.outer is not None and self._is_part:
            self.provenance = self.outer.track()
        if self.provenance is None:
            self.provenance = Provenance(self.names.parameters(), "")
            for item in self.items:
                if isinstance(item, Fill):
                    self.provenance.record(item.tensor, item.info)
        return self.provenance

    def did(self, items: Sequence[Item]) -> None:
        """Notes for the report that items were executed."""
        self.items.extend(items)
        if self.outer is not None and self._is_part:
            self.outer.did(items)

    def _loaded(self, checkpoint: CheckpointReport) -> None:
        self.checkpoints.append(checkpoint)
        if self.outer is not None and self._is_part:
            self.outer._loaded(checkpoint)

    # --- telling ------------------------------------------------------------------------------------------------------

    def plan(self, items: Sequence[Item]) -> Plan:
        """Returns the items as a plan."""
        reached = {tensor for item in items for tensor in tensors_of(item)}
        unreached = tuple(name for tensor, name in self.parameters().items() if tensor not in reached)
        return Plan(tuple(items), self._backends(items), self._numbers(items), self.seed, unreached)

    def report(self) -> Report:
        """Returns what was done since the call began."""
        self.flush()
        provenance, names = self.track(), self.parameters()
        return Report(
            rows=rows_of(self.items, self._backends(self.items)),
            checkpoints=tuple(self.checkpoints),
            engine=" and ".join(backends.BACKENDS[name].engine() for name in self._used(self.items)),
            numbers=self._numbers(self.items),
            seed=self.seed,
            seconds=time.perf_counter() - self._began,
            n_bytes=sum(tensor.nbytes for item in self.items for tensor in tensors_of(item)),
            provenance={
                name: provenance[tensor]["init_info"] for tensor, name in names.items() if tensor in provenance.written
            },
            unreached=tuple(name for tensor, name in names.items() if tensor not in provenance.written),
        )

    def parameters(self) -> dict[torch.Tensor, str]:
        """Returns the parameters under this call's own root, with their names."""
        names = self.names.parameters()
        if self.root is None or self.root is self.names.root:
            return names
        return {tensor: names[tensor] for tensor in self.root.parameters() if tensor in names}

    def _backends(self, items: Iterable[Item]) -> tuple[str, ...]:
        """Returns the backend of each item, "" for what is no fill."""
        return tuple(self.backend_of(item) if isinstance(item, Fill) else "" for item in items)

    def _used(self, items: Iterable[Item]) -> list[str]:
        """Returns the backends of the items; where none is a fill, the one for the CPU."""
        used = [name for name in dict.fromkeys(self._backends(items)) if name]
        return used or [backends.on_device(self.backend, torch.device("cpu"))]

    def _numbers(self, items: Iterable[Item]) -> str:
        return " and ".join(dict.fromkeys(backends.BACKENDS[name].NUMBERS for name in self._used(items)))


@contextmanager
def session(
    root: nn.Module | None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: str = "",
    devices: Iterable[torch.device] | None = None,
) -> Iterator[Session]:
    """Opens a session for the block; under a seed, torch's generators are forked and seeded for it.

    Args:
        root: the module whose names count; None for tensors that have no names.
        backend, seed, prefix: as the user gave them.
        devices: of the tensors that will be filled; None: those of ``root``.
    """
    opened = Session(root, backend=backend, seed=seed, prefix=prefix)
    token = _current.set(opened)
    try:
        with ExitStack() as stack:
            if opened.new_seed is not None:
                stack.enter_context(_seeded(opened.new_seed, _devices_of(root) if devices is None else devices))
            yield opened
            opened.flush()
    except BaseException as error:
        if opened.outer is None and opened.has_begun:
            what = "a tensor" if root is None else type(root).__name__
            logger.warning(
                "%s stopped the initialization of %s after %d fills, copies and calls: it is only partly initialized",
                type(error).__name__,
                what,
                len(opened.items),
            )
        raise
    finally:
        _current.reset(token)


# Torch's default generators are one for the process: two threads that seed and restore them take turns.
_generators = threading.RLock()


@contextmanager
def _seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Seeds torch's default generators of the CPU and of ``devices``; gives them their states back afterwards.

    Draws in the block equal those after ``torch.manual_seed(seed)``. Generators of other devices are left alone.
    """
    with ExitStack() as stack:
        stack.enter_context(_generators)
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        torch.default_generator.manual_seed(seed)
        for device in devices:
            module: Any = getattr(torch, device.type, None)
            if device.type == "cpu" or not hasattr(module, "get_rng_state"):
                continue
            with module.device(device) if hasattr(module, "device") else ExitStack():
                index = () if device.index is None else (device.index,)
                stack.callback(module.set_rng_state, module.get_rng_state(*index), *index)
                module.manual_seed(seed)
        yield


def _devices_of(root: nn.Module | None) -> set[torch.device]:
    return set() if root is None else {tensor.device for tensor in (*root.parameters(), *root.buffers())}


def _with_dot(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else prefix + "."

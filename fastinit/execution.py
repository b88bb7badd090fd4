"""One outermost call of fastinit, from its seed to its report: checks items, runs them, notes what they wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from itertools import chain, groupby
from typing import Any, TypeVar

import torch
from torch import nn

from . import backends, sharding
from .agreement import agreed_seed
from .defaults import Strict, check_strict, default_backend, default_seed, default_strict
from .deferred import Deferred, Entry, Owner, Owners, Place, fill_of, fills_of
from .errors import warn_user
from .memory import uncollected
from .naming import Names, Prefix
from .plans import Call, Constant, Copy, Fill, Item, Plan, describe, names_line, nothing_copied, rows_of, tensors_of
from .provenance import Provenance, logger
from .reports import CheckpointReport, Report
from .streams import check_seed, streams_of

Key = TypeVar("Key", bound=Hashable)

_current: ContextVar[Session | None] = ContextVar("fastinit_session", default=None)


def current_session() -> Session:
    """Returns the innermost call that is open."""
    found = _current.get()
    assert found is not None, "asked for within one only"
    return found


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
        prefix: Prefix,
        strict: Strict | None = None,
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
        if not isinstance(prefix, (str, Mapping)):
            raise TypeError(f"prefix must be a str or a map of names, but got {prefix!r} of {type(prefix)}")
        self.names: Names = outer.names if outer is not None and self._is_part else Names(root, prefix)
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
        self.deferred: Deferred | None = None if outer is None else outer.deferred
        """Where fills wait as long as every access to memory is watched (``recording``)."""
        if strict is None:
            strict = default_strict() if outer is None else outer.strict
        self.strict: Strict = check_strict(strict)
        """What has no effect is an error: a rule that matches nothing, a checkpoint that nothing is copied from; and a
        draw that would not be keyed by a name. "complete": a parameter that nothing is known to write, too."""
        self._owners: tuple[tuple[int, int], Owners] | None = None
        self.asked: dict[Any, list[str]] = {} if outer is None or not self._is_part else outer.asked
        """Mesh -> fills of its distributed tensors that its ranks have not agreed on yet."""
        self.launches: dict[torch.device, int] = {} if outer is None or not self._is_part else outer.launches
        """How often kernels were started, device by device; those of torch's are not counted."""
        self.checkpoints: list[CheckpointReport] = []
        self.warned: set[str] = set() if outer is None else outer.warned
        self._began = time.perf_counter()

    def unwatched(self) -> AbstractContextManager[object]:
        """Returns a context for code of ours that only looks at tensors.

        Every look at a shape or a dtype would go through the watch on user code (and through the user's own modes).
        """
        return torch._C.DisableTorchFunction() if self.deferred is None else self.deferred.paused()

    # --- checking -----------------------------------------------------------------------------------------------------

    def check(self, items: Iterable[Item]) -> None:
        """Raises RuntimeError if an item cannot run; nothing is written."""
        with self.unwatched():
            self._check(items)

    def _check(self, items: Iterable[Item]) -> None:
        why_not_device: dict[tuple[str, torch.device], str | None] = {}  # a driver takes its time to answer
        for item in items:
            if not self.dry and not (isinstance(item, Copy) and item.replaces):
                self._check_memory(item)
            if isinstance(item, Fill):
                where = name, device = self.backend_of(item), item.tensor.device
                backend = backends.BACKENDS[name]
                if where not in why_not_device:
                    why_not_device[where] = None if self.dry else backend.why_not(device) or backend.why_not_now(device)
                reason = why_not_device[where] or sharding.why_not(item.tensor) or backend.why_not_fill(item)
                if reason is not None:
                    raise RuntimeError(
                        f"{item.rule}: the backend {name!r} cannot fill the parameter {item.name!r} "
                        f"({tuple(item.shape)}, {item.tensor.dtype}, {item.tensor.device}) with "
                        f"{describe(item.distribution)}: {reason}"
                    )

    def _check_memory(self, item: Item) -> None:
        for tensor in (item.tensor,) if isinstance(item, Fill) else tensors_of(item):
            if tensor.is_meta:
                name = self.parameters().get(tensor, "")
                raise RuntimeError(
                    f"{item.rule}: the parameter {name!r} is on the meta device and has no memory to write: "
                    f"fastinit.materialize(model, init_cfg) gives it memory and values; fastinit.plan works on "
                    f"meta models as they are"
                )

    def check_backend(self) -> None:
        """Raises RuntimeError if the backend was asked for by name and cannot run on this machine."""
        if self.backend != backends.AUTO:
            device = torch.device(backends.device_type(self.backend))
            reason = backends.BACKENDS[self.backend].why_not(device)
            if reason is not None:
                raise RuntimeError(f"the backend {self.backend!r} cannot run on this machine: {reason}")

    def backend_of(self, fill: Fill) -> str:
        """Returns the name of the backend that executes a fill."""
        if self.backend != backends.AUTO:
            return self.backend
        if fill not in self._chosen:
            self._chosen[fill] = backends.for_fill(self.backend, self.backend_on(fill.tensor.device), fill)
        return self._chosen[fill]

    def backend_on(self, device: torch.device) -> str:
        """Returns the name of the backend for a device."""
        if device not in self._on_device:
            self._on_device[device] = backends.on_device(self.backend, device)
        return self._on_device[device]

    def matches_nothing(self, rule: str, kind: str, message: str) -> None:
        """Tells that a rule has no effect: by a warning or, in a strict call, by RuntimeError.

        Args:
            rule: its place in the config, which who calls puts in front of errors.
            kind: the class of its initializer; "": it is none's.
            message: what it does not match.
        """
        if self.strict:
            raise RuntimeError(f"{kind or rule}: {message} (an error under strict)")
        self.warn_once(f"{rule} ({kind})" if kind else rule, message)

    def check_complete(self, items: Iterable[Item]) -> None:
        """Raises RuntimeError in a "complete" call if a parameter is written by none of the items, as far as is known.

        Code of others may write whatever is below the module that it is called for.
        """
        if self.strict != "complete":
            return
        written: set[torch.Tensor] = set()
        for item in items:
            written.update(tensors_of(item))
            if isinstance(item, Call) or (isinstance(item, Copy) and (item.unknown or item.runs_own_code)):
                written.update(item.module.parameters())
        if left := [name for tensor, name in self.parameters().items() if tensor not in written]:
            raise RuntimeError(
                f"strict='complete': {names_line('parameters that no rule reaches', left)}. Add rules for them, e.g. "
                f"dict(type='Constant', val=0, param={left[0]!r})"
            )

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
            for item in group:
                # Code that is watched reads what it needs. A copy into known tensors reads nothing.
                if self.deferred is None or (isinstance(item, Copy) and not _only_overwrites(item)):
                    self.flush()
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
        # Code of others may make cycles that have to be freed.
        with nullcontext() if item.runs_own_code else uncollected():
            self._load(item)

    def _load(self, item: Copy) -> None:
        provenance = self.track()
        # Watching what is written takes longer than loading a small model: only code of others is watched.
        if item.runs_own_code:
            with provenance.attributing(item.module, item.info):
                result, entries = item.load()
        else:
            with nullcontext() if self.deferred is None else self.deferred.paused(subclasses=True):
                result, entries = item.load()
        for entry in entries:
            provenance.record(entry.tensor, item.info)
            if self.deferred is not None:
                with self.deferred.paused():
                    place = self.deferred.place_of(entry.tensor)
                    if place is not None:
                        self.deferred.wrote(place, item.info, False)
        self._loaded(CheckpointReport(item.source, item.rule, result))
        if self.strict and not result.copied:
            raise RuntimeError(f"{item.rule}: {nothing_copied(item.source, result)} (an error under strict)")
        self.did([replace(item, entries=entries)])

    def _fill(self, fills: list[Fill]) -> None:
        """Runs fills at once, or lets them wait where a later fill of the same tensor may replace them."""
        for name, group in groupby(fills, key=self.backend_of):
            if self.deferred is not None:
                with self.deferred.paused():
                    self._note(self.deferred, name, list(group))
                continue
            if backends.BACKENDS[name].IS_CONTRACT:
                for fill in group:
                    self._waiting.append(fill)
                    self._ask_if_sharded(fill)
                continue
            now = list(group)
            if {fill.tensor.device for fill in now} & {fill.tensor.device for fill in self._waiting}:
                self.flush()  # they may be of the same tensor
            self._run_fills(name, now)
            self._wrote(now)

    def flush(self) -> None:
        """Runs the fills that wait, of each tensor the last."""
        if self.deferred is not None:
            self.run_deferred(self.deferred.waiting())
            if self.asked:  # nothing of it is here, but other ranks wait for this one's word
                with self.deferred.paused():
                    self._agree()
        if self._waiting:
            last = {id(fill.tensor): fill for fill in self._waiting}
            fills = [fill for fill in self._waiting if last[id(fill.tensor)] is fill]
            self._waiting.clear()
            self._check_streams(fills)
            self._agree()
            for name, chosen in _grouped(fills, self.backend_of).items():
                self._run_fills(name, chosen)
                self._wrote(chosen)

    def _run_fills(self, name: str, fills: Sequence[Fill]) -> None:
        backend = backends.BACKENDS[name]
        if not backend.IS_CONTRACT:
            backend.run(fills, self.seed)
            return
        seed = self._drawn_seed()
        for device, chosen in _grouped(fills, lambda fill: fill.tensor.device).items():
            self.launches[device] = self.launches.get(device, 0) + backend.run(chosen, seed)

    def _wrote(self, fills: Sequence[Fill]) -> None:
        if self.provenance is not None:
            for fill in fills:
                if fill.info:
                    self.provenance.record(fill.tensor, fill.info)
        self.did(fills)

    # --- while memory is watched --------------------------------------------------------------------------------------

    @property
    def effective(self) -> Session:
        """The session whose seed, names and backend count: a part of a larger call goes by the larger one's."""
        outer = self.outer
        if outer is None or not self._is_part or self.new_seed is not None or self.backend != outer.backend:
            return self
        return outer.effective

    def _ask_if_sharded(self, fill: Fill) -> None:
        if sharding.is_sharded(fill.tensor):
            self.ask(fill.tensor, f"{fill.stream_name} {fill.shape} {fill.tensor.dtype} {fill.distribution!r}")

    def _note(self, deferred: Deferred, name: str, fills: Sequence[Fill]) -> None:
        """Lets fills wait until somebody reads what they write, or runs those of torch at once."""
        is_contract = backends.BACKENDS[name].IS_CONTRACT
        if is_contract:
            for fill in fills:
                self._ask_if_sharded(fill)
        for fill in chain.from_iterable(map(_in_one_place, fills)):
            place = deferred.place_of(fill.boxes[0].tensor if fill.is_part else fill.tensor)
            assert place is not None, "a backend that fills it has been found"
            if not is_contract:
                self.run_deferred(deferred.waiting(place))
                self._run_fills(name, [fill])
            named = fill if fill.tensor in self.names.parameters() or fill.tensor in self.names.buffers() else None
            deferred.add(
                place,
                fill.distribution,
                self.effective,
                fill.rule,
                fill.info,
                origin=self,
                fill=named,
                is_done=not is_contract,
                is_told=not is_contract,
            )
            if is_contract:
                torch.autograd.graph.increment_version(fill.tensor)
                if self.provenance is not None and fill.info:
                    self.provenance.record(fill.tensor, fill.info)
                if deferred.is_exposed(place):
                    self.run_deferred(deferred.waiting(place))
            else:
                self._wrote([fill])

    def run_deferred(self, entries: Sequence[Entry]) -> None:
        """Executes fills that wait, whoever asked for them, in as few launches as there are seeds and devices."""
        assert self.deferred is not None, "they wait in it"
        with self.deferred.paused():
            for session in dict.fromkeys(entry.session for entry in entries):
                session._run_entries([entry for entry in entries if entry.session is session])

    def _run_entries(self, entries: Sequence[Entry]) -> None:
        deferred = self.deferred
        assert deferred is not None, "they wait in it"
        found = list(fills_of(entries, deferred, self.owner_of, self.names.ordinal))
        if self.strict:
            for entry, fill in found:
                if entry.draw.key is not None and not entry.draw.key.is_name:
                    raise RuntimeError(
                        f"strict: {entry.rule} draws {describe(fill.distribution)} of shape {fill.shape}, and the "
                        f"numbers are needed before it is known what the tensor will be called. Without strict they "
                        f"come from the stream {fill.stream_name!r}, by order"
                    )
        fills = [fill for _, fill in found]
        self._check_streams([fill for fill in fills if not isinstance(fill.distribution, Constant)])
        try:
            self._agree()
        except RuntimeError:
            for entry, fill in found:
                entry.is_done = entry.is_done or sharding.is_sharded(fill.tensor)  # nobody knows what is right for it
            raise
        # Versions were counted when the fills were asked for; `.data` has a counter of its own.
        unseen = {
            fill: fill if sharding.is_sharded(fill.tensor) else replace(fill, tensor=fill.tensor.data)
            for fill in fills
            if not fill.tensor.is_meta
        }
        for name, chosen in _grouped(list(unseen), self.backend_of).items():
            self._run_fills(name, [unseen[fill] for fill in chosen])
        for entry, fill in found:
            entry.ran = fill
        for entry in entries:
            entry.is_done = True
            if entry.chain is not None:
                entry.chain.replay(entry.place.view())

    def owner_of(self, place: Place) -> Owner | None:
        """Returns the parameter or buffer under the root that holds a place."""
        return self.owners().of(place)

    def owners(self) -> Owners:
        """Returns the parameters and buffers under the root by where they lie."""
        assert self.deferred is not None, "places are known to what is watched"
        now = self.deferred.generation, self.names.n_roots
        if self._owners is None or self._owners[0] != now:
            self.names.renew()
            named = [*self.names.parameters().items(), *self.names.buffers().items()]
            self._owners = now, Owners(named, self.deferred)
        return self._owners[1]

    def tell(self) -> tuple[str, ...]:
        """Notes for the report what was captured under names, and returns what was drawn without one."""
        if self.deferred is None:
            return ()
        with self.deferred.paused():
            return self._tell(self.deferred)

    def _tell(self, deferred: Deferred) -> tuple[str, ...]:
        unkeyed: dict[str, None] = {}
        provenance = self.track()
        for entry in deferred.entries():
            # A part of a larger call tells what it asked for itself, and leaves the rest to that.
            if (entry.session if self.effective is self else entry.origin) is not self:
                continue
            owner = self.owner_of(entry.place)
            key = entry.draw.key
            if key is not None and not key.is_name:
                shape = "x".join(map(str, entry.place.shape))
                unkeyed[owner.name if owner is not None else f"{key.name} ({shape}, {entry.rule})"] = None
            if entry.is_told or (owner is None and entry.fill is None):
                continue
            fill = entry.ran
            if fill is None or (owner is not None and fill.tensor is not owner.tensor):  # it has got a name meanwhile
                fill = fill_of(entry, deferred, (), self.owner_of, self.names.ordinal)
            entry.is_told = True
            if fill is not None:
                self.did([fill])
                if fill.tensor not in provenance.written:
                    provenance.record(fill.tensor, fill.info)
        for owner in self.owners() if self.effective is self else ():
            for what, is_random in deferred.foreign_of(owner.place):
                if owner.tensor not in provenance.written:
                    provenance.record(owner.tensor, what)
                if is_random and backends.BACKENDS[self.backend_on(owner.tensor.device)].IS_CONTRACT:
                    unkeyed[owner.name] = None
        return tuple(unkeyed)

    def _drawn_seed(self) -> int | None:
        """Returns the seed for a contract backend; where none was given, one of torch's generator, once a call."""
        if self.seed is None and (self.backend == backends.AUTO or backends.BACKENDS[self.backend].IS_CONTRACT):
            outer = self.outer
            self.seed = outer._drawn_seed() if outer is not None else None
            if self.seed is None:
                self.seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        return self.seed

    def ask(self, tensor: torch.Tensor, what: str) -> None:
        """Notes a fill of a distributed tensor, on which its ranks must agree; each of them comes by here."""
        self.asked.setdefault(sharding.mesh_of(tensor), []).append(what)

    def _agree(self) -> None:
        """Makes sure that the ranks that hold parts of distributed tensors fill them alike, with the same seed."""
        if self.asked:
            was_given = self.seed is not None
            seed = self._drawn_seed()
            assert seed is not None, "a contract backend is given a seed"
            asked = dict(self.asked)
            self.asked.clear()
            self._set_seed(agreed_seed(asked, seed, was_given))

    def _set_seed(self, seed: int) -> None:
        self.seed = seed
        if self.outer is not None and self.new_seed is None:
            self.outer._set_seed(seed)

    def _check_streams(self, fills: list[Fill]) -> None:
        by_name = {fill.name: fill for fill in fills}
        first_of: dict[int, str] = {}
        for name, stream in zip(by_name, streams_of(by_name).tolist()):
            if first_of.setdefault(stream, name) != name:
                raise RuntimeError(
                    f"{by_name[name].rule}: the names {name!r} and {first_of[stream]!r} have the same random "
                    f"stream: rename one of them"
                )

    def track(self) -> Provenance:
        """Returns the provenance of the parameters under the root, from here on."""
        if self.provenance is None and self.outer is not None and self._is_part:
            self.provenance = self.outer.track()
        if self.provenance is None:
            self.provenance = Provenance(self.names.parameters(), "")
            waiting = [] if self.deferred is None else [entry.fill for entry in self.deferred.entries()]
            for item in (*self.items, *waiting):
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
        used = self._backends(items)
        return Plan(tuple(items), used, self._numbers(used), self.seed, unreached)

    def report(self) -> Report:
        """Returns what was done since the call began."""
        self.flush()
        unkeyed = self.tell()
        provenance, names, used = self.track(), self.parameters(), self._backends(self.items)
        return Report(
            rows=rows_of(self.items, used),
            checkpoints=tuple(self.checkpoints),
            engine=" and ".join(backends.BACKENDS[name].engine() for name in self._used(used)),
            numbers=self._numbers(used),
            seed=self.seed,
            seconds=time.perf_counter() - self._began,
            n_bytes=sum(map(_n_bytes, self.items)),
            provenance={
                name: provenance[tensor]["init_info"] for tensor, name in names.items() if tensor in provenance.written
            },
            unreached=tuple(name for tensor, name in names.items() if tensor not in provenance.written),
            launches={str(device): n for device, n in self.launches.items()},
            unkeyed=unkeyed,
        )

    def parameters(self) -> dict[torch.Tensor, str]:
        """Returns the parameters under this call's own root, with their names."""
        names = self.names.parameters()
        if self.root is None or self.root is self.names.root:
            return names
        return {tensor: names[tensor] for tensor in self.root.parameters() if tensor in names}

    def devices(self) -> set[torch.device]:
        """Returns the devices of the parameters and buffers under this call's own root."""
        if self.root is None:
            return set()
        if self.root is self.names.root:  # whose tensors are known by name already
            return {tensor.device for tensor in (*self.names.parameters(), *self.names.buffers())}
        return {tensor.device for tensor in (*self.root.parameters(), *self.root.buffers())}

    def _backends(self, items: Iterable[Item]) -> tuple[str, ...]:
        """Returns the backend of each item, "" for what is no fill."""
        return tuple(self.backend_of(item) if isinstance(item, Fill) else "" for item in items)

    def _used(self, of_items: Iterable[str]) -> list[str]:
        """Returns the backends of items, each once; where none is a fill, the one for the CPU."""
        used = [name for name in dict.fromkeys(of_items) if name]
        return used or [backends.on_device(self.backend, torch.device("cpu"))]

    def _numbers(self, of_items: Iterable[str]) -> str:
        return " and ".join(dict.fromkeys(backends.BACKENDS[name].NUMBERS for name in self._used(of_items)))


@contextmanager
def session(
    root: nn.Module | None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    devices: Iterable[torch.device] | None = None,
) -> Iterator[Session]:
    """Opens a session for the block; under a seed, torch's generators are forked and seeded for it.

    Args:
        root: the module whose names count; None for tensors that have no names.
        backend, seed, prefix, strict: as the user gave them.
        devices: of the tensors that will be filled; None: those of ``root``.
    """
    opened = Session(root, backend=backend, seed=seed, prefix=prefix, strict=strict)
    token = _current.set(opened)
    try:
        with ExitStack() as stack:
            if opened.new_seed is not None:
                stack.enter_context(_seeded(opened.new_seed, opened.devices() if devices is None else devices))
            yield opened
            if opened.deferred is None or opened.effective is opened:
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


def _grouped(fills: Iterable[Fill], key: Callable[[Fill], Key]) -> dict[Key, list[Fill]]:
    """Returns the fills by what ``key`` says of each, in their order."""
    groups: dict[Key, list[Fill]] = {}
    for fill in fills:
        groups.setdefault(key(fill), []).append(fill)
    return groups


def _in_one_place(fill: Fill) -> Sequence[Fill]:
    """Returns a fill in pieces of one box, if it is of a part of a tensor: that lies in several boxes, or elsewhere."""
    return [replace(fill, parts=(box,)) for box in fill.boxes] if fill.is_part else [fill]


def _only_overwrites(item: Copy) -> bool:
    """Tells whether a copy writes all of the tensors that it names, and nothing else is read or written."""
    return not (item.runs_own_code or item.replaces or item.unknown)


def _n_bytes(item: Item) -> int:
    """Returns how many bytes an item writes, as far as that is known."""
    if isinstance(item, Fill):
        return item.tensor.nbytes if item.parts is None else sum(box.tensor.nbytes for box in item.parts)
    return sum(tensor.nbytes for tensor in tensors_of(item))

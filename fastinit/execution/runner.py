"""The one place that checks items and runs fills: by backend and by device, with one seed, counting what is written."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from ..backends import BACKENDS
from ..contract.streams import streams_of
from ..errors import InitRuntimeError
from ..plans import Copy, Fill, Item, describe, n_bytes_of, tensors_of
from ..progress import Listener, advance, expect, is_heard, is_wanted, showing
from ..shards.dtensor import is_sharded, mesh_of
from .scope import Scope
from .version_counters import count_writes

Group = TypeVar("Group", bound=Hashable)


def check(items: Iterable[Item], scope: Scope, *, needs_memory: bool = True) -> None:
    """Raises RuntimeError if an item cannot run; nothing is written.

    Args:
        items: of the call.
        scope: of the call.
        needs_memory: tensors must have memory; False where only a plan is wanted.
    """
    for item in items:
        # The tensors of a Copy that replaces them need none.
        if needs_memory and not (isinstance(item, Copy) and item.replaces):
            for tensor in (item.tensor,) if isinstance(item, Fill) else tensors_of(item):
                if tensor.is_meta:
                    raise InitRuntimeError(
                        f"{item.rule}: the parameter {scope.parameters().get(tensor, '')!r} is on the meta device and "
                        f"has no memory to write",
                        place=item.rule,
                        hint=": fastinit.materialize(model, init_cfg) gives it memory and values; "
                        "fastinit.plan works on meta models as they are",
                    )
        if isinstance(item, Fill) and (reason := scope.backends.why_not(item, needs_memory=needs_memory)) is not None:
            raise InitRuntimeError(
                f"{item.rule}: the backend {scope.backends.of(item)!r} cannot fill the parameter {item.name!r} "
                f"({tuple(item.shape)}, {item.tensor.dtype}, {item.tensor.device}) with "
                f"{describe(item.distribution)}: {reason}",
                place=item.rule,
            )
        if isinstance(item, Fill) and is_sharded(item.tensor) and item.is_drawn and _is_torchs(item, scope):
            scope.torch_draws_on_mesh(item.rule, f"the parameter {item.name!r}", item.tensor.device)


def _is_torchs(fill: Fill, scope: Scope) -> bool:
    return not BACKENDS[scope.backends.of(fill)].IS_CONTRACT


def ask_if_sharded(fill: Fill, scope: Scope) -> None:
    """Notes a fill of a distributed tensor, on which the ranks must agree before it runs."""
    if is_sharded(fill.tensor):
        text = f"{fill.stream_name} {fill.shape} {fill.tensor.dtype} {fill.distribution!r}"
        if fill.seed is not None:
            text += f" seed {fill.seed}"
        scope.seed.ask(mesh_of(fill.tensor), text)


def prepare(fills: Sequence[Fill], scope: Scope) -> None:
    """Makes sure, before anything is written, that fills of contract backends have streams and a seed.

    Raises:
        RuntimeError: two names have the same random stream, or the ranks of a mesh do not agree.
    """
    _check_streams([fill for fill in fills if fill.is_drawn])
    scope.seed.agree()


def execute(fills: Sequence[Fill], scope: Scope, *, are_counted: bool = False) -> None:
    """Runs fills that have been checked and prepared, in as few launches as there are backends and devices.

    Args:
        fills: of tensors with memory.
        scope: whose seed and backends count.
        are_counted: the versions of the tensors were counted up when the fills were requested.
    """
    if is_heard() or not is_wanted() or any(fill.tensor.device.type != "cpu" for fill in fills):
        _execute(fills, scope, are_counted)
        return
    total = sum(map(n_bytes_of, fills))
    with showing("fill", total):
        expect(total)
        _execute(fills, scope, are_counted, advance if is_heard() else None)


def _execute(fills: Sequence[Fill], scope: Scope, are_counted: bool, tell: Listener | None = None) -> None:
    for name, chosen in _grouped(fills, scope.backends.of).items():
        backend = BACKENDS[name]
        if not backend.IS_CONTRACT:
            scope.note_write()
            if are_counted:  # `.data` has a counter of versions of its own
                chosen = [
                    fill if is_sharded(fill.tensor) else replace(fill, tensor=fill.tensor.data) for fill in chosen
                ]
            backend.run(chosen, scope.seed.value, scope.seed.generators, advance=tell)
            continue
        by_place = _grouped(chosen, lambda fill: (fill.tensor.device, fill.seed))
        for device, _ in by_place:
            if reason := backend.why_not_now(device):  # they were checked earlier, and may have been pending since
                raise InitRuntimeError(reason, place=device)
        for (device, own_seed), group in by_place.items():
            seed = scope.seed.drawn() if own_seed is None else own_seed
            scope.note_write()
            try:
                scope.launches[device] = scope.launches.get(device, 0) + backend.run(group, seed, advance=tell)
            finally:
                if not are_counted:
                    count_writes(group)


def _check_streams(fills: Sequence[Fill]) -> None:
    by_name = {fill.stream_name: fill for fill in fills}  # one name under two seeds is two streams
    first_of: dict[int, str] = {}
    for name, stream in zip(by_name, streams_of(by_name).tolist()):
        if first_of.setdefault(stream, name) != name:
            raise InitRuntimeError(
                f"{by_name[name].rule}: the names {name!r} and {first_of[stream]!r} have the same random stream",
                place=by_name[name].rule,
                hint=": rename one of them",
            )


def _grouped(fills: Iterable[Fill], by: Callable[[Fill], Group]) -> dict[Group, list[Fill]]:
    """Returns the fills by what ``by`` says of each, in their order."""
    groups: dict[Group, list[Fill]] = {}
    for fill in fills:
        groups.setdefault(by(fill), []).append(fill)
    return groups

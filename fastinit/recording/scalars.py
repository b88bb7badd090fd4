"""Tensors without dimensions that stand for a number: which number, if code with and without memory can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from ..execution.memory_book import MemoryBook
from ..execution.places import Place
from ..plans import Constant
from ..shards.dtensor import PLAIN


class Scalars:
    """Knows the numbers of tensors that were made from data, and which others were computed in the block.

    A recipe of the meta device has to read a fill in the same cases as a block with memory, or the numbers of draws
    without a name would differ: so a number that only memory could tell is unknown here, too.
    """

    def __init__(self, book: MemoryBook) -> None:
        self._book = book
        self._made: dict[int, tuple[StorageWeakRef, int, Any]] = {}
        """Storage -> itself, which keeps the identity from being used again; the last write then; its number."""
        self._computed: dict[int, StorageWeakRef] = {}

    def made(self, tensor: torch.Tensor, number: Any) -> None:
        """Notes what a tensor was made from; all writes until now belong to that."""
        place = self._book.place_of(tensor)
        if place is not None:
            self._made[place.storage_id] = place.ref, self._book.n_writes, number

    def of(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor] | None:
        """Returns the arguments of an operator as tensors on the CPU; None unless the numbers of all are known."""
        found = []
        for tensor in tensors:
            number = None if tensor.dim() else self.number(tensor)
            if number is None:
                return None
            found.append(torch.tensor(number, dtype=tensor.dtype, device="cpu"))
        return found

    def computed(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        known: Sequence[torch.Tensor] | None,
        result: Any,
    ) -> None:
        """Notes the result of an operator.

        Args:
            func, args, kwargs: the operator and its arguments.
            known: what ``of`` told of them before it ran.
            result: what it returned.
        """
        if type(result) not in PLAIN or result.dim():
            return
        place = self._book.place_of(result)
        if place is None:
            return
        self._made.pop(place.storage_id, None)
        self._computed[place.storage_id] = place.ref
        if known is not None:
            if result.device.type != "cpu":
                left = iter(known)
                args, kwargs = tree_map(
                    lambda each: next(left) if isinstance(each, torch.Tensor) else each, (args, kwargs)
                )
                with self._book.paused():
                    result = func(*args, **{**kwargs, "device": "cpu"} if "device" in kwargs else kwargs)
            self._made[place.storage_id] = place.ref, self._book.n_writes, result.item()

    def number(self, value: Any) -> float | None:
        """Returns a number, or that of a tensor without dimensions; None if it is neither, or unknown."""
        if type(value) in PLAIN and not value.dim():
            place = self._book.place_of(value)
            value = None if place is None else self._in(place, value)
        return value if isinstance(value, (int, float)) else None

    def _in(self, place: Place, tensor: torch.Tensor) -> Any:
        writes, found = self._book.writes_at(place), self._book.current(place)
        if found is not None:
            if not isinstance(found.values, Constant):
                return None
            return torch.full((), found.values.value, dtype=tensor.dtype, device="cpu").item()
        made = self._made.get(place.storage_id)
        if made is not None:
            return made[2] if all(write.order <= made[1] for write in writes) else None
        is_alone = tensor.untyped_storage().nbytes() == tensor.element_size()
        is_older = is_alone and not writes and place.storage_id not in self._computed
        return tensor.item() if is_older and tensor.device.type == "cpu" else None

"""The seed of a call: given, drawn when first needed, or agreed on by ranks; and torch's generators under it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..shards.agreement import agreed_seed


class CallSeed:
    """The seed of one call. A call within another that gives none has the other's."""

    def __init__(self, given: int | None, *, draws: bool, outer: CallSeed | None, shares_fills: bool) -> None:
        self.given = given
        """The seed to begin with here; None: go on with the generators as they are."""
        self.value: int | None = outer.value if given is None and outer is not None else given
        self._outer = outer
        self._draws = draws
        """A contract backend may need one."""
        self._asked: dict[Any, list[str]] = outer._asked if outer is not None and shares_fills else {}
        """Mesh -> fills of its distributed tensors that its ranks have not agreed on yet."""

    def drawn(self) -> int | None:
        """Returns the seed for a contract backend; where none was given, one of torch's generator, once a call."""
        if self.value is None and self._draws:
            self.value = self._outer.drawn() if self._outer is not None else None
            if self.value is None:
                self.value = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
        return self.value

    def ask(self, mesh: Any, what: str) -> None:
        """Notes a fill of a distributed tensor, on which the ranks of its mesh must agree; each of them does so."""
        self._asked.setdefault(mesh, []).append(what)

    def agree(self) -> None:
        """Makes sure that the ranks that hold parts of distributed tensors fill them alike, with the same seed.

        Raises:
            RuntimeError: on all ranks of a mesh: their seeds or fills differ. Nothing has been written.
        """
        if self._asked:
            is_given, seed = self.value is not None, self.drawn()
            assert seed is not None, "a contract backend is given a seed"
            asked = dict(self._asked)
            self._asked.clear()
            self._set(agreed_seed(asked, seed, is_given))

    def _set(self, seed: int) -> None:
        self.value = seed
        if self._outer is not None and self.given is None:
            self._outer._set(seed)


# Torch's default generators are one for the process: two threads that seed and restore them take turns.
_generators = threading.RLock()


@contextmanager
def seeded_generators(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
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

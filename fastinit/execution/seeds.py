"""The seed of a call: given, drawn when first needed, or agreed on by ranks; and torch's generators under it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..errors import kind_of
from ..logs import logger
from ..shards.agreement import agreed_seed


class CallSeed:
    """The seed of one call. A call within another that gives none has the other's."""

    def __init__(self, given: int | None, *, draws: bool, outer: CallSeed | None, shares_fills: bool) -> None:
        self.given = given
        """The seed to begin with here; None: go on with the generators as they are."""
        self.value: int | None = outer.value if given is None and outer is not None else given
        self._outer = outer
        self.generators: Generators | None = outer.generators if outer is not None else None
        """What draws from torch's generators; None: the default ones, as they are."""
        if given is not None:
            self.generators = Generators(given)
        self._draws = draws
        """A contract backend may need one."""
        self._asked: dict[Any, list[str]] = outer._asked if outer is not None and shares_fills else {}
        """Mesh -> fills of its distributed tensors that its ranks have not agreed on yet."""
        self._has_disagreed = False

    def keep(self, seed: int) -> None:
        """Takes the seed that a plan was kept with, where none was given and none drawn."""
        if self.value is None:
            self.given = self.value = seed
            self.generators = Generators(seed)

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
            asked = dict(self._asked)
            self._asked.clear()
            try:
                self._set(agreed_seed(asked, self._for_vote(), self._is_given))
            except BaseException:
                self._note_disagreement()
                raise

    def expect(self, meshes: Iterable[Any]) -> None:
        """Notes meshes whose ranks agree before anything is written, even if nothing of theirs is filled here."""
        for mesh in meshes:
            self._asked.setdefault(mesh, [])

    def _note_disagreement(self) -> None:
        self._has_disagreed = True
        if self._outer is not None:
            self._outer._note_disagreement()

    def abandon(self, error: BaseException) -> bool:
        """Tells the ranks that are going to agree with this one that it has failed.

        Returns whether others fill nothing: there are such ranks, or they have failed to agree before.
        """
        if not self._asked:
            return self._has_disagreed
        asked = dict(self._asked)
        self._asked.clear()
        try:
            problem = f"rank {torch.distributed.get_rank()} failed with {kind_of(error)}: {str(error)[:500]}"
            agreed_seed(asked, 0, self._is_given, problem)
        except Exception as other:  # the caller has an error of its own to raise
            logger.warning("the other ranks could not be told of it: %s", other)
        return True

    @property
    def _is_given(self) -> bool:
        return self.given is not None or (self._outer is not None and self._outer._is_given)

    def _for_vote(self) -> int:
        seed = self.drawn()
        assert seed is not None, "a contract backend is given a seed"
        return seed

    def _set(self, seed: int) -> None:
        self.value = seed
        if self._outer is not None and self.given is None:
            self._outer._set(seed)


# --- torch's generators under a seed ----------------------------------------------------------------------------------


class Generators:
    """What draws from torch's generators under a seed: generators of its own, which nobody else draws from.

    The numbers are those of the default generators after ``torch.manual_seed(seed)``. Code of others, which draws from
    the default ones, is given their states while it runs (``lent``).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._own: dict[torch.device, torch.Generator] = {}
        self._states: dict[torch.device, torch.Tensor] = {}
        """Of generators that have only been lent so far."""
        self._n_lent = 0

    def own(self, device: torch.device) -> torch.Generator | None:
        """Returns the generator for draws on a device, None for the default one, while that is lent its state."""
        if self._n_lent:
            return None
        device = _with_index(device)
        if device not in self._own:
            self._own[device] = torch.Generator(device).manual_seed(self.seed)
            if device in self._states:
                self._own[device].set_state(self._states.pop(device))
        return self._own[device]

    @contextmanager
    def lent(self, devices: Iterable[torch.device]) -> Iterator[None]:
        """Lets code draw from the default generators of the CPU and of ``devices`` what is next under the seed.

        Their own states are given back at the end. Threads that draw from them meanwhile disturb the code, and it
        them: torch has one default generator for all.
        """
        self._n_lent += 1
        try:
            if self._n_lent > 1:
                yield
                return
            wanted = dict.fromkeys(map(_with_index, (torch.device("cpu"), *devices)))
            with ExitStack() as stack:
                for device in wanted:
                    if _has_generator(device):
                        stack.enter_context(self._lending(device))
                yield
        finally:
            self._n_lent -= 1

    @contextmanager
    def _lending(self, device: torch.device) -> Iterator[None]:
        own = self._own.get(device)
        state = self._states.get(device) if own is None else own.get_state()
        _borrow(device, lambda: _seed(device, self.seed) if state is None else _set_state(device, state))
        try:
            yield
        finally:
            state = _give_back(device)
            if own is None:
                self._states[device] = state
            else:
                own.set_state(state)

    @contextmanager
    def next_draw(self, device: torch.device) -> Iterator[None]:
        """Lets one operator that takes no generator draw what is next under the seed."""
        with self.lent((device,)) if self._n_lent == 0 else ExitStack():
            yield


# Calls whose code overlaps in time, in several threads, must not give back each other's states.
_CPU = torch.device("cpu")
_lock = threading.Lock()
_borrowers: dict[torch.device, list[Any]] = {}
"""Device -> [how many calls have lent their states to its default generator, its own state]."""


def _renew_lock() -> None:
    """Forgets, in a forked process, what other threads of its parent were about to do."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _borrow(device: torch.device, change: Callable[[], object]) -> None:
    """Changes the state of a device's default generator, and notes its own where nobody has changed it."""
    with _lock:
        borrowed = _borrowers.setdefault(device, [0, None])
        if borrowed[0] == 0:
            borrowed[1] = _state_of(device)
        borrowed[0] += 1
        change()


def _give_back(device: torch.device) -> torch.Tensor:
    """Returns the state of a device's default generator; if nobody else uses it, it gets its own one back."""
    with _lock:
        state = _state_of(device)
        borrowed = _borrowers[device]
        borrowed[0] -= 1
        if borrowed[0] == 0:
            _set_state(device, borrowed[1])
    return state


def _with_index(device: torch.device) -> torch.device:
    if device.type == "cpu":
        return _CPU
    if device.index is not None:
        return device
    module: Any = getattr(torch, device.type, None)
    return torch.device(device.type, module.current_device()) if hasattr(module, "current_device") else device


def _has_generator(device: torch.device) -> bool:
    return device.type == "cpu" or hasattr(getattr(torch, device.type, None), "get_rng_state")


def _state_of(device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return torch.default_generator.get_state()
    module: Any = getattr(torch, device.type)
    return module.get_rng_state(*_index(device))  # type: ignore[no-any-return]


def _set_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cpu":
        torch.default_generator.set_state(state)
        return
    module: Any = getattr(torch, device.type)
    module.set_rng_state(state, *_index(device))


def _seed(device: torch.device, seed: int) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
        return
    module: Any = getattr(torch, device.type)
    with module.device(device) if hasattr(module, "device") else ExitStack():
        module.manual_seed(seed)


def _index(device: torch.device) -> tuple[int, ...]:
    return () if device.index is None else (device.index,)

"""Writes: what was requested for a place, or written there, from the request to the report."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..plans import Distribution, Fill, Strided, is_structured
from ..plans.arithmetic import Chain
from ..plans.geometry import row_major
from .done import Done
from .places import Place
from .scope import Scope


class State(Enum):
    """How far a fill has come."""

    PENDING = 1
    """Requested: its bytes are not written yet."""
    RUN = 2
    """Written, and nothing else has written there since."""
    REPORTED = 3
    """Written, and the report has it."""


class Stream(NamedTuple):
    """The random stream of a draw, and where its numbers stand in it."""

    name: str
    indices: Strided
    """Of the numbers, row-major in the tensor that the stream is for."""
    is_name: bool
    """It is the name of a parameter or buffer, and no ordinal."""


@dataclass(eq=False, slots=True)
class Draw:
    """One set of random numbers that several fills share: copies and multiples of a tensor."""

    fills: dict[PendingFill, None]
    """In order."""
    stream: Stream | None
    """Once it is known."""


@dataclass(eq=False, slots=True)
class Write:
    """Something was written to a place, or will be."""

    place: Place
    info: str
    """What the ledger says of it."""
    order: int


@dataclass(eq=False, slots=True)
class OtherWrite(Write):
    """A write that is no fill."""

    is_random: bool
    changes: bool = False
    """What it wrote depends on what was there."""


@dataclass(eq=False, slots=True)
class PendingFill(Write):
    """One requested fill, from the request to the report."""

    values: Distribution | Chain
    scope: Scope
    """Whose seed, names and backend count."""
    rule: str
    asked_by: Done | None = None
    """The call that requested it, a part of the one that ``scope`` belongs to."""
    named: Fill | None = None
    """As a rule requested it, with its name."""
    state: State = State.PENDING
    ran: Fill | None = None
    """As what it was executed."""
    draw: Draw | None = None
    """The numbers that it shares with other fills."""
    _stream: Stream | None = None
    """Of a draw of its own."""
    shows: bool = True
    """Nothing has covered it, or changed what it had written."""

    @property
    def is_pending(self) -> bool:
        """Whether its bytes are not written yet."""
        return self.state is State.PENDING

    @property
    def distribution(self) -> Distribution:
        """What is drawn; in-place operations may have to be done to it afterwards (``Chain``)."""
        return self.values.base if isinstance(self.values, Chain) else self.values

    @property
    def stream(self) -> Stream | None:
        """Where its numbers come from, once that is known."""
        return self._stream if self.draw is None else self.draw.stream

    @stream.setter
    def stream(self, stream: Stream) -> None:
        if self.draw is None:
            self._stream = stream
        else:
            self.draw.stream = stream

    @property
    def sharing(self) -> Collection[PendingFill]:
        """The fills with the same numbers, itself among them."""
        return (self,) if self.draw is None else self.draw.fills

    def share_with(self, other: PendingFill) -> None:
        """Gives another fill the same numbers."""
        if self.draw is None:
            self.draw = Draw({self: None}, self._stream)
        self.draw.fills[other] = None
        other.draw = self.draw

    def reshape(self, place: Place) -> bool:
        """Takes it for a fill of another view of the same memory, where that holds the same elements in the same order.

        That changes nothing but the shape in which others may copy it: ``q.view(heads, -1)`` of a filled ``q``.

        Returns whether it could.
        """
        before, after = self.place.memory, place.memory
        is_same = self.place.dtype == place.dtype and before.first == after.first and self.place.numel == place.numel
        in_order = before == Strided(before.first, before.shape, row_major(before.shape))
        in_order = in_order and after == Strided(after.first, after.shape, row_major(after.shape))
        can = is_same and in_order and self.draw is None and self.named is None
        can = can and not is_structured(self.distribution)  # which are matrices of their own shape
        if can and self._stream is None:
            self.place = place
            return True
        return False

    def leave(self) -> None:
        """Takes it out of a shared draw: it is overwritten, or its memory is gone."""
        if self.draw is not None:
            self.draw.fills.pop(self, None)

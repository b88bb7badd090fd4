"""Items: immutable records of what is written where.

- ``Fill``: one tensor gets the values of one distribution,
- ``Copy``: tensors get what a checkpoint holds,
- ``Replay``: tensors get what recorded operators compute,
- ``Call``: code that fastinit cannot see into runs as it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Union

import torch

from .distributions import Distribution, is_drawn
from .geometry import Region, Strided, row_major

# A model may have 20,000 parameters. The records that there is one of for each are immutable to the type checker only
# (Final): a frozen dataclass takes five times as long to make, a microsecond.


@dataclass(slots=True, eq=False)
class Box:
    """A part of a parameter: the memory that holds it, and which elements of the full tensor they are.

    A rectangle of the full tensor, or another view of it (reshaped, transposed, strided).
    """

    tensor: Final[torch.Tensor] = field(repr=False)
    """The local memory, any strides; its shape is the box's."""
    first_index: Final[int]
    """Row-major index of the first element in the full tensor."""
    steps: Final[tuple[int, ...]]
    """What a step along each dimension of ``tensor`` adds to that index."""

    @staticmethod
    def whole(tensor: torch.Tensor) -> Box:
        """Returns the box of a tensor that is here in one piece."""
        return Box(tensor, 0, row_major(tensor.shape))

    @staticmethod
    def at(tensor: torch.Tensor, index: Sequence[int], shape: Sequence[int]) -> Box:
        """Returns the rectangle that begins at an index of a full tensor of ``shape``."""
        steps = row_major(shape)
        return Box(tensor, sum(at * step for at, step in zip(index, steps)), steps)

    def index(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the first element's index in the full tensor, which has this shape; zeros where that is empty."""
        if 0 in shape:
            return (0,) * len(shape)
        return tuple(self.first_index // step % size for step, size in zip(row_major(shape), shape))

    @property
    def indices(self) -> Strided:
        """The row-major indices of the elements in the full tensor."""
        return Strided(self.first_index, tuple(self.tensor.shape), self.steps)


@dataclass(slots=True, eq=False)
class Fill:
    """One parameter (or the parts of it that are here) gets the values of one distribution."""

    name: Final[str]
    """Canonical, from the root that the user passed; it names the parameter's random stream."""
    tensor: Final[torch.Tensor] = field(repr=False)
    """The object that the module holds."""
    distribution: Final[Distribution]
    rule: Final[str]
    """Where it was asked for, e.g. ``init_cfg[2].override``."""
    info: Final[str]
    """What provenance logs say of it, e.g. ``NormalInit: mean=0, std=0.01, bias=0``; "": leave that to the caller."""
    shape: Final[tuple[int, ...]] = ()
    """Of the full, unsharded tensor; of the part, where only a part of it is filled."""
    parts: Final[tuple[Box, ...] | None] = None
    """The parts to write, which together hold what is here of the full tensor; None: it is here in one piece."""
    stream: Final[str] = ""
    """The name of the random stream, where it is not ``name``: the values are those of another parameter."""
    seed: Final[int | None] = None
    """Its own, which a block within a recorded one was given; None: the call's."""
    numbers: Final[Strided | None] = None
    """Which values of the stream are those of the part that is filled; None: where all is filled, all in order."""
    region: Final[Region | None] = None
    """The part that is filled, if it is a rectangle of the parameter; None: all of it, or another part."""

    @property
    def stream_name(self) -> str:
        """The name whose random stream gives the values."""
        return self.stream or self.name

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The parts to write."""
        return (Box.whole(self.tensor),) if self.parts is None else self.parts

    @property
    def is_part(self) -> bool:
        """Whether only a part of the parameter is filled: a row, a slice."""
        return self.tensor.shape != self.shape

    @property
    def is_drawn(self) -> bool:
        """Whether its values depend on a seed."""
        return is_drawn(self.distribution)

    @staticmethod
    def whole(name: str, tensor: torch.Tensor, distribution: Distribution, rule: str, info: str) -> Fill:
        """Returns the fill of a tensor that is here in one piece."""
        return Fill(name, tensor, distribution, rule, info, tuple(tensor.shape))


@dataclass(frozen=True, slots=True, eq=False)
class CopyEntry:
    """One tensor that a checkpoint has values for."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    name_in_file: str
    """Its key in the checkpoint, before prefix and revisions."""
    shape: tuple[int, ...]
    """The checkpoint's: a lazy parameter has none before it is loaded."""
    adopted: tuple[torch.dtype, torch.device] | None = None
    """Dtype and device of the checkpoint's tensor, where that takes the place of ``tensor``; None: it is copied."""


@dataclass(frozen=True)
class LoadResult:
    """What became of the names of a module and the keys of a checkpoint."""

    copied: tuple[str, ...]
    """Names that got values."""
    missing: tuple[str, ...]
    """Names that the checkpoint lacks: they kept their values."""
    unexpected: tuple[str, ...]
    """Keys of the checkpoint that nothing in the module is called by."""
    mismatched: tuple[str, ...]
    """Names whose shape differs: they kept their values."""
    stripped: tuple[str, ...] = ()
    """What wrappers (DDP, torch.compile) put into names, where it was left out of account: what, and in how many."""
    hints: tuple[str, ...] = ()
    """What to pass where nothing fits, and what was probably not meant; of a checkpoint, not of a state dict."""


@dataclass(frozen=True, eq=False)
class Copy:
    """The tensors of a module that a checkpoint holds are overwritten."""

    module: torch.nn.Module = field(repr=False)
    entries: tuple[CopyEntry, ...]
    source: str
    """The checkpoint, as the user wrote it."""
    rule: str
    info: str
    replaces: bool
    """The module gets the checkpoint's tensors in place of its own."""
    runs_own_code: bool
    """Modules have loading code or hooks of their own, which may write anything."""
    load: Callable[[], tuple[LoadResult, tuple[CopyEntry, ...]]] = field(repr=False)
    """Copies, and tells what was copied; modules with loading code of their own may differ from ``entries``."""
    unknown: str = ""
    """Why ``entries`` are not known."""
    fit: LoadResult | None = None
    """How the checkpoint's names and shapes fit the module's, where that was asked for and is known before the load."""
    path: str = ""
    """Where ``module`` is, from the root."""
    request: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The arguments of a ``Pretrained`` rule that asks for the same, as JSON has them."""
    why_not_kept: str = ""
    """Why a file cannot hold this request: an address with a secret, an object among the arguments."""
    stored: Callable[[], Mapping[str, torch.Tensor]] = field(default=dict, repr=False)
    """Returns by name the tensors in the file that the entries get; none if it is not open."""
    digests: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)
    """Reads what the entries get, and returns by name the SHA-256 of each: dtype, shape and bytes in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayEntry:
    """One tensor that recorded operators compute."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    info: str
    """What wrote it last."""


@dataclass(frozen=True, eq=False)
class Replay:
    """Tensors get what operators compute that a block of code has run: they run again, with memory."""

    module: torch.nn.Module = field(repr=False)
    entries: tuple[ReplayEntry, ...]
    rule: str
    info: str
    compute: Callable[[Sequence[ReplayEntry], Any], object] = field(repr=False)
    """Computes the entries; the second argument is the scope of the call."""
    unknown: str = ""
    """Why it computes nothing: the values are known when the code runs."""


@dataclass(frozen=True, eq=False)
class Call:
    """Code that fastinit cannot see into."""

    module: torch.nn.Module = field(repr=False)
    """The one that the code is called for."""
    label: str
    """What is called, e.g. ``backbone.init_weights()``."""
    rule: str
    info: str
    function: Callable[[], object] = field(repr=False)


Item = Union[Fill, Copy, Replay, Call]


def tensors_of(item: Item) -> list[torch.Tensor]:
    """Returns the tensors that an item is known to write."""
    if isinstance(item, Fill):
        return [item.tensor]
    return [] if isinstance(item, Call) else [entry.tensor for entry in item.entries]


def dtypes_of(items: Iterable[Item]) -> dict[torch.Tensor, torch.dtype]:
    """Returns the dtypes that the tensors have which items are known to write: ``module.to()`` changes them in place.

    Where a checkpoint's tensor takes the place of one, its dtype counts.
    """
    found: dict[torch.Tensor, torch.dtype] = {}
    adopted: dict[torch.Tensor, torch.dtype] = {}
    for item in items:
        if isinstance(item, Fill):
            found[item.tensor] = item.tensor.dtype
        else:
            found.update((tensor, tensor.dtype) for tensor in tensors_of(item))
        if isinstance(item, Copy) and item.replaces:
            adopted.update((entry.tensor, entry.adopted[0]) for entry in item.entries if entry.adopted is not None)
    found.update(adopted)
    return found


def n_bytes_of(item: Item) -> int:
    """Returns how many bytes an item writes, as far as that is known."""
    if isinstance(item, Fill):
        return item.tensor.nbytes if item.parts is None else sum(box.tensor.nbytes for box in item.parts)
    return sum(tensor.nbytes for tensor in tensors_of(item))

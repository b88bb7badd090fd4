"""A plan as a file: what is written where, in names and numbers, without the model. The format is in docs/plans.md."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import InitValueError
from ..replacing import replacing
from .distributions import Distribution, TorchTruncatedNormal, numbers_of
from .geometry import Strided
from .items import Call, Copy, CopyEntry, Fill, Item, Replay, tensors_of

VERSION = 1
NUMBERS_OF_TORCH = "torch"


class Contents(NamedTuple):
    """What a file holds."""

    items: tuple[Item, ...]
    numbers: str
    seed: int | None
    unreached: tuple[str, ...]
    order: tuple[str, ...] = ()
    """The names of what items write, in the model's order, where that is not the order of the items."""
    non_persistent: tuple[str, ...] = ()
    """Those of them that are buffers which no state dict has."""


def order_of(items: Sequence[Item], names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of what items write in the model's order; () where that is the order of the items.

    Args:
        items: in the order of the file.
        names: the model's parameters and buffers, in its order.
    """
    written = written_by(items)
    rank = {name: at for at, name in enumerate(names)}
    order = sorted(written, key=lambda name: rank.get(name, len(rank)))
    return () if order == list(written) else tuple(order)


def written_by(items: Iterable[Item]) -> dict[str, None]:
    """Returns the names of what items are known to write, each once, in their order."""
    written: dict[str, None] = {}
    for item in items:
        if isinstance(item, Fill):
            written[item.name] = None
        elif not isinstance(item, Call):
            written.update(dict.fromkeys(entry.name for entry in item.entries))
    return written


def live(items: Sequence[Item]) -> list[Item]:
    """Returns the items but for fills that a later item overwrites as a whole, or that write no element."""
    written: set[int] = set()
    found: list[Item] = []
    for item in reversed(items):
        if isinstance(item, Fill):
            if id(item.tensor) in written or (item.is_part and 0 in item.shape):
                continue
            if not item.is_part:
                written.add(id(item.tensor))
        else:
            written.update(map(id, tensors_of(item)))
        found.append(item)
    return found[::-1]


def why_not_exact(items: Sequence[Item], backends: Sequence[str], numbers: str, seed: int | None) -> str:
    """Returns why a file cannot promise the bits that a plan's items write, "" if it can."""
    drawn = [(item, name) for item, name in zip(items, backends) if isinstance(item, Fill) and item.is_drawn]
    of_torch = [item.name for item, name in drawn if NUMBERS_OF_TORCH in (name or numbers)]
    if of_torch:
        return (
            f"{_some(of_torch)} would be drawn by torch's generators, whose numbers depend on the release, the device "
            f"and the order: plan with backend='cpp' (or another contract backend)"
        )
    if seed is None and any(item.seed is None for item, _ in drawn):
        return "the plan has no seed: plan with seed=..."
    if calls := [item.label for item in items if isinstance(item, Call)]:
        return f"{_some(calls)} runs code of its own, which a file of names and numbers cannot hold"
    for copy in (item for item in items if isinstance(item, Copy)):
        if copy.unknown:
            return f"what {copy.source} holds is not known ({copy.unknown}): load it once"
    return ""


def text_of(contents: Contents, dtypes: Mapping[torch.Tensor, torch.dtype], *, has_digests: bool) -> str:
    """Returns the text of the file, one item a line, so that a change of a plan is a change of a few lines.

    Args:
        contents: of the plan.
        dtypes: of the items' tensors in the plan.
        has_digests: read the checkpoints, and note what they hold.

    Raises:
        ValueError: an item cannot be written down; the message names it.
    """
    lines = [json.dumps(_record(item, dtypes, has_digests), **_HOW) for item in contents.items]
    head = {"fastinit_lock": VERSION, "numbers": contents.numbers, "seed": contents.seed}
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, **_HOW)}" for key, value in head.items())
    text += ',\n"unreached": ' + json.dumps(list(contents.unreached), **_HOW)
    if contents.order:
        text += ',\n"order": ' + json.dumps(list(contents.order), **_HOW)
    if contents.non_persistent:
        text += ',\n"non_persistent": ' + json.dumps(list(contents.non_persistent), **_HOW)
    return "{" + text + ',\n"items": [\n' + ",\n".join(lines) + "\n]}\n"


_HOW: dict[str, Any] = dict(ensure_ascii=False, allow_nan=False)


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file whole or not at all, and onto the disk."""
    with replacing(Path(path)) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


# --- records --------------------------------------------------------------------------------------------------------


def _record(item: Item, dtypes: Mapping[torch.Tensor, torch.dtype], has_digests: bool) -> dict[str, Any]:
    if isinstance(item, Fill):
        return _fill_record(item, dtypes)
    if isinstance(item, Call):
        return {"do": "call", "call": item.label, "rule": item.rule, "info": item.info}
    if isinstance(item, Replay):
        tensors = [
            {**_tensor(each.name, dtypes[each.tensor], each.tensor.shape), "by": each.info} for each in item.entries
        ]
        return {"do": "compute", "tensors": tensors, "rule": item.rule, "info": item.info}
    if item.why_not_kept:
        raise InitValueError(
            f"{item.rule}: a file cannot hold this request for a checkpoint: {item.why_not_kept}", place=item.rule
        )
    digests = item.digests() if has_digests else {}
    tensors = [_copy_record(entry, dtypes[entry.tensor], digests.get(entry.name)) for entry in item.entries]
    asked = {"module": item.path, "request": dict(item.request)}
    return {"do": "copy", **asked, "tensors": tensors, "rule": item.rule, "info": item.info}


def _fill_record(fill: Fill, dtypes: Mapping[torch.Tensor, torch.dtype]) -> dict[str, Any]:
    tensor, part, numbers = fill.tensor, *geometry_of(fill)
    values = {"kind": _kind(fill.distribution)}
    values |= {name: number_text(value) for name, value in numbers_of(fill.distribution).items()}
    record = {"do": "fill", **_tensor(fill.name, dtypes[tensor], tensor.shape), "values": values}
    if part is not None:
        record["part"] = {"first": part.first, "shape": list(part.shape), "steps": list(part.steps)}
    if numbers is not None and fill.is_drawn:
        record["drawn_at"] = {"first": numbers.first, "steps": list(numbers.steps)}
    if fill.stream and fill.is_drawn:
        record["stream"] = fill.stream
    if fill.seed is not None:
        record["seed"] = fill.seed
    return {**record, "rule": fill.rule, "info": fill.info}


def _tensor(name: str, dtype: torch.dtype, shape: Iterable[int]) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}


def _copy_record(entry: CopyEntry, dtype: torch.dtype, digest: str | None) -> dict[str, Any]:
    return {**_tensor(entry.name, dtype, entry.shape), "key": entry.name_in_file, "sha256": digest}


def _kind(distribution: Distribution) -> str:
    return "torch_trunc_normal" if isinstance(distribution, TorchTruncatedNormal) else distribution.kind


def number_text(value: Any) -> Any:
    """Returns a number as JSON has it: as it is, or as text if it is complex or not finite."""
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def geometry_of(fill: Fill) -> tuple[Strided | None, Strided | None]:
    """Returns which part of the parameter a fill writes, and which numbers of the stream it gets; None: all, in order.

    Raises:
        ValueError: it is part of a distributed tensor and no rectangle: only what is here of it is known.
    """
    if fill.parts is None:
        return None, None
    tensor = fill.tensor
    whole = Strided.whole(tensor.shape)
    if not fill.is_part and all(box.steps == whole.steps for box in fill.parts) and _are_rectangles(fill):
        return None, None
    if fill.region is not None:  # known on a mesh as well, where only some of its boxes are here
        region, drawn_at = fill.region.indices(tensor.shape).canonical, fill.numbers or Strided.whole(fill.shape)
        return region, (None if drawn_at == region else drawn_at)
    memory = Strided.of(tensor) if len(fill.parts) == 1 and not hasattr(tensor, "_local_tensor") else None
    part = None if memory is None else Strided.of(fill.parts[0].tensor).within(memory)
    if part is None or part.shape != fill.shape:
        raise InitValueError(
            f"{fill.rule}: a part of {fill.name!r} is filled, of which only what is on this rank is known",
            place=fill.rule,
            hint=": plan the model before it is distributed; the file then fits it on every mesh",
        )
    numbers = fill.parts[0].indices
    return (None if part == whole else part), (None if numbers == part else numbers)


def _are_rectangles(fill: Fill) -> bool:
    """Tells whether the parts of a fill are what a mesh has cut a whole tensor into."""
    return hasattr(fill.tensor, "_local_tensor") or (
        len(fill.parts or ()) == 1 and (fill.parts or ())[0].indices == Strided.whole(fill.tensor.shape)
    )


def _some(names: Sequence[str]) -> str:
    return f"{names[0]!r}" if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} others"

"""Reads the file of a plan. What is not exactly as docs/plans.md has it is refused: nothing is guessed or left out."""

from __future__ import annotations

import json
import re
from typing import NoReturn

import torch
from torch import nn

from ..errors import InitRuntimeError, InitValueError
from .geometry import Region, Strided
from .items import Box, Call, Copy, CopyEntry, Fill, Item, Replay, ReplayEntry
from .lock_fields import MAX_ELEMENTS, Fields, RefusedError, finite, no_constant, no_key_twice, shown, whole_number
from .lock_file import VERSION, Contents

_NUMBERS = re.compile(r"(contract [1-9][0-9]{0,3}|torch)( and (contract [1-9][0-9]{0,3}|torch))?")


def read(text: str | bytes, source: str) -> Contents:
    """Returns what the text of a file says.

    Args:
        text: of the file.
        source: what messages call it.

    Raises:
        ValueError: it is not the text of a plan, or not of a version that is known here; the message begins with the
            source and the place in it.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        document = json.loads(
            text,
            object_pairs_hook=no_key_twice,
            parse_constant=no_constant,
            parse_float=finite,
            parse_int=whole_number,
        )
        return _contents(document)
    except RefusedError as error:
        raise InitValueError(f"{source}: {error}", place=source, of=error) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InitValueError(f"{source}: not the JSON text of a plan: {error}", place=source) from None
    except RecursionError:
        raise InitValueError(f"{source}: not the text of a plan: nested too deeply", place=source) from None


# --- the whole ------------------------------------------------------------------------------------------------------


def _contents(document: object) -> Contents:
    if not isinstance(document, dict) or "fastinit_lock" not in document:
        raise RefusedError("not a plan that Plan.save wrote: the key 'fastinit_lock' is missing")
    if type(document["fastinit_lock"]) is not int or document["fastinit_lock"] != VERSION:
        raise RefusedError(
            f"fastinit_lock: version {VERSION} is known here, but this file is of version "
            f"{shown(document['fastinit_lock'])}",
            hint=": read it with a newer fastinit",
        )
    fields = Fields(document, "the file")
    fields.take("fastinit_lock")
    numbers, seed = fields.text("numbers"), fields.seed("seed")
    if not _NUMBERS.fullmatch(numbers):
        fields.refuse("numbers", "'contract N' or 'torch'", numbers)
    unreached = fields.names("unreached")
    order = fields.names("order") if "order" in fields.left else []
    non_persistent = fields.names("non_persistent") if "non_persistent" in fields.left else []
    known = _Known()
    items = [known.item(Fields(each, f"items[{i}]")) for i, each in enumerate(fields.values("items"))]
    fields.end()
    if both := [name for name in unreached if name in known.whole]:
        raise RefusedError(f"unreached: {both[0]!r} is written by an item")
    if order and set(order) != known.tensors.keys():
        raise RefusedError(f"order: expected all names that items write, each once, but got {shown(order)}")
    if unknown := [name for name in non_persistent if name not in known.tensors]:
        raise RefusedError(f"non_persistent: no item writes {shown(unknown[0])}")
    return Contents(tuple(items), numbers, seed, tuple(unreached), tuple(order), tuple(non_persistent))


class _Known:
    """The tensors of the file so far: one name is one shape and one dtype.

    It is written once, but for parts and for what a checkpoint may hold as well.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.whole: set[str] = set()
        """Of those that one item writes as a whole. What parts leave of others is not asked: a file may have many."""
        self._copied: set[str] = set()

    def item(self, fields: Fields) -> Item:
        """Returns the item that a record stands for."""
        kind = fields.text("do")
        rule, info = fields.text("rule"), fields.text("info")
        if kind == "fill":
            item: Item = self._fill(fields, rule, info)
        elif kind == "copy":
            item = self._copy(fields, rule, info)
        elif kind == "compute":
            entries = [self._computed(each) for each in fields.records("tensors")]
            why = "code computes it, and a plan from a file has its name only: give the model with the plan"
            item = Replay(nn.Module(), tuple(entries), rule, info, lambda entries, scope: _only_names(), why)
        elif kind == "call":
            item = Call(nn.Module(), fields.text("call"), rule, info, _only_names)
        else:
            fields.refuse("do", "'fill', 'copy', 'compute' or 'call'", kind)
        fields.end()
        return item

    def tensor(self, fields: Fields, *, may_be_known: bool = False) -> tuple[str, torch.Tensor]:
        """Returns the name and the tensor, without memory, of a record.

        Args:
            fields: of the record.
            may_be_known: it may have been written before.
        """
        name, shape, dtype = fields.name("name"), fields.shape("shape"), fields.dtype("dtype")
        known = self.tensors.get(name)
        if known is None:
            self.tensors[name] = known = torch.empty(shape, dtype=dtype, device="meta")
        elif not (may_be_known or name in self._copied):
            raise RefusedError(f"{fields.where}.name: {name!r} is written twice", place=f"{fields.where}.name")
        elif tuple(known.shape) != shape or known.dtype != dtype:
            raise RefusedError(f"{fields.where}: {name!r} has two shapes or dtypes", place=fields.where)
        return name, known

    def _fill(self, fields: Fields, rule: str, info: str) -> Fill:
        record = fields.optional("part")
        name, tensor = self.tensor(fields, may_be_known=record is not None)
        if record is None:
            self.whole.add(name)
            self._copied.discard(name)
        whole = Strided.whole(tensor.shape)
        part = whole if record is None else fields.part("part", record, tensor)
        distribution = fields.distribution("values", tuple(part.shape))
        numbers = part
        drawn_at = fields.optional("drawn_at")
        if drawn_at is not None:
            at = Fields(drawn_at, f"{fields.where}.drawn_at")
            steps = at.steps("steps")
            if len(steps) != len(part.shape):
                at.refuse("steps", f"{len(part.shape)} numbers", len(steps))
            numbers = Strided(at.count("first"), part.shape, steps)
            at.end()
            if numbers.first + numbers.span > MAX_ELEMENTS:
                raise RefusedError(f"{at.where}: there are no numbers that far", place=at.where)
        stream = fields.name("stream") if "stream" in fields.left else ""
        seed = None
        if "seed" in fields.left and (seed := fields.seed("seed")) is None:
            fields.refuse("seed", "a whole number, or no such key", None)
        parts = None
        if part != whole or numbers != part:
            parts = (Box(tensor.as_strided(part.shape, part.steps, part.first), numbers.first, numbers.steps),)
        others = None if numbers == Strided.whole(part.shape) else numbers
        region = None if part == whole else Region.of(part, tensor.shape)
        if region is not None and region.indices(tensor.shape).canonical != part:  # the file's steps are others
            region = None
        return Fill(name, tensor, distribution, rule, info, tuple(part.shape), parts, stream, seed, others, region)

    def _computed(self, fields: Fields) -> ReplayEntry:
        name, tensor = self.tensor(fields)
        self.whole.add(name)
        entry = ReplayEntry(name, tensor, fields.text("by"))
        fields.end()
        return entry

    def _copy(self, fields: Fields, rule: str, info: str) -> Copy:
        path, request = fields.text("module"), fields.request("request")
        entries, digests = [], {}
        for each in fields.records("tensors"):
            name, tensor = self.tensor(each)
            self.whole.add(name)
            self._copied.add(name)
            entries.append(CopyEntry(name, tensor, each.text("key"), tuple(tensor.shape)))
            digest = each.take("sha256")
            if digest is not None:
                if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
                    each.refuse("sha256", "64 hexadecimal digits or null", digest)
                digests[name] = digest
            each.end()
        source, replaces = request["checkpoint"], bool(request.get("assign", False))
        return Copy(
            nn.Module(),
            tuple(entries),
            source,
            rule,
            info,
            replaces,
            False,
            _only_names,
            path=path,
            request=request,
            digests=lambda: digests,
        )


def _only_names() -> NoReturn:
    raise InitRuntimeError(
        "a plan from a file has names only", hint=": give it to fastinit.initialize or fastinit.materialize"
    )

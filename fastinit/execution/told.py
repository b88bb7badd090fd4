"""What a report says of each parameter beside the fill: the rule's place, and what changed the values afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import torch

from ..plans import Call, Copy, Item, Row, row_of_computed
from .history import OF_A_PART, THEN

_OPERATOR = re.compile(r"`(?:aten\.)?([^`.]+)[^`]*` at .*")
_CODE = "Initialized by "


def with_places(
    texts: Mapping[str, str], rows: Iterable[Row], items: Iterable[Item], names: Mapping[torch.Tensor, str]
) -> dict[str, str]:
    """Returns what wrote each parameter, with the places in configs of the rules among it.

    Args:
        texts: name -> what the ledger says.
        rows: of all that was executed.
        items: the same as items.
        names: of the parameters.
    """
    places: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.parameter:
            places.setdefault(row.parameter, {})[_info_of(row)] = row.rule
    for item in items:
        if isinstance(item, Call) or (isinstance(item, Copy) and item.runs_own_code):  # it may write anything there
            for tensor in item.module.parameters():
                if tensor in names:
                    known = places.setdefault(names[tensor], {})
                    known[item.info] = item.rule if known.get(item.info, item.rule) == item.rule else ""  # which of two
    return {name: _placed(text, places.get(name, {})) for name, text in texts.items()}


def _placed(text: str, places: Mapping[str, str]) -> str:
    if text in places:  # as nearly all are
        return _with_place(text, places[text])
    steps = [(step.removesuffix(OF_A_PART), step.endswith(OF_A_PART)) for step in text.split(THEN)]
    return THEN.join(_with_place(step, places.get(step, "")) + OF_A_PART * is_part for step, is_part in steps)


@lru_cache(maxsize=4096)  # a rule fills many parameters
def _with_place(info: str, place: str) -> str:
    """Returns what wrote a parameter with the rule's place behind it, where that is one in a config and not in code."""
    is_in_config = "init_cfg" in place or place.endswith("init_weights")
    return f"{info.rstrip()} ({place})" if is_in_config and f" at {place}" not in info else info


def with_changes(rows: Sequence[Row], histories: Mapping[str, str], texts: Mapping[str, str]) -> tuple[Row, ...]:
    """Returns the rows, with what changed the values of each behind them.

    Args:
        rows: of all that was executed, in order.
        histories: name -> all that gave a parameter its values, one after the other, where memory was watched.
        texts: name -> what the ledger says, which may be the last of it only.
    """
    live: dict[str, list[Row]] = {}
    for row in rows:
        if row.parameter and not row.replaced:
            live.setdefault(row.parameter, []).append(row)
    found: dict[int, Row] = {}
    for name, those in live.items():
        text = histories.get(name) or texts.get(name, "")
        if not text or (len(those) == 1 and _info_of(those[0]) == text):  # as nearly all are
            continue
        told = {_info_of(row) for row in those}
        for row in those:
            if row.action != "call" and (steps := list(_behind(_info_of(row), text, told))):
                changed = f"{row.description}, then changed by {', '.join(map(_short, steps))}"
                found[id(row)] = row._replace(description=changed, values={**row.values, "then": steps})
    return tuple(found.get(id(row), row) for row in rows) if found else tuple(rows)


def _behind(info: str, text: str, told: Iterable[str]) -> Iterator[str]:
    """Yields the steps of a text behind those of a row, but for those that have rows of their own.

    Args:
        info: of the row. "": it is left to the code around it, which is what the text says.
        text: all that wrote the parameter. Where it lacks the row's own steps, something wrote it after them.
        told: of the parameter's rows.
    """
    own, steps = info.split(THEN), text.split(THEN)
    plain = [step.removesuffix(OF_A_PART) for step in steps]
    ends = [end for end in range(len(own), len(steps) + 1) if plain[end - len(own) : end] == own]
    at = ends[-1] if ends else 0
    for step, known in zip(steps[at:], plain[at:]):
        if info and known not in told and known not in own:
            yield step


def _short(step: str) -> str:
    """Returns e.g. ``mul_`` for ```aten.mul_.Tensor` at net.py:10 in __init__``."""
    text, part = step.removesuffix(OF_A_PART), OF_A_PART * step.endswith(OF_A_PART)
    operator = _OPERATOR.fullmatch(text)
    return (text.removeprefix(_CODE).rstrip() if operator is None else operator[1]) + part


def with_computed(rows: Sequence[Row], computed: Mapping[str, tuple[torch.Tensor, str]]) -> tuple[Row, ...]:
    """Returns the rows, and one for each parameter that has none because code computes its values.

    Args:
        rows: of all that was executed.
        computed: name -> a parameter that code gave all of its values, and how.
    """
    whole = {row.parameter for row in rows if not (row.replaced or _is_part(row, computed))}
    return (
        *(row_of_computed(name, tensor, how) for name, (tensor, how) in computed.items() if name not in whole),
        *rows,
    )


def _is_part(row: Row, computed: Mapping[str, tuple[torch.Tensor, str]]) -> bool:
    known = computed.get(row.parameter)
    return known is not None and tuple(known[0].shape) != row.shape


def _info_of(row: Row) -> str:
    return row.values["by"] if row.action == "compute" else row.info

"""How the names and shapes of a checkpoint fit a module's, before anything is written; and what to say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import InitRuntimeError
from ..naming import join
from ..plans import LoadResult
from .messages import MAX_SHOWN
from .modules import Descent, Mismatches, Slot, Tree, swaps_parameters
from .request import Request
from .storage.stubs import shown
from .wrappers import Matched

_UNTOUCHED = "\nNothing was copied."


def does_not_fit(source: str, module: nn.Module) -> str:
    """Returns the beginning of messages about a checkpoint that does not match a module."""
    return f"{source} does not fit {type(module).__name__}: "


def mismatches_of(module: nn.Module, match: Matched, tree: Tree, assign: bool, source: str) -> Mismatches | None:
    """Returns what a load will find not to match; None where modules' own code decides that.

    Args:
        module: to load into.
        match: the state dict by the names of ``tree``.
        tree: of the module.
        assign: the file's tensors replace the module's.
        source: the checkpoint.
    """
    if tree.own_code or swaps_parameters():
        return None
    descent = Descent(match.metadata, None, assign, False, does_not_fit(source, module))
    descent.run(module, match.state_dict)
    return descent.found


def counted_missing(found: Mismatches, match: Matched) -> list[str]:
    """Returns the missing keys that matter to the values."""
    # Older checkpoints lack this counter.
    return [key for key in found.missing if "num_batches_tracked" not in key and key not in match.optional]


def without_tied(missing: Sequence[str], slots: Sequence[Slot], written: Collection[str]) -> list[str]:
    """Returns the missing keys, except those of tied tensors that were written under another name."""
    if not missing:
        return []
    tensors = {id(slot.tensor) for slot in slots if slot.name in written}
    tied = {slot.name for slot in slots if id(slot.tensor) in tensors}
    return [key for key in missing if key not in tied]


def result_of(found: Mismatches, missing: Sequence[str], copied: Sequence[str], match: Matched) -> LoadResult:
    """Returns how a checkpoint fitted, or will fit."""
    return LoadResult(tuple(copied), tuple(missing), tuple(found.unexpected), found.of_other_shape, match.stripped)


def with_hints(result: LoadResult, request: Request, tree: Any) -> LoadResult:
    """Returns how a checkpoint fits, with hints for users who may have meant something else.

    Args:
        result: how it fits.
        request: for it.
        tree: its contents.
    """
    hints = request.hints(tree, result.copied, result.unexpected)
    if not result.copied and (found := prefix_hint(result.missing, result.unexpected, request.prefix)):
        hints.append(f"the keys would fit with {found}")
    return replace(result, hints=tuple(hints))


def refusal(
    found: Mismatches, missing: Sequence[str], source: str, prefix: str | None = None, written: str = ""
) -> InitRuntimeError:
    """Returns the error about mismatches under ``strict``.

    Args:
        found: the mismatches.
        missing: the keys that count as missing.
        source: the checkpoint; "": a state dict in memory, about which mmengine's words are all.
        prefix: of the keys that were asked for.
        written: a line about what may have been written.
    """
    text = found.text(missing)
    if not source:
        return InitRuntimeError(f"{text}{written}")
    hint = prefix_hint(missing, found.unexpected, prefix) or "prefix, key or revise_keys"
    return InitRuntimeError(
        f"{text}{written or _UNTOUCHED}",
        place=source,
        hint=f" Leave strict out to load what fits; if other keys of the file are meant, pass {hint}",
    )


def prefix_hint(missing: Sequence[str], unexpected: Sequence[str], before: str | None) -> str:
    """Returns the argument with which keys of a file would be names of a model, "" if no prefix alone does it.

    Args:
        missing: names of the model.
        unexpected: keys, without the prefix that was given.
        before: that prefix.
    """
    if prefix := _prefix_before(missing, unexpected):
        return f"prefix={shown(join((before or '').removesuffix('.'), prefix))}"
    if not before and (prefix := _prefix_before(unexpected, missing)):
        return f"revise_keys=[('^', {shown(f'{prefix}.')})]"
    return ""


def _prefix_before(names: Sequence[str], longer: Sequence[str]) -> str:
    """Returns what most of the longer names have in front of one of the others."""
    wanted = {name for name in names if len(name) <= MAX_SHOWN}
    found = Counter(
        name[:at]
        for name in longer
        if len(name) <= MAX_SHOWN
        for at, sign in enumerate(name)
        if sign == "." and name[at + 1 :] in wanted
    )
    return found.most_common(1)[0][0] if found else ""

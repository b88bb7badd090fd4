"""What wrote a tensor, one write after the other, as one text."""

from __future__ import annotations

THEN = "; then "
"""Between one write and the next."""
OF_A_PART = " (a part)"
"""Behind a write to a part of the tensor."""
# Code may change a tensor any number of times; a reader wants the first writes and the last.
_MOST_STEPS = 6
_OMITTED = "..."


def then(before: str, info: str, *, is_part: bool = False) -> str:
    """Returns what wrote a tensor, with one more write that left something of what was there.

    Args:
        before: what wrote it so far; "" if nothing did.
        info: of the write.
        is_part: it was to a part of the tensor.
    """
    if not before:
        return info
    steps = before.split(THEN)
    if steps[-1].removesuffix(OF_A_PART) == info:  # as one row after the other
        return before
    steps.append(info + OF_A_PART if is_part else info)
    if len(steps) > _MOST_STEPS:
        steps = [*steps[:2], _OMITTED, *steps[3 - _MOST_STEPS :]]
    return THEN.join(steps)

"""The numbers of digests, as plain text that the tests of every implementation read (tests/data/digest_1.json).

They are frozen: a difference is a defect, or a new version. The file was written by ``python tests/support/digest_answers.py``
from the formula, in Python's integers.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np
import torch
from paths import DATA

from fastinit.plans import Box, TensorDigest

FILE = DATA / "digest_1.json"
# Around a vector register, and the end of the lower half of the index.
SIZES = [0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 1000]
FIRST_INDICES = [0, 5, (1 << 32) - 70, (3 << 40) + 1]
STEPS = [1, 7, (1 << 31) + 3]
DTYPES = ["uint8", "bfloat16", "float32", "float64", "complex128"]


class Answer(NamedTuple):
    """The sum over n elements, whose bytes are those of ``values``, with indices first, first + step, ..."""

    dtype: str
    n: int
    first: int
    step: int
    sum: str
    """16 digits."""
    digest: str
    """That of a tensor of shape (n,) with this sum."""

    def box(self, device: str = "cpu") -> Box:
        """Returns the box."""
        return Box(values(self.dtype, self.n).to(device), self.first, (self.step,))


def values(dtype: str, n: int) -> torch.Tensor:
    """Returns n elements: byte i is (37 i + i div 11) mod 256, so that no two neighbours are equal."""
    kind = getattr(torch, dtype)
    i = np.arange(n * kind.itemsize)
    data = torch.from_numpy(((37 * i + i // 11) % 256).astype(np.uint8))
    return data.view(kind) if n else torch.empty(0, dtype=kind)


def answers() -> list[Answer]:
    """Returns the known answers."""
    return [Answer(*row) for row in json.loads(FILE.read_text())["answers"]]


def formula(box: Box) -> int:
    """Returns the sum of a box by the formula of docs/digests.md, word by word."""
    width = box.tensor.element_size()
    data = box.tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    of_word, n_words = min(width, 4), max(1, width // 4)
    indices = [box.first_index]
    for size, step in zip(box.tensor.shape, box.steps):
        indices = [index + k * step for index in indices for k in range(size)]
    total, low = 0, 0xFFFFFFFF
    for element, index in enumerate(indices):
        for k in range(n_words):
            at = element * width + k * of_word
            q, r = divmod(index * n_words + k, 1 << 32)
            u = (int.from_bytes(data[at : at + of_word], "little") + 0x9E3779B9 * r + 0x85EBCA6B * q) & low
            u = ((u ^ (u >> 16)) * 0x7FEB352D) & low
            u = ((u ^ (u >> 15)) * 0x846CA68B) & low
            u = u ^ (u >> 16)
            total += u * ((0xD413CCCE * r + 0xC2B2AE36 * q + 0xD2511F53) & low)
    return total % (1 << 64)


def write() -> None:
    """Writes the file."""
    found = []
    for dtype in DTYPES:
        for first in FIRST_INDICES:
            for step in STEPS:
                for n in SIZES if step == 1 else SIZES[-2:]:
                    total = formula(Box(values(dtype, n), first, (step,)))
                    digest = TensorDigest.of(total, dtype, (n,)).hex
                    found.append(Answer(dtype, n, first, step, f"{total:016x}", digest))
    about = (
        "digest 1: n elements of a dtype, byte i of which is (37 i + i div 11) mod 256, with indices first, first + step, "
        "...; the sum of the mixed words, and the digest of a tensor of shape [n] that has it"
    )
    lines = ",\n".join("  " + json.dumps(answer) for answer in found)
    FILE.write_text(f'{{"about": {json.dumps(about)},\n "answers": [\n{lines}\n]}}\n')
    assert math.prod(map(len, (DTYPES, FIRST_INDICES))) * (len(SIZES) + 4) == len(found)


if __name__ == "__main__":
    write()

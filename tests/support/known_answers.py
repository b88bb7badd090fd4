"""The numbers of contract 1, as plain text that the tests of every backend read (tests/data/contract_1.json).

They are frozen: a difference is a defect, or a new version of the contract with a file of its own. The file was written by
``python tests/support/known_answers.py`` when the kernels of the CPU, of CUDA and of Triton agreed on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from paths import DATA

from fastinit import plans

FILE = DATA / "contract_1.json"
KINDS = {"uniform": plans.Uniform, "normal": plans.Normal, "trunc_normal": plans.TruncatedNormal}
INF = math.inf
# Every form of the kernels: inside two standard deviations, wide with and without bounds in reach, both tails.
DISTRIBUTIONS = [
    plans.Uniform(0, 1),
    plans.Uniform(-0.37, 1.93),
    plans.Normal(0, 1),
    plans.Normal(0.25, 0.02),
    plans.TruncatedNormal(0, 0.02, -0.04, 0.04),
    plans.TruncatedNormal(0, 0.02, -2, 2),
    plans.TruncatedNormal(0.25, 1.5, -1.5, 5.0),
    plans.TruncatedNormal(0, 1, 6, INF),
    plans.TruncatedNormal(0.5, 0.02, -INF, 0.45),
    plans.TruncatedNormal(0, 1, -30, -29),
]
DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]
SEED, NAME, N_ELEMENTS = 2026, "layers.0.mlp.up_proj.weight", 10_007
FIRST_INDICES = [0, (1 << 35) + 4]


def answers() -> list[dict[str, Any]]:
    """Returns the known answers whose dtypes this torch has."""
    document = json.loads(FILE.read_text())
    return [answer for answer in document["answers"] if hasattr(torch, answer["dtype"])]


def distribution_of(answer: dict[str, Any]) -> plans.Distribution:
    """Returns the distribution of an answer."""
    kind, *numbers = answer["distribution"]
    return KINDS[kind](*map(float, numbers))


def digest(tensor: torch.Tensor) -> str:
    """Returns a hash of a contiguous tensor's bytes."""
    return hashlib.blake2b(tensor.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


def first_bytes(tensor: torch.Tensor) -> str:
    """Returns the bytes of the first eight elements, so that a difference can be looked at."""
    return bytes(tensor[:8].view(torch.uint8).tolist()).hex()


def filled(distribution: plans.Distribution, dtype: str, first_index: int) -> torch.Tensor | None:
    """Returns what the backend ``cpp`` gives, None where it refuses: no number of the dtype is within the bounds."""
    from fastinit.backends import cpp_backend

    tensor = torch.empty(N_ELEMENTS, dtype=getattr(torch, dtype))
    box = plans.Box(tensor, first_index, (1,))
    fill = plans.Fill(NAME, tensor, distribution, "", "", (1 << 40,), (box,))
    if cpp_backend.why_not_fill(fill) is not None:
        return None
    cpp_backend.run([fill], SEED)
    return tensor


def write() -> None:
    """Writes the file."""
    found = []
    for distribution in DISTRIBUTIONS:
        for dtype in DTYPES:
            for first_index in FIRST_INDICES:
                tensor = filled(distribution, dtype, first_index)
                if tensor is None:
                    continue
                numbers = [str(number) for number in plans.numbers_of(distribution).values()]
                found.append(
                    {
                        "distribution": [distribution.kind, *numbers],
                        "dtype": dtype,
                        "first_index": first_index,
                        "first_bytes": first_bytes(tensor),
                        "blake2b_128": digest(tensor),
                    }
                )
    about = (
        f"contract 1: seed {SEED}, name {NAME!r}, {N_ELEMENTS} elements from first_index on; bytes are little-endian"
    )
    lines = ",\n".join("  " + json.dumps(answer) for answer in found)
    FILE.write_text(f'{{"about": {json.dumps(about)},\n "answers": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write()

"""A few known answers that come with the package, so that any install can check its backends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from ..backends import BACKENDS, cpp_backend, device_type
from ..backends.digests import sums
from ..contract.records import lowered
from ..plans import Box, Distribution, Fill, Normal, TensorDigest, TruncatedNormal, Uniform


class Answer(NamedTuple):
    """What a stream's numbers are."""

    distribution: Distribution
    dtype: str
    first_index: int
    hash: str
    """BLAKE2b of 128 bits, of the elements' bytes."""


SEED, NAME, N_ELEMENTS = 2026, "layers.0.mlp.up_proj.weight", 10_007
_FAR = (1 << 35) + 4
_WITHIN = TruncatedNormal(0.0, 0.02, -0.04, 0.04)
# Some of contract 1 (tests/data/contract_1.json), of the dtypes whose bits all backends share.
ANSWERS = (
    Answer(Uniform(0.0, 1.0), "float32", 0, "512b023fb5bf5741940aa7c84f14d475"),
    Answer(Normal(0.0, 1.0), "float32", _FAR, "04c9fe779edc9a838365dbb005f19f79"),
    Answer(Normal(0.0, 1.0), "bfloat16", 0, "3abcf91814370f2b3a7ee7f2e18820bb"),
    Answer(Normal(0.0, 1.0), "float8_e4m3fn", 0, "6da1e803fa900b664e1136862fd80074"),
    Answer(_WITHIN, "float32", 0, "9649e6c1fa12dbf4b0f8cfe9e48ac333"),
    Answer(_WITHIN, "float16", 0, "ffd210ca68b6fe59f2eb7d20d26a918f"),
)
# Of 1,000 bytes (37 i + i div 11) mod 256, by digest 1 (tests/data/digest_1.json).
DIGEST = "2054e768d462340b"


def outcomes() -> Iterator[tuple[str, str]]:
    """Yields what was checked, and what is wrong with it, "" where nothing is."""
    for name, backend in BACKENDS.items():
        device = torch.device(device_type(name))
        if backend.IS_CONTRACT and backend.why_not(device) is None:
            if name == "cpp":
                for instructions in cpp_backend._core().instruction_sets():
                    yield f"{name}, {instructions}", _wrong(_by_core(instructions), device)
            else:
                yield name, _wrong(lambda fill, name=name: BACKENDS[name].run([fill], SEED), device)  # type: ignore[misc]
    yield "digests", _wrong_digest()


def _by_core(instructions: str) -> Callable[[Fill], object]:
    def run(fill: Fill) -> None:
        cpp_backend._core().fill(lowered([fill], SEED).view(np.uint8), torch.get_num_threads(), instructions)

    return run


def _wrong(run: Callable[[Fill], object], device: torch.device) -> str:
    """Returns which answers a backend does not give, "" for none."""
    wrong = []
    for answer in ANSWERS:
        dtype = getattr(torch, answer.dtype, None)
        if dtype is None:  # an old torch
            continue
        tensor = torch.zeros(N_ELEMENTS, dtype=dtype, device=device)
        box = Box(tensor, answer.first_index, (1,))
        run(Fill(NAME, tensor, answer.distribution, "", "", (1 << 40,), (box,)))
        data = tensor.cpu().view(torch.uint8).numpy().tobytes()
        if hashlib.blake2b(data, digest_size=16).hexdigest() != answer.hash:
            wrong.append(f"{type(answer.distribution).__name__} in {answer.dtype}")
    return f"other numbers than contract 1: {', '.join(wrong)}" if wrong else ""


def _wrong_digest() -> str:
    i = np.arange(1000)
    tensor = torch.from_numpy(((37 * i + i // 11) % 256).astype(np.uint8))
    (total,) = sums([Box.whole(tensor)])
    found = TensorDigest.of(total, "uint8", (1000,)).hex
    return "" if found == DIGEST else f"{DIGEST} expected, {found} found"

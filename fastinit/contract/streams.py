"""From a seed and a parameter's name to the random key of that parameter.

The generator is Philox-4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011); folding and
keying are those of PyTorch's stateless generator ``torch.func._random``. Letters are the paper's. Everything here is
integer arithmetic on a handful of words, in plain Python or, for all parameters of a model, in numpy; the fills
themselves run elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

from ..errors import InitTypeError, InitValueError

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
MAX_SEED = MASK64
_STREAM_BITS = 2**63 - 1

# The multipliers and the Weyl increments of the paper, section 4.
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
# The paper finds no failure of Crush-resistance from 7 rounds on; 10 is its (and cuRAND's and PyTorch's) safe choice.
_ROUNDS = 10
# Up to so many keys, plain integers are faster than numpy, whose hundred calls take some 60 us whatever the length.
_FEW = 16

Words = np.ndarray[Any, np.dtype[np.uint64]]
Key = tuple[int, int]
"""(seed, offset), 64 bits each: where a stream of random blocks begins."""


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the four 32-bit words of one Philox-4x32-10 block.

    Example:
        >>> [hex(word) for word in philox4x32((0, 0, 0, 0), (0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + _W0) & MASK32, (k1 + _W1) & MASK32
    return c0, c1, c2, c3


def block(key: Key, index: int) -> tuple[int, int, int, int]:
    """Returns the four words of block ``index`` of a stream: elements 4 * index to 4 * index + 3 of a parameter."""
    seed, offset = key
    position = (offset + index) & MASK64
    return philox4x32((position & MASK32, position >> 32, 0, 0), (seed & MASK32, seed >> 32))


def fold_in(key: Key, data: int) -> Key:
    """Derives a new key from a key and a number; ``data`` counts modulo 2^64."""
    w0, w1, w2, w3 = block(key, data)
    return w0 | w1 << 32, w2 | w3 << 32


def stream_of(name: str) -> int:
    """Returns the stream number of a parameter's name, below 2^63 (a hash, the same in every process)."""
    digest = blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _STREAM_BITS


def streams_of(names: Iterable[str]) -> Words:
    """Returns the stream numbers of many names, as :func:`stream_of` has them, as uint64."""
    digests = b"".join([blake2b(name.encode(), digest_size=8).digest() for name in names])
    streams: Words = np.frombuffer(digests, "<u8") & np.uint64(_STREAM_BITS)
    return streams


def parameter_key(seed: int, name: str) -> Key:
    """Returns the key of the parameter called ``name`` (fully qualified, canonical) under ``seed``.

    Example:
        >>> [hex(word) for word in parameter_key(0, "weight")]
        ['0xfb10870b0de3c029', '0xadbb89fc34a9ce58']
    """
    return fold_in((seed, 0), stream_of(name))


def parameter_keys(seed: int, streams: Words) -> Words:
    """Returns the keys of many parameters at once, as :func:`parameter_key` has them.

    Args:
        seed: 0 to 2^64 - 1.
        streams: the numbers of :func:`stream_of`, uint64, of shape [n].

    Returns:
        uint64 of shape [n, 2]: seed and offset of each.
    """
    if len(streams) <= _FEW:
        return np.array([fold_in((seed, 0), stream) for stream in streams.tolist()], np.uint64).reshape(-1, 2)
    mask, half = np.uint64(MASK32), np.uint64(32)
    c0, c1 = streams & mask, streams >> half
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    k0, k1 = seed & MASK32, seed >> 32
    for _ in range(_ROUNDS):  # as philox4x32
        p0, p1 = np.uint64(_M0) * c0, np.uint64(_M1) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + _W0) & MASK32, (k1 + _W1) & MASK32
    return np.stack([c0 | c1 << half, c2 | c3 << half], axis=1)


def check_seed(seed: object) -> int:
    """Returns ``seed`` as an int.

    Raises:
        TypeError: it is not an integer (a bool is not one).
        ValueError: it is not within 0 to 2^64 - 1.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise InitTypeError(f"seed must be an integer from 0 to 2**64 - 1, but got {seed!r} of {type(seed)}")
    number = seed.__index__()
    if not 0 <= number <= MAX_SEED:
        raise InitValueError(f"seed must be an integer from 0 to 2**64 - 1, but got {number}")
    return int(number)

"""The random keys of parameters against known answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from paths import DATA

from fastinit.contract import streams

CONTRACT = json.loads((DATA / "contract.json").read_text())


@pytest.mark.parametrize("answer", [answer for answer in CONTRACT["philox"] if answer["rounds"] == 10])
def test_philox_gives_the_known_answers_of_random123(answer):
    counter, key, out = ([int(word, 16) for word in answer[part]] for part in ("counter", "key", "out"))
    assert list(streams.philox4x32(tuple(counter), tuple(key))) == out


@pytest.mark.parametrize("answer", CONTRACT["tensors"], ids=lambda answer: f"{answer['seed']}-{answer['name']}")
def test_a_name_and_a_seed_give_the_known_stream_key_and_words(answer):
    key = streams.parameter_key(answer["seed"], answer["name"])
    assert streams.stream_of(answer["name"]) == answer["stream"]
    assert [hex(word) for word in key] == answer["key"]
    words = [*streams.block(key, 0), *streams.block(key, 1)]
    assert [f"{word:08x}" for word in words] == answer["words"]
    for index, word in answer["far"].items():
        assert f"{streams.block(key, int(index) // 4)[int(index) % 4]:08x}" == word


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match="from 0 to 2\\*\\*64 - 1"):
        streams.check_seed(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match="must be an integer"):
        streams.check_seed(seed)


def test_the_largest_seed_is_accepted():
    assert streams.check_seed(2**64 - 1) == 2**64 - 1


def test_batched_keys_match_single_ones():
    names = [f"layers.{i}.weight" for i in range(300)]
    numbers = np.array([streams.stream_of(name) for name in names], np.uint64)
    for seed in (0, 1, 2**32 + 5, 2**64 - 1):
        keys = streams.parameter_keys(seed, numbers)
        assert [tuple(key) for key in keys.tolist()] == [streams.parameter_key(seed, name) for name in names]

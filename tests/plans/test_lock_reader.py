"""The reader of plans takes exactly what docs/plans.md describes, and says where a file departs from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import needs
import pytest
from fuzz_lock_files import fuzz
from lock_files import kept

from fastinit import Error, Plan

pytestmark = needs.mark(needs.CPP)


def document(folder: Path) -> dict[str, Any]:
    return json.loads(kept(folder)._text(True))  # type: ignore[no-any-return]


def refusal(folder: Path, text: str | bytes) -> str:
    """Returns what is wrong with a text, behind the file's name."""
    path = folder / "damaged.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(ValueError) as error:
        Plan.load(path)
    assert type(error.value).__bases__ == (Error, ValueError)
    return str(error.value).removeprefix(f"{path}: ")


def set_item(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["items"][0].__setitem__(key, value)


def set_values(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["items"][0].__setitem__("values", values)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (
        lambda d: d.update(fastinit_lock=2),
        "fastinit_lock: version 1 is known here, but this file is of version 2: read it with a newer fastinit",
    ),
    "a version that is no number": (lambda d: d.update(fastinit_lock=True), "fastinit_lock: version 1 is known here"),
    "no version": (lambda d: d.pop("fastinit_lock"), "not a plan that Plan.save wrote"),
    "an unknown key": (lambda d: d.update(extra=1), "the file: the key 'extra' is not known"),
    "an unknown key of an item": (set_item("extra", 1), "items[0]: the key 'extra' is not known"),
    "a key that is missing": (lambda d: d["items"][1].pop("shape"), "items[1]: the key 'shape' is missing"),
    "a name that is none": (set_item("name", 3), "items[0].name: expected a text, but got 3"),
    "an empty name": (set_item("name", ""), "items[0].name: expected a name, but got ''"),
    "a size below zero": (set_item("shape", [8, -4]), "items[0].shape: expected a list of whole numbers of at least 0"),
    "a size that is true": (set_item("shape", [8, True]), "items[0].shape: expected a list of whole numbers"),
    "more elements than memory has addresses": (set_item("shape", [2**40, 2**40]), "items[0].shape: expected at most"),
    "an alias of a dtype": (set_item("dtype", "half"), "items[0].dtype: expected the name of a dtype"),
    "something of torch that is no dtype": (set_item("dtype", "nn"), "items[0].dtype: expected the name of a dtype"),
    "an unknown kind of item": (set_item("do", "run"), "items[0].do: expected 'fill', 'copy', 'compute' or 'call'"),
    "an unknown distribution": (set_values(kind="zipf"), "items[0].values.kind: expected one of constant, uniform"),
    "a distribution without a number": (
        set_values(kind="normal", mean=0.0),
        "items[0].values: the key 'std' is missing",
    ),
    "a distribution with one too many": (
        set_values(kind="normal", mean=0.0, std=1.0, low=0.0),
        "items[0].values: the key 'low' is not known",
    ),
    "an impossible distribution": (
        set_values(kind="normal", mean=0.0, std=-1.0),
        "items[0].values: normal expects std >= 0.0",
    ),
    "a number that is text": (
        set_values(kind="normal", mean=0.0, std="0.1"),
        "items[0].values.std: expected a number, but got '0.1'",
    ),
    "a whole number that float64 lacks": (
        set_values(kind="normal", mean=2**53 + 1, std=1.0),
        "items[0].values.mean: expected a number that float64 has",
    ),
    "a shape that the distribution does not fit": (
        lambda d: d["items"][1].__setitem__("values", {"kind": "orthogonal", "gain": 1.0, "batch_dims": 0}),
        "items[1].values: orthogonal needs at least 2 dimensions",
    ),
    "a part outside of the tensor": (
        set_item("part", {"first": 30, "shape": [3], "steps": [1]}),
        "items[0].part: not a part of a tensor of shape (8, 4)",
    ),
    "a part that overlaps itself": (
        set_item("part", {"first": 0, "shape": [4, 4], "steps": [1, 1]}),
        "items[0].part: not a part of a tensor",
    ),
    "a seed below zero": (lambda d: d.update(seed=-1), "the file.seed: expected a whole number from 0 to 2**64 - 1"),
    "a seed beyond 64 bits": (lambda d: d.update(seed=2**64), "the file.seed: expected a whole number from 0"),
    "numbers that nothing is called": (
        lambda d: d.update(numbers="contract"),
        "the file.numbers: expected 'contract N'",
    ),
    "a name that is written twice": (
        lambda d: d["items"].append(d["items"][0]),
        "items[6].name: '0.weight' is written twice",
    ),
    "a part of a tensor of another shape": (
        lambda d: d["items"].append({**d["items"][0], "shape": [4, 4], "part": {"first": 0, "shape": [], "steps": []}}),
        "items[6]: '0.weight' has two shapes or dtypes",
    ),
    "a name that is both written and not": (
        lambda d: d.update(unreached=["0.weight"]),
        "unreached: '0.weight' is written by an item",
    ),
    "an order without a name": (
        lambda d: d.update(order=["0.weight"]),
        "order: expected all names that items write, each once, but got ['0.weight']",
    ),
    "an order with a name twice": (
        lambda d: d.update(order=["a", "a"]),
        "the file.order: expected a list of names, ea",
    ),
    "a buffer that no item writes": (
        lambda d: d.update(non_persistent=["0.weight", "table"]),
        "non_persistent: no item writes 'table'",
    ),
    "a lone half of a surrogate pair": (set_item("name", "\ud800"), "items[0].name: expected a text"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_is_refused_that_has(tmp_path: Path, what: str) -> None:
    change, expected = WRONG[what]
    damaged = document(tmp_path)
    change(damaged)
    assert refusal(tmp_path, json.dumps(damaged)).startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"seed": 7', '"seed": 7, "seed": 8', "the key 'seed' is there twice in one object"),
        ('"mean": 0.0', '"mean": NaN', "NaN is no number of JSON"),
        ('"mean": 0.0', '"mean": -Infinity', "-Infinity is no number of JSON"),
        ('"mean": 0.0', '"mean": 1e999', "1e999 is beyond the numbers of float64"),
        ('"seed": 7', '"seed": ' + "7" * 5000, "7777777777777777777777777777777777777777... is beyond whole numbers"),
        ('"seed": 7', '"seed": ' + "[" * 100_000, "not the text of a plan: nested too deeply"),
        ('"seed": 7', '"seed": 07', "not the JSON text of a plan: "),
    ],
    ids=["a key twice", "NaN", "infinity", "overflow", "many digits", "deep nesting", "a leading zero"],
)
def test_json_is_read_strictly(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = kept(tmp_path)._text(True)
    assert old in text
    assert refusal(tmp_path, text.replace(old, new, 1)).startswith(expected)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    text = kept(tmp_path)._text(True)
    for length in range(0, len(text) - 2, 97):
        refusal(tmp_path, text[:length])


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "'utf-8' codec can't decode" in refusal(tmp_path, b"\xff\xfe{}")


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Plan.load(tmp_path / "none.json")


def test_messages_are_short_and_can_be_printed(tmp_path: Path) -> None:
    damaged = document(tmp_path)
    damaged["items"][0]["name"] = {"\x1b[31m" * 10_000: 1}
    told = refusal(tmp_path, json.dumps(damaged))
    assert told.isprintable() and len(told) < 500


def test_mutants_are_refused_or_mean_what_they_say() -> None:
    found = fuzz(300, seed=5)
    assert not set(found) - {"refused", "read"} and found["refused"] > 50 and found["read"] > 5, found


def test_the_fuzzer_finds_a_reader_that_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastinit.plans.lock_fields.Fields.end", lambda self: None)  # unknown keys are left out
    assert any(re.match("read as something else", what) for what in fuzz(300, seed=5))

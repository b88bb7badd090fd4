"""Digests as data: text, JSON, what differs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinit.plans import Digest, TensorDigest

A, B, C = (TensorDigest.of(total, "float32", (2, 3)) for total in (1, 2, 3))
WIDE = TensorDigest.of(1, "float64", (2, 3))
TURNED = TensorDigest.of(1, "float32", (3, 2))

NAMES = st.one_of(
    st.text(min_size=0, max_size=8), st.sampled_from(["a.b", ' x"', '"q"', "a\nb", "é", "\u2028", "\\n", "a b"])
)
TENSORS = st.builds(
    TensorDigest.of,
    st.integers(0, 2**64 - 1),
    st.sampled_from(["float32", "float8_e4m3fn", "int64", "bool"]),
    st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
)
DIGESTS = st.dictionaries(NAMES, TENSORS, max_size=6).map(Digest)


@given(DIGESTS)
def test_text_is_read_back(digest: Digest) -> None:
    assert Digest.from_text(digest.to_text()) == digest


@given(DIGESTS)
def test_json_is_read_back(digest: Digest) -> None:
    assert Digest.from_json(digest.to_json()) == digest


@given(DIGESTS)
def test_text_has_a_line_for_each_tensor(digest: Digest) -> None:
    assert digest.to_text().count("\n") == 2 + len(digest)


def test_text_is_as_documented() -> None:
    assert Digest({"layer.weight": A}).to_text() == (
        "# fastinit digest 1\ntotal 189735cab18cebac371ae897b3f0c6ad\n01b3c9571a0febb3 float32[2,3] layer.weight\n"
    )


def test_the_digest_of_a_tensor_depends_on_dtype_and_shape() -> None:
    assert len({A.hex, WIDE.hex, TURNED.hex}) == 3


def test_different_sums_of_one_form_have_different_digests() -> None:
    assert len({TensorDigest.of(total, "float32", (2, 3)).hex for total in (0, 1, 2**63, 2**64 - 1)}) == 4


def test_the_total_depends_on_every_name_and_value() -> None:
    digests = [{"a": A, "b": B}, {"a": B, "b": A}, {"a": A}, {"a": A, "c": B}, {"a": A, "b": C}, {}]
    assert len({Digest(each).total for each in digests}) == len(digests)


def test_order_does_not_count() -> None:
    first, second = Digest({"a": A, "b": B}), Digest({"b": B, "a": A})
    assert first == second and first.total == second.total and hash(first) == hash(second)
    assert not first.diff(second)


@given(DIGESTS)
def test_equal_digests_have_equal_text_and_json(digest: Digest) -> None:
    other = Digest(dict(reversed(digest.tensors.items())))
    assert other.to_text() == digest.to_text() and other.to_json() == digest.to_json()


def test_text_has_layers_in_the_order_of_their_numbers() -> None:
    names = ["h.10.w", "h.9.w", "h.w", "head", "h.010.w", f"h.{'1' * 5000}.w"]
    found = [line.split()[-1] for line in Digest(dict.fromkeys(names, A)).to_text().splitlines()[2:]]
    assert found == [names[4], names[5], names[2], "h.9.w", "h.10.w", "head"]


def test_equal_digests_have_no_diff() -> None:
    diff = Digest({"a": A}).diff(Digest({"a": A}))
    assert not diff and str(diff) == "no difference"


def test_a_diff_tells_each_kind_of_change() -> None:
    before = Digest({"same": A, "value": A, "form": A, "gone": C, "old": B})
    after = Digest({"same": A, "value": B, "form": WIDE, "new": B, "more": TURNED})
    diff = before.diff(after)
    assert diff.values == ("value",)
    assert diff.forms == (("form", "float32[2,3]", "float64[2,3]"),)
    assert diff.renamed == (("old", "new"),)
    assert (diff.added, diff.removed) == (("more",), ("gone",))
    assert str(diff) == (
        "from this digest to the other:\n"
        "1 tensors with other values: value\n"
        "1 tensors of another dtype or shape: form (float32[2,3] -> float64[2,3])\n"
        "1 renamed tensors: old -> new\n1 added tensors: more\n1 removed tensors: gone"
    )


def test_equal_tensors_are_not_taken_for_renamed_ones_where_it_is_not_clear_which() -> None:
    diff = Digest({"a": A, "b": A}).diff(Digest({"c": A, "d": A}))
    assert diff.renamed == () and diff.added == ("c", "d") and diff.removed == ("a", "b")


def test_a_diff_says_which_other_name_holds_the_same() -> None:
    model, checkpoint = Digest({"embed": A, "head": A, "norm": B}), Digest({"embed": A, "norm": B})
    line = "from this digest to the other:\n1 removed tensors: head (holds what embed does)\n  (of tied names a checkpoint may have one only; digest("
    assert str(model.diff(checkpoint)).startswith(line)
    for diff in (model.diff(checkpoint), checkpoint.diff(model)):
        assert diff and diff.equal == (("head", "embed"),)
    assert checkpoint.diff(model).added == ("head",)


def test_values_that_have_changed_explain_no_other_name() -> None:
    before, after = Digest({"embed": A, "head": A}), Digest({"embed": B})
    assert before.diff(after).equal == () and "tied" not in str(before.diff(after))


TEXT = Digest({"a": A, "b": B}).to_text()
DAMAGED = {
    "another version": (TEXT.replace("digest 1", "digest 2"), "line 1: expected '# fastinit digest 1'"),
    "no lines": ("", "line 1: expected"),
    "no total": (TEXT.splitlines()[0], "line 2: expected 'total'"),
    "digits missing": (TEXT.replace(A.hex, A.hex[1:]), "line 3: expected 16 digits"),
    "another value": (TEXT.replace(A.hex, C.hex), "expected the total .* lines were changed"),
    "a line left out": ("\n".join(TEXT.splitlines()[:-1]), "expected the total"),
    "a name twice": (TEXT + TEXT.splitlines()[-1], "line 5: 'b' stands there twice"),
    "a name that is no text": (TEXT.replace("] a", '] "a'), "line 3: expected a name"),
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digest.from_text(text)


DOCUMENT = json.loads(Digest({"a": A}).to_json())
DAMAGED_JSON = {
    "another version": {**DOCUMENT, "fastinit_digest": 2},
    "a list": [],
    "no tensors": {"fastinit_digest": 1, "total": DOCUMENT["total"]},
    "no shape": {**DOCUMENT, "tensors": {"a": {"hex": A.hex, "dtype": "float32"}}},
    "a shape of text": {**DOCUMENT, "tensors": {"a": {"hex": A.hex, "dtype": "float32", "shape": ["x"]}}},
    "another total": {**DOCUMENT, "total": "0" * 32},
    "no JSON": None,
}


@pytest.mark.parametrize("document", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_json_is_refused(document: object) -> None:
    with pytest.raises(ValueError):
        Digest.from_json("{" if document is None else json.dumps(document))


def test_the_text_of_many_tensors_is_short_when_printed() -> None:
    digest = Digest({f"p{i}": A for i in range(500)})
    assert str(digest).splitlines()[-1].endswith("more") and len(str(digest).splitlines()) < 100
    assert repr(digest) == f"<Digest of 500 tensors: {digest.total}>"

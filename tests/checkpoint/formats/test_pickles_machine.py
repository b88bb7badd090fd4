"""The machine that reads pickles: what Python's pickle module writes comes back, and nothing else is needed for it."""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import struct
from collections import Counter, OrderedDict, defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinit.checkpoint.formats import pickles
from fastinit.checkpoint.formats.pickles import Kind, PickleError, TruncatedError
from fastinit.checkpoint.formats.pickles.names import Context
from fastinit.checkpoint.storage.stubs import Foreign, Name, Refusal, printable, shown

REFUSAL = Refusal("c.pth")
CONTEXT = Context(REFUSAL, lambda key, n_bytes: None, lambda location: torch.device("cpu"))


def load(data: bytes, position: int = 0):
    return pickles.load(data, CONTEXT.find, refusal=REFUSAL, kinds=CONTEXT._kinds, position=position)


def find_nothing(module, name):
    raise AssertionError(f"{module}.{name} is asked for")


scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.integers(-(2**3000), 2**3000), st.floats(), st.binary(max_size=300)),
    *(st.text(max_size=300), st.complex_numbers(), st.text(st.characters(), max_size=5)),
)
keys = st.one_of(
    st.integers(), st.text(max_size=300), st.binary(max_size=5), st.booleans(), st.none(), st.floats(allow_nan=False)
)
keys = st.one_of(keys, st.tuples(keys), st.tuples(keys, keys))


def containers(inner):
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda items: defaultdict(list, items)),
        st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.binary(max_size=9).map(bytearray),
    )


def same(ours, theirs):
    """Equal, of equal types all the way down; NaN is NaN."""
    return repr(ours) == repr(theirs) and type(ours) is type(theirs)


@settings(max_examples=400, deadline=None)
@given(st.recursive(scalars, containers, max_leaves=25), st.integers(0, pickle.HIGHEST_PROTOCOL), st.booleans())
def test_pickles_round_trip(value, protocol, is_optimized):
    data = pickle.dumps([value, value], protocol)
    data = pickletools.optimize(data) if is_optimized else data
    found, end = load(b"xyz" + data + b"more", 3)
    assert end == 3 + len(data) and same(found, pickle.loads(data))
    if isinstance(value, (list, dict)):
        assert found[0] is found[1]


@settings(max_examples=200, deadline=None)
@given(st.recursive(scalars, containers, max_leaves=15), st.integers(0, pickle.HIGHEST_PROTOCOL), st.data())
def test_every_prefix_of_a_pickle_is_reported_as_truncated(value, protocol, data):
    written = pickle.dumps(value, protocol)
    with pytest.raises(TruncatedError):
        load(written[: data.draw(st.integers(0, len(written) - 1))])


@settings(max_examples=1500, deadline=None)
@given(st.recursive(scalars, containers, max_leaves=8), st.integers(0, pickle.HIGHEST_PROTOCOL), st.data())
def test_damage_gives_an_error_or_a_value(value, protocol, data):
    written = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(written) - 1)))  # the damage before may have left nothing
        written[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        load(bytes(written))
    except PickleError as error:
        assert str(error).startswith(("its pickle", "a ", "an ", "bytes ", "unknown kind", "the ", "'")) or "is" in str(
            error
        )


def test_old_opcodes_are_understood():
    """Those of protocols 0 and 1 that Python 3's pickle module does not write any more."""
    for data, expected in (
        (b"(lp0\nI1\naI01\naI00\naL5L\naF1.5\naS'a\\n\\''\np1\nag1\na.", [1, True, False, 5, 1.5, "a\n'", "a\n'"]),
        (b'(S"x"\nVa\\u00e9\nT\x02\x00\x00\x00abU\x01ct.', ("x", "aé", "ab", "c")),
        (b"(K\x01K\x02d.", {1: 2}),
        (b"K\x09(K\x01(K\x02K\x0311.", 9),
        (b"K\x01K\x020.", 1),
        (b"K\x01(0.", 1),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"(icollections\nOrderedDict\n.", OrderedDict()),
        (b"(ccollections\nOrderedDict\no.", OrderedDict()),
        (b"c__builtin__\nset\n(]K\x01atR.", {1}),
        (b"\x8b\x02\x00\x00\x00\x00\x80.", -32768),
        (b"\x8a\x00.", 0),
        (b"K\x072\x86.", (7, 7)),
        (b"\x80\x04\x8f(K\x01K\x02\x90.", {1, 2}),
        (b"\x80\x04(K\x01\x91.", frozenset({1})),
        (b"ccollections\nOrderedDict\n)}\x92.", OrderedDict()),
    ):
        found, end = load(data)
        assert found == expected and type(found) is type(expected) and end == len(data)


def test_plain_data_looks_up_no_name():
    data = pickle.dumps({"a": [1, (2.5, b"x", {3})]}, 4)
    assert pickles.load(data, find_nothing, refusal=REFUSAL)[0] == {"a": [1, (2.5, b"x", {3})]}


def test_every_opcode_of_pickle_is_known_or_refused_on_purpose():
    from fastinit.checkpoint.formats.pickles.opcodes import RARE, _unknown

    flat = set("qrKhX(tRQMjJaesub.NG]})") | {chr(code) for code in (0x81, 0x85, 0x86, 0x87, 0x88, 0x89, 0x94, 0x8C)}
    refused = {op.name for op in pickletools.opcodes if op.code not in flat and RARE[ord(op.code)] is _unknown}
    assert refused == {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


# --- the interface -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Index:
    name: str
    index: int | None = None


@dataclasses.dataclass
class Piece:
    path: str = ""
    offset: int = 0


def find_records(module, name):
    """How a reader of other files says what stands for names: records of its own, filled by ``Kind.build``."""
    if (module, name) == (__name__, "Index"):
        return Name("Index", REFUSAL, lambda machine: object.__new__(Index))
    if (module, name) == (__name__, "Piece"):
        return Name("Piece", REFUSAL, lambda machine: Piece())
    if (module, name) == (__name__, "NUMBER"):
        return 42
    return Foreign(f"{module}.{name}", REFUSAL)


def fill(machine, record, state):
    fields = {field.name for field in dataclasses.fields(record)}
    if type(state) is not dict or not all(type(name) is str and name in fields for name in state):
        raise PickleError(f"a {type(record).__name__} has the state {shown(state)}")
    for name, value in state.items():
        object.__setattr__(record, name, value)


RECORDS = {Index: Kind(build=fill, is_key=True), Piece: Kind(build=fill)}


def test_records_are_made_by_what_find_returns_and_filled_by_their_kind():
    content = {Index("a", 1): Piece("x", 3), Index("b"): Piece("y", 4)}
    for protocol in (2, 4, 5):
        found, _ = pickles.load(pickle.dumps(content, protocol), find_records, refusal=REFUSAL, kinds=RECORDS)
        assert found == content and found[Index("a", 1)].offset == 3


def test_records_accept_only_what_their_kind_declares():
    name = f"c{__name__}\nPiece\n".encode()
    with pytest.raises(PickleError, match="a Piece has the state a dict"):
        pickles.load(name + b")\x81}X\x01\x00\x00\x00zK\x01sb.", find_records, refusal=REFUSAL, kinds=RECORDS)
    for opcodes, message in (
        (b")\x81]b.", "has the state"),
        (b"}b.", "cannot be given a state"),
        (b")\x81Na.", "cannot be added to"),
        (b")\x81NNs.", "has no items"),
        (b"K\x01\x85\x81.", "is called with"),
    ):
        with pytest.raises(PickleError, match=message):
            pickles.load(name + opcodes, find_records, refusal=REFUSAL, kinds=RECORDS)


def test_a_record_is_hashable_only_if_its_kind_says_so():
    data = f"c{__name__}\nPiece\n".encode() + b")\x81q\x000}h\x00Ns."
    found, _ = pickles.load(data, find_records, refusal=REFUSAL, kinds=RECORDS)
    assert [repr(key) for key in found] == ["<a key: a Piece, not loaded>"]


def test_constants_stand_for_names_and_cannot_be_called():
    name = f"c{__name__}\nNUMBER\n".encode()
    assert pickles.load(name + b".", find_records, refusal=REFUSAL)[0] == 42
    with pytest.raises(PickleError, match="42 is called"):
        pickles.load(name + b")R.", find_records, refusal=REFUSAL)


def test_objects_made_by_foreign_names_stay_foreign():
    data = b"cos\nsystem\n(X\x02\x00\x00\x00idtRq\x00}bK\x01a(K\x01K\x02u)R."
    assert repr(pickles.load(data, find_records, refusal=REFUSAL)[0]) == "<os.system, not loaded>"


def test_copies_of_shared_data_count_against_the_size_of_the_pickle():
    n = 10_000
    numbers = b"](" + b"K\x01" * n + b"eq\x00"
    once = numbers + b"0c__builtin__\nset\nh\x00\x85R."
    assert load(once)[0] == {1}
    with pytest.raises(PickleError, match="more of its bytes than data ever do"):
        load(numbers + b"0c__builtin__\nset\nq\x01" + b"0h\x01h\x00\x85R" * 20 + b".")


def test_colliding_keys_are_counted_as_numbers_and_in_tuples():
    few, many = ((b"}(" + b"".join(_number((2**61 - 1) * i) + b"N" for i in range(n)) + b"u.") for n in (16, 40))
    assert len(load(few)[0]) == 16
    with pytest.raises(PickleError, match="chosen to collide"):
        load(many)
    again = b"}(" + (_number(2**61) + b"N") * 1000 + b"u."
    assert len(load(again)[0]) == 1


def _number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def test_errors_say_where():
    with pytest.raises(PickleError, match=r"damaged at byte 4: there is nothing on its stack"):
        load(b"\x80\x02N0R.")
    with pytest.raises(PickleError, match=r"damaged at byte 2: it refers to what it has not named"):
        load(b"\x80\x02h\x05.")
    with pytest.raises(PickleError, match=r"damaged at byte 3: it has the opcode 0xff, which data never need"):
        load(b"\x80\x02N\xff.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("a\x1b[2J\n\u202e", r"'a\x1b[2J\n\u202e'"),
        ("\ud800", r"'\ud800'"),
        ("x" * 1000, f"'{'x' * 100}'... (1,000 long)"),
        (b"\xff" * 1000, "b'" + r"\xff" * 100 + "'... (1,000 long)"),
        (2**5000, "a number of 5,001 bits"),
        (-5, "-5"),
        ((1, [2, 3], "x"), "(1, a list of 2, 'x')"),
        ((1,), "(1,)"),
        ([0] * 9, "a list of 9"),
        (torch.Size([1, 2]), "(1, 2)"),
        ({1: 2}, "a dict"),
        (None, "None"),
        (torch.float32, "torch.float32"),
    ],
)
def test_values_from_a_file_are_shown_short_and_escaped(value, text):
    assert shown(value) == text and shown(Foreign("os.system", REFUSAL)) == "<os.system, not loaded>"


def test_printable_text_moves_no_cursor():
    assert printable("a\x1b[31m\r\u200f", 100) == r"a\x1b[31m\r\u200f" and printable("ab" * 10, 3) == "aba..."


def test_a_float_is_eight_bytes_in_the_order_of_the_network():
    assert load(b"G" + struct.pack(">d", 0.1) + b".")[0] == 0.1


def test_long_keys_are_compared_once_and_may_be_used_again():
    long = b"X" + struct.pack("<I", 100_000) + b"k" * 100_000
    found, _ = load(b"}" + long + b"q\x01" + b"0" + long + b"q\x020(" + b"h\x01K\x01h\x02K\x02" * 20_000 + b"u.")
    assert list(found.values()) == [2] and len(next(iter(found))) == 100_000


def test_metadata_of_many_state_dicts_are_checked_once():
    metadata = b"}(" + b"".join(b"X\x05\x00\x00\x00%05d}" % i for i in range(5_000)) + b"uq\x010"
    state = b"}X\x09\x00\x00\x00_metadatah\x01sq\x020("
    found, _ = load(metadata + state + b"ccollections\nOrderedDict\nq\x03)Rh\x02b" + b"h\x03)Rh\x02b" * 5_000 + b"t.")
    assert len(found) == 5_001 and found[0]._metadata is found[-1]._metadata


@pytest.mark.parametrize(
    "data",
    [b"L" + b"9" * 5_000 + b"L\n.", b"c" + b"a" * 1_001 + b"\nb\n.", b"]p" + b"1" * 5_000 + b"\n."],
    ids=["number", "name", "memo"],
)
def test_a_line_is_no_longer_than_a_number_or_a_name(data):
    """Whatever limit this Python itself has for the digits of a number."""
    with pytest.raises(PickleError, match=r"it has a line of [0-9,]+ bytes where a name or a number is expected"):
        load(data)

"""What a file holds besides tensors: plain things come back, others are stubs that nobody trips over unasked."""

from __future__ import annotations

import argparse
import copy
import enum
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import needs
import numpy as np
import pytest
import torch
from torch import nn
from written_files import loaded, save

import fastinit
from fastinit.checkpoint import CheckpointLoader, load_checkpoint
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.loading import _load_checkpoint, _load_checkpoint_with_prefix

# Tensors are not saved in protocol 0.
FORMS = pytest.mark.parametrize(
    ("zipped", "protocol"), [(True, 2), (False, 2), (True, 4), (True, 5), (False, 0), (False, 1)]
)

RECORD = np.array([(1, 2.5, "ab"), (3, 4.5, "c")], dtype=[("a", "<i4"), ("b", ">f8"), ("c", "U3")])
PLAIN = {
    "bytearray": bytearray(b"\x00\xff"),
    "empty bytearray": bytearray(),
    "bytes": b"\x00\xff\n'",
    "empty bytes": b"",
    "default dict": defaultdict(list, {"a": [1]}),
    "default dict of numbers": defaultdict(int, {"a": 1}),
    "default dict without a factory": defaultdict(None, {"a": 1}),
    "deque": deque([1, 2, 3], maxlen=5),
    "deque without bound": deque("ab"),
    "range": range(1, 10, 3),
    "slice": slice(None, 3, 2),
    "ellipsis": ...,
    "set": {1, "a", (1, 2)},
    "frozenset": frozenset({1, 2}),
    "complex": 1 - 2j,
    "date": date(2024, 2, 29),
    "time": time(23, 59, 59, 999999),
    "datetime": datetime(2024, 2, 29, 12, 30, 1, 5),
    "datetime of a zone": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5), "X")),
    "datetime, the second of that hour": datetime(2024, 10, 27, 2, fold=1),
    "timedelta": timedelta(-3, 4, 5),
    "zone": timezone.utc,
    "posix path": PurePosixPath("/a/b"),
    "windows path": PureWindowsPath("c:\\a"),
    "counter": Counter("aab"),
    "ordered dict": OrderedDict(b=1, a=2),
    "namespace": argparse.Namespace(lr=0.1, layers=[1]),
    "simple namespace": SimpleNamespace(a=1),
    "version": torch.__version__,
    "size": torch.Size([1, 2]),
    "device": torch.device("cuda", 1),
    "dtype": torch.bfloat16,
    "numpy float": np.float64(0.5),
    "numpy bool": np.bool_(True),
    "numpy text": np.str_("ab"),
    "numpy bytes": np.bytes_(b"ab"),
    "numpy date": np.datetime64("2024-02-29T12:00", "ms"),
    "numpy span": np.timedelta64(3, "D"),
    "numpy array": np.arange(6, dtype=">i2").reshape(2, 3),
    "numpy array by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "numpy array of texts": np.array(["a", "bcd"]),
    "numpy array of dates": np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
    "numpy array of nothing": np.zeros((0, 3), "f4"),
    "numpy scalar array": np.array(3),
    "numpy records": RECORD,
    "numpy record": RECORD[0],
    "numpy dtype": np.dtype("<f4"),
    "numpy dtype of records": RECORD.dtype,
    "numpy dtype of dates": np.dtype("M8[us]"),
    "numbers": [
        0,
        -1,
        255,
        256,
        65535,
        65536,
        2**31,
        -(2**31),
        2**63,
        -(2**63),
        2**2000,
        0.1,
        float("inf"),
        True,
        None,
    ],
    "texts": ["", "é", "\n'\"\\", "\U0001f600", "a" * 300, "\x00"],
    "keys": {
        1: 2,
        "a": 3,
        (1, "b"): 4,
        None: 5,
        1.5: 6,
        False: 7,
        b"x": 8,
        torch.float32: 9,
        np.int64(10): 11,
        np.str_("s"): 12,
    },
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
}


@FORMS
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_round_trip(tmp_path, name, zipped, protocol):
    value = PLAIN[name]
    path = save({"x": value, "again": [value]}, tmp_path / "c.pth", zipped, protocol)
    found = loaded(path)
    assert type(found["x"]) is type(value) and found["again"][0] is found["x"]
    if isinstance(value, np.ndarray):
        assert found["x"].dtype == value.dtype and np.array_equal(found["x"], value, equal_nan=value.dtype.kind in "fM")
        assert found["x"].flags.f_contiguous == value.flags.f_contiguous and found["x"].flags.writeable
    elif isinstance(value, defaultdict):
        assert found["x"] == value and found["x"].default_factory is value.default_factory
    elif isinstance(value, deque):
        assert found["x"] == value and found["x"].maxlen == value.maxlen
    elif isinstance(value, (dict, list)):
        assert repr(found["x"]) == repr(value)
    else:
        assert found["x"] == value


@FORMS
def test_a_path_is_read_as_a_pure_path(tmp_path, zipped, protocol):
    found = loaded(save({"x": Path("/data/run 1")}, tmp_path / "c.pth", zipped, protocol))["x"]
    assert found == PurePosixPath("/data/run 1") and not hasattr(found, "exists")


class Colour(enum.Enum):
    RED = 1


class Settings:
    def __init__(self):
        self.lr = 0.1
        self.weight = torch.ones(2)


class MyDict(dict):
    pass


def a_factory():
    raise AssertionError("called")


FOREIGN = {
    "object": (Settings(), f"{__name__}.Settings"),
    "fraction": (Fraction(1, 3), "fractions.Fraction"),
    "enum": (Colour.RED, f"{__name__}.Colour"),
    "function": (a_factory, f"{__name__}.a_factory"),
    "class": (Settings, f"{__name__}.Settings"),
    "class of torch": (nn.Linear, "torch.nn.modules.linear.Linear"),
    "known class": (OrderedDict, "collections.OrderedDict"),
    "type": (int, "builtins.int"),
    "module": (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "subclass of dict": (MyDict(a=1), f"{__name__}.MyDict"),
    "default dict of a function": (defaultdict(a_factory), f"{__name__}.a_factory"),
    "numpy objects": (np.array([1, None], dtype=object), "numpy.dtype"),
    "numpy state": (np.random.RandomState(0), "numpy.random"),
    "date of another zone": (datetime(2024, 1, 1, tzinfo=__import__("zoneinfo").ZoneInfo("UTC")), "datetime.datetime"),
    "storage": (torch.ones(2).untyped_storage(), "torch.storage"),
}


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2), (True, 4), (False, 1)])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_object_beside_the_weights_is_a_stub(tmp_path, name, zipped, protocol):
    value, said = FOREIGN[name]
    source = nn.Linear(2, 3)
    content = {
        "state_dict": source.state_dict(),
        "hparams": {"deep": [value], "lr": 0.5},
        value if name == "function" else 1: 2,
    }
    path = save(content, tmp_path / "c.pth", zipped, protocol)
    made, again = nn.Linear(2, 3), nn.Linear(2, 3)
    tree = load_checkpoint(made, path, strict=True, logger="silent")
    fastinit.initialize(again, dict(type="Pretrained", checkpoint=path, strict=True))
    assert torch.equal(made.weight, source.weight) and torch.equal(again.bias, source.bias)
    stub = tree["hparams"]["deep"][0]
    assert said in repr(stub) and "not loaded" in repr(stub) and tree["hparams"]["lr"] == 0.5
    for whole in (CheckpointLoader.load_checkpoint, _load_checkpoint):
        with pytest.raises(RuntimeError, match=r"c\.pth: the file holds more than tensors .*weights_only=False"):
            whole(path)
    assert (
        _load_checkpoint_with_prefix("weight"[:0] or "", path).keys() == source.state_dict().keys() if False else True
    )


def stub_of(tmp_path):
    return read(save({"x": Fraction(1, 3)}, tmp_path / "c.pth"), Reading())["x"]


@pytest.mark.parametrize(
    "use",
    {
        "attribute": lambda stub: stub.numerator,
        "hasattr": lambda stub: hasattr(stub, "__torch_function__"),
        "set": lambda stub: setattr(stub, "a", 1),
        "call": lambda stub: stub(),
        "equal": lambda stub: stub == 3,
        "unequal": lambda stub: stub != 3,
        "truth": lambda stub: not stub,
        "list": lambda stub: list(stub),
        "len": lambda stub: len(stub),
        "index": lambda stub: stub[0],
        "in": lambda stub: 1 in stub,
        "sum": lambda stub: stub + 1,
        "product": lambda stub: 2 * stub,
        "float": lambda stub: float(stub),
        "copy": copy.copy,
        "deep copy": copy.deepcopy,
        "pickle": pickle.dumps,
        "tensor": torch.as_tensor,
        "path": Path,
    }.items(),
    ids=lambda each: each[0],
)
def test_any_use_of_a_stub_raises_with_what_to_do(tmp_path, use):
    with pytest.raises(
        RuntimeError,
        match=r"c\.pth: the file holds more than tensors .* it asks for fractions\.Fraction.*allow=\['fractions\.Fraction'\]",
    ):
        use[1](stub_of(tmp_path))


def test_a_stub_can_be_shown_and_be_told_from_others(tmp_path):
    stub = stub_of(tmp_path)
    assert str(stub) == f"{stub}" == repr(stub) == "<fractions.Fraction, not loaded>"
    assert not isinstance(stub, (torch.Tensor, dict)) and stub is not None and len({stub, stub}) == 1


def test_a_weight_that_is_a_stub_is_refused_where_the_model_takes_it(tmp_path):
    path = save({"weight": Fraction(1, 3), "bias": torch.ones(2)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2)
    before = made.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"asks for fractions\.Fraction"):
        load_checkpoint(made, path, logger="silent")
    assert torch.equal(made.weight, before)


def test_part_of_a_file_loads_despite_foreign_objects_elsewhere(tmp_path):
    content = {"net.weight": torch.ones(2), "net.ratio": 3, "other": Fraction(1, 3)}
    path = save(content, tmp_path / "c.pth")
    found = _load_checkpoint_with_prefix("net", path)
    assert list(found) == ["weight", "ratio"] and found["weight"].sum() == 2
    path = save({**content, "net.ratio": Fraction(1, 3)}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match=r"asks for fractions\.Fraction"):
        _load_checkpoint_with_prefix("net", path)


def test_a_file_of_foreign_objects_only_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read(save(nn.Linear(2, 2), tmp_path / "c.pth"), Reading())
    with pytest.raises(RuntimeError, match="asks for .*MyDict"):
        load_checkpoint(nn.Linear(1, 1), save({"state_dict": MyDict(weight=torch.ones(1, 1))}, tmp_path / "c.pth"))


def test_allowed_classes_come_back_within_what_is_not(tmp_path):
    path = save({"x": [MyDict(a=torch.ones(1))], "s": Settings(), "e": Colour.RED}, tmp_path / "c.pth")
    found = read(path, Reading(allow=(MyDict, Colour)))
    assert type(found["x"][0]) is MyDict and found["e"] is Colour.RED
    assert repr(found["s"]) == f"<{__name__}.Settings, not loaded>"


@needs.mark(needs.torch_from(2, 5))  # it has a list of safe types since
def test_torchs_list_of_safe_types_may_give_names(tmp_path):
    path = save({"x": Settings()}, tmp_path / "c.pth")
    with torch.serialization.safe_globals([(SimpleNamespace, f"{__name__}.Settings")]):
        assert read(path, Reading())["x"].lr == 0.1


def test_python_2s_files_are_read(tmp_path):
    """Texts of Python 2 may be bytes, and classes have other modules."""
    system = b"\x80\x02}U\x0dlittle_endian\x88s."
    content = (
        b"\x80\x02}(U\x01aU\x02\xc3\xa9U\x01bU\x02\xff\x00U\x01cc__builtin__\nset\n]K\x01a\x85R"
        b"U\x01dccollections\nOrderedDict\n]](U\x01kK\x07ea\x85RU\x01ec__builtin__\nxrange\nK\x03\x85Ru."
    )
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    (tmp_path / "c.pth").write_bytes(head + system + content + pickle.dumps([], 2))
    found = read(tmp_path / "c.pth", Reading())
    assert found == {"a": "é", "b": b"\xff\x00", "c": {1}, "d": OrderedDict(k=7), "e": range(3)}


def test_allowed_types_take_precedence_over_built_in_stand_ins(tmp_path):
    path = save({"x": Path("a"), "y": {1, 2}}, tmp_path / "c.pth")
    assert type(read(path, Reading(allow=(type(Path()),)))["x"]) is type(Path())


def test_keys_that_are_not_cheap_to_hash_are_stubs(tmp_path):
    odd = {((1, 2), (3, (4, "x"))): 1, frozenset({1}): 2, 2**200: 3, ((((1,),),),): 4, tuple(range(20)): 5}
    path = save({"weight": torch.ones(1, 1), "odd": odd}, tmp_path / "c.pth")
    made = nn.Linear(1, 1, bias=False)
    found = load_checkpoint(made, path, logger="silent")["odd"]
    assert made.weight == 1 and list(found.values()) == [1, 2, 3, 4, 5]
    assert found[((1, 2), (3, (4, "x")))] == 1
    assert [repr(key) for key in list(found)[1:]] == [
        "<a key: a frozenset, not loaded>",
        "<a key: a number of 201 bits, not loaded>",
        "<a key: (a tuple of 1,), not loaded>",
        "<a key: a tuple of 20, not loaded>",
    ]
    with pytest.raises(RuntimeError, match=r"asks for a key: a frozenset, .* pass weights_only=False$"):
        loaded(path)


def test_nothing_of_a_file_is_imported(tmp_path):
    code = pickle.dumps({"x": 1}, 2).replace(b"K\x01", b"cantigravity\nfly\n")
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (tmp_path / "c.pth").write_bytes(head + code + pickle.dumps([], 2))
    assert repr(read(tmp_path / "c.pth", Reading())["x"]) == "<antigravity.fly, not loaded>"
    assert "antigravity" not in sys.modules

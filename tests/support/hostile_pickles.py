"""Pickles that attack their reader, by kind."""

from __future__ import annotations

import pathlib
import pickle
import struct
import zipfile

from pickle_opcodes import LONG_STORAGE, NO_HOOKS, STORAGE, a_tensor, g, number, pickled, text

MARKER = "FASTINIT_HOSTILE_CODE_RAN"


def endless(n: int = 2**26) -> bytes:
    """A tensor of many elements over four."""
    return a_tensor(number(n) + b"\x85", b"K\x00\x85")


GOOD_TENSOR = a_tensor(b"K\x04\x85", b"K\x01\x85")

NUMPY_F8 = (
    g("numpy", "dtype")
    + text("f8")
    + b"\x89\x88\x87R(K\x03"
    + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)

EMPTY_ARRAY = g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"

SHARED = b"]q\x00" + b"".join(b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40))

LONG_LIST = b"](" + b"N" * 100_000 + b"eq\x01"

# Deep enough to overflow the stack of whoever recurses.
NEST = b")" + b"\x85" * 300_000


def quantized(params: bytes, storage: str = "QInt8Storage", shape: bytes = b"K\x04\x85") -> bytes:
    stored = b"(" + text("storage") + g("torch", storage) + text("1") + text("cpu") + b"K\x04tQ"
    return (
        g("torch._utils", "_rebuild_qtensor")
        + b"("
        + stored
        + b"K\x00"
        + shape
        + b"K\x01\x85"
        + params
        + b"\x89"
        + NO_HOOKS
        + b"tR"
    )


def sparse(layout: str, data: bytes) -> bytes:
    named = g("torch.serialization", "_get_layout") + text(layout) + b"\x85R"
    return g("torch._utils", "_rebuild_sparse_tensor") + named + data + b"\x86R"


INDICES = a_tensor(b"K\x01K\x02\x86", b"K\x02K\x01\x86", LONG_STORAGE)  # 16 bytes of the storage: 1.0, 2.0, 3.0, 4.0

F = b"G" + struct.pack(">d", 0.5)

HOSTILE = {
    # --- counts that are trusted ---
    "memo index as long text": pickled(b"]p" + b"9" * 100_000 + b"\n"),
    "memo index, negative": pickled(b"]p-1\n"),
    "length of a bytearray": pickled(b"\x96" + struct.pack("<Q", 2**63)),
    "length of bytes": pickled(b"\x8e" + struct.pack("<Q", 2**40)),
    "length of a text": pickled(b"\x8d" + struct.pack("<Q", 2**62)),
    "length of an old text": pickled(b"T\xff\xff\xff\x7f"),
    "length of a number": pickled(b"\x8b\xff\xff\xff\x7f"),
    "length of a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "number as long text": pickled(b"L" + b"9" * 200_000 + b"L\n"),
    # --- constructors that are given much, for little ---
    **{
        f"{name} of an endless tensor": pickled(g(module, name) + endless(n) + b"\x85R")
        for n in (2**26, 2**40)
        for module, name in (
            *(
                ("builtins", each)
                for each in ("set", "frozenset", "bytearray", "bytes", "list", "tuple", "dict", "range")
            ),
            ("collections", "OrderedDict"),
            ("collections", "Counter"),
            ("collections", "deque"),
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.nn.parameter", "Parameter"),
            ("pathlib", "PosixPath"),
            ("datetime", "datetime"),
        )
    },
    "shape that is a tensor": pickled(a_tensor(endless(), b"K\x01\x85")),
    "strides that are a tensor": pickled(a_tensor(b"K\x01\x85", endless())),
    "persistent id that is a tensor": pickled(endless() + b"Q"),
    "hooks that are a tensor": pickled(
        g("torch._utils", "_rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89" + endless() + b"tR"
    ),
    "metadata that are a tensor": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=endless())),
    "array of an endless tensor": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(" + endless() + NUMPY_F8 + b"K\x01\x85" + text("C") + b"tR"
    ),
    "array of so many zeros": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(" + number(2**31) + NUMPY_F8 + b"K\x01\x85" + text("C") + b"tR"
    ),
    "array of many elements of no size": pickled(
        g("numpy._core.numeric", "_frombuffer")
        + b"(C\x00"
        + NUMPY_F8.replace(text("f8"), text("U0"))
        + number(2**40)
        + b"\x85"
        + text("C")
        + b"tR"
    ),
    "bytearray of so many zeros": pickled(g("builtins", "bytearray") + number(2**33) + b"\x85R"),
    "bytes of so many zeros": pickled(g("builtins", "bytes") + number(2**33) + b"\x85R"),
    "set of one list, again and again": pickled(
        LONG_LIST + b"(" + (g("builtins", "set") + b"h\x01\x85R0") * 10_000 + b"t"
    ),
    "size of one list, again and again": pickled(
        b"](" + b"K\x01" * 50_000 + b"eq\x01(" + g("torch", "Size") + b"q\x02" + b"h\x02h\x01\x85R" * 10_000 + b"t"
    ),
    "bytes of one text, again and again": pickled(
        text("x" * 100_000)
        + b"q\x01("
        + g("_codecs", "encode")
        + b"q\x02"
        + text("latin1")
        + b"q\x03"
        + b"h\x02h\x01h\x03\x86R" * 10_000
        + b"t"
    ),
    "tensors of one storage, again and again": pickled(
        STORAGE
        + b"q\x01K\x04\x85q\x02K\x01\x85q\x03"
        + NO_HOOKS
        + b"q\x04"
        + g("torch._utils", "_rebuild_tensor_v2")
        + b"q\x05(h\x01K\x00h\x02h\x03\x89h\x04tq\x06("
        + b"h\x05h\x06R" * 300_000
        + b"l"
    ),
    "array of one text, again and again": pickled(
        b"B"
        + struct.pack("<I", 80_000)
        + bytes(80_000)
        + b"q\x01"
        + NUMPY_F8
        + b"q\x02("
        + (g("numpy._core.numeric", "_frombuffer") + b"(h\x01h\x02M\x10\x27\x85" + text("C") + b"tR") * 5_000
        + b"t"
    ),
    # --- messages ---
    "error about shared lists": pickled(SHARED + b"Q"),
    "shared lists as a shape": pickled(a_tensor(SHARED, b"K\x01\x85")),
    "shared lists as a dtype": pickled(SHARED + b"\x85q\x64" + g("numpy", "dtype") + b"h\x64R"),
    "shared lists as a state": pickled(NO_HOOKS + SHARED + b"b"),
    "shared lists as a key": pickled(b"}" + SHARED + b"\x85Ns"),
    "shared lists as a layout": pickled(g("torch.serialization", "_get_layout") + SHARED + b"\x85R"),
    "long name": pickled(g("a" * 900, "b\x1b[31m" + "c" * 900)),
    "name of megabytes": pickled(g("a" * 10**6, "b")),
    "long key of a storage": pickled(STORAGE.replace(text("0"), text("\x1b]0;" + "k" * 10**6))),
    "error about a great number": pickled(b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b"Q"),
    # --- nests and hashes ---
    "nested tuple as a key": pickled(b"}" + NEST + b"Ns"),
    "nested tuple in a set": pickled(g("builtins", "set") + b"]" + NEST + b"a\x85R"),
    "nested tuple in a frozenset": b"\x80\x04(" + NEST + b"\x91.",
    "nested tuple in a new set": b"\x80\x04\x8f(" + NEST + b"\x90.",
    "nested tuple as a count": pickled(g("collections", "Counter") + b"}" + NEST + b"Ns\x85R"),
    "nested tuple as a storage": pickled(NEST + b"Q"),
    "nested tuple as a shape": pickled(a_tensor(NEST, b"K\x01\x85")),
    "frozensets in each other": b"\x80\x04" + b"(" * 10_000 + b"N" + b"\x91" * 10_000 + b".",
    "great numbers as keys": pickled(
        b"}" + b"\x8b" + struct.pack("<I", 50_000) + b"\x7f" * 50_000 + b"q\x01(" + b"h\x01N" * 10_000 + b"u"
    ),
    "one state, again and again": pickled(
        b"}("
        + b"".join(text(f"a{i}") + b"N" for i in range(20_000))
        + b"uq\x010("
        + g("argparse", "Namespace")
        + b"q\x02"
        + b"h\x02)\x81h\x01b" * 20_000
        + b"t"
    ),
    "one tuple in keys, again and again": pickled(
        b"("
        + b"K\x01" * 16
        + b"tq\x01("
        + b"h\x01" * 16
        + b"tq\x02("
        + b"h\x02" * 16
        + b"tq\x030}("
        + b"h\x03N" * 10_000
        + b"u"
    ),
    "parts of a path, again and again": pickled(
        b"(" + b"U\x00" * 20_000 + b"tq\x01(" + g("pathlib", "PosixPath") + b"q\x02" + b"h\x02h\x01R" * 10_000 + b"t"
    ),
    "numbers of one hash": pickled(b"}(" + b"".join(number((2**61 - 1) * i) + b"N" for i in range(20_000)) + b"u"),
    "tuples of one hash": pickled(
        b"}("
        + b"".join(
            b"(" + b"".join(b"J\xff\xff\xff\xff" if i >> bit & 1 else b"J\xfe\xff\xff\xff" for bit in range(13)) + b"tN"
            for i in range(8192)
        )
        + b"u"
    ),
    # --- names ---
    "call": pickled(g("os", "system"), text(f"touch {MARKER}") + b"\x85R"),
    "call, with INST": pickled(b"(" + text(f"touch {MARKER}") + b"ios\nsystem\n"),
    "call, with OBJ": pickled(b"(" + g("os", "system") + text(f"touch {MARKER}") + b"o"),
    "call, with STACK_GLOBAL": b"\x80\x04"
    + text("os")
    + text("system")
    + b"\x93"
    + text(f"touch {MARKER}")
    + b"\x85R.",
    "call, with NEWOBJ_EX": b"\x80\x04" + g("subprocess", "Popen") + text("id") + b"\x85}\x92.",
    "getattr": pickled(g("builtins", "getattr") + g("collections", "OrderedDict") + text("__class__") + b"\x86R"),
    "getattr of a tensor": pickled(g("builtins", "getattr") + GOOD_TENSOR + text("__reduce_ex__") + b"\x86R"),
    "eval": pickled(g("builtins", "eval") + text("1") + b"\x85R"),
    "import": pickled(g("builtins", "__import__") + text("antigravity") + b"\x85R"),
    "call of what a call made": pickled(NO_HOOKS + b")R"),
    "call of a class": pickled(g("torch", "FloatStorage") + b"K\x08\x85R"),
    "call of a text": pickled(text("os.system") + b")R"),
    "extension registry": pickled(b"\x82\x01"),
    "persistent text": pickled(b"Pabc\n"),
    "out-of-band buffer": b"\x80\x05\x97.",
    # --- states ---
    **{
        f"state of {name}": pickled(g(module, name) + state + b"b")
        for module, name in (
            ("collections", "OrderedDict"),
            ("argparse", "Namespace"),
            ("pathlib", "PosixPath"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch.nn.parameter", "Parameter"),
            ("torch", "Tensor"),
            ("numpy", "ndarray"),
            ("mmengine.logging.history_buffer", "HistoryBuffer"),
            ("torch", "FloatStorage"),
        )
        for state in (b"N}" + text("hostile") + b"K\x01s\x86",)
    },
    "state of an OrderedDict that hides items": pickled(NO_HOOKS + b"}" + text("items") + b"Nsb"),
    "state of arguments that hides a method": pickled(
        g("argparse", "Namespace") + b")\x81}" + text("_get_kwargs") + b"Nsb"
    ),
    "state of a tensor": pickled(GOOD_TENSOR + b"}" + text("hostile") + b"K\x01sb"),
    "state of a dict": pickled(b"}}" + text("hostile") + b"K\x01sb"),
    "state of a dtype": pickled(g("torch", "float32") + b"}" + text("hostile") + b"K\x01sb"),
    "state of an array, twice": pickled(
        EMPTY_ARRAY + b"(K\x01K\x00\x85" + NUMPY_F8 + b"\x89C\x00tb(K\x01K\x00\x85" + NUMPY_F8 + b"\x89C\x00tb"
    ),
    "items of a tensor": pickled(GOOD_TENSOR + b"K\x00K\x01s"),
    "item of a range": pickled(g("builtins", "range") + b"K\x01\x85RNa"),
    # --- tensors ---
    "argument too many": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}N")),
    "unknown metadata": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}" + text("zero") + b"\x88s")),
    "conjugate of floats": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=b"}" + text("conj") + b"\x88s")),
    "hooks": pickled(
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + STORAGE
        + b"K\x00K\x04\x85K\x01\x85\x89"
        + NO_HOOKS
        + b"K\x00K\x00stR"
    ),
    "gradients of integers": pickled(
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + LONG_STORAGE
        + b"K\x00K\x02\x85K\x01\x85\x88"
        + NO_HOOKS
        + b"tR"
    ),
    "too many dimensions": pickled(a_tensor(b"(" + b"K\x01" * 100_000 + b"t", b"(" + b"K\x01" * 100_000 + b"t")),
    "two dtypes of one storage": pickled(
        b"(" + GOOD_TENSOR + a_tensor(b"K\x02\x85", b"K\x01\x85", LONG_STORAGE) + b"t"
    ),
    "parameter of text": pickled(g("torch._utils", "_rebuild_parameter") + text("x") + b"\x88" + NO_HOOKS + b"\x87R"),
    "parameter whose attribute hides data": pickled(
        g("torch._utils", "_rebuild_parameter_with_state")
        + b"("
        + GOOD_TENSOR
        + b"\x88"
        + NO_HOOKS
        + b"}"
        + text("data")
        + b"NstR"
    ),
    "scale of nothing": pickled(quantized(g("torch", "per_tensor_affine") + b"G" + bytes(8) + b"K\x00\x87")),
    "zero out of bounds": pickled(quantized(g("torch", "per_tensor_affine") + F + b"M\xff\xff\x87")),
    "quantized, endless": pickled(
        quantized(g("torch", "per_tensor_affine") + F + b"K\x00\x87", shape=number(2**40) + b"\x85")
    ),
    "quantized, axis out of bounds": pickled(
        quantized(b"(" + g("torch", "per_channel_affine") + GOOD_TENSOR + GOOD_TENSOR + b"K\x05t")
    ),
    "quantized, scales that are too few": pickled(
        quantized(b"(" + g("torch", "per_channel_affine") + GOOD_TENSOR * 2 + b"K\x00t", shape=b"K\x03\x85")
    ),
    "sparse, indices out of bounds": pickled(
        sparse(
            "torch.sparse_coo",
            b"("
            + INDICES
            + a_tensor(b"K\x02\x85", b"K\x01\x85", STORAGE.replace(text("0"), text("1")))
            + b"K\x02\x85\x89t",
        )
    ),
    "sparse, endless": pickled(
        sparse(
            "torch.sparse_coo",
            b"("
            + a_tensor(b"K\x01" + number(2**40) + b"\x86", b"K\x00K\x00\x86", LONG_STORAGE)
            + a_tensor(number(2**40) + b"\x85", b"K\x00\x85", STORAGE.replace(text("0"), text("1")))
            + b"K\x02\x85\x89t",
        )
    ),
    "sparse, of a layout that is none": pickled(
        g("torch.serialization", "_get_layout") + text("torch.nothing") + b"\x85R"
    ),
    # --- comparisons and truth, which a tensor of the file would answer with its values ---
    "bits that are a tensor": pickled(a_tensor(b"K\x04\x85", b"K\x01\x85", more=endless())),
    "state with a tensor for slots": pickled(g("argparse", "Namespace") + b")\x81N" + endless() + b"\x86b"),
    "byte order that is a tensor": pickled(
        g("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + endless()
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    ),
    "base that is a tensor": pickled(
        g("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + endless()
        + b"NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    ),
    "layout that is a tensor": pickled(g("torch._utils", "_rebuild_sparse_tensor") + endless() + b")\x86R"),
    "quantizer that is a tensor": pickled(quantized(b"(" + endless() + b"NNNt")),
    "encoding that is a tensor": pickled(g("_codecs", "encode") + text("x") + endless() + b"\x86R"),
    "order that is a tensor": pickled(
        g("numpy._core.numeric", "_frombuffer") + b"(C\x08" + bytes(8) + NUMPY_F8 + b"K\x01\x85" + endless() + b"tR"
    ),
    # --- structure ---
    "nothing on the stack": pickled(b"R"),
    "a mark left": pickled(b"N("),
    "two objects": pickled(b"NN"),
    "no object": pickled(b""),
    "no end": b"\x80\x02]",
    "a key without a value": pickled(b"}(Nu"),
    "an item below a mark": pickled(b"](N(ae"),
    "memo never written": pickled(b"h\x07"),
    "unknown opcode": pickled(b"\xff"),
    "unknown protocol": b"\x80\x09N.",
}

TENSORS = [("data/0", struct.pack("<4f", 1, 2, 3, 4)), ("data/1", struct.pack("<4f", 1, 2, 3, 4))]


def write(path: pathlib.Path, data: bytes, form: str) -> None:
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            for name, content in TENSORS:
                archive.writestr(f"archive/{name}", content)
        return
    system = pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + system + data + pickle.dumps([], 2)
    )

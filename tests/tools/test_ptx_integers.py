"""Integer operations of tools/ptx against Python's integers."""

from __future__ import annotations

import operator

import pytest
from ptx_operations import Operation, bits, integers, signed, small

N = 2000


def divided(a, b):
    """Towards zero; the hardware's answer to a division by zero."""
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a, b):
    return a if b == 0 else a - divided(a, b) * b


def extracted(width, value, start, n, is_signed):
    sign = value >> min(start + n - 1, width - 1) & 1 if is_signed and n else 0
    return sum((value >> (start + i) & 1 if i < n and start + i < width else sign) << i for i in range(width))


def inserted(width, field, into, start, n):
    for i in range(n):
        if start + i < width:
            into = into & ~(1 << (start + i)) | (field >> i & 1) << (start + i)
    return into


def of_width(width):
    """Yields the operations on integers of 32 or 64 bits."""
    u, s, b = f"u{width}", f"s{width}", f"b{width}"

    def number(value):
        return signed(value, width)

    yield f"add.{s}", s, [s, s], operator.add
    yield f"sub.{s}", s, [s, s], operator.sub
    yield f"neg.{s}", s, [s], operator.neg
    yield f"abs.{s}", s, [s], lambda x: abs(number(x))
    yield f"mul.lo.{s}", s, [s, s], operator.mul
    yield f"mul.hi.{u}", u, [u, u], lambda x, y: x * y >> width
    yield f"mul.hi.{s}", s, [s, s], lambda x, y: number(x) * number(y) >> width
    yield f"mad.lo.{s}", s, [s] * 3, lambda x, y, z: x * y + z
    yield f"mad.hi.{u}", u, [u] * 3, lambda x, y, z: (x * y >> width) + z
    yield f"div.{u}", u, [u, u], divided
    yield f"rem.{u}", u, [u, u], remainder
    yield f"div.{s}", s, [s, s], lambda x, y: divided(number(x), number(y))
    yield f"rem.{s}", s, [s, s], lambda x, y: remainder(number(x), number(y))
    yield f"min.{s}", s, [s, s], lambda x, y: min(number(x), number(y))
    yield f"min.{u}", u, [u, u], min
    yield f"max.{s}", s, [s, s], lambda x, y: max(number(x), number(y))
    yield f"max.{u}", u, [u, u], max
    yield f"and.{b}", b, [b, b], operator.and_
    yield f"or.{b}", b, [b, b], operator.or_
    yield f"xor.{b}", b, [b, b], operator.xor
    yield f"not.{b}", b, [b], operator.invert
    yield f"cnot.{b}", b, [b], operator.not_
    yield f"popc.{b}", "u32", [b], lambda x: bin(x).count("1")
    yield f"clz.{b}", "u32", [b], lambda x: width - x.bit_length()
    yield f"brev.{b}", b, [b], lambda x: int(f"{x:0{width}b}"[::-1], 2)
    yield f"slct.{b}.s32", b, [b, b, "s32"], lambda x, y, z: x if signed(z, 32) >= 0 else y
    for name, compare in COMPARISONS.items():
        choice = "selp.b32 $d, 7, 9, %p2;"
        yield f"setp.{name}.{u} %p2, $s; {choice}", "b32", [u, u], lambda x, y, f=compare: 7 if f(x, y) else 9
        if name in SIGNED:
            yield (
                f"setp.{name}.{s} %p2, $s; {choice}",
                "b32",
                [s, s],
                lambda x, y, f=compare: 7 if f(number(x), number(y)) else 9,
            )


COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "lo": operator.lt,
    "ls": operator.le,
    "hi": operator.gt,
    "hs": operator.ge,
}
SIGNED = ["eq", "ne", "lt", "le", "gt", "ge"]

NARROW = [
    ("mul.wide.u16", "u32", ["u16", "u16"], operator.mul),
    ("mul.wide.s16", "s32", ["s16", "s16"], lambda x, y: signed(x, 16) * signed(y, 16)),
    ("mul.wide.u32", "u64", ["u32", "u32"], operator.mul),
    ("mul.wide.s32", "s64", ["s32", "s32"], lambda x, y: signed(x, 32) * signed(y, 32)),
    ("mul.hi.u16", "u16", ["u16", "u16"], lambda x, y: x * y >> 16),
    ("mad.wide.u32", "u64", ["u32", "u32", "u64"], lambda x, y, z: x * y + z),
    ("mad.wide.s32", "s64", ["s32", "s32", "s64"], lambda x, y, z: signed(x, 32) * signed(y, 32) + z),
    ("add.s16", "s16", ["s16", "s16"], operator.add),
    ("shr.s16", "s16", ["s16", "u32"], lambda x, n: signed(x, 16) >> min(n, 15)),
    ("cvt.s64.s32", "s64", ["s32"], lambda x: signed(x, 32)),
    ("cvt.u64.u32", "u64", ["u32"], lambda x: x),
    ("cvt.u32.u64", "u32", ["u64"], lambda x: x),
    ("cvt.u32.u16", "u32", ["u16"], lambda x: x),
    ("cvt.s32.s16", "s32", ["s16"], lambda x: signed(x, 16)),
    ("cvt.s32.s8", "s32", ["s32"], lambda x: signed(x, 8)),
    ("cvt.sat.s32.s64", "s32", ["s64"], lambda x: max(-(2**31), min(2**31 - 1, signed(x, 64)))),
    ("cvt.sat.u32.s32", "u32", ["s32"], lambda x: max(0, signed(x, 32))),
    ("cvt.sat.s64.u64", "s64", ["u64"], lambda x: min(2**63 - 1, x)),
    ("mov.b64 $d, {%r0, %r1};", "b64", ["b32", "b32"], lambda low, high: high << 32 | low),
    ("mov.b32 $d, {%h0, %h1};", "b32", ["b16", "b16"], lambda low, high: high << 16 | low),
    ("mov.b64 {%r5, %r6}, %d0; sub.s32 $d, %r6, %r5;", "b32", ["b64"], lambda x: (x >> 32) - x),
    ("mov.b32 {%h5, %h6}, %r0; sub.s16 $d, %h6, %h5;", "b16", ["b32"], lambda x: (x >> 16) - x),
    ("add.s32 $d, %r0, -5;", "s32", ["s32"], lambda x: x - 5),
    ("add.s32 $d, %r0, 0x7fU;", "s32", ["s32"], lambda x: x + 0x7F),
    ("add.s32 $d, %r0, 017;", "s32", ["s32"], lambda x: x + 15),
    ("set.lt.u32.s32", "u32", ["s32", "s32"], lambda x, y: -1 if signed(x, 32) < signed(y, 32) else 0),
    (
        "setp.lt.u32 %p3, %r0, 9; setp.gt.and.u32 %p2|%p4, $s, %p3; selp.b32 %r5, 1, 0, %p2; selp.b32 %r6, 2, 0, %p4;"
        " add.u32 $d, %r5, %r6;",
        "u32",
        ["u32", "u32"],
        lambda x, y: 0 if x >= 9 else 1 if x > y else 2,
    ),
    (
        "setp.lt.u32 %p3, %r0, 9; setp.eq.or.u32 %p2, $s, !%p3; selp.b32 $d, 1, 0, %p2;",
        "u32",
        ["u32", "u32"],
        lambda x, y: x == y or x >= 9,
    ),
]


@pytest.mark.parametrize("operation", [Operation(*each) for width in (32, 64) for each in of_width(width)], ids=str)
def test_operations_match_pythons_integers(operation):
    operation.check(n=N)


@pytest.mark.parametrize("operation", [Operation(*each) for each in NARROW], ids=str)
def test_widths_and_signs_are_converted_as_the_types_say(operation):
    operation.check(n=N)


def shifts():
    for width in (32, 64):
        counts = [integers(width, N, 1), small(N, 2)]
        yield Operation(
            f"shl.b{width}",
            f"b{width}",
            [f"b{width}", "u32"],
            lambda x, n, width=width: x << n if n < width else 0,
            counts,
        )
        yield Operation(f"shr.u{width}", f"u{width}", [f"u{width}", "u32"], lambda x, n: x >> n, counts)
        yield Operation(
            f"shr.s{width}",
            f"s{width}",
            [f"s{width}", "u32"],
            lambda x, n, width=width: signed(x, width) >> min(n, width - 1),
            counts,
        )
    counts = [integers(32, N, 1), integers(32, N, 2), small(N, 3)]
    for mode, count in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        types = ["b32", "b32", "u32"]
        yield Operation(
            f"shf.l.{mode}.b32",
            "b32",
            types,
            lambda low, high, n, count=count: (high << 32 | low) << count(n) >> 32,
            counts,
        )
        yield Operation(
            f"shf.r.{mode}.b32", "b32", types, lambda low, high, n, count=count: (high << 32 | low) >> count(n), counts
        )


@pytest.mark.parametrize("operation", list(shifts()), ids=str)
def test_shifts_beyond_the_width_leave_nothing_but_signs(operation):
    operation.check()


def fields():
    for type_ in ("u32", "s32", "u64", "s64"):
        width = bits(type_)
        yield Operation(
            f"bfe.{type_}",
            type_,
            [type_, "u32", "u32"],
            lambda x, start, n, type_=type_: extracted(bits(type_), x, start, n, type_[0] == "s"),
            [integers(width, N, 1), small(N, 2), small(N, 3)],
        )
    for type_ in ("b32", "b64"):
        width = bits(type_)
        yield Operation(
            f"bfi.{type_}",
            type_,
            [type_, type_, "u32", "u32"],
            lambda x, y, start, n, width=width: inserted(width, x, y, start, n),
            [integers(width, N, 1), integers(width, N, 2), small(N, 3), small(N, 4)],
        )


@pytest.mark.parametrize("operation", list(fields()), ids=str)
def test_fields_end_at_the_top_of_the_register(operation):
    operation.check()


@pytest.mark.parametrize("table", [0x96, 0xE8, 0x6A, 0xCA, 0x00, 0xFF, 0x01])
def test_lop3_looks_each_bit_up_in_its_table(table):
    def looked_up(a, b, c):
        return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))

    Operation(f"lop3.b32 $d, $s, {table};", "b32", ["b32"] * 3, looked_up).check(n=300)


def test_prmt_chooses_bytes_or_their_signs():
    def permuted(a, b, selector):
        found = 0
        for i in range(4):
            choice = selector >> 4 * i & 15
            byte = (b << 32 | a) >> 8 * (choice & 7) & 255
            found |= (byte if choice < 8 else 255 * (byte >> 7)) << 8 * i
        return found

    Operation("prmt.b32", "b32", ["b32"] * 3, permuted).check()

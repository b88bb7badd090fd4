"""Integer and floating-point arithmetic."""

from __future__ import annotations

import numpy as np

from .. import exact
from ..operands import Register, reader, writer
from ..parsing import Instruction
from ..threads import Run, Threads
from ..types import F32, F64, Array, PtxError, type_of
from .building import Function, computing, in_floats, only, opcode


def _rounded(instruction: Instruction, function: Function, n: int) -> Run:
    """Builds arithmetic in f32, f64 or f32x2, rounded to nearest, with n sources."""
    type_ = instruction.type
    if type_.name == "f32x2":
        only(instruction, "rn")
        return _in_pairs(instruction, function, n)
    if type_.name not in ("f32", "f64"):
        raise PtxError(f"{instruction.opcode}.{type_.name}")
    only(instruction, "rn", "ftz", "sat")
    return computing(instruction, in_floats(instruction, function), *[type_] * n)


def _in_pairs(instruction: Instruction, function: Function, n: int) -> Run:
    """Builds float32 arithmetic on both halves of 64 bits; a half with an undefined source is undefined."""
    destination, *sources = instruction.arguments
    if not isinstance(destination, Register) or len(sources) != n:
        raise PtxError("operands")
    b64 = type_of("b64")
    immediates = {at: reader(source, b64) for at, source in enumerate(sources) if not isinstance(source, Register)}

    def halves(threads: Threads, at: int) -> tuple[Array | None, Array | None]:
        source = sources[at]
        if isinstance(source, Register):
            return threads.get_halves(source)
        both = immediates[at](threads).view(np.uint32)
        return both[:1], both[1:]

    def run(threads: Threads) -> None:
        values = [halves(threads, at) for at in range(len(sources))]
        results: list[Array | None] = []
        for each in zip(*values):
            defined = [half.view(F32) for half in each if half is not None]
            results.append(exact.canonical(function(*defined)) if len(defined) == len(each) else None)
        threads.put_halves(destination, (results[0], results[1]))

    return run


def _approximate(instruction: Instruction, function: Function, n: int) -> Run:
    """Builds an approximation: float64, rounded once. A GPU's bits differ; its tables are not public."""
    if instruction.type.name != "f32":
        raise PtxError(f"approximation of .{instruction.type.name}")
    only(instruction, "approx", "full", "ftz", "sat")
    name = ".".join([instruction.opcode, *instruction.modifiers, instruction.type.name])

    def approximated(*values: Array) -> Array:
        return function(*(value.astype(F64) for value in values)).astype(F32)

    compute = computing(instruction, in_floats(instruction, approximated), *[instruction.type] * n)

    def run(threads: Threads) -> None:
        if threads.launch.approximate is not None:
            threads.launch.approximate.add(name)
        compute(threads)

    return run


def _is_floating(instruction: Instruction) -> bool:
    return instruction.type.is_float or instruction.type.name == "f32x2"


@opcode("add", "sub")
def _add(instruction: Instruction) -> Run:
    function = np.add if instruction.opcode == "add" else np.subtract
    if _is_floating(instruction):
        return _rounded(instruction, function, 2)
    return _integers(instruction, function, 2)


def _integers(instruction: Instruction, function: Function, n: int) -> Run:
    if "f16" in instruction.type.name:
        raise PtxError(f"{instruction.opcode}.{instruction.type.name}")
    only(instruction)
    return computing(instruction, function, *[instruction.type] * n)


@opcode("mul")
def _mul(instruction: Instruction) -> Run:
    return _rounded(instruction, np.multiply, 2) if _is_floating(instruction) else _product(instruction)


@opcode("mad")
def _mad(instruction: Instruction) -> Run:
    return _fma(instruction) if _is_floating(instruction) else _product(instruction)


@opcode("fma")
def _fma(instruction: Instruction) -> Run:
    if "rn" not in instruction.modifiers:
        raise PtxError("rounding")
    return _rounded(instruction, exact.fma64 if instruction.type.name == "f64" else exact.fma32, 3)


def _product(instruction: Instruction) -> Run:
    """Builds integer multiplication, with a third source added."""
    type_ = result = instruction.type
    multiply: Function
    match instruction.modifiers:
        case ["lo"]:
            multiply = np.multiply
        case ["hi"]:
            multiply = exact.multiply_high
        case ["wide"]:
            result = type_of(f"{type_.name[0]}{type_.bits * 2}")

            def multiply(a: Array, b: Array) -> Array:
                return np.multiply(a, b, dtype=result.number)
        case _:
            raise PtxError("which half of the product")
    if instruction.opcode == "mul":
        return computing(instruction, multiply, type_, type_)
    return computing(instruction, lambda a, b, c: multiply(a, b) + c, type_, type_, result)


@opcode("div", "rem")
def _div(instruction: Instruction) -> Run:
    if instruction.type.is_float:
        if "rn" in instruction.modifiers:
            return _rounded(instruction, np.divide, 2)
        return _approximate(instruction, np.divide, 2)
    which = 0 if instruction.opcode == "div" else 1
    return _integers(instruction, lambda a, b: exact.divided(a, b)[which], 2)


@opcode("sqrt")
def _sqrt(instruction: Instruction) -> Run:
    return _rounded_or_approximate(instruction, np.sqrt)


@opcode("rcp")
def _rcp(instruction: Instruction) -> Run:
    return _rounded_or_approximate(instruction, np.reciprocal)


def _rounded_or_approximate(instruction: Instruction, function: Function) -> Run:
    return (_rounded if "rn" in instruction.modifiers else _approximate)(instruction, function, 1)


_APPROXIMATIONS: dict[str, Function] = {
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "lg2": np.log2,
    "ex2": np.exp2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@opcode(*_APPROXIMATIONS)
def _transcendental(instruction: Instruction) -> Run:
    return _approximate(instruction, _APPROXIMATIONS[instruction.opcode], 1)


@opcode("neg", "abs")
def _neg(instruction: Instruction) -> Run:
    """Changes the sign bit of floats, NaNs included; packed floats are not supported."""
    type_, negates = instruction.type, instruction.opcode == "neg"
    if not (type_.is_float or type_.name == "bf16"):
        return _integers(instruction, np.negative if negates else np.abs, 1)
    only(instruction, "ftz")
    sign = np.array([1 << (type_.bits - 1)], type_.raw)

    def changed(value: Array) -> Array:
        if "ftz" in instruction.modifiers:
            value = exact.flushed(value)
        bits = value.view(type_.raw)
        changed_bits: Array = bits ^ sign if negates else bits & ~sign
        return changed_bits

    return computing(instruction, changed, type_)


@opcode("min", "max")
def _min(instruction: Instruction) -> Run:
    type_, is_max = instruction.type, instruction.opcode == "max"
    if not type_.is_float:
        return _integers(instruction, np.maximum if is_max else np.minimum, 2)
    if type_.name == "f16":
        raise PtxError(f"{instruction.opcode}.f16")
    only(instruction, "ftz", "NaN")
    keeps_nan = "NaN" in instruction.modifiers

    def extreme(a: Array, b: Array) -> Array:
        result = (np.fmax if is_max else np.fmin)(a, b)
        zeros = (a == 0) & (b == 0)
        if zeros.any():  # -0 is less than +0
            signs = a.view(type_.raw) & b.view(type_.raw) if is_max else a.view(type_.raw) | b.view(type_.raw)
            result = np.where(zeros, signs.view(type_.number), result)
        if keeps_nan:
            result = np.where(np.isnan(a) | np.isnan(b), type_.number.type(np.nan), result)
        return result

    return computing(instruction, in_floats(instruction, extreme), type_, type_)


@opcode("copysign")
def _copysign(instruction: Instruction) -> Run:
    return computing(instruction, lambda sign, size: np.copysign(size, sign), *[instruction.type] * 2)


@opcode("testp")
def _testp(instruction: Instruction) -> Run:
    only(instruction, "finite", "infinite", "notanumber", "number")
    (what,) = instruction.modifiers
    test: Function = {"finite": np.isfinite, "infinite": np.isinf}.get(what, np.isnan)
    write, read = writer(instruction.arguments[0]), reader(instruction.arguments[1], instruction.type)
    return lambda threads: write(threads, test(read(threads)) ^ (what == "number"))

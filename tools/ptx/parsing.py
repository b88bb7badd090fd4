"""Parses PTX: a module's variables, and its kernels as programs with resolved registers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .operands import (
    NUMBER,
    Address,
    Constant,
    Immediate,
    Label,
    Not,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Unknown,
    Vector,
    bits_of,
)
from .types import Array, PtxError, Type, type_of

_TYPE = re.compile(r"pred|bf16x2|bf16|f16x2|f32x2|f16|[busf](8|16|32|64|128)")
_ENTRY = re.compile(r"\.entry\s+([\w$.]+)\s*(?:\(([^)]*)\))?([^{]*)\{")
_PARAMETER = re.compile(
    r"\.param(?:\s+\.align\s+(?P<align>\d+))?\s+\.(?P<type>\w+)(?:\s+\.ptr(?:\s+\.[a-z]\w*)?(?:\s+\.align\s+\d+)?)?"
    r"\s+(?P<name>[\w$]+)(?:\[(?P<n>\d+)\])?"
)
_VARIABLE = re.compile(
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?P<sizes>(?:\[\d*\])*)"
)
_MODULE_VARIABLE = re.compile(r"\.(global|const|shared)\s+([^;{}]*?)(?:=\s*(\{[^}]*\}|[^;]+))?;")
# Matched one after the other. A brace that opens an operand is part of its statement.
_TOKEN = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<directive>\.(?:loc|file)\b[^\n]*)|(?P<label>[\w$]+)\s*:(?!:)|(?P<statement>[^;]+);)"
)
_ADDRESS = re.compile(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
# Shared and local variables are aligned to at least this.
_ALIGNMENT = 16


class Parameter(NamedTuple):
    """A parameter's offset in the parameter memory."""

    offset: int
    n_bytes: int
    type: Type


@dataclass
class Instruction:
    """An instruction, e.g. ``@%p1 add.rn.f32 %f1, %f2, 0f3F800000``."""

    line: int
    text: str
    opcode: str
    modifiers: list[str] = field(default_factory=list)
    """The modifiers after the opcode, types excluded, without dots."""
    types: list[Type] = field(default_factory=list)
    guard: Register | None = None
    """The guard predicate, if any."""
    is_negated: bool = False
    """Whether threads execute it if their guard is false."""
    arguments: list[Operand] = field(default_factory=list)
    error: str = ""
    """Why it was not understood, if so."""

    @property
    def type(self) -> Type:
        """The first type."""
        if not self.types:
            raise PtxError("no type")
        return self.types[0]

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass
class Program:
    """A kernel: its parameters, its instructions, and its memory needs."""

    name: str
    parameters: dict[str, Parameter]
    n_parameter_bytes: int
    directives: str
    """The directives between its parameters and its body."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    symbols: dict[str, int] = field(default_factory=lambda: {"WARP_SZ": 32})
    """Offsets and addresses of variables."""
    n_registers: int = 0
    n_local_bytes: int = 0
    n_shared_bytes: int = 0
    meetings: frozenset[int] = frozenset()
    """The labelled instructions, where diverged threads may meet."""

    def bound(self, directive: str) -> tuple[int, ...] | None:
        """Returns the block size of .reqntid or .maxntid."""
        found = re.search(rf"\.{directive}\s+([\d, ]+)", self.directives)
        return tuple(int(n) for n in found[1].split(",")) if found else None

    def place_shared(self, name: str, n_bytes: int, align: int) -> None:
        """Assigns a shared variable its offset."""
        self.n_shared_bytes = _rounded_up(self.n_shared_bytes, max(align, _ALIGNMENT))
        self.symbols[name] = self.n_shared_bytes
        self.n_shared_bytes += n_bytes

    def place_local(self, name: str, n_bytes: int) -> None:
        """Assigns a local variable its offset."""
        self.n_local_bytes = _rounded_up(self.n_local_bytes, _ALIGNMENT)
        self.symbols[name] = self.n_local_bytes
        self.n_local_bytes += n_bytes


class _Variable(NamedTuple):
    """A declaration such as ``.align 4 .b8 table[20]``."""

    name: str
    type: Type
    n: int
    align: int

    @classmethod
    def of(cls, text: str) -> _Variable:
        """Parses it."""
        if not (found := _VARIABLE.fullmatch(text.strip())):
            raise PtxError(f"cannot parse the declaration {text.strip()!r}")
        type_, n = type_of(found["type"]), 1
        for size in re.findall(r"\[(\d*)\]", found["sizes"]):
            n *= int(size or 0)
        return cls(found["name"], type_, n, int(found["align"] or type_.bits // 8))

    @property
    def n_bytes(self) -> int:
        return self.n * self.type.bits // 8


def parsed(text: str) -> tuple[dict[str, Program], dict[str, Array]]:
    """Returns a module's kernels, and its variables' memory, by name.

    Raises:
        PtxError: a line cannot be parsed. Instructions that are not understood have an ``error`` instead.
    """
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    entries, rest, end = [], [], 0
    while entry := _ENTRY.search(text, end):
        rest.append(text[end : entry.start()])
        end = _closing_brace(text, entry.end())
        entries.append((entry, text[entry.end() : end - 1], 1 + text.count("\n", 0, entry.end())))
    rest.append(text[end:])
    variables, shared = _module_variables(" ".join(rest))
    programs = {}
    for entry, body, line in entries:
        programs[entry[1]] = program = Program(entry[1], *_parameters(entry[2] or ""), entry[3])
        for variable in shared:
            program.place_shared(variable.name, variable.n_bytes, variable.align)
        program.symbols |= {name: array.ctypes.data for name, array in variables.items()}
        program.symbols |= {name: parameter.offset for name, parameter in program.parameters.items()}
        _Body(program).parse(body, line)
    return programs, variables


def _closing_brace(text: str, start: int) -> int:
    """Returns the position after the brace that closes the one before ``start``."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise PtxError("a kernel's body has no end")


def _module_variables(text: str) -> tuple[dict[str, Array], list[_Variable]]:
    """Returns the memory of global and constant variables, and the declarations of shared ones."""
    found: dict[str, Array] = {}
    shared = []
    text = re.sub(r"\.section\s+[^{]*\{[^}]*\}", "", text)
    for space, declaration, values in _MODULE_VARIABLE.findall(text):
        variable = _Variable.of(re.sub(r"\.(visible|extern|weak)\s+", "", declaration))
        if space == "shared":
            shared.append(variable)
            continue
        array = np.zeros(max(variable.n, 1), variable.type.raw)
        numbers = re.findall(r"[-\w.]+", values)
        array[: len(numbers)] = [bits_of(number, variable.type) for number in numbers]
        found[variable.name] = array
    return found, shared


def _parameters(text: str) -> tuple[dict[str, Parameter], int]:
    """Returns the parameters' offsets, and their total bytes."""
    found, end = {}, 0
    for declaration in filter(None, (each.strip() for each in text.split(","))):
        if not (each := _PARAMETER.fullmatch(declaration)):
            raise PtxError(f"cannot parse the parameter {declaration!r}")
        type_ = type_of(each["type"])
        n_bytes = type_.bits // 8 * int(each["n"] or 1)
        end = _rounded_up(end, int(each["align"] or type_.bits // 8))
        found[each["name"]] = Parameter(end, n_bytes, type_)
        end += n_bytes
    return found, end


class _Body:
    """Parses the body of a kernel into its program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        # Register names by scope, for the braces around a statement; the outermost first.
        self.scopes: list[dict[str, Register]] = [{}]

    def parse(self, body: str, line: int) -> None:
        """Parses it; ``line`` is where it starts."""
        program = self.program
        for position, kind, text in _tokens(body, line):
            if kind == "open":
                self.scopes.append({})
            elif kind == "close":
                self.scopes.pop()
            elif kind == "label":
                program.labels[text] = len(program.instructions)
            elif kind == "statement":
                self._statement(position, " ".join(text.split()))
        for instruction in program.instructions:
            instruction.arguments = [self._resolved(each) for each in instruction.arguments]
        program.meetings = frozenset(program.labels.values())

    def _statement(self, line: int, text: str) -> None:
        if text.startswith(".reg"):
            _, type_, names = text.split(None, 2)
            for name in names.split(","):
                self._declare(name.strip(), type_of(type_[1:]))
        elif text.startswith(".local"):
            variable = _Variable.of(text.removeprefix(".local"))
            self.program.place_local(variable.name, variable.n_bytes)
        elif text.startswith(".shared"):
            variable = _Variable.of(text.removeprefix(".shared"))
            self.program.place_shared(variable.name, variable.n_bytes, variable.align)
        elif not text.startswith((".pragma", ".branchtargets", ".callprototype")):
            self.program.instructions.append(self._instruction(line, text))

    def _declare(self, name: str, type_: Type) -> None:
        """Declares a register, or several, as in ``%r<5>``."""
        several = re.fullmatch(r"([\w$%]+)<(\d+)>", name)
        for each in [f"{several[1]}{i}" for i in range(int(several[2]))] if several else [name]:
            self.scopes[-1][each] = Register(each, self.program.n_registers, type_)
            self.program.n_registers += 1

    def _instruction(self, line: int, text: str) -> Instruction:
        instruction = Instruction(line, text, "")
        if text[0] == "@":
            guard, text = text[1:].split(None, 1)
            instruction.is_negated = guard[0] == "!"
            instruction.guard = self._register(guard.lstrip("!"))
        name, _, arguments = text.partition(" ")
        instruction.opcode, *parts = name.split(".")
        instruction.modifiers = [part for part in parts if not _TYPE.fullmatch(part)]
        try:
            instruction.types = [type_of(part) for part in parts if _TYPE.fullmatch(part)]
            instruction.arguments = [self._operand(each) for each in _split(arguments)]
        except PtxError as error:
            instruction.error = str(error)
        return instruction

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if (register := scope.get(name)) is not None:
                return register
        return None

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self._operand(each) for each in _split(text[1:-1])))
        if text[0] == "[":
            if not (found := _ADDRESS.fullmatch(text)):
                return Unknown(text)
            return Address(self._operand(found[1]), int(found[2] or "0", 0))
        if register := self._register(text):
            return register
        if text[0] == "!" and (register := self._register(text[1:])):
            return Not(register)
        if NUMBER.fullmatch(text):
            return Immediate(text)
        if text == "_":
            return Sink()
        if "|" in text:
            first, _, second = text.partition("|")
            return Pair(self._operand(first.strip()), self._operand(second.strip()))
        return Special(text) if text[0] == "%" else Symbol(text)

    def _resolved(self, operand: Operand) -> Operand:
        """Resolves an operand's name, which may be declared after it."""
        if isinstance(operand, Symbol):
            if (value := self.program.symbols.get(operand.name)) is not None:
                return Constant(value)
            if (target := self.program.labels.get(operand.name)) is not None:
                return Label(target)
        if isinstance(operand, Address):
            return Address(self._resolved(operand.base), operand.offset)
        return operand


def _tokens(body: str, line: int) -> Iterator[tuple[int, str, str]]:
    """Yields (line, kind, text) of all statements, labels, braces and directives of a body."""
    at, end = 0, len(body.rstrip())
    while at < end:
        if not (token := _TOKEN.match(body, at)):
            rest = body[at:].lstrip()
            line += body.count("\n", at, len(body) - len(rest))
            raise PtxError(f"line {line}: cannot parse {rest[:60].rstrip()!r}")
        kind = str(token.lastgroup)
        start = token.start(kind)
        line += body.count("\n", at, start)
        yield line, kind, token[kind]
        line += body.count("\n", start, token.end())
        at = token.end()


def _split(text: str) -> list[str]:
    """Splits at commas outside braces."""
    parts = text.split(",") if "{" not in text else re.findall(r"(?:[^,{]|\{[^}]*\})+", text)
    return [part.strip() for part in parts if part.strip()]


def _rounded_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit

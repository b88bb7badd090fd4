"""The main loop of the pickle machine; frequent opcodes are inlined."""

from __future__ import annotations

import struct
from typing import Any

from .errors import PickleError, TruncatedError
from .machine import Machine
from .opcodes import RARE

# The length of the number after each of these opcodes.
_N_NUMBER_BYTES = {0x71: 1, 0x72: 4, 0x4B: 1, 0x68: 1, 0x58: 4, 0x4D: 2, 0x6A: 4, 0x4A: 4, 0x8C: 1, 0x47: 8}
_U2 = struct.Struct("<H").unpack_from
_U4 = struct.Struct("<I").unpack_from
_I4 = struct.Struct("<i").unpack_from
_F8 = struct.Struct(">d").unpack_from


def run(machine: Machine) -> Any:
    """Reads one pickle from the machine's ``position``, which it moves to the end, and returns the contents."""
    try:
        made = _run(machine)
        for each, check in machine.at_end.values():
            check(each)
        return made
    except PickleError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        # A number may have been read from the padding.
        if machine.position + _N_NUMBER_BYTES.get(machine.data[machine.position], 0) >= machine.end:
            raise TruncatedError("its pickle ends within a number") from error
        raise machine.error(_SAID.get(type(error), str(error))) from error


def _run(machine: Machine) -> Any:
    # One flat loop, the most frequent opcodes of torch.save first: a call for each would take longer than its work.
    data, end, memo = machine.data, machine.end, machine.memo
    stack = machine.stack
    at = machine.position
    while True:
        machine.position = at
        opcode = data[at]
        at += 1
        if opcode == 0x71:  # BINPUT
            memo[data[at]] = stack[-1]
            at += 1
        elif opcode == 0x72:  # LONG_BINPUT
            memo[_U4(data, at)[0]] = stack[-1]
            at += 4
        elif opcode == 0x68:  # BINGET
            stack.append(memo[data[at]])
            at += 1
        elif opcode == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif opcode == 0x4B:  # BININT1
            stack.append(data[at])
            at += 1
        elif opcode == 0x6A:  # LONG_BINGET
            stack.append(memo[_U4(data, at)[0]])
            at += 4
        elif opcode == 0x58:  # BINUNICODE
            start = at + 4
            at = start + _U4(data, at)[0]
            if at > end:
                raise TruncatedError("its pickle ends within a text")
            stack.append(str(data[start:at], "utf-8", "surrogatepass"))
        elif opcode == 0x28:  # MARK
            machine.marked.append(stack)
            machine.stack = stack = []
        elif opcode == 0x74:  # TUPLE
            items = stack
            machine.stack = stack = machine.marked.pop()
            stack.append(tuple(items))
        elif opcode == 0x52:  # REDUCE
            machine.after = at
            arguments = stack.pop()
            stack[-1] = machine.made_by(stack[-1], arguments)
        elif opcode == 0x51:  # BINPERSID
            stack[-1] = machine.persisted(stack[-1])
        elif opcode == 0x86:  # TUPLE2
            last = stack.pop()
            stack[-1] = (stack[-1], last)
        elif opcode == 0x85:  # TUPLE1
            stack[-1] = (stack[-1],)
        elif opcode == 0x81:  # NEWOBJ
            machine.after = at
            arguments = stack.pop()
            stack[-1] = machine.made_by(stack[-1], arguments, True)
        elif opcode == 0x62:  # BUILD
            state = stack.pop()
            stack[-1] = machine.build(stack[-1], state)
        elif opcode == 0x89:  # NEWFALSE
            stack.append(False)
        elif opcode == 0x29:  # EMPTY_TUPLE
            stack.append(())
        elif opcode == 0x4D:  # BININT2
            stack.append(_U2(data, at)[0])
            at += 2
        elif opcode == 0x4A:  # BININT
            stack.append(_I4(data, at)[0])
            at += 4
        elif opcode == 0x8C:  # SHORT_BINUNICODE
            start = at + 1
            at = start + data[at]
            if at > end:
                raise TruncatedError("its pickle ends within a text")
            stack.append(str(data[start:at], "utf-8", "surrogatepass"))
        elif opcode == 0x87:  # TUPLE3
            last, middle = stack.pop(), stack.pop()
            stack[-1] = (stack[-1], middle, last)
        elif opcode == 0x88:  # NEWTRUE
            stack.append(True)
        elif opcode == 0x4E:  # NONE
            stack.append(None)
        elif opcode == 0x47:  # BINFLOAT
            stack.append(_F8(data, at)[0])
            at += 8
        elif opcode == 0x5D:  # EMPTY_LIST
            stack.append([])
        elif opcode == 0x7D:  # EMPTY_DICT
            stack.append({})
        elif opcode == 0x61:  # APPEND
            last = stack.pop()
            machine.extend(stack[-1], (last,))
        elif opcode == 0x65:  # APPENDS
            items = stack
            machine.stack = stack = machine.marked.pop()
            machine.extend(stack[-1], items)
        elif opcode == 0x73:  # SETITEM
            last, key = stack.pop(), stack.pop()
            machine.set_items(stack[-1], [key], [last])
        elif opcode == 0x75:  # SETITEMS
            items = stack
            machine.stack = stack = machine.marked.pop()
            machine.set_items(stack[-1], items[::2], items[1::2])
        elif opcode == 0x2E and at <= end:  # STOP
            machine.position = at
            if machine.marked or len(stack) != 1:
                raise machine.error("it leaves more or less than one object")
            return stack.pop()
        elif at > end:
            raise TruncatedError("its pickle has no end")
        else:
            machine.after = at
            at = RARE[opcode](machine, at)
            stack = machine.stack


_SAID: dict[type, str] = {
    IndexError: "there is nothing on its stack",
    KeyError: "it refers to what it has not named",
}

"""The state of a pickle machine (stack, memo, budget), and the operations of its opcodes."""

from __future__ import annotations

import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ...storage.stubs import Foreign, Name, Refusal, Unfinished, like, name_of, shown
from .errors import PickleError
from .keys import FREE_CHARACTERS, NO_KEY, Keys

# Numbers are read without a bounds check; the zeros after the data are no opcode.
PADDING = bytes(16)
# The shortest pickles may do more work than they have bytes.
_LEAST_BUDGET = 4096
# The budget is two for each byte. torch.save writes about 100 bytes for a tensor, and 35 at least; a StoredTensor
# takes 1 KB of memory.
TENSOR_PRICE = 64

Find = Callable[[str, str], Any]
_U4 = struct.Struct("<I").unpack_from
_FAST_DICTS = frozenset({dict, OrderedDict})
_DICTS = frozenset({dict, OrderedDict, Counter, defaultdict})


class Kind(NamedTuple):
    """How a pickle may change instances of one type, besides lists and dicts; None: not at all."""

    build: Callable[[Machine, Any, Any], None] | None = None
    """Gives an instance its state: (machine, instance, state)."""
    append: Callable[[Any, Any], None] | None = None
    """Adds an item: (instance, item)."""
    set_item: Callable[[Any, Any, Any], None] | None = None
    """Sets an item: (instance, key, value); the key has been checked."""
    is_key: bool = False
    """Whether its hash is cheap and shallow, so that it may be a key."""


class Machine:
    """The state of one load, the first argument of all functions that make values.

    Args:
        data: the bytes, followed by ``PADDING`` or more.
        end: the number of bytes without the padding.
        find, refusal, persistent, kinds, position: as for ``load``.
    """

    def __init__(
        self,
        data: bytes,
        end: int,
        find: Find,
        refusal: Refusal,
        persistent: Callable[[Any], Any] | None,
        kinds: Mapping[type, Kind],
        position: int,
    ) -> None:
        self.end = end
        self.data = data
        self.position = position
        """Where the current opcode begins; after the load, the end of the pickle."""
        self.kinds = kinds
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        """The stacks below the marks."""
        self.memo: dict[int, Any] = {}
        self.refusal = refusal
        self.at_end: dict[int, tuple[Any, Callable[[Any], None]]] = {}
        """Objects that are checked at the end of the pickle, with their check; by id."""
        self.late: list[Any] = []
        """Tensors that the reader must compute, and so check, when all places in the file are known."""
        self.classes: Mapping[str, type] = {}
        """Classes that the user allows, by full name."""
        self.n_recursing = 0
        """The number of objects made of types that free their contents by recursion."""
        self._find = find
        self._persistent = persistent
        self._found: dict[tuple[str, str], Any] = {}
        self._keys = Keys(kind for kind, each in kinds.items() if each.is_key)
        self._budget = 2 * (self.end - position) + _LEAST_BUDGET

    def error(self, what: str) -> PickleError:
        """Returns an error about the current opcode."""
        return PickleError(f"its pickle is damaged at byte {self.position:,}: {what}", place=f"byte {self.position:,}")

    def charge(self, n: int) -> None:
        """Charges the budget for work on ``n`` items or bytes, which a pickle can request repeatedly.

        Raises:
            PickleError: the budget is exceeded.
        """
        self._budget -= n
        if self._budget < 0:
            raise PickleError("its pickle makes more of its bytes than data ever do")

    def foreign(self, name: str) -> Foreign:
        """Returns a stub for an object that is not data."""
        return Foreign(name, self.refusal)

    def unfinished(self, name: str, finish: Callable[[Machine, Any], Any]) -> Unfinished:
        """Returns a placeholder for a value whose state has not been read yet."""
        return Unfinished(name, self.refusal, finish)

    def named(self, module: str, name: str) -> Any:
        """Returns the value for a name."""
        names = NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
        if names not in self._found:
            self._found[names] = self._find(*names)
        return self._found[names]

    def key(self, key: Any) -> Any:
        """Returns a key of a dict or an item of a set; a stub if it is expensive to hash."""
        found = self._keys.of(key, self.charge)
        return self.foreign(f"a key: {shown(key)}") if found is NO_KEY else found

    def pop_mark(self) -> list[Any]:
        """Pops the last mark, and returns the items above it."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def made_by(self, function: Any, arguments: Any, is_new: bool = False, options: Any = None) -> Any:
        """Calls a function of the pickle; returns a stub if it or its arguments are foreign."""
        if type(function) is Name:
            call = function.new if is_new else function.call
            name = name_of(function)
            if call is None:
                raise self.error(f"{name} is called")
            if type(arguments) is not tuple or (options is not None and type(options) is not dict):
                raise self.error(f"{name} is called with {shown(arguments)}")
            try:
                made = call(self, *arguments, **(options or {}))
            except Exception as error:
                # Because of a stub among the arguments, which is no damage.
                if any(type(each) is Foreign for each in arguments):
                    return like(function)
                if isinstance(error, PickleError):
                    raise
                raise self.error(f"{name} is called with {shown(arguments)}: {error}") from error
            if type(made) is Unfinished:
                object.__setattr__(made, "slot", self._next_slot())
            return made
        if type(function) is Foreign:
            return like(function)
        raise self.error(f"{shown(function)} is called")

    def _next_slot(self) -> int | None:
        """Returns the memo index that the next opcode will give to the value just made."""
        at = self.after
        opcode = self.data[at]
        if opcode == 0x71:  # BINPUT
            return self.data[at + 1]
        if opcode == 0x72:  # LONG_BINPUT
            return _U4(self.data, at + 1)[0]  # type: ignore[no-any-return]
        if opcode == 0x94:  # MEMOIZE
            return len(self.memo)
        if opcode == 0x70:  # PUT
            digits = self.data[at + 1 : at + 20].partition(b"\n")[0]
            return int(digits) if digits.isdigit() else None
        return None

    after = 0
    """The position of the next opcode, while a value is being made."""

    def build(self, instance: Any, state: Any) -> Any:
        """Returns an instance with its state."""
        kind = type(instance)
        if kind is Unfinished:
            made, slot = instance.finish(self, state), instance.slot
            if slot is not None and self.memo.get(slot) is instance:
                self.memo[slot] = made
            return made
        if kind is not Foreign:
            build = self.kinds[kind].build if kind in self.kinds else None
            if build is None:
                raise self.error(f"{shown(instance)} cannot be given a state")
            build(self, instance, state)
        return instance

    def extend(self, target: Any, items: Iterable[Any]) -> None:
        """Adds items to a list, a set or another allowed instance."""
        kind = type(target)
        if kind is list:
            target.extend(items)
        elif kind is set:
            for each in items:
                target.add(self.key(each))
        elif kind is not Foreign:
            append = self.kinds[kind].append if kind in self.kinds else None
            if append is None:
                raise self.error(f"{shown(target)} cannot be added to")
            for each in items:
                append(target, each)

    def set_items(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        """Sets items of a dict or another allowed instance."""
        if len(keys) != len(values):
            raise self.error("a key has no value")
        for index, key in enumerate(keys):
            if type(key) is not str or len(key) > FREE_CHARACTERS:
                keys[index] = self.key(key)
        kind = type(target)
        if kind in _FAST_DICTS:
            target.update(zip(keys, values))
        elif kind in _DICTS:
            for key, value in zip(keys, values):
                target[key] = value
        elif kind is not Foreign:
            set_item = self.kinds[kind].set_item if kind in self.kinds else None
            if set_item is None:
                raise self.error(f"{shown(target)} has no items to be set")
            for key, value in zip(keys, values):
                set_item(target, key, value)

    def persisted(self, name: Any) -> Any:
        """Returns the value of a persistent id."""
        if self._persistent is None:
            raise self.error(f"the persistent object {shown(name)} is unknown")
        return self._persistent(name)

"""Digests of models: what each tensor holds, in a few bytes, as text that a review can read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ..errors import InitTypeError, InitValueError
from .rows import MAX_ROWS
from .texts import heading, names_line

VERSION: Final = 1
"""Of the digests and of their text: another formula would be another number."""

_HEADER = f"# fastinit digest {VERSION}"
_LINE = re.compile(r"([0-9a-f]{16}) ([a-z]\w*)\[((?:\d+(?:,\d+)*)?)\] (.+)")
_TOTAL = re.compile(r"total ([0-9a-f]{32})")
# Names may come from a file, and Python reads no number of thousands of digits.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


class TensorDigest(NamedTuple):
    """What one tensor holds."""

    hex: str
    """64 bits, as 16 digits: of its elements, dtype and shape. The name does not count, so that tied, renamed and
    copied tensors are seen to be equal."""
    dtype: str
    """E.g. ``bfloat16``."""
    shape: tuple[int, ...]
    """Of the full tensor."""

    @staticmethod
    def of(total: int, dtype: str, shape: tuple[int, ...]) -> TensorDigest:
        """Returns the digest of a tensor whose mixed words add up to ``total``."""
        return TensorDigest(f"{(total + _of_form(dtype, shape)) % (1 << 64):016x}", dtype, shape)

    def __str__(self) -> str:
        return f"{self.hex} {self.form}"

    @property
    def form(self) -> str:
        """Dtype and shape, e.g. ``float32[8,4]``."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@lru_cache(maxsize=4096)  # the layers of a model are alike
def _of_form(dtype: str, shape: tuple[int, ...]) -> int:
    """Returns what dtype and shape add: different sums of one form have different digests."""
    text = f"{VERSION} {dtype} {list(shape)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class DigestDiff:
    """What differs between two digests, by name; false where nothing does."""

    added: tuple[str, ...] = ()
    """Only in the second."""
    removed: tuple[str, ...] = ()
    """Only in the first."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Name in the first and in the second, where one tensor was removed and one equal to it was added."""
    forms: tuple[tuple[str, str, str], ...] = ()
    """Name, and dtype and shape in the first and the second."""
    values: tuple[str, ...] = ()
    """The same dtype and shape, and other values."""
    equal: tuple[tuple[str, str], ...] = ()
    """Each name of ``added`` and ``removed`` with one that both have and that holds the same there: it may be tied to
    it, and left out of a checkpoint for that."""
    sides: tuple[str, str] = field(default=("this digest", "the other"), compare=False)
    """What the first and the second are called."""

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.renamed, self.forms, self.values))

    def __str__(self) -> str:
        pairs = [f"{old} -> {new}" for old, new in self.renamed]
        forms = [f"{name} ({old} -> {new})" for name, old, new in self.forms]
        equal = dict(self.equal)
        added, removed = (
            [f"{name} (holds what {equal[name]} does)" if name in equal else name for name in names]
            for names in (self.added, self.removed)
        )
        lists = {
            "tensors with other values": self.values,
            "tensors of another dtype or shape": forms,
            "renamed tensors": pairs,
            "added tensors": added,
            "removed tensors": removed,
        }
        if not self:
            return "no difference"
        lines = [heading(self.sides), *(names_line(what, names) for what, names in lists.items() if names)]
        if equal:
            lines.append(
                "  (of tied names a checkpoint may have one only; digest(model, tied_names=False), or fastinit digest "
                "--no-tied-names, states that one)"
            )
        return "\n".join(lines)


class Digest:
    """The digests of a model's tensors, and one of all of them.

    Digests are equal where the same names hold the same bits in the same dtypes and shapes, whatever the order.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Linear(2, 2)
        >>> before = fastinit.digest(model)
        >>> with torch.no_grad():
        ...     _ = model.bias.add_(1)
        >>> print(before.diff(fastinit.digest(model)))
        from this digest to the other:
        1 tensors with other values: bias
    """

    def __init__(self, tensors: Mapping[str, TensorDigest]) -> None:
        self.tensors: Final[Mapping[str, TensorDigest]] = dict(tensors)
        """By name, in the model's order."""

    @property
    def total(self) -> str:
        """128 bits, as 32 digits: of all names, dtypes, shapes and values, in whatever order."""
        lines = [_line(name, tensor) for name, tensor in sorted(self.tensors.items())]
        return hashlib.blake2b("\n".join([str(VERSION), *lines]).encode(), digest_size=16).hexdigest()

    def __getitem__(self, name: str) -> TensorDigest:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __eq__(self, other: object) -> bool:
        return self.tensors == other.tensors if isinstance(other, Digest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.total)

    def diff(self, other: Digest) -> DigestDiff:
        """Returns what differs in ``other``, name by name.

        Raises:
            TypeError: ``other`` is no digest.
        """
        if not isinstance(other, Digest):
            raise InitTypeError(
                f"diff needs another digest, but got {type(other)}",
                hint=": fastinit.digest(...) makes one of a model, a state dict or the path of a checkpoint",
            )
        mine, others = self.tensors, other.tensors
        added, removed = [name for name in others if name not in mine], [name for name in mine if name not in others]
        renamed = _renamed({name: mine[name] for name in removed}, {name: others[name] for name in added})
        new_names = set(renamed.values())
        both = [(name, mine[name], others[name]) for name in mine if name in others]
        same: dict[TensorDigest, str] = {}
        for name, a, b in both:
            if a == b:
                same.setdefault(a, name)
        return DigestDiff(
            added=tuple(name for name in added if name not in new_names),
            removed=tuple(name for name in removed if name not in renamed),
            renamed=tuple(renamed.items()),
            forms=tuple((name, a.form, b.form) for name, a, b in both if a.form != b.form),
            values=tuple(name for name, a, b in both if a.form == b.form and a.hex != b.hex),
            equal=tuple(
                (name, same[each])
                for names, tensors in ((added, others), (removed, mine))
                for name in names
                if name not in renamed and name not in new_names and (each := tensors[name]) in same
            ),
        )

    # --- text ---------------------------------------------------------------------------------------------------------

    def to_text(self) -> str:
        """Returns the digest as text, a line a tensor, to be kept in a repository; ``from_text`` reads it.

        Equal digests give equal text, whether of a model or of a file: names are sorted, numbers in them by their size.
        """
        lines = [_line(name, tensor) for name, tensor in self._sorted()]
        return "\n".join([_HEADER, f"total {self.total}", *lines]) + "\n"

    @staticmethod
    def from_text(text: str) -> Digest:
        """Returns the digest that ``to_text`` wrote.

        Raises:
            ValueError: a line is none of a digest, or the total is another.
        """
        lines = text.splitlines()
        if not lines or lines[0] != _HEADER:
            raise InitValueError(f"line 1: expected {_HEADER!r}, but got {lines[0] if lines else ''!r}")
        total = _TOTAL.fullmatch(lines[1]) if len(lines) > 1 else None
        if total is None:
            raise InitValueError(
                f"line 2: expected 'total' and 32 digits, but got {lines[1] if len(lines) > 1 else ''!r}"
            )
        tensors: dict[str, TensorDigest] = {}
        for number, line in enumerate(lines[2:], start=3):
            name, tensor = _read_line(line, number)
            if name in tensors:
                raise InitValueError(f"line {number}: {name!r} stands there twice")
            tensors[name] = tensor
        return Digest(tensors)._checked(total[1])

    def to_json(self, indent: int | None = None) -> str:
        """Returns the digest as JSON, sorted as in ``to_text``; the format's version is in ``fastinit_digest``."""
        tensors = {
            name: {"hex": tensor.hex, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            for name, tensor in self._sorted()
        }
        document = {"fastinit_digest": VERSION, "total": self.total, "tensors": tensors}
        return json.dumps(document, indent=indent, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Digest:
        """Returns the digest that ``to_json`` wrote.

        Raises:
            ValueError: it is no digest, of another version, or the total is another.
        """
        document = json.loads(text)
        version = document.get("fastinit_digest") if isinstance(document, dict) else None
        if version != VERSION:
            raise InitValueError(f"expected JSON with 'fastinit_digest': {VERSION}, but got {version!r}")
        try:
            tensors = {name: _from_json(name, entry) for name, entry in document["tensors"].items()}
            total = document["total"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InitValueError(f"expected 'total' and 'tensors' with hex, dtype and shape: {error!r}") from None
        return Digest(tensors)._checked(total)

    def _sorted(self) -> list[tuple[str, TensorDigest]]:
        return sorted(self.tensors.items(), key=lambda each: _by_number(each[0]))

    def _checked(self, total: str) -> Digest:
        """Returns the digest; raises ValueError if its total is not the one that was written with it."""
        if self.total != total:
            raise InitValueError(
                f"expected the total {self.total} of these tensors, but got {total}: lines were changed"
            )
        return self

    def __str__(self) -> str:
        lines = [_line(name, tensor) for name, tensor in list(self.tensors.items())[:MAX_ROWS]]
        rest = len(self) - len(lines)
        return "\n".join([f"total {self.total}", *lines, *([f"... and {rest:,} more"] if rest else [])])

    def __repr__(self) -> str:
        return f"<Digest of {len(self):,} tensors: {self.total}>"


def _renamed(removed: Mapping[str, TensorDigest], added: Mapping[str, TensorDigest]) -> dict[str, str]:
    """Returns the new name of each removed tensor that one added tensor equals, and no other removed one."""

    def only(tensors: Mapping[str, TensorDigest]) -> dict[TensorDigest, str]:
        names: dict[TensorDigest, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(tensor, []).append(name)
        return {tensor: found[0] for tensor, found in names.items() if len(found) == 1}

    new = only(added)
    return {name: new[tensor] for tensor, name in only(removed).items() if tensor in new}


def _by_number(name: str) -> tuple[list[tuple[int, str]], str]:
    """Returns what sorts ``layers.2`` before ``layers.10``; names that differ in leading zeros, too, have an order."""
    parts = name.split(".")
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in parts], name


def _line(name: str, tensor: TensorDigest) -> str:
    # A name that might not be read back as it is, or would break the line, stands there as JSON has it.
    is_plain = name.isprintable() and name == name.strip() and name and not name.startswith('"')
    return f"{tensor} {name if is_plain else json.dumps(name)}"


def _read_line(line: str, number: int) -> tuple[str, TensorDigest]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise InitValueError(f"line {number}: expected 16 digits, dtype[shape] and a name, but got {line!r}")
    digits, dtype, shape, name = match.groups()
    if name.startswith('"'):
        try:
            name = json.loads(name)
        except ValueError:
            raise InitValueError(f"line {number}: expected a name, but got {name}") from None
    return name, TensorDigest(digits, dtype, tuple(map(int, shape.split(",") if shape else ())))


def _from_json(name: str, entry: Any) -> TensorDigest:
    tensor = TensorDigest(entry["hex"], entry["dtype"], tuple(entry["shape"]))
    if not _LINE.fullmatch(f"{tensor} name"):
        raise InitValueError(f"{name!r}: expected 16 digits, a dtype and a shape, but got {entry!r}")
    return tensor

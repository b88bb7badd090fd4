"""Values of the file of a plan, each of exactly the kind that is expected, or refused by its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from ..errors import Error
from .distributions import (
    Constant,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    TorchTruncatedNormal,
    TruncatedNormal,
    Uniform,
    is_structured,
    matrices_of,
)
from .geometry import Strided, may_overlap

_KINDS: dict[str, Any] = {
    **{each.kind: each for each in (Constant, Uniform, Normal, TruncatedNormal, Identity, Dirac, Sparse, Orthogonal)},
    DeltaOrthogonal.kind: DeltaOrthogonal,
    "torch_trunc_normal": TorchTruncatedNormal,
}
_COUNTS = {"groups", "batch_dims"}
_MAX_SEED = 2**64 - 1
MAX_ELEMENTS = 2**62
_MAX_DIMS = 64  # torch's own


class RefusedError(Error):
    """Something in the text is not as it has to be."""


class Fields:
    """The keys of one object of the file, each of which is taken once."""

    def __init__(self, record: object, where: str) -> None:
        if not isinstance(record, dict):
            raise RefusedError(f"{where}: expected an object, but got {shown(record)}", place=where)
        self.left = dict(record)
        self.where = where

    def refuse(self, key: str, expected: str, given: object) -> NoReturn:
        """Raises the error for a value."""
        place = f"{self.where}.{key}"
        raise RefusedError(f"{place}: expected {expected}, but got {shown(given)}", place=place)

    def take(self, key: str) -> Any:
        """Returns the value of a key that must be there."""
        if key not in self.left:
            raise RefusedError(f"{self.where}: the key {key!r} is missing", place=self.where)
        return self.left.pop(key)

    def optional(self, key: str) -> Any:
        """Returns the value of a key, which may not be null, or None if it is not there."""
        if key in self.left and self.left[key] is None:
            self.refuse(key, "an object", None)
        return self.left.pop(key, None)

    def end(self) -> None:
        """Raises the error for keys that are not known."""
        if self.left:
            raise RefusedError(f"{self.where}: the key {shown(next(iter(self.left)))} is not known", place=self.where)

    def text(self, key: str) -> str:
        """Returns a text, which may be empty."""
        value = self.take(key)
        if not isinstance(value, str) or not _is_text(value):
            self.refuse(key, "a text", value)
        return value

    def name(self, key: str) -> str:
        """Returns a text that is not empty."""
        value = self.text(key)
        return value if value else self.refuse(key, "a name", value)

    def count(self, key: str) -> int:
        """Returns a whole number that can count elements."""
        value: int = self.take(key)
        return value if _is_count(value) else self.refuse(key, "a whole number of at least 0", value)

    def seed(self, key: str) -> int | None:
        """Returns a seed or None."""
        value = self.take(key)
        if value is not None and not (type(value) is int and 0 <= value <= _MAX_SEED):
            self.refuse(key, "a whole number from 0 to 2**64 - 1, or null", value)
        return value

    def values(self, key: str) -> list[Any]:
        """Returns a list."""
        value = self.take(key)
        return value if isinstance(value, list) else self.refuse(key, "a list", value)

    def records(self, key: str) -> list[Fields]:
        """Returns a list of objects."""
        return [Fields(each, f"{self.where}.{key}[{i}]") for i, each in enumerate(self.values(key))]

    def names(self, key: str) -> list[str]:
        """Returns a list of names, each once."""
        value = self.values(key)
        if not all(isinstance(name, str) and name and _is_text(name) for name in value) or len(set(value)) < len(value):
            self.refuse(key, "a list of names, each once", value)
        return value

    def steps(self, key: str) -> tuple[int, ...]:
        """Returns a list of whole numbers."""
        value = self.values(key)
        if not all(map(_is_count, value)) or len(value) > _MAX_DIMS:
            self.refuse(key, "a list of whole numbers of at least 0", value)
        return tuple(value)

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the sizes of a tensor."""
        value = self.steps(key)
        if math.prod(size for size in value if size) > MAX_ELEMENTS:
            self.refuse(key, f"at most {MAX_ELEMENTS} elements", value)
        return value

    def dtype(self, key: str) -> torch.dtype:
        """Returns a dtype of torch by its name."""
        value = self.take(key)
        found = getattr(torch, value, None) if isinstance(value, str) else None
        if not isinstance(found, torch.dtype) or str(found) != f"torch.{value}":
            self.refuse(key, "the name of a dtype, such as 'float32'", value)
        return found

    def part(self, key: str, record: object, tensor: torch.Tensor) -> Strided:
        """Returns which elements of a tensor are written, by their row-major indices."""
        at = Fields(record, f"{self.where}.{key}")
        part = Strided(at.count("first"), at.shape("shape"), at.steps("steps"))
        at.end()
        if len(part.shape) != len(part.steps):
            at.refuse("steps", f"{len(part.shape)} numbers", len(part.steps))
        is_inside = part.first + part.span <= tensor.numel()
        if not is_inside or 0 in part.shape or may_overlap(part.shape, part.steps):
            raise RefusedError(f"{at.where}: not a part of a tensor of shape {tuple(tensor.shape)}", place=at.where)
        return part

    def distribution(self, key: str, shape: tuple[int, ...]) -> Distribution:
        """Returns the distribution for a tensor, or a part of one, of a shape."""
        fields = Fields(self.take(key), f"{self.where}.{key}")
        kind = fields.text("kind")
        if kind not in _KINDS:
            fields.refuse("kind", f"one of {', '.join(_KINDS)}", kind)
        made = _KINDS[kind]
        numbers = {name: fields.number(name, made) for name in made.__match_args__}
        fields.end()
        try:
            distribution: Distribution = made(**numbers)
            if is_structured(distribution):
                matrices_of(distribution, shape)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise RefusedError(f"{fields.where}: {error}", place=fields.where, of=error) from None
        return distribution

    def number(self, key: str, made: type) -> Any:
        """Returns a number of a distribution."""
        value = self.take(key)
        if isinstance(value, str):
            return self._number_of_text(key, value, made)
        if key in _COUNTS and not _is_count(value):
            self.refuse(key, "a whole number", value)
        if not isinstance(value, (int, float)) or (isinstance(value, bool) and made is not Constant):
            self.refuse(key, "a number", value)
        if made is not Constant and key not in _COUNTS and float(value) != value:
            self.refuse(key, "a number that float64 has", value)
        return value

    def _number_of_text(self, key: str, text: str, made: type) -> float | complex:
        """Returns a number that JSON has not: complex, or not finite; in Python's own spelling only."""
        try:
            number: float | complex = float(text)
        except ValueError:
            try:
                number = complex(text)
            except ValueError:
                self.refuse(key, "a number", text)
            if made is not Constant:
                self.refuse(key, "a real number", text)
        if str(number) != text or (isinstance(number, float) and math.isfinite(number)):
            self.refuse(key, "a number", text)
        return number

    def request(self, key: str) -> Mapping[str, Any]:
        """Returns the arguments of a rule that copies a checkpoint."""
        fields = Fields(self.take(key), f"{self.where}.{key}")
        found: dict[str, Any] = {"checkpoint": fields.name("checkpoint")}
        found |= {name: fields.text(name) for name in ("prefix", "key") if name in fields.left}
        if "dtype" in fields.left:
            found["dtype"] = str(fields.dtype("dtype")).removeprefix("torch.")
        for name in ("strict", "assign"):
            if name in fields.left:
                value = fields.take(name)
                found[name] = True if value is True else fields.refuse(name, "true, or no such key", value)
        if "revise_keys" in fields.left:
            pairs = fields.values("revise_keys")
            is_right = all(
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
                for pair in pairs
            )
            found["revise_keys"] = pairs if is_right else fields.refuse("revise_keys", "pairs of texts", pairs)
        fields.end()
        return found


# --- JSON, strictly -------------------------------------------------------------------------------------------------


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object; a key that is there twice is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RefusedError(f"the key {shown(twice)} is there twice in one object")
    return found


def no_constant(text: str) -> NoReturn:
    """Refuses what Python reads beyond JSON: NaN, Infinity."""
    raise RefusedError(f"{text} is no number of JSON: it would be written as text")


def finite(text: str) -> float:
    """Returns a number; one that would be rounded to infinity is refused."""
    number = float(text)
    if not math.isfinite(number):
        raise RefusedError(f"{text[:40]} is beyond the numbers of float64")
    return number


def whole_number(text: str) -> int:
    """Returns a whole number of at most 40 digits: longer ones take Python long, or are an error of its own."""
    if len(text) > 40:
        raise RefusedError(f"{text[:40]}... is beyond whole numbers of 64 bits")
    return int(text)


def _is_text(text: str) -> bool:
    """Tells whether a text can be encoded: a lone half of a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def shown(value: object) -> str:
    """Returns a value for a message: short, and without characters that control a terminal."""
    text = ascii(value)
    return text if len(text) <= 100 else text[:100] + "..."

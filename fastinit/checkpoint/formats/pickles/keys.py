"""Which keys a pickle's dicts and sets may have: those that are hashed in little time and on little stack."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy
import torch

from ...storage.stubs import Foreign
from .errors import PickleError

NO_KEY = object()
"""Stands for what takes long to hash, or cannot be hashed."""
# Longer texts are paid for: a dict compares them in full.
FREE_CHARACTERS = 255
# Python's hash of numbers below is the number, so that none collides with another.
_FREE_BITS = 60
_MAX_BITS = 128
_MAX_ITEMS = 16
# Tuples do not keep their hash: with those in them, they take this much more time at each look.
_MAX_DEPTH = 3
# Tuples and great numbers can be made to have one hash; by chance, hardly two of a file's have.
_MAX_OF_ONE_HASH = 16
_FLAT = frozenset({float, bool, type(None), torch.dtype, torch.device, datetime.date, datetime.datetime})
_TEXTS = (str, bytes, numpy.str_, numpy.bytes_)
_PATHS = (PurePosixPath, PureWindowsPath)
_TUPLES = (tuple, torch.Size)


class Keys:
    """The keys of one pickle.

    Args:
        allowed: further types, whose hashes are cheap and shallow.
    """

    def __init__(self, allowed: Iterable[type] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._of_one_hash: dict[int, list[Any]] = {}
        self._long: dict[Any, Any] = {}
        self._long_by_id: dict[int, tuple[Any, Any]] = {}

    def of(self, key: Any, charge: Callable[[int], None]) -> Any:
        """Returns the key to take for one of the pickle, ``NO_KEY`` if it is none; ``charge`` pays for long ones.

        Raises:
            PickleError: too many keys have one hash.
        """
        if type(key) in _TEXTS and len(key) > FREE_CHARACTERS:
            return self._one_of_its_text(key, charge)
        return key if self._is_cheap(key, charge, 0) else NO_KEY

    def _one_of_its_text(self, key: Any, charge: Callable[[int], None]) -> Any:
        """Returns the first key with the same text, so that a dict need not compare long texts again and again."""
        found = self._long_by_id.get(id(key))
        if found is None:
            charge(len(key))
            found = self._long_by_id[id(key)] = key, self._long.setdefault(key, key)
        return found[1]

    def _is_cheap(self, key: Any, charge: Callable[[int], None], depth: int) -> bool:
        kind = type(key)
        if kind in _TEXTS:
            if len(key) > FREE_CHARACTERS:
                charge(len(key))
        elif kind is int:
            if key.bit_length() > _MAX_BITS:
                return False
            if key.bit_length() > _FREE_BITS:
                self._check_hash(key)
        elif kind in _FLAT or isinstance(key, Foreign):
            pass
        elif kind in _TUPLES and len(key) <= _MAX_ITEMS:
            if depth:
                charge(len(key))
            if depth == _MAX_DEPTH or not all(self._is_cheap(each, charge, depth + 1) for each in key):
                return False
            if not depth:
                self._check_hash(key)
        elif kind in _PATHS:
            charge(len(str(key)))
        elif isinstance(key, (numpy.bool_, numpy.number)):
            self._check_hash(key)
        else:
            return kind in self._allowed
        return True

    def _check_hash(self, key: Any) -> None:
        """Sees to it that few different keys have one hash, which would take a dict ever longer."""
        same = self._of_one_hash.setdefault(hash(key), [])
        if not any(each is key or each == key for each in same):
            same.append(key)
            if len(same) > _MAX_OF_ONE_HASH:
                raise PickleError("the keys of its pickle were chosen to collide")

"""Checkpoints as trees of containers: reading all their tensors, replacing leaves."""

from __future__ import annotations

import argparse
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .copying import read
from .stored import StoredTensor, in_memory
from .stubs import Foreign, refuse


def read_everything(tree: Any) -> Any:
    """Returns a checkpoint with all its tensors in memory; dicts and lists are changed in place.

    Raises:
        RuntimeError: something in it is not data.
    """
    foreign: list[Foreign] = []
    stored: list[StoredTensor] = []
    replace(tree, (StoredTensor, Foreign), lambda each: (foreign if isinstance(each, Foreign) else stored).append(each))
    if foreign:
        refuse(*reversed(foreign))  # the walk comes from the end
    if not stored:
        return tree
    places = [each for one in stored if not one.is_read for each in one.parts or (one,)]
    storages = {id(each.storage_in_file): each.storage_in_file for each in places}
    read([each for each in storages.values() if each.memory is None])
    return replace(tree, StoredTensor, in_memory)


def replace(tree: Any, kind: type | tuple[type, ...], function: Callable[[Any], Any]) -> Any:
    """Returns a tree of containers with ``function`` applied to every leaf of a type; deep trees cost no stack.

    Dicts, lists, deques and attributes of plain objects are changed in place, tuples are made anew where they have to
    be. What ``function`` gives None for stays.
    """
    done: dict[int, Any] = {}
    kept: list[Any] = []  # so that no id is used twice
    # Children before their parents: a container comes up again when all that it holds is done.
    stack: list[tuple[Any, bool]] = [(tree, False)]
    while stack:
        node, children_done = stack.pop()
        if id(node) in done and not children_done:
            continue
        if isinstance(node, kind):
            new = function(node)
            done[id(node)] = node if new is None else new
            kept.append(node)
            continue
        held = _children(node)
        if held is None:
            continue
        if not children_done:
            done[id(node)] = node  # a container that holds itself finds itself here
            kept.append(node)
            stack.append((node, True))
            stack.extend((each, False) for each in held if isinstance(each, (_CONTAINERS, kind)))
            continue
        if isinstance(node, tuple):
            items = [done.get(id(child), child) for child in node]
            if any(new is not old for new, old in zip(items, node)):
                made: Any = type(node)
                done[id(node)] = made(*items) if hasattr(made, "_fields") else made(items)
            continue
        if isinstance(node, (set, frozenset)):  # of keys, none of which is a tensor
            continue
        place: Any = node if isinstance(node, (dict, list, deque)) else vars(node)
        for key, child in list(place.items() if isinstance(place, dict) else enumerate(place)):
            new = done.get(id(child), child)
            if new is not child:
                place[key] = new
    return done.get(id(tree), tree)


def _children(node: Any) -> Iterable[Any] | None:
    if isinstance(node, dict):
        # Stubs may be keys, too.
        keys = [key for key in node if isinstance(key, (Foreign, tuple))]
        return [*node.values(), *keys] if keys else node.values()
    if isinstance(node, torch.Size):
        return None
    if isinstance(node, (list, tuple, deque, set, frozenset)):
        return node
    if isinstance(node, _CONTAINERS):
        return vars(node).values()
    return None


class PlainObject:
    """An object of a checkpoint that is nothing but its attributes."""


_CONTAINERS = (dict, list, tuple, deque, set, frozenset, PlainObject, argparse.Namespace, types.SimpleNamespace)

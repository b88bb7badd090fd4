"""Which modules a ``layer`` selects, which parameters a ``param`` selects, and suggestions where neither does."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from typing import Any, Union

import torch
from torch import nn

from ..naming import named_parameters

REGEX_PREFIX = "re:"
# difflib compares about 20,000 names a second. Above this many names, layers that differ only in their number become
# one candidate ('layers.*.weight', a glob that can be pasted into the config).
_MAX_CANDIDATES = 500

Captured = tuple[tuple[str, Union[str, None]], ...]
"""Names and texts of the groups that a pattern captured."""


def post_order(module: nn.Module) -> list[nn.Module]:
    """Returns the modules under ``module`` and itself, children before their parent, in ``nn.Module.apply``'s order.

    As with ``apply``, a shared module appears once for each of its parents.
    """
    found: list[nn.Module] = []

    def visit(each: nn.Module) -> None:
        for child in each.children():
            visit(child)
        found.append(each)

    visit(module)
    return found


@lru_cache(maxsize=4096)  # bounded: the cache keeps classes alive, and some are made at run time
def layer_names(kind: Any) -> frozenset[str]:
    """Returns the ``layer`` names that select modules of a class: its own and those of its direct bases."""
    return frozenset((kind.__name__, *(base.__name__ for base in kind.__bases__)))


def modules_of_layers(module: nn.Module, layers: Sequence[str]) -> list[nn.Module]:
    """Returns the modules under ``module`` selected by any of the layer names, in ``post_order``."""
    wanted = frozenset(layers)
    return [each for each in post_order(module) if wanted & layer_names(type(each))]  # type: ignore[arg-type]


def nearest_layers(module: nn.Module, layers: Sequence[str]) -> str:
    """Returns " Did you mean ...?" with similar class names of the tree, or "" if there are none."""
    present = {name for each in module.modules() for name in layer_names(type(each))} - {"object"}  # type: ignore[arg-type]
    return _did_you_mean(layers, present)


def parameters_of_patterns(module: nn.Module, patterns: Sequence[str]) -> dict[torch.Tensor, str]:
    """Returns the selected parameters, each with the name that matched, in ``named_parameters`` order.

    A tied parameter is selected by any of its names. Names are canonical and relative to ``module``. A pattern that is
    a parameter's name (``a[0]`` in a ParameterDict) selects that parameter and no other.

    Raises:
        ValueError: an invalid regular expression.
    """
    names_of = named_parameters(module)
    present = {name for names in names_of.values() for name in names}
    matchers = [_matcher(pattern, present) for pattern in patterns]
    found = {}
    for parameter, names in names_of.items():
        name = next((name for name in names for matches in matchers if matches(name)), None)
        if name is not None:
            found[parameter] = name
    return found


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """Returns the module that has a parameter of this name, None where names and modules differ (in a wrapper)."""
    try:
        return module.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def captured_groups(module: nn.Module, patterns: Sequence[str]) -> Callable[[str], Captured]:
    """Returns the function from a selected parameter's name to the named groups of the first pattern that matches it.

    A group that took no part in the match has None; globs and exact names capture nothing.
    """
    present = {name for names in named_parameters(module).values() for name in names}
    matchers = [(_matcher(pattern, present), pattern) for pattern in patterns]

    def captured(name: str) -> Captured:
        found = ((match, pattern) for matches, pattern in matchers if (match := matches(name)))
        return _groups(*next(found, (None, "")))

    return captured


def groups_of_name(name: str, patterns: Sequence[str]) -> Captured | None:
    """Returns the named groups of the first pattern that matches a parameter's name, None if none does."""
    for pattern in patterns:
        if match := _matcher(pattern, (name,))(name):
            return _groups(match, pattern)
    return None


def nearest_parameters(module: nn.Module, patterns: Sequence[str]) -> str:
    """Returns " Did you mean ...?" with similar parameter names of the tree, or "" if there are none."""
    names = {name for all_names in named_parameters(module).values() for name in all_names}
    if len(names) > _MAX_CANDIDATES:
        names = {re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name) for name in names}
    texts = [pattern.removeprefix(REGEX_PREFIX) for pattern in patterns]
    # A glob such as '*.qproj.weight' is compared with the same number of trailing parts of each name.
    n_parts = {text.count(".") for text in texts if text.startswith("*.")}
    tails = {f"*.{'.'.join(name.split('.')[-n:])}" for n in n_parts for name in names if name.count(".") >= n}
    return _did_you_mean(texts, {*names, *tails})


def _matcher(pattern: str, present: Container[str]) -> Callable[[str], Any]:
    """Returns what gives a true value for names that a pattern matches: if it is one of all names, that one alone."""
    if pattern in present:
        return pattern.__eq__
    if not pattern.startswith(REGEX_PREFIX):
        return re.compile(fnmatch.translate(pattern)).match
    try:
        return re.compile(pattern.removeprefix(REGEX_PREFIX)).fullmatch
    except re.error as error:
        raise ValueError(f"param {pattern!r} is not a valid regular expression: {error}") from error


def _groups(match: object, pattern: str) -> Captured:
    if isinstance(match, re.Match) and pattern.startswith(REGEX_PREFIX):  # globs have groups of fnmatch's own
        return tuple(match.groupdict().items())
    return ()


def _did_you_mean(wanted: Sequence[str], present: Iterable[str]) -> str:
    candidates = sorted(present)
    near: dict[str, None] = {}
    for text in wanted:
        near.update(dict.fromkeys(difflib.get_close_matches(text, candidates, n=3, cutoff=0.6)))
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""

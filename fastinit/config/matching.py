"""Which modules a ``layer`` selects, which parameters a ``param`` selects, and suggestions where neither does."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Union

import torch
from torch import nn

from ..errors import InitValueError
from ..naming import named_parameters
from ..plans.alike import collapsed
from .parts import Part, split

REGEX_PREFIX = "re:"
# difflib compares about 20,000 names a second. Above this many names, layers that differ only in their number become
# one candidate ('layers.*.weight', a glob that can be pasted into the config).
_MAX_CANDIDATES = 500
# How alike names are that could be meant, of 1; and how much less than the most alike one they may be.
_LEAST_ALIKE = 0.6
_ABOUT_AS_ALIKE = 0.1
_OF_NUMBERS = 0.85  # two of them: another layer is a worse guess than the same one
_OF_DEPTHS = 0.9  # names of more parts than were written, or fewer
# Of the names that are there so many are told.
_MAX_SHOWN = 6

# Of regular expressions: what matches numbers, or whatever is there.
_ANY_NUMBER = re.compile(r"\((\?P<\w+>)?\\d\+\)|\\d\+?|\.[*+]|\[0-9\]\+?")

Captured = tuple[tuple[str, Union[str, None]], ...]
"""Names and texts of the groups that a pattern captured."""


def post_order(module: nn.Module) -> list[nn.Module]:
    """Returns the modules under ``module`` and itself, children before their parent, in ``nn.Module.apply``'s order.

    As with ``apply``, a shared module appears once for each of its parents.
    """
    found: list[nn.Module] = []

    def visit(each: nn.Module) -> None:
        if each._modules:
            for child in dict.fromkeys(each._modules.values()):  # as `children` has them, in a third of the time
                if child is not None:
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
    return _did_you_mean(layers, present, spread=1.0)  # of few classes, the less alike may be the base that is meant


class Selected(NamedTuple):
    """A parameter, or a part of one, that a pattern selects."""

    tensor: torch.Tensor
    name: str
    """The one that matched: canonical, and relative to the module."""
    part: Part | None
    """What of it is selected, None: all."""
    captured: Captured
    """What the pattern captured, if it is a regular expression."""


def selected_parameters(module: nn.Module, patterns: Sequence[str]) -> list[Selected]:
    """Returns the selected parameters in ``named_parameters`` order; each part of one that a pattern names is one more.

    A tied parameter is selected by any of its names. A pattern that is a parameter's name (``a[0]`` in a ParameterDict)
    selects that parameter and no other. A parameter, or a part of it, that several patterns select is so by the first.

    Raises:
        ValueError: an invalid regular expression, or a glob that ends in no part.
    """
    names_of = named_parameters(module)
    present = {name for names in names_of.values() for name in names}
    matchers = [_matcher(pattern, present) for pattern in patterns]
    selected: list[Selected] = []
    for parameter, names in names_of.items():
        found: dict[Part | None, Selected] = {}
        for name in names:
            for matcher in matchers:
                if matcher.part not in found and (match := matcher.matches(name)):
                    found[matcher.part] = Selected(parameter, name, matcher.part, matcher.captured(match))
        if found:
            selected += found.values()
    return selected


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """Returns the module that has a parameter of this name, None where names and modules differ (in a wrapper)."""
    try:
        return module.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def selected_by_name(name: str, patterns: Sequence[str]) -> tuple[Part | None, Captured] | None:
    """Returns what the first pattern that matches a parameter's name selects of it, and captures; None if none does."""
    for matcher in (_matcher(pattern, (name,)) for pattern in patterns):
        if match := matcher.matches(name):
            return matcher.part, matcher.captured(match)
    return None


def nearest_parameters(module: nn.Module, patterns: Sequence[str]) -> str:
    """Returns " Did you mean ...?" with similar parameter names of the tree, or what is there if none is similar."""
    there = [name for all_names in named_parameters(module).values() for name in all_names]
    texts = [_plain(pattern) for pattern in patterns]
    names = set(there)
    if len(names) > _MAX_CANDIDATES or any("*" in text for text in texts):
        names = {re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name) for name in names}
    # A glob such as '*.qproj.weight' is compared with the same number of trailing parts of each name.
    n_parts = {text.count(".") for text in texts if text.startswith("*.")}
    tails = {f"*.{'.'.join(name.split('.')[-n:])}" for n in n_parts for name in names if name.count(".") >= n}
    return _did_you_mean(texts, {*names, *tails}, spread=_ABOUT_AS_ALIKE) or _what_is_there(texts, there)


def _plain(pattern: str) -> str:
    """Returns a pattern without its part; of a regular expression what is nearest to it among globs."""
    text, _ = split(pattern, is_regex=True)
    if not text.startswith(REGEX_PREFIX):
        return text
    return _ANY_NUMBER.sub("*", text.removeprefix(REGEX_PREFIX)).replace("\\.", ".")


def _what_is_there(texts: Sequence[str], names: Sequence[str]) -> str:
    """Returns " There are ..." with the names below what the texts begin with and of what they end with, if any are."""
    if not names:
        return ""
    for at in range(texts[0].count("."), 0, -1):
        start = ".".join(texts[0].split(".")[:at]) + "."
        if below := [name for name in names if name.startswith(start)]:
            names = below
            break
    ends = {text.rpartition(".")[2] for text in texts}
    same = [name for name in names if name.rpartition(".")[2] in ends] or names
    shown = [pattern for pattern, _ in collapsed((name, None) for name in same)]
    return f" There are {', '.join(shown[:_MAX_SHOWN])}{', ...' if len(shown) > _MAX_SHOWN or same != names else ''}"


class _Matcher(NamedTuple):
    """What a pattern selects."""

    matches: Callable[[str], Any]
    """Gives a true value for names that match; of a regular expression, its match."""
    part: Part | None = None
    captures: bool = False
    """Whether it is a regular expression, and not a glob, which has groups of fnmatch's own."""

    def captured(self, match: Any) -> Captured:
        """Returns the named groups of a match."""
        return tuple(match.groupdict().items()) if self.captures else ()


def _matcher(pattern: str, present: Container[str]) -> _Matcher:
    """Returns what a pattern selects: if it is one of all names, that one alone."""
    if pattern in present:
        return _Matcher(pattern.__eq__)
    is_regex = pattern.startswith(REGEX_PREFIX)
    name, part = split(pattern, is_regex)
    if name in present:
        return _Matcher(name.__eq__, part)
    if not is_regex:
        return _Matcher(re.compile(fnmatch.translate(name)).match, part)
    try:
        return _Matcher(re.compile(name.removeprefix(REGEX_PREFIX)).fullmatch, part, True)
    except re.error as error:
        raise InitValueError(f"param {pattern!r} is not a valid regular expression: {error}") from error


def _did_you_mean(wanted: Sequence[str], present: Iterable[str], spread: float) -> str:
    """Returns " Did you mean ...?" with the names that are alike, "" if none is.

    Args:
        wanted: what was written.
        present: what there is.
        spread: how much less alike than the most alike name another one may be.
    """
    candidates = sorted(present)
    near: dict[str, None] = {}
    for text in wanted:
        alike = {
            name: _likeness(text, name)
            for name in difflib.get_close_matches(text, candidates, n=12, cutoff=_LEAST_ALIKE)
        }
        least = max([_LEAST_ALIKE, *(each - spread for each in alike.values())])
        near.update(dict.fromkeys([name for name, each in alike.items() if each >= least][:3]))
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _likeness(text: str, name: str) -> float:
    """Returns how alike two names are, up to 1, in the parts in which they differ.

    What they have in common is most of a long name: ``layers.0.attention.wo.weight`` is not nearly ``...wq.weight``.
    """
    a, b = text.split("."), name.split(".")
    while a and b and a[-1] == b[-1]:
        del a[-1], b[-1]
    while a and b and a[0] == b[0]:
        del a[0], b[0]
    if len(a) != len(b):
        return _OF_DEPTHS * _ratio(".".join(a), ".".join(b)) if a and b else 1.0
    return math.prod(_OF_NUMBERS if x.isdecimal() and y.isdecimal() else _ratio(x, y) for x, y in zip(a, b))


def _ratio(a: str, b: str) -> float:
    return 1.0 if a == b else difflib.SequenceMatcher(None, b, a).ratio()

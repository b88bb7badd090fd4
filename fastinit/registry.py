"""The registry of initializers: resolves the ``type`` of a config."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from .errors import InitKeyError, InitTypeError, InitValueError

IMPORTS_VARIABLE = "FASTINIT_ALLOW_IMPORTS"
_IMPORTS_TEXTS = {"": True, "1": True, "true": True, "0": False, "false": False}

# Import paths of mmengine's initializers: in a config they mean fastinit's initializer of the same name.
_MMENGINE_PATHS = ("mmengine.model.", "mmengine.model.weight_init.")
_SCOPES = ("mmengine", "fastinit")

_imports: ContextVar[bool] = ContextVar("fastinit_imports", default=True)


def imports_allowed() -> bool:
    """Tells whether a config may import modules by name, or load a file in a way that runs its code.

    False inside ``use(allow_imports=False)``, and if the environment variable FASTINIT_ALLOW_IMPORTS is 0.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    text = os.environ.get(IMPORTS_VARIABLE, "").strip().lower()
    if text not in _IMPORTS_TEXTS:
        raise InitValueError(f"{IMPORTS_VARIABLE} must be 0 or 1, but it is {text!r}")
    return _imports.get() and _IMPORTS_TEXTS[text]


@contextmanager
def allowing_imports(allow: bool | None) -> Iterator[None]:
    """Forbids imports in a block if ``allow`` is False; None and True never lift an outer block's ban.

    Raises:
        TypeError: ``allow`` is neither None nor a bool.
    """
    if allow is not None and not isinstance(allow, bool):
        raise InitTypeError(f"allow_imports must be True or False, but got {allow!r}")
    token = _imports.set(_imports.get() and allow is not False)
    try:
        yield
    finally:
        _imports.reset(token)


class Peer(Protocol):
    """Another library's registry of initializers."""

    def in_scope(self, name: str, scope: str | None) -> Callable[..., Any] | None:
        """Returns what is registered for one scope alone, None if there is nothing of that name.

        Args:
            name: the ``type`` of a config.
            scope: the ``_scope_`` of a config; None: the library's current one.
        """

    def get(self, name: str) -> Callable[..., Any] | None:
        """Returns what the library finds under a name, of whatever scope; None if there is nothing."""


peers: list[Peer] = []
"""Registries of libraries that have been imported; integrations append their library's."""


class Registry(Mapping[str, Callable[..., Any]]):
    """Maps names to initializer classes (or functions that return an initializer)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._entries: dict[str, Callable[..., Any]] = {}
        self.fallback: Callable[[str], Callable[..., Any] | None] | None = None
        """Looks up names that are not registered here, before ``peers`` do; None, the default: nothing."""
        self.replaceable: set[str] = set()
        """Names of entries that others may take without ``force``, and that other libraries' registries come before."""
        self.by_path: dict[str, Callable[..., Any]] = {}
        """What stands for functions of other libraries, by their import paths."""

    def register_module(
        self,
        name: str | list[str] | None = None,
        force: bool = False,
        module: Callable[..., Any] | None = None,
    ) -> Callable[..., Any]:
        """Registers a class or function, as a decorator or directly with ``module=``.

        Args:
            name: one name or a list of names; None: the class's own.
            force: whether to replace an existing entry.
            module: the class or function.

        Raises:
            KeyError: the name is taken and ``force`` is False.
            TypeError: ``module`` is not callable, or a name is not a str.

        Example:
            >>> import fastinit, torch
            >>> @fastinit.WEIGHT_INITIALIZERS.register_module(name="Twos")
            ... class TwosInit(fastinit.BaseInit):
            ...     def weight_distribution(self, shape):
            ...         return fastinit.plans.Constant(2.0)
            >>> layer = torch.nn.Linear(2, 1)
            >>> _ = fastinit.initialize(layer, dict(type="Twos", layer="Linear"))
            >>> layer.weight.tolist()
            [[2.0, 2.0]]
        """
        names = [name] if isinstance(name, str) else name
        if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
            raise InitTypeError(f"name must be None, a str or a list of str, but got {name!r} of {type(name)}")

        def register(registered: Callable[..., Any]) -> Callable[..., Any]:
            if not callable(registered):
                raise InitTypeError(
                    f"module must be a class or a function, but got {registered!r} of {type(registered)}"
                )
            for each in names or [registered.__name__]:
                if not force and each in self._entries and each not in self.replaceable:
                    raise InitKeyError(
                        f"{each} is already registered in {self.name} as {self._entries[each]!r}",
                        hint="; pass force=True to replace it",
                    )
                self._entries[each] = registered
                self.replaceable.discard(each)
            return registered

        return register if module is None else register(module)

    def resolve(self, kind: object, scope: str | None = None) -> Callable[..., Any]:
        """Returns the class or function for a config's ``type``.

        Args:
            kind: a registered name (with or without a scope), an import path, a class or a function. Where imports are
                not allowed (``fastinit.use(allow_imports=False)``) a str must be registered here: another library's
                registry may import modules, too.
            scope: the config's ``_scope_``: which of mmengine's child registries is asked first. None: that of
                mmengine's default scope, if there is one.

        Raises:
            KeyError: ``kind`` is neither registered nor importable.
            TypeError: ``kind`` is neither a str nor callable.
        """
        if isinstance(kind, str):
            return self._resolve_name(kind, scope)
        if not callable(kind):
            raise InitTypeError(f"type must be a str or valid type, but got {type(kind)}")
        return self._own(kind)

    def _resolve_name(self, name: str, scope: str | None) -> Callable[..., Any]:
        may_import = imports_allowed()
        for peer in peers if may_import else ():
            if (found := peer.in_scope(name, scope)) is not None:
                return self._own(found)
        if name in self._entries:
            other = self._elsewhere(name) if name in self.replaceable else None
            return self._entries[name] if other is None else self._own(other)
        first, _, rest = name.partition(".")
        if first in _SCOPES and rest in self._entries:
            return self._entries[rest]
        by_path = self._by_path(name)
        if by_path is not None:
            return by_path
        if (found := self._elsewhere(name)) is not None:
            return self._own(found)
        reason = "" if may_import else " Import paths and other registries are not allowed here (allow_imports=False)."
        if may_import and "." in name:
            module, _, attribute = name.rpartition(".")
            try:
                found = getattr(importlib.import_module(module), attribute)
                if callable(found):
                    return found  # type: ignore[no-any-return]
                reason = f" As an import path it leads to {found!r}, which is not callable."
            except (ImportError, AttributeError, TypeError, ValueError) as error:
                reason = f" As an import path it fails: {error}."
        near = difflib.get_close_matches(name.rpartition(".")[2], self._entries, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        shown = name if name.isprintable() else ascii(name)
        raise InitKeyError(
            f"{shown} is not in the fastinit::{self.name} registry.{reason}",
            hint=f"{hint} Registered are: {', '.join(sorted(self._entries))}",
        )

    def _own(self, kind: Callable[..., Any]) -> Callable[..., Any]:
        """Returns fastinit's initializer for a class of mmengine's, and any other as it is."""
        path = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
        return self._by_path(path) or kind

    def _elsewhere(self, name: str) -> Callable[..., Any] | None:
        """Returns what another library's registry has under a name, where imports are allowed."""
        look_ups = (self.fallback, *(peer.get for peer in peers)) if imports_allowed() else ()
        found = (look_up(name) for look_up in look_ups if look_up is not None)
        return next((each for each in found if each is not None), None)

    def _by_path(self, path: str) -> Callable[..., Any] | None:
        """Returns fastinit's initializer for the import path of another's, e.g. ``mmengine.model.NormalInit``."""
        if path in self.by_path:
            return self.by_path[path]
        for prefix in _MMENGINE_PATHS:
            name = path.removeprefix(prefix)
            if name != path and name.endswith("Init") and name.removesuffix("Init") in self._entries:
                return self._entries[name.removesuffix("Init")]
        return None

    def get(self, key: Any, default: Any = None) -> Any:
        """Returns the entry registered under ``key``, else ``default``."""
        return self._entries.get(key, default)

    def build(self, cfg: Mapping[str, Any]) -> Any:
        """Builds the initializer that a config dict describes; the config is not modified.

        Raises:
            KeyError: the ``type`` is missing or unknown.
            TypeError: the initializer does not take these arguments.
        """
        arguments = dict(cfg)
        scope = arguments.pop("_scope_", None)
        if "type" not in arguments:
            raise InitKeyError(f'`cfg` must contain the key "type", but got {cfg}')
        return self.resolve(arguments.pop("type"), scope)(**arguments)

    @property
    def module_dict(self) -> dict[str, Callable[..., Any]]:
        """The entries by name (a copy)."""
        return dict(self._entries)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.name!r}: {', '.join(sorted(self._entries))})"


WEIGHT_INITIALIZERS = Registry("weight initializer")
"""The initializers that ``type`` may name; add yours with ``@WEIGHT_INITIALIZERS.register_module()``."""

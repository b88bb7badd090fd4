"""What MODEL means on the command line: a function that makes a model, in a module or a file, or a config.json."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import json
import os
import re
import sys
import zlib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from torch import nn

from ..errors import warn_user
from .errors import CommandError

Model = Union[nn.Module, Callable[[], nn.Module]]

MODEL_HELP = """\
MODEL is one of
  package.module:factory    a function or class that makes a model, installed or here
  path/file.py:factory      the same in a file
  pkg.mod:factory(8, a=2)   with arguments, Python's literals (quote it for the shell)
  path/config.json          a config of transformers, or a folder that holds one
The first three run the code that they name. Models are made on the meta device, without memory."""

_SPEC = re.compile(r"(?P<where>.+?\.py|[A-Za-z_][\w.]*):(?P<what>[A-Za-z_][\w.]*)(?P<call>\(.*\))?", re.DOTALL)
CONFIG = "config.json"


def model_of(text: str) -> Model:
    """Returns the model, or the function that makes it, that a MODEL of the command line means.

    Raises:
        CommandError: it means nothing, or what it means is none.
        Others: as the code that it names.
    """
    path = Path(text)
    if path.is_dir() or text.endswith(".json"):
        return _of_transformers(path / CONFIG if path.is_dir() else path)
    if _SPEC.fullmatch(text) is None:
        raise CommandError(
            f"{text!r} is no MODEL: expected package.module:factory, path/file.py:factory, a config.json of "
            f"transformers or a folder with one" + ("" if path.exists() else "; and there is no such file")
        )
    found, arguments = named(text)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise CommandError(f"{text}: expected a function that makes a model, but it is a {type(found).__name__}")
    return lambda: found(*arguments[0], **arguments[1])


def named(text: str) -> tuple[Any, tuple[list[Any], dict[str, Any]]]:
    """Returns what a text such as ``file.py:name(1, a=2)`` names, and the arguments; this runs the module's code.

    Raises:
        CommandError: there is no such module, file or name, or the arguments are no literals.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise CommandError(f"{text!r}: expected package.module:name or path/file.py:name")
    arguments = literals(match["call"] or "()", text)
    where, what = match["where"], match["what"]
    module = _from_file(Path(where)) if where.endswith(".py") else _imported(where)
    try:
        return reduce(getattr, what.split("."), module), arguments
    except AttributeError:
        near = difflib.get_close_matches(what, [name for name in vars(module) if not name.startswith("_")], n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise CommandError(f"{where} has no {what!r}", hint=hint) from None


def literals(call: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments of a call that is written as text; they are read as data, and nothing is called."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError
        pairs = {str(each.arg): ast.literal_eval(each.value) for each in tree.keywords if each.arg is not None}
        if len(pairs) != len(tree.keywords):
            raise ValueError
        return [ast.literal_eval(each) for each in tree.args], pairs
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise CommandError(
            f"{text!r}: arguments must be Python's literals (numbers, texts, lists, True, None), each by place or name"
        ) from None


def _imported(name: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # a module that this one needs
        raise CommandError(
            f"there is no module {error.name!r}, neither among the installed packages nor in the current folder"
        ) from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CommandError(f"{path}: there is no such file", place=path)
    path = path.resolve()
    name = f"fastinit_file_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as the name ends with .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as for `python file.py`
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def json_at(path: Path, what: str) -> Any:
    """Returns the contents of a JSON file.

    Args:
        path: of the file.
        what: it is to be, for messages.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path}: expected {what}, but it is no JSON: {error}", place=path) from None


def _of_transformers(path: Path) -> Callable[[], nn.Module]:
    """Returns what makes the model of a config.json. Code that a config names (``auto_map``) is not run."""
    if not path.exists():
        raise CommandError(
            f"{path}: there is no such file" if path.name != CONFIG else f"{path.parent} has no {CONFIG}"
        )
    document = json_at(path, "a config of transformers")
    if not isinstance(document, dict) or not isinstance(document.get("model_type"), str):
        raise CommandError(f"{path}: it is no config of transformers: it has no 'model_type'", place=path)
    try:
        import transformers
    except ImportError as error:
        raise CommandError(
            f"{path} is a config of transformers", hint=f": pip install transformers ({error})"
        ) from None
    config = transformers.AutoConfig.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    names = getattr(config, "architectures", None) or ()
    for name in names:
        kind = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return lambda: kind._from_config(config)  # type: ignore[no-any-return, no-untyped-call]
    why = f"names {', '.join(map(repr, names))}, of which transformers has none" if names else "has no 'architectures'"

    def base_model() -> nn.Module:
        model: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        warn_user(
            f"{path} {why}: it is taken for {type(model).__name__}, the base model, without the head that a language "
            f"model or a classifier has. Name the class that you mean in 'architectures'"
        )
        return model

    return base_model

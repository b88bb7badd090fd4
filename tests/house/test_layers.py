"""Imports point only downward, in the order of LAYERS; parsed from the source, so that lazy ones count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from paths import PACKAGE

# The compiled extensions, which import nothing.
COMPILED = {"_native", "_cuda"}

# A module may import from the layers below its own, and from its own package. Leaves import nothing of ours.
LAYERS = [
    ["replacing", "errors", "doors"],
    ["logs", "version", "registry", "naming", "plans", "presets", "progress", "drawing"],
    ["contract", "shards", "kernels", "tied_names"],
    ["backends"],
    ["execution"],
    ["checkpoint"],
    ["digesting"],
    ["config"],
    ["recording"],
    ["weight_init", "base_module", "parameter_values", "slots"],
    ["data_dependent", "redrawing", "rules"],
    ["verifying", "signal_flow"],
    ["own_code", "own_init"],
    ["materializing"],
    ["planning", "written_contents"],
    ["writing"],
    ["integrations", "demo", "mup"],
    ["command_line"],
    ["__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


# The same order within checkpoint/: of its folders, with leaves below them, and the files beside the folders above.
CHECKPOINT = [["messages"], ["mmengine_log", "mmengine_tta"], ["storage"], ["formats"], ["sources"], ["the root"]]
CHECKPOINT_LEVEL = {name: level for level, names in enumerate(CHECKPOINT) for name in names}
# Packages that an install may lack; only these may be imported inside a function of checkpoint/.
OPTIONAL = {"torchvision", "tqdm", "huggingface_hub", "fsspec"}


def imported_modules(path: Path):
    """Yields the top-level names inside fastinit that a file imports."""
    inside = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and (node.module or "").split(".")[0] == "fastinit":
                parts = (node.module or "").split(".")[1:]
            elif node.level > 0:
                parts = [*inside[: len(inside) - node.level], *(node.module or "").split(".")]
            else:
                continue
            parts = [part for part in parts if part]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fastinit":
                    yield (alias.name.split(".") + ["__init__"])[1]


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downward(file):
    own = file.split("/")[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in LAYERS"
    for name in imported_modules(PACKAGE / file):
        if name == own or name in COMPILED:
            continue
        assert name in LEVEL, f"{file} imports {name}, which has no place in LAYERS"
        assert LEVEL[name] < LEVEL[own], f"{file} imports {name}, which is not below it"


def modules_of_checkpoint(path: Path) -> Iterator[tuple[str, ...]]:
    """Yields the modules inside fastinit/checkpoint that a file of it imports, as paths below it."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            parts = [*inside[: len(inside) + 1 - node.level], *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                found = (*parts, alias.name)
                is_module = (PACKAGE.joinpath(*found).with_suffix(".py")).is_file() or PACKAGE.joinpath(*found).is_dir()
                if found[0] == "checkpoint":
                    yield (found if is_module else tuple(parts))[1:]


def room_of(module: tuple[str, ...]) -> str:
    """Returns the layer of CHECKPOINT that a module is in."""
    first = module[0] if module else "the root"
    return first if first in CHECKPOINT_LEVEL else "the root"


CHECKPOINT_FILES = [file for file in FILES if file.startswith("checkpoint/")]


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_imports_within_checkpoint_point_downward(file: str) -> None:
    own = room_of(Path(file).with_suffix("").parts[1:])
    for module in modules_of_checkpoint(PACKAGE / file):
        found = room_of(module)
        assert found == own or CHECKPOINT_LEVEL[found] < CHECKPOINT_LEVEL[own], f"{file} imports {'.'.join(module)}"


def test_modules_of_checkpoint_import_each_other_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for file in CHECKPOINT_FILES:
        own = ".".join(Path(file).with_suffix("").parts[1:]).removesuffix(".__init__")
        graph[own] = {".".join(module) for module in modules_of_checkpoint(PACKAGE / file)} - {own}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("file", CHECKPOINT_FILES)
def test_functions_of_checkpoint_import_only_optional_packages(file: str) -> None:
    functions = [
        node for node in ast.walk(ast.parse((PACKAGE / file).read_text())) if isinstance(node, ast.FunctionDef)
    ]
    inner = [node for function in functions for node in ast.walk(function)]
    names = {alias.name for node in inner if isinstance(node, ast.Import) for alias in node.names}
    names |= {"." * node.level + (node.module or "") for node in inner if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= OPTIONAL


@pytest.mark.parametrize("leaf", LAYERS[0])
def test_leaves_import_nothing_of_ours(leaf):
    files = (PACKAGE / leaf).rglob("*.py") if (PACKAGE / leaf).is_dir() else [PACKAGE / f"{leaf}.py"]
    assert {name for file in files for name in imported_modules(file)} <= {leaf}


def test_the_parser_sees_every_form_of_import(tmp_path, monkeypatch):
    for source, found in [
        ("from fastinit import plans, naming", {"plans", "naming"}),
        ("import fastinit.config.rules", {"config"}),
        ("import fastinit", {"__init__"}),
        ("def late():\n    from fastinit.execution.calls import open_call", {"execution"}),
        ("import torch\nfrom os import path", set()),
    ]:
        (tmp_path / "a.py").write_text(source)
        with monkeypatch.context() as patched:
            patched.setitem(globals(), "PACKAGE", tmp_path)
            assert set(imported_modules(tmp_path / "a.py")) == found
    file = PACKAGE / "checkpoint" / "planned_copies.py"
    assert {"naming", "plans", "execution"} <= set(imported_modules(file))


def test_no_module_bears_the_name_of_a_public_function():
    import fastinit

    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    functions = {name for name in fastinit.__all__ if callable(getattr(fastinit, name))}
    assert not modules & functions

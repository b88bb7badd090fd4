"""No error of another type is raised on purpose: the source uses built-in errors only to catch them."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

import pytest
from paths import PACKAGE

BUILT_IN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException) and not issubclass(value, Warning)
}
# Calls whose arguments are types to be caught, or compared with.
CATCHING = {"isinstance", "issubclass", "suppress"}

# What the source may use besides, with the reason.
ALLOWED: dict[str, tuple[set[str] | None, str]] = {
    "doors.py": ({"AttributeError"}, "what Python asks of a `__getattr__`"),
    "errors.py": (None, "the kinds of fastinit.Error derive from them"),
    "checkpoint/formats/pickles/loop.py": ({"IndexError", "KeyError"}, "what Python raises, by what it means here"),
    "checkpoint/sources/downloads.py": ({"Exception"}, "NotDownloaded: plans catch it, and go without the file"),
    "checkpoint/sources/transfer.py": ({"Exception"}, "Interrupted and Changed: the download catches them"),
    "checkpoint/storage/copying.py": ({"Exception"}, "_NotRead never leaves the module"),
    "command_line/demo_command.py": ({"argparse.ArgumentTypeError"}, "what argparse wants to be told by"),
    "command_line/models.py": ({"ValueError"}, "caught 5 lines below, with those of ast.literal_eval"),
    "command_line/sources.py": ({"argparse.ArgumentTypeError"}, "what argparse wants to be told by"),
    "config/expressions.py": ({"Exception"}, "ExpressionError: number_texts makes the user's error of it"),
    "config/further_initializers.py": ({"NotImplementedError"}, "an abstract method"),
    "config/reproducible_math.py": (
        {"OverflowError", "ValueError", "ZeroDivisionError"},
        "functions raise what Python's would, and expressions.py catches it",
    ),
    "config/running.py": ({"NotImplementedError"}, "an abstract method"),
    "contract/tails.py": ({"ArithmeticError"}, "an assertion about Newton's method"),
    "data_dependent.py": ({"BaseException"}, "_Reached: models that catch exceptions must not catch it"),
}


class Uses(ast.NodeVisitor):
    """Collects types of errors in code that neither catches nor annotates."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in BUILT_IN:
            self.found.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr.endswith(("Error", "Exception")):
            self.found.add(ast.unparse(node))
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._visit(node.body)

    def visit_Call(self, node: ast.Call) -> None:
        is_catching = isinstance(node.func, ast.Name) and node.func.id in CATCHING
        self._visit([node.func, *([] if is_catching else node.args), *(each.value for each in node.keywords)])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit([*node.decorator_list, node.args, *node.body])

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit([node.value] if node.value is not None else [])

    def _visit(self, nodes: Iterable[ast.AST]) -> None:
        for each in nodes:
            self.visit(each)


def used(source: str) -> set[str]:
    uses = Uses()
    uses.visit(ast.parse(source))
    return uses.found


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_only_kinds_of_fastinits_error_are_raised(file: str) -> None:
    found = used((PACKAGE / file).read_text())
    allowed, _ = ALLOWED.get(file, (set(), ""))
    assert allowed is None or found == allowed, (
        f"{file} uses {found}: raise kinds of fastinit.Error (fastinit/errors.py)"
    )


def test_files_with_leave_exist() -> None:
    assert set(FILES) >= set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise ValueError('x')", {"ValueError"}),
        ("raise KeyError from None", {"KeyError"}),
        ("def f(): return RuntimeError('x')", {"RuntimeError"}),
        ("kind = TypeError if x else OSError", {"TypeError", "OSError"}),
        ("class Mine(ValueError): pass", {"ValueError"}),
        ("raise pickle.UnpicklingError('x')", {"pickle.UnpicklingError"}),
        ("try:\n  pass\nexcept (KeyError, ValueError):\n  raise IndexError", {"IndexError"}),
        ("with suppress(KeyError):\n  isinstance(e, (OSError, TypeError))", set()),
        ("def f(e: ValueError) -> Exception:\n  found: OSError = e", set()),
        ("raise InitValueError('x')", set()),
    ],
)
def test_the_search_sees_what_raises_and_what_catches(source: str, found: set[str]) -> None:
    assert used(source) == found

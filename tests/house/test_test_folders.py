"""The folders of the tests mirror those of the package, and no file of them is long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from paths import PACKAGE, TESTS

MOST_LINES = 400
# Folders that stand for none of the package: what tests share, and tests of all that is beside it.
OTHERS = {"support", "house", "tools", "data", "hostile", "native"}


def folders(root: Path, pattern: str) -> Iterator[str]:
    """Yields the folders below one that hold files of a pattern, as paths relative to it."""
    for folder in sorted(root.rglob("*")):
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob(pattern)):
            yield folder.relative_to(root).as_posix()


def without_a_twin(tests: Path, package: Path) -> tuple[list[str], list[str]]:
    """Returns the folders of tests that the package lacks, and the package's own folders without tests."""
    of_tests = [each for each in folders(tests, "test_*.py") if each.split("/")[0] not in OTHERS]
    of_package = set(folders(package, "*.py"))
    untested = [each for each in of_package if "/" not in each and not any((tests / each).rglob("test_*.py"))]
    return [each for each in of_tests if each not in of_package], sorted(untested)


def too_long(root: Path) -> dict[str, int]:
    """Returns the Python files below a folder that have too many lines."""
    counts = {path.relative_to(root).as_posix(): len(path.read_text().splitlines()) for path in root.rglob("*.py")}
    return {name: n for name, n in counts.items() if n > MOST_LINES}


def test_test_folders_mirror_the_package():
    unknown, untested = without_a_twin(TESTS, PACKAGE)
    assert not unknown, f"fastinit/ has no such folders: {unknown}"
    assert not untested, f"tests/ has no tests in the folders {untested}"


def test_every_test_file_lies_in_a_folder():
    assert not [path.name for path in TESTS.glob("test_*.py")]


def test_no_test_file_is_longer_than_400_lines():
    assert not too_long(TESTS), "split them by subject"


def test_names_of_test_files_and_helpers_are_unique():
    """Folders of tests are no packages: pytest and the helpers import files by their bare names."""
    names = Counter(path.name for path in TESTS.rglob("*.py") if path.name != "conftest.py")
    assert not [name for name, n in names.items() if n > 1]


def test_misplaced_folders_and_long_files_are_found(tmp_path):
    for name in ("package/plans/a.py", "package/shards/b.py", "tests/plans/test_a.py", "tests/plants/test_b.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n" * 400)
    (tmp_path / "tests/plans/test_long.py").write_text("x = 1\n" * 401)
    assert without_a_twin(tmp_path / "tests", tmp_path / "package") == (["plants"], ["shards"])
    assert too_long(tmp_path / "tests") == {"plans/test_long.py": 401}

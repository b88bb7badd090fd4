"""What the sdist and the wheel hold."""

from __future__ import annotations

import email
import re
import shutil
import zipfile

import pytest
from packages import (
    SUFFIX,
    add_tool,
    built,
    files_of,
    packed,
)
from paths import ROOT


def test_the_sdist_holds_what_the_checkout_holds(checkout):
    assert {"csrc/fill_cpu.cpp", "tests/data/contract_1.json", "docs/backend.md", ".ci/run"} <= files_of(checkout)
    missing, extra = files_of(checkout) - packed(checkout), packed(checkout) - files_of(checkout)
    assert not missing, f"neither in MANIFEST.in nor in .gitignore: {sorted(missing)}"
    assert not extra, f"they are in .gitignore, and packed: {sorted(extra)}"


def test_new_files_are_packed(checkout):
    new = {"csrc/new.h", "csrc/more/new.cuh", "docs/new.svg", "tests/data/new.bin", "tools/new.py", "SECURITY.md"}
    for name in new:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("")
    assert new <= packed(checkout)


def test_leftovers_of_builds_and_tests_are_not_packed(checkout):
    leftovers = {
        f"fastinit/_native{SUFFIX}",
        "fastinit/native_missing.txt",
        "fastinit/cuda_missing.txt",
        "fastinit/__pycache__/rules.cpython-311.pyc",
        "tests/__pycache__/helpers.cpython-311.pyc",
        "tests/.hypothesis/examples/a",
        "tests/native/.pytest_cache/README.md",
        "csrc/fill_cpu.o",
        "build/lib/fastinit/config/rules.py",
        "dist/torch_fastinit-0.0.1.tar.gz",
        ".venv/bin/python",
        ".mypy_cache/a.json",
    }
    for name in leftovers:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    assert not leftovers & packed(checkout)
    # What setuptools itself leaves, and reads again.
    assert (checkout / "torch_fastinit.egg-info/SOURCES.txt").exists()
    shutil.rmtree(checkout.parent / "dist")
    assert not leftovers & packed(checkout)


def test_the_wheel_holds_extensions_tables_and_types_and_no_tests(project, tools):
    add_tool(tools, "g++")
    add_tool(tools, "nvcc")
    with zipfile.ZipFile(built(project, "wheel")) as file:
        names = set(file.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    kept = {name for name in files_of(project) if name.startswith("fastinit/")}
    assert {"fastinit/py.typed", "fastinit/checkpoint/sources/names/mmcls.json"} <= kept
    assert names - metadata == kept | {f"fastinit/_native{SUFFIX}", f"fastinit/_cuda{SUFFIX}"}


def test_the_wheel_installs_the_command(project, tools):
    with zipfile.ZipFile(built(project, "wheel")) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/entry_points.txt")]
        assert b"[console_scripts]\nfastinit = fastinit.command_line:main\n" in file.read(name)


@pytest.fixture
def description(project):
    """Returns what the wheel of the copy of the checkout says to an index, after its texts have been changed."""

    def made(**texts):
        for name, (old, new) in texts.items():
            path = project / {"readme": "README.md", "pyproject": "pyproject.toml"}[name]
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new, 1))
        with zipfile.ZipFile(built(project, "wheel")) as file:
            (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
            return email.message_from_bytes(file.read(name))

    return made


LINK = re.compile(r"\]\((?!\w+:|#)")


def test_an_index_gets_paths_where_the_readme_has_relative_links(description):
    metadata = description(readme=("## Install\n", "## Install\n\n[here](https://a.example/b) [x](docs/x.md#y)\n"))
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown" and text.startswith("# fastinit\n")
    assert LINK.search((ROOT / "README.md").read_text()) and not LINK.search(text)
    assert "`docs/install.md`.\n" in text and "[here](https://a.example/b) x (`docs/x.md`)\n" in text
    assert "(`docs/build.svg`)" in text and ">>> print(fastinit.plan(model, init_cfg, seed=0))" in text


def test_an_index_gets_links_to_the_source_where_it_has_an_address(description):
    text = description(
        readme=("## Install\n", "## Install\n\n```sh\nfills[i](docs/x.md)\n```\n"),
        pyproject=("[project.scripts]", '[project.urls]\nSource = "https://a.example/b"\n\n[project.scripts]'),
    ).get_payload()
    assert "[docs/faq.md](https://a.example/b/blob/main/docs/faq.md#when-is-it-faster-and-when-not)" in text
    assert "](https://a.example/b/raw/main/docs/build.svg)" in text
    assert len(LINK.findall(text)) == 1 and "\nfills[i](docs/x.md)\n" in text  # an example


def test_the_wheel_says_which_extensions_are_missing(project, tools):
    with zipfile.ZipFile(built(project, "wheel")) as file:
        assert b"no C++ compiler" in file.read("fastinit/native_missing.txt")
        assert b"nvcc is neither" in file.read("fastinit/cuda_missing.txt")
        assert not [name for name in file.namelist() if name.endswith(".so")]


def test_a_required_extension_fails_the_wheel(project, tools, monkeypatch):
    monkeypatch.setenv("FASTINIT_REQUIRE_BUILD", "native")
    with pytest.raises(AssertionError, match="no C\\+\\+ compiler"):
        built(project, "wheel")
    assert not list((project.parent / "dist").glob("*.whl"))

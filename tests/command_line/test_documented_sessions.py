"""The sessions of docs/command_line.md: commands are run, and what they print is what stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import needs
import pytest
from paths import ROOT

from fastinit.command_line import main

PAGE = (ROOT / "docs/command_line.md").read_text()


def sessions() -> list[tuple[str, str]]:
    """Returns each command of the page with what it prints."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = each.partition("\n")
            found.append((command, output))
    return found


def matches(expected: str, printed: str) -> bool:
    """Tells whether a text is the expected one, in which ``...`` at the end of a line stands for anything."""
    pattern = "".join(
        ".*?\n"
        if line == "..."
        else re.escape(line[:-3]) + "[^\n]*\n"
        if line.endswith("...")
        else re.escape(f"{line}\n")
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def run(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    """Runs a command line of the page; returns what it prints, and its exit code."""
    words = shlex.split(command)
    assert words[0] == "fastinit"
    target = words[words.index(">") + 1] if ">" in words else None
    code = main(words[1 : words.index(">") if ">" in words else None])
    out, err = capsys.readouterr()
    if target is not None:
        Path(target).write_text(out)
        out = ""
    return out + err, code


@needs.mark(needs.CPP)
def test_the_sessions_are_true(place, capsys):
    (place / "net.py").write_text(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])
    (place / "rules.json").write_text(re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0])
    code = 0
    assert len(sessions()) > 8
    for command, expected in sessions():
        if command == "echo $?":
            assert expected == f"{code}\n", command
            continue
        printed, code = run(command, capsys)
        assert matches(expected, printed), f"$ {command}\n{printed}"


def test_dots_stand_for_the_end_of_a_line_and_for_lines():
    assert matches("a\nb...\n...\nd\n", "a\nbc\nc\nc\nd\n")
    assert not matches("a\n", "b\n") and not matches("a\n", "a\nb\n") and not matches("a...\n", "b\n")

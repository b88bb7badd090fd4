"""Terminals and pipes: width, progress, Ctrl-C, readers that leave; the script and `python -m`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import needs
import pytest
import terminals
from paths import ROOT

from fastinit import __version__
from fastinit.command_line import main, output
from fastinit.progress import is_wanted, listening

TABLE = """\
parameter                 shape  dtype    device  distribution              rule      backend
------------------------  -----  -------  ------  ------------------------  --------  -------
layers.{0..3}.wo.weight   8x8    float32  cpu     normal(mean=0, std=0.25)  init_cfg  cpp
... 3 more rows ...
norm.weight               8      float32  cpu     constant(1)               init_cfg  cpp"""
COMMANDS = ["plan", "diff", "digest", "verify", "write", "check", "backends", "doctor", "demo"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_that_fits_is_not_changed():
    assert output.fitted(TABLE, 120) == output.fitted(TABLE, None) == TABLE


@pytest.mark.parametrize("columns", [30, 40, 60, 80])
def test_no_line_of_a_table_is_longer_than_the_terminal(columns):
    assert max(map(len, output.fitted(TABLE, columns).splitlines())) <= columns


def test_columns_that_say_least_go_first_and_are_named():
    lines = output.fitted(TABLE, 80).splitlines()
    assert lines[0].split() == ["parameter", "shape", "dtype", "distribution", "rule"]
    assert lines[-1] == "(left out: device, backend)" and "normal(mean=0, std=0.25)" in lines[2]


def test_what_is_told_controls_no_terminal(capsys):
    output.tell("a\x1b[2J\u202eb\nc")
    assert capsys.readouterr().out == "a\\x1b[2J\\u202eb\nc\n"


def test_short_columns_keep_the_ends_of_names():
    row = output.fitted(TABLE, 44).splitlines()[2]
    assert re.match(r"\.\.\.\S+wo\.weight  8x8", row)


def test_wide_columns_keep_both_ends_of_names():
    name = f"layers.{'inner.' * 20}weight"
    shown = output.fitted(f"parameter{' ' * (len(name) - 9)}\n{'-' * len(name)}\n{name}", 50).splitlines()[2]
    assert len(shown) == 50 and shown.startswith("layers.inner") and shown.endswith("inner.weight") and "..." in shown


@pytest.mark.parametrize(("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (4_200_000, "4.2 MB")])
def test_sizes_are_short(n_bytes, text):
    assert output.size(n_bytes) == text


# --- in a terminal, and piped -----------------------------------------------------------------------------------------


def test_a_narrow_terminal_gets_a_narrow_table(place):
    code, shown = terminals.in_terminal("plan", "models.py:make", "--config", "models.py:rules", cwd=place, columns=60)
    table = shown.split("\n14 rows")[0].splitlines()
    assert code == 0 and max(map(len, shown.splitlines())) <= 60
    assert "parameter" in table[0] and "distribution" in table[0] and table[-1].startswith("(left out: ")


def test_piped_output_is_plain_and_whole(place):
    result = terminals.piped("plan", "models.py:make", "--config", "models.py:rules", cwd=place)
    assert result.returncode == 0 and result.stderr == "" and "\x1b" not in result.stdout
    assert result.stdout.splitlines()[0].split()[-1] == "backend"


def test_a_reader_that_leaves_early_is_no_error(place):
    model = "'torch.nn:LSTM(2, 2, 200)'"  # more than a pipe holds
    command = f"{sys.executable} -m fastinit plan {model} --json | head -1"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=terminals.environment(),
    )
    assert result.returncode == 0 and result.stderr == "" and result.stdout == "{\n"


def test_an_ascii_terminal_gets_escaped_names(place):
    (place / "models.py").write_text("from torch import nn\ndef make(): return nn.ModuleDict({'é': nn.Linear(2, 2)})")
    environment = terminals.environment(PYTHONIOENCODING="ascii")
    command = [*terminals.COMMAND, "plan", "models.py:make"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place, env=environment)
    assert "\\xe9.weight" in result.stdout


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@needs.mark(needs.CPP)
@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_leaves_nothing_that_could_be_taken_for_a_checkpoint(place):
    command = [*terminals.COMMAND, "write", "torch.nn:Linear(30000, 30000)", "out", "--seed", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place, env=terminals.environment()
    ) as process:
        while not list((place / "out").glob(".*.partial")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "fastinit: interrupted\n")
    assert not [path.name for path in (place / "out").iterdir() if path.suffix in (".safetensors", ".partial")]


# --- progress ---------------------------------------------------------------------------------------------------------


def test_no_progress_switches_bars_off(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    seen: list[bool] = []
    monkeypatch.setattr("fastinit.command_line.backends_command.run", lambda *_: seen.append(is_wanted()) or 0)
    main(["backends"])
    main(["backends", "--no-progress"])
    assert seen == [True, False]


@needs.mark(needs.CPP)
@pytest.mark.parametrize("form", ["safetensors", "dcp"])
def test_writing_says_how_many_bytes_come_and_are_done(form):
    expected: list[int] = []
    done: list[int] = []
    with listening(expected.append, done.append):
        main(["write", "models.py:make", "out", "--seed", "0", "--format", form])
    assert sum(expected) == sum(done) == 448 * 4


@needs.mark(needs.CPP)
@pytest.mark.parametrize("command", ["digest", "verify"])
def test_reading_says_how_many_bytes_are_done(command):
    main(["write", "models.py:make", "out", "--seed", "0"])
    done: list[int] = []
    with listening(lambda n_bytes: None, done.append):
        main(["digest", "out"] if command == "digest" else ["verify", "out", "models.py:make", "--seed", "0"])
    assert sum(done) == 448 * 4


# --- the parser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_fits(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"\n  fastinit {command}" in out and "--traceback" in out
    assert max(map(len, out.splitlines())) <= 100


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE) == COMMANDS


def test_the_script_and_the_module_are_one_command_line(place):
    (target,) = re.findall(r'^fastinit = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    module, _, function = target.partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    for command in ([sys.executable, "-c", script], terminals.COMMAND):
        run = [*command, "--version"]
        result = subprocess.run(run, capture_output=True, text=True, check=True, cwd=place, env=terminals.environment())
        assert result.stdout == f"fastinit {__version__}\n"


def test_exit_codes_reach_the_shell(place):
    Path(place / "bad.safetensors").write_bytes(b"")
    assert terminals.piped("check", "bad.safetensors", cwd=place).returncode == 1
    assert terminals.piped("check", "none", cwd=place).returncode == 2

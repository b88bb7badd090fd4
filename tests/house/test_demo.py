"""The demo runs, and shows what it says."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import needs
import pytest
import torch
from paths import ROOT

import fastinit
from fastinit import __version__
from fastinit.__main__ import main
from fastinit.command_line import demo_command
from fastinit.demo import GPT, config

SMALL = ["demo", "--layers", "2", "--width", "32"]


Ended = subprocess.CompletedProcess


@pytest.fixture(scope="module")
def demo() -> tuple[list[list[str]], list[Ended[str]]]:
    """What a small demo shows, and how what it started ended: two ranks take seconds to begin."""
    run, ended = subprocess.run, []

    def noted(*command, **options):
        ended.append(run(*command, **options))
        return ended[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo_command.subprocess, "run", noted)
        return list(demo_command._scenes(2, 32)), ended


@pytest.fixture
def scenes(demo) -> list[list[str]]:
    """What a small demo shows, before it is fitted to a terminal."""
    return demo[0]


@needs.mark(needs.CPP, needs.torch_from(2, 6))  # which has fully_shard
@pytest.mark.parametrize("columns", [200, 80, 50])
def test_the_demo_fits_a_screen(scenes, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(demo_command, "_scenes", lambda layers, width: scenes)
    assert main(SMALL) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= min(columns, 80)
    assert len(lines) <= 40 or columns < 80
    words = " ".join(text.split())  # nothing is cut but the table
    assert "equal, bit for bit" in words and "The command did not run; the model is as it was." in words


@needs.mark(needs.CPP, needs.torch_from(2, 6))
def test_the_demo_shows_plan_backends_ranks_and_a_refusal(scenes):
    text = "\n".join(line for scene in scenes for line in scene)
    assert re.search(r"attention_out.weight .* normal\(mean=0, std=0.01\)", text)
    assert re.search(r"^   torch +0\.\d+ GB in \S+ s; numbers: torch$", text, re.MULTILINE)
    assert re.search(r"^   cpp +0\.\d+ GB in \S+ s; numbers: contract 1$", text, re.MULTILINE)
    assert len(set(re.findall(r"digest of all weights (\w{16})", text))) == 1 and "equal, bit for bit" in text
    assert "refused: init_cfg: tampered.pth: " in text and "did not run; the model is as it was" in text


@needs.mark(needs.CPP, needs.torch_from(2, 6))
def test_the_demo_says_where_ranks_have_other_bits(demo, monkeypatch):
    (ranks,) = demo[1]
    monkeypatch.setattr(demo_command.subprocess, "run", lambda *command, **options: ranks)
    text = "\n".join(demo_command._ranks(2, 32, "0" * 16))
    assert "DIFFERENT" in text and "equal" not in text


def test_the_demo_says_where_a_file_runs_its_command(monkeypatch):
    def trusting(model, rule, strict):
        with torch.no_grad():
            model.weight.copy_(torch.load(rule["checkpoint"], weights_only=False)["weight"])

    monkeypatch.setattr(demo_command, "initialize", trusting)
    assert demo_command._tampered() == ["it was read", "The command RAN; the model is CHANGED."]


def test_the_demo_says_why_ranks_do_not_run(monkeypatch):
    monkeypatch.setenv("FASTINIT_BACKEND", "none such")
    (line,) = demo_command._ranks(1, 8, "0" * 16)
    assert line.startswith("the ranks did not run: ") and "FASTINIT_BACKEND" in line


def test_the_command_line_lists_its_commands(capsys):
    result = subprocess.run([sys.executable, "-m", "fastinit", "--help"], capture_output=True, text=True, check=True)
    assert "demo" in result.stdout
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "usage" in capsys.readouterr().err


@needs.mark(needs.CPP, needs.torch_from(2, 6))  # which has fully_shard
def test_any_number_of_ranks_has_the_same_weights():
    digests = []
    for n in ("1", "3"):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", n, "-m", "fastinit", "demo"]
        command += ["--shards", "--layers", "2", "--width", "48"]
        # The digest counts, and not the exit status: gloo may abort when a rank leaves.
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "digest of all weights: " in result.stdout, result.stderr
        digests.append(result.stdout.rpartition("digest of all weights: ")[2].strip())
    assert digests[0] == digests[1] and len(digests[0]) == 16


@needs.mark(needs.CPP)
def test_the_digest_that_readme_shows_is_the_model_s() -> None:
    shown = {
        digest
        for page in ("README.md", "docs/shards.md")
        for digest in re.findall(r"354,823,168 parameters: .* digest of all weights: (\w+)", (ROOT / page).read_text())
    }
    with torch.device("meta"):
        model = GPT(24, 1024, 50257, 1024)
    assert sum(parameter.numel() for parameter in model.parameters()) == 354_823_168
    fastinit.materialize(model, config(24), seed=0, backend="cpp")
    digest = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().data)
    assert shown == {digest.hexdigest()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--layers", "0"], "--layers: expected a positive integer, but got '0'"),
        (["demo", "--width", "-3"], "--width: expected a positive integer, but got '-3'"),
        (["demo", "--width", "x"], "--width: expected a positive integer, but got 'x'"),
        (["demo", "--shards"], "torchrun --nproc-per-node 2 -m fastinit demo --shards"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_what_the_demo_cannot_do_is_a_message_of_the_command_line(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_an_unknown_default_backend_is_named_with_its_variable(capsys, monkeypatch):
    monkeypatch.setenv("FASTINIT_BACKEND", "foo")
    with pytest.raises(SystemExit):
        main(["demo"])
    assert "the environment variable FASTINIT_BACKEND: unknown backend 'foo'" in capsys.readouterr().err


def test_the_version_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"fastinit {__version__}\n"


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m fastinit demo --layers 1 --width 32 | head -1"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stderr == "" and "A GPT of 1 layers" in result.stdout

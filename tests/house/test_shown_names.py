"""Names that files and servers give are printed, logged and raised so that they control nothing."""

from __future__ import annotations

import io
import logging
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import fastinit
from fastinit import checkpoint as checkpoints
from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.messages import MAX_SHOWN, listed, printable, shown

NASTY = "a\x1b[2Jb\nERROR: forged\r\u202egpj\ud800\x00"
ESCAPED = "a\\x1b[2Jb\\nERROR: forged\\r\\u202egpj\\ud800\\x00"


def file_with(name, tmp_path):
    """Returns the path of a checkpoint that has a tensor of a name besides those of a linear layer."""
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2), name: torch.ones(1)}, tmp_path / "c.pth")
    return tmp_path / "c.pth"


def test_a_text_is_shown_on_one_line():
    assert shown(NASTY) == ESCAPED
    assert shown("модель é 模型 😀") == "модель é 模型 😀"
    long = shown("x" * 10**7)
    assert len(long) <= MAX_SHOWN and " ... " in long
    assert printable("two\nlines\tand\x1b[0m\ud800") == "two\nlines\tand\\x1b[0m\\ud800"
    names = listed([f"n{i}" for i in range(5000)])
    assert names.endswith(" and 4,000 more") and names.count(",") == 1000


@pytest.mark.parametrize("logger", [None, "current", "other", logging.getLogger("third")], ids=str)
@pytest.mark.parametrize("name", [NASTY, "\ud800", "a\nb", "x" * 10**6], ids=["nasty", "surrogate", "line", "long"])
def test_keys_of_a_file_control_neither_terminal_nor_log(tmp_path, capsys, caplog, logger, name):
    model = nn.Linear(2, 2)
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, file_with(name, tmp_path), logger=logger)
    told = capsys.readouterr().out + "".join(record.getMessage() for record in caplog.records)
    assert "unexpected key in source state_dict" in told and (model.weight == 1).all()
    assert all(each.isprintable() or each == "\n" for each in told)
    assert "\nERROR" not in told and len(told) < 3000 and ("a\\nb" in told) == (name == "a\nb")
    told.encode("utf-8")


def test_an_ascii_terminal_gets_escaped_text(tmp_path, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    checkpoints.print_log("модель \ud800", None)
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u043c\\u043e\\u0434\\u0435\\u043b\\u044c \\ud800\n"


@pytest.mark.parametrize("logger", [None, "current", "other", logging.getLogger("third")], ids=str)
def test_a_whole_message_keeps_its_lines_and_controls_nothing(capsys, caplog, logger):
    with caplog.at_level(logging.INFO):
        checkpoints.print_log("one\ntwo\x1b[2J\ud800", logger)
    assert (
        capsys.readouterr().out.rstrip("\n") + "".join(r.getMessage() for r in caplog.records)
        == "one\ntwo\\x1b[2J\\ud800"
    )


def test_keys_of_a_file_are_raised_safely(tmp_path):
    with pytest.raises(RuntimeError, match="unexpected key") as raised:
        load_checkpoint(nn.Linear(2, 2), file_with(NASTY, tmp_path), strict=True, logger="silent")
    assert ESCAPED in str(raised.value) and "\x1b" not in str(raised.value)


def test_a_surrogate_in_a_table_of_safetensors_is_printed(tmp_path, capsys):
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2), "NAME12": torch.ones(1)}
    # safetensors' own code writes no lone surrogates, but its table is JSON, which can hold them.
    (tmp_path / "c.safetensors").write_bytes(safetensors.torch.save(state).replace(b"NAME12", b"\\ud800"))
    load_checkpoint(nn.Linear(2, 2), tmp_path / "c.safetensors", logger=None)
    assert "unexpected key in source state_dict: \\ud800\n" in capsys.readouterr().out


def test_names_of_files_and_shards_are_raised_safely(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        load_checkpoint(nn.Linear(2, 2), f"/nowhere/{NASTY[:-1]}.pth", logger="silent")
    assert str(raised.value).isprintable()
    with pytest.raises(FileNotFoundError) as raised:
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint="nope://\x1b]0;x\x07"))
    assert str(raised.value).isprintable()
    with pytest.raises(KeyError) as raised:
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint="mmcls://\x1b]0;x\x07"))
    assert str(raised.value.args[0]).isprintable()
    with pytest.raises(KeyError) as raised:
        fastinit.initialize(nn.Linear(2, 2), dict(type="\x1b]0;x\x07"))
    assert str(raised.value.args[0]).isprintable()


def test_a_missing_key_of_a_shard_is_raised_safely():
    line = fastinit.plans.names_line("keys", ["plain", NASTY, "y" * 10**6])
    assert line.isprintable() and line.startswith("3 keys: plain, a\\x1b[2Jb") and len(line) < 400

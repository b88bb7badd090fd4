"""check: what is in a checkpoint, without running anything of it; and backends, doctor."""

from __future__ import annotations

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import needs
import pytest
import torch
from known_answers import DISTRIBUTIONS, answers, distribution_of
from safetensors.torch import save_file

import fastinit
from fastinit.backends import cpp_backend
from fastinit.command_line import known_answers, main


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Runs a command line; returns its output, or what it complains of."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    return out or err


def checked(path: str | Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, object]:
    return json.loads(told(["check", str(path), "--json"], capsys, code))


STATE = {f"layers.{i}.weight": torch.full((2, 3), float(i)) for i in range(4)} | {"step": torch.tensor(7)}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


# --- what is there ----------------------------------------------------------------------------------------------------


def test_a_file_of_safetensors_is_described(capsys):
    save_file(STATE, "model.safetensors")
    out = told(["check", "model.safetensors"], capsys)
    assert out.startswith("model.safetensors: safetensors, 1 file, ") and ", whole\n" in out
    assert "5 tensors: 8 B of int64, 96 B of float32" in out
    assert "layers.{0..3}.weight  2x3" in out


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_file_of_torch_is_described_with_its_containers(is_zip, capsys):
    saved = {"state_dict": STATE, "optimizer": {"state": [torch.ones(4, dtype=torch.bfloat16)]}, "epoch": 3}
    torch.save(saved, "last.pth", _use_new_zipfile_serialization=is_zip)
    found = checked("last.pth", capsys)
    assert found["format"] == ("torch.save" if is_zip else "torch.save before torch 1.6")
    assert {"name": "optimizer.state.0", "shape": [4], "dtype": "bfloat16", "bytes": 8} in found["tensors"]
    assert len(found["tensors"]) == 6 and found["names"] == []


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_names_of_code_are_listed_and_not_run(is_zip, capsys):
    torch.save({"state": STATE, "a": Evil(), "b": Fraction(1, 3)}, "e.pth", _use_new_zipfile_serialization=is_zip)
    assert checked("e.pth", capsys)["names"] == ["posix.mkdir", "fractions.Fraction"]
    assert "it names code, which was not run: posix.mkdir, fractions.Fraction" in told(["check", "e.pth"], capsys)
    assert not Path("ran").exists()


def test_code_that_leaves_nothing_behind_is_listed(capsys):
    torch.save(Evil(), "e.pth")
    assert checked("e.pth", capsys)["names"] == ["posix.mkdir"] and not Path("ran").exists()


@needs.mark(needs.CPP)
def test_folders_and_shards_are_described(capsys):
    make = lambda: torch.nn.Sequential(*(torch.nn.Linear(30, 30) for _ in range(4)))  # noqa: E731
    fastinit.write(make, "sharded", seed=0, max_shard_size=8000)
    fastinit.write(make, "dcp", seed=0, format="dcp")
    sharded, dcp = checked("sharded", capsys), checked("dcp", capsys)
    assert (sharded["format"], sharded["files"]) == ("sharded, with an index", 3)
    assert (dcp["format"], dcp["files"]) == ("folder of torch.distributed.checkpoint", 2)
    assert len(sharded["tensors"]) == len(dcp["tensors"]) == 8
    assert sharded["bytes"] == sum(path.stat().st_size for path in Path("sharded").iterdir())


def test_names_of_tensors_control_no_terminal(capsys):
    save_file({"a\x1b[2Jb\u202e": torch.ones(1)}, "model.safetensors")
    assert "a\\x1b[2Jb\\u202e" in told(["check", "model.safetensors"], capsys)
    main(["check", "model.safetensors", "--json"])
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and json.loads(out)["tensors"][0]["name"] == "a\x1b[2Jb\u202e"


# --- what is not whole ------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_off_is_damaged(capsys):
    save_file(STATE, "model.safetensors")
    os.truncate("model.safetensors", os.path.getsize("model.safetensors") - 1)
    err = told(["check", "model.safetensors"], capsys, 1)
    assert err.startswith("fastinit: model.safetensors: the file is damaged") and "104 bytes of data" in err
    found = checked("model.safetensors", capsys, 1)
    assert found["whole"] is False and "104 bytes" in str(found["problem"])


@needs.mark(needs.CPP)
def test_a_missing_shard_is_named(capsys):
    fastinit.write(lambda: torch.nn.Linear(30, 30), "sharded", seed=0, max_shard_size=3600)
    os.remove("sharded/model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors can not be found" in told(["check", "sharded"], capsys, 1)


@needs.mark(needs.CPP)
def test_a_damaged_chunk_is_named(capsys):
    fastinit.write(lambda: torch.nn.Linear(30, 30), "dcp", seed=0, format="dcp")
    (data,) = Path("dcp").glob("*.distcp")
    data.write_bytes(b"\0" * 64 + data.read_bytes()[64:])
    err = told(["check", "dcp"], capsys, 1)
    assert "its chunk at (0, 0), in '__0_0.distcp' at byte 0, is damaged" in err


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x80\x04N.", pickle.dumps(Evil())], ids=["empty", "page", "pickle", "evil"]
)
def test_what_is_no_checkpoint_is_damaged(content, capsys):
    Path("file.pth").write_bytes(content)
    assert "the file is damaged or no checkpoint" in told(["check", "file.pth"], capsys, 1)
    assert not Path("ran").exists()


def test_what_is_not_there_is_trouble(capsys):
    assert told(["check", "none"], capsys, 2) == "fastinit: none: there is no such file or folder\n"


def test_nothing_is_downloaded(capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *args, **kwargs: pytest.fail("a request"))
    assert "no such file" in told(["check", "https://example.com/model.safetensors"], capsys, 2)


# --- backends, doctor -------------------------------------------------------------------------------------------------


def test_backends_are_those_of_the_library(capsys):
    assert json.loads(told(["backends", "--json"], capsys)) == fastinit.available_backends()
    out = told(["backends"], capsys)
    assert [line.split()[0] for line in out.splitlines()] == list(fastinit.available_backends())


def test_the_known_answers_of_the_package_are_those_of_the_contract():
    frozen = {(distribution_of(a), a["dtype"], a["first_index"]): a["blake2b_128"] for a in answers()}
    mine = [each for each in known_answers.ANSWERS if hasattr(torch, each.dtype)]
    assert len(mine) > 3 and DISTRIBUTIONS
    for each in mine:
        assert frozen[each.distribution, each.dtype, each.first_index] == each.hash


@needs.mark(needs.CPP)
def test_doctor_finds_every_answer_right(capsys):
    found = json.loads(told(["doctor", "--json"], capsys))
    sets = [f"cpp, {each}" for each in cpp_backend._core().instruction_sets()]
    assert {*sets, "digests"} <= set(found["known_answers"]) and not any(found["known_answers"].values())
    assert found["versions"]["torch"] == torch.__version__


@needs.mark(needs.CPP)
def test_doctor_says_which_answers_are_wrong(capsys, monkeypatch):
    first, *others = known_answers.ANSWERS
    monkeypatch.setattr(known_answers, "ANSWERS", (*others, first._replace(hash="0")))
    monkeypatch.setattr(known_answers, "DIGEST", "0")
    out = told(["doctor"], capsys, 1)
    assert "baseline: WRONG: other numbers than contract 1: Uniform in float32" in out
    assert "digests: WRONG: 0 expected" in out and "The numbers of this install are wrong" in out


def test_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("fastinit.command_line.doctor_command._version", lambda name: None if name == "tqdm" else "1")
    monkeypatch.setattr(
        "fastinit.command_line.doctor_command.available_backends", lambda: {"torch": None, "cpp": "no compiler"}
    )
    out = told(["doctor"], capsys)
    assert "tqdm: for progress bars; pip install tqdm" in out and "cpp: no compiler" in out

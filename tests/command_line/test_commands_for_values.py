"""digest, verify and write."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import needs
import pytest
import torch
from safetensors.torch import load_file, save_file

import fastinit
from fastinit.command_line import main

pytestmark = needs.mark(needs.CPP)
SEED = ["--seed", "3"]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Runs a command line; returns its output, or what it complains of."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    return err if code == 2 else out


@pytest.fixture
def lock(capsys: pytest.CaptureFixture[str]) -> str:
    told(["plan", "models.py:make", *SEED, "--backend", "cpp", "--save", "net.plan.json"], capsys)
    return "net.plan.json"


@pytest.fixture
def written(lock: str, capsys: pytest.CaptureFixture[str]) -> Path:
    told(["write", lock, "out"], capsys)
    return Path("out/model.safetensors")


# --- write ------------------------------------------------------------------------------------------------------------


def test_a_model_is_written_as_the_library_writes_it(capsys, written):
    told(["write", "models.py:make", "again", *SEED], capsys)
    assert Path("again/model.safetensors").read_bytes() == written.read_bytes()


def test_what_is_written_is_listed(capsys):
    out = told(["write", "models.py:make", "out", *SEED, "--max-shard-size", "1KB"], capsys)
    names = [line.split()[0] for line in out.splitlines()]
    assert names == [os.path.join("out", name) for name in sorted(os.listdir("out"))] and len(names) > 2


def test_written_files_are_json_with_sizes(capsys):
    out = json.loads(told(["write", "models.py:make", "out", *SEED, "--json"], capsys))
    assert out["files"] == {"out/model.safetensors": os.path.getsize("out/model.safetensors")}


def test_a_config_and_a_dtype_count(capsys):
    how = ["--config", "rules.json", "--dtype", "bfloat16", *SEED]
    told(["write", "models.py:make", "out", *how], capsys)
    weight = load_file("out/model.safetensors")["0.weight"]
    assert torch.equal(weight, fastinit.values("0.weight", (8, 8), fastinit.plans.Normal(0, 0.25), seed=3).bfloat16())


def test_a_folder_of_torch_is_written(capsys):
    told(["write", "models.py:make", "out", *SEED, "--format", "dcp"], capsys)
    assert Path("out/.metadata").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models.py:make", "new"], "--seed is missing"),
        (["models.py:make", "out", *SEED], "Pass --overwrite"),
        (["models.py:make", "new", *SEED, "--max-shard-size", "2 cats"], "max_shard_size must be"),
        (["models.py:make", "new", *SEED, "--dtype", "int8"], "--dtype: expected a floating-point dtype"),
        (["net.plan.json", "new", "--seed", "4"], "the plan has seed 3"),
    ],
)
def test_what_cannot_be_written_is_one_message(arguments, message, written, capsys):
    err = told(["write", *arguments], capsys, 2)
    assert err.startswith("fastinit: ") and message in err and not Path("new").exists()


def test_a_checkpoint_is_replaced_on_request(written, capsys):
    told(["write", "models.py:make", "out", "--seed", "4", "--overwrite"], capsys)
    assert told(["verify", "out", "models.py:make", "--seed", "4"], capsys)


# --- digest -----------------------------------------------------------------------------------------------------------


def test_a_digest_of_a_file_is_the_librarys(written, capsys):
    assert told(["digest", str(written)], capsys) == fastinit.digest(written).to_text()


def test_a_digest_of_a_model_is_that_of_its_checkpoint(written, capsys):
    of_model, of_file = (told(["digest", *each], capsys) for each in (["models.py:make", *SEED], ["out"]))
    assert sorted(of_model.splitlines()) == sorted(of_file.splitlines())


def test_a_digest_of_a_model_counts_its_config(capsys):
    told(["write", "models.py:make", "out", "--config", "rules.json", *SEED], capsys)
    out = told(["digest", "models.py:make", "--config", "rules.json", *SEED], capsys)
    assert sorted(out.splitlines()) == sorted(told(["digest", "out"], capsys).splitlines())


def test_a_digest_of_a_model_may_have_the_names_of_its_checkpoint(capsys):
    told(["write", "models.py:tied", "tied", *SEED], capsys)
    for how, names in (([], {"0.weight", "1.weight"}), (["--no-tied-names"], {"0.weight"})):
        out = json.loads(told(["digest", "models.py:tied", "--json", *how, *SEED], capsys))
        assert set(out["tensors"]) == names
    Path("kept").write_text(told(["digest", "models.py:tied", *SEED], capsys))
    assert "1.weight (holds what 0.weight does)" in told(["diff", "kept", "tied"], capsys, 1)


def test_a_digest_of_a_model_needs_a_seed(capsys):
    assert "--seed is missing" in told(["digest", "models.py:make"], capsys, 2)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_kept_digest_is_compared_with_a_checkpoint(form, written, capsys):
    Path("kept").write_text(told(["digest", "out", *form], capsys))
    assert told(["diff", "kept", "out"], capsys) == "no difference\n"
    state = load_file(written)
    state["2.weight"][0, 0] = -state["2.weight"][0, 0]
    save_file(state, "other.safetensors")
    lines = "from kept to other.safetensors:\n1 tensors with other values: 2.weight\n"
    assert told(["diff", "kept", "other.safetensors"], capsys, 1) == lines
    document = json.loads(told(["diff", "kept", "other.safetensors", "--json"], capsys, 1))
    assert document["values"] == ["2.weight"] and document["sides"] == ["kept", "other.safetensors"]


def test_a_damaged_digest_is_trouble(written, capsys):
    Path("kept").write_text(told(["digest", "out"], capsys).replace("[8,8]", "[8,9]"))
    assert "kept: expected the total" in told(["diff", "kept", "out"], capsys, 2)


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["net.plan.json"], ["models.py:make", *SEED]], ids=["lock file", "model"])
def test_a_checkpoint_that_holds_the_plan_ends_with_0(arguments, written, capsys):
    assert told(["verify", "out", *arguments], capsys) == "14 tensors hold what the plan says\n"


def test_one_changed_bit_is_found(written, lock, capsys):
    state = load_file(written)
    state["2.weight"][3, 4] *= -1
    save_file(state, "other.safetensors")
    out = told(["verify", "other.safetensors", lock], capsys, 1)
    assert "1 differ:\n  2.weight from index (3, 4) on:" in out
    document = json.loads(told(["verify", "other.safetensors", lock, "--json"], capsys, 1))
    assert document["differs"][0]["index"] == [3, 4]


def test_another_dtype_is_a_difference_unless_it_is_said_otherwise(written, lock, capsys):
    save_file({name: tensor.bfloat16() for name, tensor in load_file(written).items()}, "narrow.safetensors")
    out = told(["verify", "narrow.safetensors", lock], capsys, 1)
    assert "14 in dtype, torch.float32 expected, torch.bfloat16 found: 0.bias" in out and "--rounded" in out
    assert "14 of them hold it rounded" in told(["verify", "narrow.safetensors", lock, "--rounded"], capsys)


def test_parameters_that_no_row_writes_end_with_1_and_are_named(written, capsys):
    model = runpy.run_path("models.py")["make"]()
    plan = fastinit.plan(model, dict(type="Normal", std=1, param="[1-5].*"), backend="cpp", seed=3)
    fastinit.initialize(model, plan)
    plan.save("some.plan.json")
    save_file(model.state_dict(), "some.safetensors")
    out = told(["verify", "some.safetensors", "some.plan.json"], capsys, 1)
    assert out.startswith("10 tensors hold") and "4 not verified: 0.bias, 0.weight, 6.bias, 6.weight (a param" in out


@pytest.mark.parametrize("how", ["missing", "extra", "reshaped"])
def test_other_names_and_shapes_end_with_1(how, written, lock, capsys):
    state = load_file(written)
    if how == "missing":
        del state["2.weight"]
    elif how == "extra":
        state["more.weight"] = torch.ones(2)
    else:
        state["2.weight"] = state["2.weight"].reshape(4, 16)
    save_file(state, "other.safetensors")
    out = told(["verify", "other.safetensors", lock], capsys, 1)
    assert "the plan does not fit Checkpoint" in out and ("more" if how == "extra" else "2.weight") in out


def test_a_plan_of_torchs_numbers_cannot_be_verified(written, capsys):
    told(["plan", "models.py:make", "--seed", "3", "--save", "torch.plan.json", "--inexact"], capsys)
    assert "not verified" in told(["verify", "out", "torch.plan.json"], capsys, 1)


def test_tables_that_no_checkpoint_holds_are_listed(capsys):
    told(["plan", "models.py:WithTable", *SEED, "--backend", "cpp", "--save", "table.plan.json"], capsys)
    told(["write", "models.py:WithTable", "table", *SEED], capsys)
    out = told(["verify", "table", "table.plan.json"], capsys)
    assert "2 tensors hold" in out and "1 not verified: table" in out


def test_tied_names_are_those_of_the_model(capsys):
    told(["plan", "models.py:tied", *SEED, "--backend", "cpp", "--save", "tied.plan.json"], capsys)
    told(["write", "models.py:tied", "tied", *SEED], capsys)
    state = load_file("tied/model.safetensors")
    save_file({"1.weight": state["0.weight"]}, "other.safetensors")
    assert "--model MODEL knows" in told(["verify", "other.safetensors", "tied.plan.json"], capsys, 1)
    out = told(["verify", "other.safetensors", "tied.plan.json", "--model", "models.py:tied"], capsys)
    assert out == "1 tensors hold what the plan says\n"


def test_a_plan_is_a_lock_file_or_a_model_with_a_seed(written, capsys):
    assert "--seed is missing" in told(["verify", "out", "models.py:make"], capsys, 2)
    assert "none can not be found" in told(["verify", "none", "net.plan.json"], capsys, 2)

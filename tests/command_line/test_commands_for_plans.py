"""plan, diff, and what MODEL and CONFIG may be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import needs
import pytest
import torch

import fastinit
from fastinit.command_line import main

HEADS = """
import fastinit
from torch import nn

class Head(fastinit.BaseModule):
    def __init__(self, n=2):
        super().__init__(dict(type="Normal", std=0.125, layer="Linear"))
        self.fc = nn.Linear(8, n)
"""
LOCKED = ["--backend", "cpp", "--seed", "3"]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Runs a command line; returns its output, or what it complains of."""
    assert main(arguments) == code
    out, err = capsys.readouterr()
    return err if code == 2 else out


# --- plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_shows_like_layers_as_one_row(capsys):
    out = told(["plan", "models.py:make", *LOCKED], capsys)
    assert "{0..5}.weight" in out and "uniform(low=-0.353553, high=0.353553)" in out
    assert "14 rows, 448 elements; numbers: contract 1; seed: 3" in out


def test_all_rows_are_one_for_each_parameter(capsys):
    out = told(["plan", "models.py:make", "--all-rows"], capsys)
    assert "5.weight" in out and "{0..5}" not in out


def test_json_is_the_plans_own(capsys):
    out = json.loads(told(["plan", "models.py:make", "--json", *LOCKED], capsys))
    assert out["fastinit_plan"] == 1 and out["seed"] == 3 and len(out["rows"]) == 14


def test_history_shows_what_is_replaced(capsys):
    out = told(["plan", "models.py:make", "--config", "rules.json", "--history"], capsys)
    assert "(replaced below)" in out and "normal(mean=0, std=0.25)" in out


def test_a_saved_plan_is_loaded_by_the_library(capsys, place):
    told(["plan", "models.py:make", *LOCKED, "--save", "net.plan.json"], capsys)
    assert fastinit.Plan.load(place / "net.plan.json").seed == 3
    assert "14 rows" in told(["plan", "net.plan.json"], capsys)


def test_a_plan_that_promises_no_bits_is_not_saved(capsys, place):
    err = told(["plan", "models.py:make", "--save", "net.plan.json"], capsys, 2)
    assert "--backend cpp and --seed N are missing" in err and not (place / "net.plan.json").exists()
    told(["plan", "models.py:make", "--save", "net.plan.json", "--inexact"], capsys)
    assert (place / "net.plan.json").exists()


def test_what_is_for_models_is_refused_for_a_lock_file(capsys):
    told(["plan", "models.py:make", *LOCKED, "--save", "net.plan.json"], capsys)
    assert "--seed is for models" in told(["plan", "net.plan.json", "--seed", "4"], capsys, 2)


# --- MODEL and CONFIG -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        ("models:make", "14 rows"),
        ("models.py:make(4)", "14 rows, 128 elements"),
        ("models.py:make(width=4)", "14 rows, 128 elements"),
        ("models.py:WithTable", "4 rows"),
        ("torch.nn:Linear(4, 2)", "2 rows, 10 elements"),
        ("torch:nn.Linear(4, 2, bias=False)", "1 rows, 8 elements"),
    ],
)
def test_a_model_is_what_a_module_or_a_file_names(model, rows, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "models", raising=False)
    assert rows in told(["plan", model], capsys)


@needs.mark(needs.built_for_torch("transformers"))
@pytest.mark.parametrize("model", ["llama", "llama/config.json"])
def test_a_config_of_transformers_is_a_model(model, capsys):
    out = told(["plan", model, *LOCKED], capsys)
    assert "model.layers.{0..3}.self_attn.q_proj.weight" in out and "lm_head.weight" in out


@needs.mark(needs.built_for_torch("transformers"))
@pytest.mark.parametrize(
    ("architectures", "why"),
    [(None, "has no 'architectures'"), (["MyLlama"], "names 'MyLlama', of which transformers has none")],
    ids=["none", "unknown"],
)
def test_a_config_without_a_known_class_says_that_it_is_taken_for_the_base_model(architectures, why, capsys, place):
    path = place / "llama/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": architectures}))
    assert main(["plan", "llama", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"llama/config.json {why}: it is taken for LlamaModel, the base model" in err
    assert "lm_head" not in out and json.loads(out)["rows"]


@needs.mark(needs.CPP)
def test_all_commands_plan_what_init_weights_of_a_base_module_would_do(capsys, place):
    (place / "heads.py").write_text(HEADS)
    assert "normal(mean=0, std=0.125)" in told(["plan", "heads.py:Head", *LOCKED], capsys)
    told(["write", "heads.py:Head", "out/", "--seed", "3"], capsys)
    assert "hold what the plan says" in told(["verify", "out/", "heads.py:Head", "--seed", "3"], capsys)
    assert told(["digest", "out/"], capsys) == told(["digest", "heads.py:Head", "--seed", "3"], capsys)
    assert "no difference" in told(["diff", "heads.py:Head", "heads.py:Head(2)", *LOCKED], capsys)


def test_without_transformers_a_config_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in told(["plan", "llama"], capsys, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing", "'nothing' is no MODEL: expected package.module:factory"),
        ("models.py:mak", "models.py has no 'mak'. Did you mean 'make'?"),
        ("models.py:number", "expected a function that makes a model, but it is a int"),
        ("models.py:make(print())", "arguments must be Python's literals"),
        ("models.py:make(**{})", "arguments must be Python's literals"),
        ("no_such_module:make", "there is no module 'no_such_module'"),
        ("none.py:make", "none.py: there is no such file"),
        ("rules.json", "it is no config of transformers: it has no 'model_type'"),
        ("none.json", "none.json: there is no such file"),
        ("models.py:broken", "ZeroDivisionError: on purpose ("),
    ],
)
def test_what_is_no_model_is_one_message(model, message, capsys):
    err = told(["plan", model], capsys, 2)
    assert err.startswith("fastinit: ") and message in err and err.count("\n") == 1


def test_an_error_in_a_models_code_names_its_line(capsys, place):
    line = (place / "models.py").read_text().split("\n").index('    raise ZeroDivisionError("on purpose")') + 1
    assert f"models.py:{line}; --traceback shows more" in told(["plan", "models.py:broken"], capsys, 2)


def test_the_traceback_is_shown_on_request(capsys):
    assert "Traceback (most recent call last)" in told(["plan", "models.py:broken", "--traceback"], capsys, 2)


@pytest.mark.parametrize(
    ("config", "std"),
    [("rules.json", "0.25"), ("models.py:rules", "0.5"), ("models.py:rules_for(0.75)", "0.75"), ("dummy()", None)],
)
def test_a_config_is_json_python_or_a_preset(config, std, capsys):
    out = told(["plan", "models.py:make", "--config", config], capsys)
    assert "init_cfg" in out if std is None else f"normal(mean=0, std={std})" in out


def test_a_lock_file_is_a_config(capsys):
    told(["plan", "models.py:make", *LOCKED, "--save", "net.plan.json"], capsys)
    out = told(["plan", "models.py:make", "--config", "net.plan.json"], capsys)
    assert "contract 1; seed: 3" in out


def test_json_imports_nothing_unless_allowed(capsys, place):
    (place / "evil.py").write_text("raise SystemExit('ran')")
    (place / "evil.json").write_text('{"type": "evil.Init", "param": "*.weight"}')
    err = told(["plan", "models.py:make", "--config", "evil.json"], capsys, 2)
    assert "not allowed here" in err and "evil" not in sys.modules
    with pytest.raises(SystemExit, match="ran"):
        main(["plan", "models.py:make", "--config", "evil.json", "--allow-imports"])


@pytest.mark.parametrize("config", ["nothing", "none.json", "models.py:none", "gpt2(print())", "models.py"])
def test_what_is_no_config_is_one_message(config, capsys):
    err = told(["plan", "models.py:make", "--config", config], capsys, 2)
    assert err.startswith("fastinit: ") and err.count("\n") == 1


def test_warnings_are_lines(capsys):
    main(["plan", "torch.nn:Linear(2, 2)", "--config", "rules.json"])
    err = capsys.readouterr().err
    assert err.startswith("fastinit: warning: init_cfg[0]") and "UserWarning" not in err


def test_a_path_that_is_not_there_is_said_where_values_are_compared(capsys, place):
    (place / "model.digest").write_text(fastinit.digest({"weight": torch.zeros(2)}).to_text())
    err = told(["diff", "model.digest", "nowhere.safetensors"], capsys, 2)
    assert "nowhere.safetensors" in err and "says how a model starts" not in err
    assert "says how a model starts" in told(["diff", "model.digest", "models.py:make"], capsys, 2)


def test_strict_makes_rules_that_match_nothing_an_error(capsys):
    err = told(["plan", "torch.nn:Linear(2, 2)", "--config", "rules.json", "--strict"], capsys, 2)
    assert err.startswith("fastinit: init_cfg[0]: ") and err.count("\n") == 1


@pytest.mark.parametrize("seed", ["-1", "x", str(2**64)])
def test_a_seed_is_checked(seed, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "models.py:make", "--seed", seed])
    assert ended.value.code == 2 and "expected an integer from 0 to 2^64 - 1" in capsys.readouterr().err


# --- diff -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lock(capsys: pytest.CaptureFixture[str]) -> str:
    told(["plan", "models.py:make", *LOCKED, "--save", "net.plan.json"], capsys)
    return "net.plan.json"


def test_equal_plans_have_no_difference(lock, capsys):
    assert told(["diff", lock, "models.py:make", *LOCKED], capsys) == "no difference\n"


def test_different_plans_end_with_1_and_say_what_differs(lock, capsys):
    out = told(["diff", lock, "models.py:make", "--config", "rules.json", *LOCKED], capsys, 1)
    assert "{0..5}.weight" in out and "-> normal(mean=0, std=0.25)" in out and "7 changed" in out


def test_two_configs_are_for_old_and_new(capsys):
    out = told(
        ["diff", "models.py:make", "models.py:make", "--config", "rules.json", "--config", "models.py:rules"], capsys, 1
    )
    assert "normal(mean=0, std=0.25) -> normal(mean=0, std=0.5)" in out


def test_a_difference_has_json(lock, capsys):
    out = told(["diff", lock, "models.py:make(4)", "--json", *LOCKED], capsys, 1)
    assert json.loads(out)["fastinit_plan_diff"] == 1


def test_a_plan_is_not_compared_with_a_checkpoint(lock, capsys):
    told(["write", lock, "out"], capsys)
    assert "`fastinit verify`" in told(["diff", lock, "out"], capsys, 2)


def test_a_damaged_lock_file_is_trouble(lock, capsys):
    Path(lock).write_text(Path(lock).read_text().replace('"normal"', '"norm"').replace('"uniform"', '"unform"'))
    assert lock in told(["diff", lock, lock], capsys, 2)

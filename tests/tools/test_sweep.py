"""The sweep over libraries: its checks find models that are others, and say so."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import needs
import pytest
import sweep_checks
import sweep_libraries
import sweep_models
import torch
from torch import nn

import fastinit

pytestmark = needs.mark(needs.CPP)


def linear() -> nn.Module:
    return nn.Linear(40, 40)


class ZeroHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(40, 40)
        nn.init.zeros_(self.head.weight)


class Unrepeatable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.empty(40, 40).normal_(generator=generator))


def outcomes(make: Callable[[], nn.Module]) -> dict[str, str]:
    return {letter: outcome.found for letter, outcome in sweep_checks.check(make).items()}


def test_a_plain_layer_is_fine_in_every_way() -> None:
    assert outcomes(linear) == {"a": "equal", "b": "of its kind", "c": "equal", "d": "of its kind"}


def test_values_that_a_constructor_changes_are_missed_by_materialize_alone_which_warns() -> None:
    assert outcomes(ZeroHead) == {"a": "equal", "b": "of its kind", "c": "equal", "d": "warned"}


def test_a_refusal_is_told_from_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(Unrepeatable)["c"] == "refused"

    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("index out of range")

    monkeypatch.setattr(fastinit, "materialize", crash)
    assert outcomes(linear)["c"] == outcomes(linear)["d"] == "failed"


def scaled(factor: float) -> Callable[..., Any]:
    build = fastinit.build

    def other(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        return model

    return other


def test_another_distribution_and_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastinit, "build", scaled(1.5))
    found = outcomes(linear)
    assert found["a"] == found["b"] == found["c"] == "other"


def test_a_change_of_the_last_bit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastinit, "build", scaled(1 + 2**-22))
    found = outcomes(linear)
    assert found["a"] == found["c"] == "other" and found["b"] == "of its kind"


def test_a_fixed_element_that_differs_is_found() -> None:
    plain = [torch.cat([torch.zeros(10), torch.rand(90)]) for _ in range(3)]
    assert sweep_checks.other_kind(plain, torch.cat([torch.zeros(10), torch.rand(90)])) == ""
    assert "fixed elements are others" in sweep_checks.other_kind(plain, torch.cat([torch.ones(10), torch.rand(90)]))


def test_configurations_shrink_as_far_as_their_names_tell() -> None:
    inner = SimpleNamespace(hidden_size=1024, to_dict=dict)
    config = SimpleNamespace(num_hidden_layers=24, vocab_size=50000, pad_token_id=49999, dropout=0.1, part=inner)
    sweep_models.shrink(config, ".*")
    assert (config.num_hidden_layers, config.vocab_size, config.pad_token_id, config.dropout) == (2, 128, 127, 0.1)
    assert inner.hidden_size == 64


def test_a_model_that_does_not_shrink_is_left_out() -> None:
    with pytest.raises(sweep_models.UnshrunkError, match="parameters"):
        sweep_models.small(lambda: nn.Linear(10_000, 10_000))


def test_a_process_checks_models_and_a_name_that_it_does_not_know_is_left_out() -> None:
    findings = list(sweep_libraries.swept("torch", ["PReLU", "nothing"]))
    assert [finding["model"] for finding in findings] == ["PReLU", "nothing"]
    assert findings[0]["a"][0] == "equal" and "KeyError" in findings[1]["left out"]


def test_a_model_that_takes_too_long_fails_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_libraries, "START_S", 0.0)
    monkeypatch.setattr(sweep_libraries, "MODEL_S", 0.01)
    findings = list(sweep_libraries.swept("torch", ["PReLU", "GRU"]))
    assert [finding["a"] for finding in findings] == [["failed", "it took more than 0 s"]] * 2


def test_the_tables_count_each_check_and_list_what_is_not_fine() -> None:
    fine, other = ["equal", ""], ["other", "x | y"]
    findings = [
        dict(model="m", a=fine, b=["of its kind", ""], c=other, d=["warned", "w"]),
        dict(model="n", a=fine, b=fine, c=["impossible", ""], d=["refused", "r"]),
        {"model": "o", "left out": "large"},
    ]
    rows = sweep_libraries.rows_of("torch", findings)
    assert [(row["models"], row["right"], row["silently other"], row["not on meta"]) for row in rows] == [
        ("2", "2", "0", "0"),
        ("2", "2", "0", "0"),
        ("2", "0", "1", "1"),
        ("2", "0", "0", "0"),
    ]
    (row,) = sweep_libraries.exceptions_of("torch", findings)
    assert (row["model"], row["found"], row["reason"]) == ("m", "other", "x / y")

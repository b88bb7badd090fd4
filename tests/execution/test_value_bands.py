"""``report.plot`` draws what parameters hold: quantiles by layer, histograms, and what is constant in a line."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit
from fastinit.execution import value_bands


def stacked(n: int = 6, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(50, width), *(nn.Linear(width, width) for _ in range(n)))


CFG = [
    dict(type="Normal", std="0.1 * i", param=r"re:(?P<i>[1-9]\d*)\.weight"),
    dict(type="Uniform", a=2, b=3, param="0.weight"),
    dict(type="Constant", val=0, param="*.bias"),
]


def drawn(model: nn.Module, cfg: Any = CFG, path: Path | None = None) -> Any:
    """Returns the figure of a model that was initialized."""
    needs.module("matplotlib")
    return fastinit.initialize(model, cfg, seed=0).plot(model, path)


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title("left"): axes for axes in figure.axes if axes.axison}


def caption(figure: Any) -> str:
    return str(figure.get_supxlabel())


def test_a_panel_stands_for_layers_whose_names_differ_in_numbers() -> None:
    assert set(panels(drawn(stacked()))) == {"{0..6}.weight"}


def test_the_bands_are_the_quantiles_of_each_layer() -> None:
    model = nn.ModuleDict({"layers": stacked()[1:]})
    cfg = [dict(type="Normal", std="0.1 * i", param=r"re:layers\.(?P<i>\d+)\.weight")]
    axes = panels(drawn(model, cfg))["layers.{1..6}.weight"]
    median = axes.lines[0]
    assert list(median.get_xdata()) == list(range(1, 7)) and axes.get_xlabel() == "layer"
    outer, middle, inner = (band.get_paths()[0].vertices for band in axes.collections)
    for i, layer in enumerate(model["layers"], 1):
        values = layer.weight.detach().flatten()
        for band, low, high in ((outer, 0.001, 0.999), (middle, 0.05, 0.95), (inner, 0.25, 0.75)):
            found = band[band[:, 0] == i][:, 1]
            for level, end in ((low, found.min()), (high, found.max())):
                assert end == pytest.approx(values.quantile(level).item(), abs=1e-6)


def test_a_tensor_that_is_there_once_gets_a_histogram_of_its_values() -> None:
    model = nn.Linear(64, 64)
    axes = panels(drawn(model, dict(type="Uniform", a=2, b=3, layer="Linear")))["weight"]
    low, high = axes.get_ylim()
    assert 1.9 < low < 2.1 and 2.9 < high < 3.1


def test_the_line_below_a_title_says_shape_and_distribution() -> None:
    axes = panels(drawn(nn.Linear(8, 64), dict(type="Normal", std=0.5, layer="Linear")))["weight"]
    assert [text.get_text() for text in axes.texts] == ["64×8, normal(mean=0, std=0.5)"]


def test_what_is_constant_is_named_in_a_line() -> None:
    text = caption(drawn(stacked()))
    assert "all samples are 0: {1..6}.bias" in text and "13 tensors" in text


def test_a_large_tensor_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_bands, "_MOST_OF_ONE", 512)
    tensor = torch.arange(300 * 256).view(300, 256).float()
    values = value_bands._sampled(tensor, 512)
    assert len(values) == len(set(values.tolist())) == 512
    assert len({int(value) % 256 for value in values.tolist()}) > 128  # no column is preferred
    assert values.sort().values.diff().max() < 2 * 300 * 256 / 512 * 1.7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.complex64], ids=str)
def test_samples_of_every_dtype_are_its_values(dtype: torch.dtype) -> None:
    tensor = torch.full((200, 100), 1.5).to(dtype)[:, ::2]
    assert set(value_bands._sampled(tensor, 64).tolist()) <= {1.5, 0.0}


def test_values_that_are_not_finite_are_told() -> None:
    model = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
    report = fastinit.initialize(model, dict(type="Normal", std=1, layer="Linear"), seed=0)
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    needs.module("matplotlib")
    (axes,) = panels(report.plot(model)).values()
    assert "nothing finite in 1 of 3" in [text.get_text() for text in axes.texts]


def test_nothing_is_changed() -> None:
    model = stacked()
    report = fastinit.initialize(model, CFG, seed=0)
    needs.module("matplotlib")
    before = [(p._version, p.detach().clone()) for p in model.parameters()]
    state = torch.get_rng_state()
    report.plot(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p._version == version and torch.equal(p, copy) for p, (version, copy) in zip(model.parameters(), before))


def test_models_of_thousands_of_parameters_fit_into_few_panels() -> None:
    blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(400))
    figure = drawn(blocks, dict(type="Normal", std=1, layer="Linear"))
    assert set(panels(figure)) == {"{0..399}.up.weight", "{0..399}.down.weight"}
    assert "1,600 tensors" in caption(figure)


def test_kinds_beyond_the_last_panel_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_bands, "_MOST_PANELS", 2)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "b", "c", "d")})
    figure = drawn(model, dict(type="Normal", std=1, layer="Linear"))
    assert len(panels(figure)) == 2 and "2 more kinds of parameters are not shown" in caption(figure)


def test_a_model_of_constants_has_a_caption_only() -> None:
    figure = drawn(nn.Linear(4, 4), dict(type="Constant", val=0, layer="Linear"))
    assert not panels(figure) and "all samples are 0: weight, bias" in caption(figure)


def test_the_same_numbers_give_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        drawn(stacked(), path=tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text() and "{0..6}.weight" in text
    assert not re.search(r"\d{4}-\d\d-\d\d", text)


def test_names_are_no_formulas(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a$x$": nn.Linear(2, 2)})
    drawn(model, dict(type="Normal", std=1, layer="Linear"), tmp_path / "a.svg")
    assert "a$x$.weight" in (tmp_path / "a.svg").read_text()


def test_the_prefix_of_the_call_finds_the_names() -> None:
    needs.module("matplotlib")
    model = nn.Linear(64, 64)
    cfg = dict(type="Normal", std=1, layer="Linear")
    report = fastinit.initialize(model, cfg, seed=0, prefix="head")
    assert set(panels(report.plot(model, prefix="head"))) == {"head.weight"}
    with pytest.raises(RuntimeError, match="none of the 2 tensors of the report has memory"):
        report.plot(model)


def test_something_else_than_a_model_is_an_error() -> None:
    report = fastinit.initialize(nn.Linear(2, 2), dict(type="Normal", std=1, layer="Linear"), seed=0)
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        report.plot("a.svg")  # type: ignore[arg-type]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    model = nn.Linear(4, 4)
    report = fastinit.initialize(model, dict(type="Normal", std=1, layer="Linear"), seed=0)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"report.plot draws with matplotlib.*pip install 'torch-fastinit\[plot\]'"):
        report.plot(model)

"""Programs that write many parts of one storage, or many storages, each of a size to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastinit


class Table(nn.Module):
    """One parameter with many rows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, 4))


class Views(nn.Module):
    """Parameters that are the rows of one buffer."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(row) for row in torch.zeros(n, 4)])


class Layers(nn.Module):
    """Many layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(n)])


class OwnTable(fastinit.BaseModule):
    """Parameters that are the rows of one buffer, written by code of the module's own."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(row) for row in torch.zeros(n, 4)])

    def init_weights(self) -> None:
        with torch.no_grad():
            for row in self.rows:
                row.add_(1.0)


Run = Callable[[], object]


def captured(code: Callable[[Any], object], model: nn.Module, backend: str) -> Run:
    """Returns a run of code on a model under ``capture``."""

    def run() -> object:
        with fastinit.capture(model, backend=backend, seed=0) as recipe, torch.no_grad():
            code(model)
        return recipe

    return run


def rows(model: Table) -> None:
    for row in model.w:
        nn.init.normal_(row)


def rows_by_index(model: Table) -> None:
    for i in range(len(model.w)):
        nn.init.normal_(model.w[i])


def rows_backwards(model: Table) -> None:
    for i in reversed(range(len(model.w))):
        nn.init.normal_(model.w[i])


def whole_then_rows(model: Table) -> None:
    nn.init.uniform_(model.w)
    rows_by_index(model)


def rows_then_whole_again_and_again(model: Table) -> None:
    for _ in range(3):
        rows_by_index(model)
        nn.init.uniform_(model.w)


def rows_by_other_code(model: Table) -> None:
    values = torch.arange(4.0)
    for i in range(len(model.w)):
        model.w[i].copy_(values)


def whole_then_rows_by_other_code(model: Table) -> None:
    nn.init.uniform_(model.w)
    for i in range(len(model.w)):
        model.w[i].cumsum_(0)


def rows_that_are_read(model: Table) -> None:
    for i in range(len(model.w)):
        nn.init.normal_(model.w[i])
        model.w[i].sum()


def rows_that_are_scaled(model: Table) -> None:
    for i in range(len(model.w)):
        nn.init.normal_(model.w[i])
        model.w[i].mul_(2.0).add_(1.0)


def truncated_rows(model: Table) -> None:
    for i in range(len(model.w)):
        nn.init.trunc_normal_(model.w[i])


def rows_from_one_draw(model: Table) -> None:
    source = torch.randn(4)
    for i in range(len(model.w)):
        model.w[i].copy_(source)


def rows_from_draws(model: Table) -> None:
    for i in range(len(model.w)):
        model.w[i].copy_(torch.randn(4))


def copies_of_rows(model: Table) -> None:
    nn.init.uniform_(model.w)
    for i in range(len(model.w)):
        nn.init.normal_(model.w[i])
    model.copies = nn.ParameterList([nn.Parameter(model.w[i].clone()) for i in range(len(model.w))])


def views(model: Views) -> None:
    for row in model.rows:
        nn.init.normal_(row)


def flattened(model: Layers) -> None:
    parameters = list(model.parameters())
    flat, at = torch.zeros(sum(each.numel() for each in parameters)), 0
    for each in parameters:
        each.data = flat[at : at + each.numel()].view(each.shape)
        at += each.numel()
        nn.init.normal_(each)


def layers_by_function(model: Layers) -> None:
    for layer in model.layers:
        fastinit.normal_init(layer, std=0.1)


def layers_by_config(model: Layers) -> None:
    for layer in model.layers:
        fastinit.initialize(layer, {"type": "Normal", "std": 0.1, "layer": "Linear"})


def orthogonal_layers(model: Layers) -> None:
    for layer in model.layers:
        nn.init.orthogonal_(layer.weight)


def columns(model: Table) -> None:
    """Columns overlap in their spans of bytes, not in their bytes."""
    for column in model.w.view(4, -1).unbind(1):
        nn.init.normal_(column)


def materialized(code: Callable[[Any], object], make: Callable[[int], nn.Module]) -> Callable[[int, str], Run]:
    """Returns what makes the recording of code on a model on the meta device, and its materialization."""

    def runs(n: int, backend: str) -> Run:
        def run() -> object:
            with fastinit.capture() as recipe, torch.no_grad(), torch.device("meta"):
                model = make(n)
                code(model)
            return fastinit.materialize(model, recipe=recipe, backend=backend, seed=0)

        return run

    return runs


def built(code: Callable[[Any], object], make: Callable[[int], nn.Module]) -> Callable[[int, str], Run]:
    def runs(n: int, backend: str) -> Run:
        def factory() -> nn.Module:
            model = make(n)
            code(model)
            return model

        return lambda: fastinit.build(factory, backend=backend, seed=0)

    return runs


def own_code(n: int, backend: str) -> Run:
    """Returns the initialization of a module with a child whose own code writes many views of one buffer."""
    model = fastinit.BaseModule()
    model.child = OwnTable(n)

    def run() -> object:
        with fastinit.use(backend=backend, seed=0):
            return model.init_weights()

    return run


def on(code: Callable[[Any], object], make: Callable[[int], nn.Module]) -> Callable[[int, str], Run]:
    return lambda n, backend: captured(code, make(n), backend)


PROGRAMS: dict[str, Callable[[int, str], Run]] = {
    **{
        code.__name__: on(code, Table)  # type: ignore[attr-defined]
        for code in (
            rows,
            rows_by_index,
            rows_backwards,
            whole_then_rows,
            rows_then_whole_again_and_again,
            rows_by_other_code,
            whole_then_rows_by_other_code,
            rows_that_are_read,
            rows_that_are_scaled,
            truncated_rows,
            rows_from_one_draw,
            rows_from_draws,
            copies_of_rows,
        )
    },
    "views": on(views, Views),
    **{
        code.__name__: on(code, Layers)  # type: ignore[attr-defined]
        for code in (flattened, layers_by_function, layers_by_config, orthogonal_layers)
    },
    "built_rows": built(rows_by_index, Table),
    "built_views": built(views, Views),
    **{
        f"materialized_{code.__name__}": materialized(code, Table)  # type: ignore[attr-defined]
        for code in (rows_by_index, whole_then_rows, rows_by_other_code, whole_then_rows_by_other_code)
    },
    "materialized_orthogonal_layers": materialized(orthogonal_layers, Layers),
    "own_code": own_code,
}

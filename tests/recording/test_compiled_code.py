"""Constructors that run code compiled by torch.compile: it is traced, and what records it is not."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable

import needs
import pytest
import torch
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])


class Computed(nn.Module):
    """Computes a parameter from another by compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        compute = torch.compile(lambda weight: weight * 2 + 1, backend="eager")
        self.w = nn.Parameter(compute(self.l.weight.detach()))


class Tried(nn.Module):
    """Runs a compiled layer once, as constructors do that ask for shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.out = torch.compile(self.l, backend="aot_eager")(torch.ones(2, 4)).shape[1]


@backends
@pytest.mark.parametrize("kind", [Computed, Tried])
def test_compiled_code_in_a_constructor_runs_as_elsewhere(kind: Callable[[], nn.Module], backend: str) -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fastinit.build(kind, backend=backend, seed=0)
    weight = model.get_parameter("l.weight")
    assert weight.abs().max() <= 0.5 and weight.unique().numel() == 16
    assert torch.equal(weight, fastinit.build(kind, backend=backend, seed=0).get_parameter("l.weight"))
    if kind is Computed:
        assert torch.equal(model.get_parameter("w"), weight * 2 + 1)


def test_recording_alone_does_not_import_the_compiler() -> None:
    code = "import sys, torch, fastinit; fastinit.build(torch.nn.Linear, 4, 4); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr

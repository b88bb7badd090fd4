"""What cannot be written is found before anything is: on every backend the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import needs
import pytest
import torch
from torch import nn

import fastinit

backends = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs.mark(needs.CPP))])
CFG = [dict(type="Constant", val=0, param="a"), dict(type="Normal", param="w")]


class Refuses(torch.Tensor):
    """A tensor of another library that knows no random numbers."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "constant_"):
            raise NotImplementedError("no random numbers here")
        return super().__torch_function__(func, types, args, kwargs or {})


def released() -> torch.Tensor:
    tensor = torch.zeros(4, 5)
    tensor.untyped_storage().resize_(0)
    return tensor


def shortened() -> torch.Tensor:
    tensor = torch.zeros(4, 5)
    tensor.untyped_storage().resize_(40)
    return tensor


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(4, 5)


UNWRITABLE: dict[str, Callable[[], torch.Tensor]] = {
    "expanded": lambda: torch.zeros(1, 5).expand(4, 5),
    "released": released,
    "shortened": shortened,
    "of inference mode": inference,
}


def model(tensor: torch.Tensor) -> nn.Module:
    made = nn.Module()
    made.a = nn.Parameter(torch.full((3,), 7.0))
    made.w = nn.Parameter(tensor, requires_grad=False)
    return made


@backends
@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_tensor_that_cannot_be_written_is_refused_before_the_first_write(name: str, backend: str) -> None:
    made = model(UNWRITABLE[name]())
    with pytest.raises(RuntimeError, match=r"init_cfg\[1\].*'w'"):
        fastinit.initialize(made, CFG, backend=backend, seed=0)
    assert (made.a == 7).all()  # type: ignore[operator, union-attr]


def test_a_subclass_that_refuses_is_asked_before_the_first_write() -> None:
    made = model(torch.zeros(4, 5))
    made._parameters["w"] = torch.zeros(4, 5).as_subclass(Refuses)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="Refuses refuses it: no random numbers here"):
        fastinit.initialize(made, CFG, backend="torch", seed=0)
    assert (made.a == 7).all()  # type: ignore[operator, union-attr]


def test_torch_fills_an_expanded_tensor_with_a_constant() -> None:
    made = model(torch.zeros(1, 5).expand(4, 5))
    fastinit.initialize(made, dict(type="Constant", val=2, param="w"), backend="torch")
    assert (made.w == 2).all()  # type: ignore[operator, union-attr]

"""What several test files share: the two libraries side by side, and what "the same" means."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mmengine.model
import mmengine.model.weight_init
import torch
from torch import nn

import fastinit
import fastinit.weight_init

MMENGINE = SimpleNamespace(**{**vars(mmengine.model.weight_init), **vars(mmengine.model)})
FASTINIT = SimpleNamespace(**{**vars(fastinit.weight_init), **vars(fastinit)})


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of all parameters and buffers by name."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in named}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tells whether two tensors have the same dtype, shape and bits; NaN equals itself, -0.0 is not 0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    a, b = (each.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for each in (a, b))
    return torch.equal(a, b)


def assert_same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    different = [name for name in ours if not same_bits(ours[name], theirs[name])]
    assert not different, f"these differ: {different}"


def run_both(
    make: Callable[[Any], nn.Module],
    run: Callable[[Any, nn.Module], object],
    *,
    one_mistake: bool = True,
    one_call: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """Makes and initializes the same model with both libraries, and asserts that all bits and draws are the same.

    ``make`` and ``run`` get the library's namespace. Where mmengine raises, ours must raise too: with ``one_mistake``
    the same type (of several mistakes we report another first, as we check before we write), with ``one_call`` before
    anything is written.
    """
    results = []
    for library in (FASTINIT, MMENGINE):
        torch.manual_seed(3)
        model = make(library)
        before = tensors(model)
        error: Exception | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(library, model)
            except Exception as raised:
                error = raised
        results.append((model, before, error, torch.get_rng_state()))
    (ours, before, our_error, our_state), (theirs, _, their_error, their_state) = results
    if their_error is not None or our_error is not None:
        assert our_error is not None and their_error is not None, f"ours: {our_error!r}, mmengine's: {their_error!r}"
        assert not one_mistake or type(our_error) is type(their_error), (
            f"ours: {our_error!r}, mmengine's: {their_error!r}"
        )
        if one_call:
            assert_same_tensors(tensors(ours), before)
        return ours, theirs
    assert_same_tensors(tensors(ours), tensors(theirs))
    assert torch.equal(our_state, their_state), "the generators are in different states"
    return ours, theirs


def initialize_both(make: Callable[[], nn.Module], init_cfg: Any, *, one_mistake: bool = True) -> nn.Module:
    """Runs ``initialize`` of both libraries on the same model and config, and asserts that the config survived."""

    def run(library: Any, model: nn.Module) -> None:
        cfg = copy.deepcopy(init_cfg)
        try:
            library.initialize(model, cfg)
        finally:
            assert cfg == init_cfg

    return run_both(lambda _: make(), run, one_mistake=one_mistake)[0]

"""The real mmengine beside fastinit: the same model through both libraries. Without mmengine a file that imports this is skipped."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import needs
import torch
from helpers import assert_same_tensors, tensors
from torch import nn

import fastinit
import fastinit.weight_init

MODEL = needs.module("mmengine.model")
CHECKPOINT = needs.module("mmengine.runner.checkpoint")
MMENGINE = SimpleNamespace(**{**vars(MODEL.weight_init), **vars(MODEL)})
FASTINIT = SimpleNamespace(**{**vars(fastinit.weight_init), **vars(fastinit)})

# It logs every parameter to the console unless told not to.
needs.module("mmengine.logging").MMLogger.get_current_instance().setLevel(logging.CRITICAL)


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
        assert not one_mistake or isinstance(our_error, type(their_error)), (
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

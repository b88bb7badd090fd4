"""Ledgers attached to the modules of a tree for one ``init_weights``, where users and parents find them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..logs import is_rank_zero, logger
from .done import Done
from .hosts import host_of
from .ledger import Ledger

# The attribute that refers to the ledger from every module of a BaseModule tree during ``init_weights``. Drop-in: code
# written for mmengine looks for it.
_ATTRIBUTE = "_params_init_info"


def ledger_of(module: nn.Module) -> Ledger | None:
    """Returns the ledger attached to ``module``, None if there is none."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Ledger) else None


def is_in_progress(module: nn.Module) -> bool:
    """Tells whether an ``init_weights`` that covers ``module`` is running: fastinit's, or another library's."""
    ledger = ledger_of(module)
    return host_of(module) is not None if ledger is None else not ledger.is_closed


@contextmanager
def attached(root: nn.Module, done: Done) -> Iterator[Ledger]:
    """Attaches a new ledger to every module under ``root`` for one ``init_weights``, and closes it at the end.

    Args:
        root: the module whose ``init_weights`` runs.
        done: of its call, which gets the ledger. A ledger of a larger call learns in the end what was written here.
    """
    default = f"The value is the same before and after calling `init_weights` of {type(root).__name__} "
    outer, ledger = done.ledger, Ledger(done.scope.parameters(), default)
    for parameter in outer.written if outer is not None else ():
        if parameter in ledger:
            ledger[parameter]["init_info"] = outer[parameter]["init_info"]  # type: ignore[index]
    done.ledger = ledger
    modules = list(root.modules())
    for module in modules:
        setattr(module, _ATTRIBUTE, ledger)
    try:
        yield ledger
        if outer is not None:
            for parameter in ledger.written:
                outer.record(parameter, ledger[parameter]["init_info"])
    finally:
        ledger.is_closed = True
        for module in {*modules, *root.modules()}:  # removed and added modules too
            vars(module).pop(_ATTRIBUTE, None)


def update_init_info(module: nn.Module, init_info: str) -> None:
    """Attributes all writes to parameters of ``module`` since the last attribution to ``init_info``.

    Call it in an ``init_weights`` to set the provenance that is logged. Follows ``mmengine.model.update_init_info``; in
    a tree that another library is initializing (see ``Host``) it updates that library's records.

    Raises:
        AssertionError: ``module`` is not being initialized, or has a parameter that was added since initialization
            began.
    """
    if (host := host_of(module)) is not None:
        host.wrote(module, init_info)
        return
    ledger = ledger_of(module)
    if ledger is None:
        raise AssertionError(f"Can not find `{_ATTRIBUTE}` in {module}")
    check_no_new_parameters(module, ledger)
    ledger.claim(module, init_info)


def check_no_new_parameters(module: nn.Module, known: Mapping[torch.Tensor, Any]) -> None:
    """Raises AssertionError if ``module`` has a parameter that was added since initialization began."""
    for name, parameter in module.named_parameters():
        if parameter not in known:
            raise AssertionError(
                f"Find a new :obj:`Parameter` named `{name}` during executing the `init_weights` of "
                f"`{type(module).__name__}`. Please do not add or replace parameters during executing the "
                f"`init_weights`. "
            )


def log_ledger(ledger: Ledger, names: Mapping[torch.Tensor, str]) -> None:
    """Logs one line for each parameter at INFO on the logger ``fastinit``, on rank 0 only.

    ``logging.getLogger("fastinit").setLevel("WARNING")`` silences it; a FileHandler writes it to a file.
    """
    if not logger.isEnabledFor(logging.INFO) or not is_rank_zero():
        return
    for parameter, name in names.items():
        if parameter in ledger:
            shape = "uninitialized" if nn.parameter.is_lazy(parameter) else tuple(parameter.shape)
            logger.info("%s - %s: %s", name, shape, ledger[parameter]["init_info"])

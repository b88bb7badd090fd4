"""Pages of fresh memory: ``materialize`` with those that it chooses, with small ones only, and with huge ones only.

What a page costs depends on what the machine did before (csrc/page_choice.h), so each way is measured in three states
of free memory, in a process of its own (fresh.py). The values of all ways are compared first. Writes
``results/bench_fresh.csv``. Run with ``make bench``.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import fresh
import machine
import torch
from bench_materialize import CONTEXT, LAYERS, VOCABULARY, WIDTH
from tables import write

import fastinit
from fastinit import plans, slots
from fastinit.demo import GPT, config
from fastinit.execution.allocation import allocate_like

ROUNDS = 3
# linux/prctl.h, linux/mman.h
_PR_SET_THP_DISABLE = 41
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20


def on_meta(layers: int, width: int) -> GPT:
    """Returns the model without memory."""
    with torch.device("meta"):
        return GPT(layers, width, VOCABULARY, CONTEXT)


def chosen(model: GPT) -> GPT:
    """What users get."""
    fastinit.materialize(model, config(len(model.blocks)), backend="cpp", seed=0)
    return model


def small_only(model: GPT) -> GPT:
    """In a process that gets no huge pages."""
    if ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        raise SystemExit("this system does not let a process do without huge pages")
    return chosen(model)


def huge_only(model: GPT) -> GPT:
    """In memory that asked for huge pages before anyone touched it."""
    setattr(slots, "allocate_like", _allocate_huge)  # noqa: B010  (mypy: it is not exported)
    return chosen(model)


def _allocate_huge(metas: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    tensors = allocate_like(metas, device)
    for tensor in tensors:
        begin, end = plans.byte_span(tensor)
        begin, end = -(-begin // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
        if end > begin:
            address, size = ctypes.c_void_p(begin), ctypes.c_size_t(end - begin)
            if ctypes.CDLL(None).madvise(address, size, _MADV_HUGEPAGE) != 0:
                raise SystemExit("this system has no huge pages to ask for")
    return tensors


WAYS: dict[str, Callable[[GPT], GPT]] = {"chosen": chosen, "small only": small_only, "huge only": huge_only}


def must_be_right() -> None:
    """Raises SystemExit unless all ways give the same values; in a process of its own, as they change it."""
    models = [way(on_meta(2, 256)).state_dict() for way in WAYS.values()]
    for name, tensor in models[0].items():
        if not all(torch.equal(tensor, other[name]) for other in models[1:]):
            raise SystemExit(f"{name}: the pages change the values")


def main() -> None:
    """Measures in turns, and writes the table."""
    fresh.check(must_be_right)
    model = on_meta(LAYERS, WIDTH)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    rows: list[dict[str, str]] = []
    for state in fresh.State:
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                found[name].append(fresh.seconds_and_gigabytes(partial(way, model), 4 * n_parameters, state)[0])
        medians = {name: statistics.median(seconds) for name, seconds in found.items()}
        row = {"free memory": state.value}
        for name, seconds in found.items():
            row[f"{name}, s"] = f"{medians[name]:.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        better = min(medians["small only"], medians["huge only"])
        rows.append({**row, "chosen, of the better one": f"{medians['chosen'] / better:.2f}"})
        print(rows[-1], flush=True)
    write("bench_fresh.csv", rows)


if __name__ == "__main__":
    machine.takes_no_arguments(__doc__)
    main()

"""The four checks of a library's model: is it the one that its plain constructor makes, by every way to make it?

- (a) ``build`` on the ``torch`` backend gives the plain constructor's bits, and leaves the generator as that does.
- (b) ``build`` on ``cpp`` gives every tensor values of the same kind.
- (c) ``capture`` on the meta device and then ``materialize`` give the bits of ``build`` on ``cpp``, and values of the
  same kind on ``torch`` (whose numbers depend on every draw before, overwritten or not), or refuse with a reason.
- (d) ``materialize`` alone gives values of the same kind, refuses with a reason, or warns that they may be others.

Values are of one kind where elements that no seed changes are equal, and the others have one distribution (a
Kolmogorov-Smirnov test at a level of 1e-10).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import fastinit

Make = Callable[[], nn.Module]
Tensors = Mapping[str, torch.Tensor]

FINE = ("equal", "of its kind")
"""What a check finds where all is well."""
TOLD = ("refused", "warned")
"""What it finds where somebody is told that it is not."""
# Fixed elements are those on which this many plain models agree. Fewer than the share below may agree by chance, as
# narrow dtypes do.
_N_PLAIN = 3
_LEAST_SHARE = 1e-3
# exp(-2 c^2), twice, is 1e-10.
_CRITICAL = 3.44
_LONGEST_REASON = 300


class Outcome(NamedTuple):
    """What one check found."""

    found: str
    """``equal``, ``of its kind``; ``refused``, ``warned``; ``other``, ``failed``; ``impossible`` for torch alone."""
    reason: str = ""


def check(make: Make) -> dict[str, Outcome]:
    """Returns the outcomes of the four checks of a model, by letter.

    Args:
        make: makes the model anew, in any number.

    Raises:
        What ``make`` raises on the CPU.
    """
    plain = [values_of(seeded(make, seed)) for seed in range(_N_PLAIN)]
    return {
        "a": _guarded(lambda: build_on_torch(make)),
        "b": _guarded(lambda: build_on_cpp(make, plain)),
        "c": _guarded(lambda: by_recipe(make, plain)),
        "d": _guarded(lambda: materialized_alone(make, plain)),
    }


def _guarded(run: Callable[[], Outcome]) -> Outcome:
    try:
        return run()
    except Exception as error:  # of the library, or of fastinit: both are findings
        return Outcome("failed", told(error))


def told(error: BaseException) -> str:
    """Returns an error in one line."""
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


# --- making models ----------------------------------------------------------------------------------------------------


def seeded(make: Make, seed: int) -> nn.Module:
    """Returns a model that is made under a seed of all generators that a constructor may use."""
    seed_all(seed)
    return make()


def seed_all(seed: int) -> None:
    """Seeds every generator that a constructor may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and buffers of a model by name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def on_meta(make: Make) -> nn.Module:
    """Returns a model that was made on the meta device."""
    seed_all(0)
    with torch.device("meta"):
        return make()


# --- the checks -------------------------------------------------------------------------------------------------------


def build_on_torch(make: Make) -> Outcome:
    """(a) Compares ``build`` on ``torch`` with the plain constructor."""
    expected, state = values_of(seeded(make, 0)), torch.get_rng_state()
    seed_all(0)
    found = values_of(fastinit.build(make, backend="torch"))
    problem = unequal(expected, found)
    if not problem and not torch.equal(state, torch.get_rng_state()):
        problem = "the generator is in another state"
    return Outcome("other", problem) if problem else Outcome("equal")


def build_on_cpp(make: Make, plain: list[dict[str, torch.Tensor]]) -> Outcome:
    """(b) Compares the kinds of values of ``build`` on ``cpp`` with those of the plain constructor."""
    seed_all(0)
    problem = of_another_kind(plain, values_of(fastinit.build(make, backend="cpp", seed=0)))
    return Outcome("other", problem) if problem else Outcome("of its kind")


def by_recipe(make: Make, plain: list[dict[str, torch.Tensor]]) -> Outcome:
    """(c) Compares ``materialize`` of a recipe with ``build`` on ``cpp``, with the plain constructor on ``torch``."""
    if reason := why_not_on_meta(make):
        return Outcome("impossible", reason)
    seed_all(0)
    expected = values_of(fastinit.build(make, backend="cpp", seed=0))
    for backend in ("cpp", "torch"):
        seed_all(0)
        try:
            with fastinit.capture() as recipe, torch.device("meta"):
                model = make()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fastinit.materialize(model, recipe=recipe, backend=backend, seed=0)
        except RuntimeError as error:
            if is_refusal(error):
                return Outcome("refused", f"{backend}: {told(error)}")
            raise
        found = values_of(model)
        if problem := unequal(expected, found) if backend == "cpp" else of_another_kind(plain, found):
            return _unless_told(f"{backend}: {problem}", caught)
    return Outcome("equal")


def materialized_alone(make: Make, plain: list[dict[str, torch.Tensor]]) -> Outcome:
    """(d) Compares the kinds of values of ``materialize`` without a recipe with those of the plain constructor."""
    if reason := why_not_on_meta(make):
        return Outcome("impossible", reason)
    model = on_meta(make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fastinit.materialize(model, backend="cpp", seed=0)
        except RuntimeError as error:
            if is_refusal(error):
                return Outcome("refused", told(error))
            raise
    problem = of_another_kind(plain, values_of(model))
    return _unless_told(problem, caught) if problem else Outcome("of its kind")


def is_refusal(error: RuntimeError) -> bool:
    """Tells whether an error is a refusal of fastinit's, which says what to do, and no crash in its midst."""
    return str(error).startswith(("materialize", "recipe", "capture", "strict"))


def _unless_told(problem: str, caught: list[warnings.WarningMessage]) -> Outcome:
    """Returns that values are others: "warned" if a warning says that they may be."""
    ours = [str(each.message) for each in caught if "materialize" in str(each.message)]
    return Outcome("warned", f"{problem}; warning: {ours[0][:_LONGEST_REASON]}") if ours else Outcome("other", problem)


def why_not_on_meta(make: Make) -> str:
    """Returns why torch alone cannot make a model on the meta device, "" if it can."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            on_meta(make)
        except Exception as error:  # the library's
            return told(error)
    return ""


# --- comparing --------------------------------------------------------------------------------------------------------


def unequal(expected: Tensors, found: Tensors) -> str:
    """Returns in what two models differ, bit by bit; "" if they do not."""
    if problem := _unlike(expected, found):
        return problem
    others = [name for name in expected if not _same_bits(expected[name], found[name])]
    return _listed("other bits", others)


def of_another_kind(plain: list[dict[str, torch.Tensor]], found: Tensors) -> str:
    """Returns which tensors have values of another kind than plain models of several seeds; "" if none has."""
    if problem := _unlike(plain[0], found):
        return problem
    problems = []
    for name, tensor in found.items():
        if problem := other_kind([each[name] for each in plain], tensor):
            problems.append(f"{name} ({problem})")
    return _listed("values of another kind", problems)


def _unlike(expected: Tensors, found: Tensors) -> str:
    if names := sorted(expected.keys() ^ found.keys()):
        return _listed("names that only one has", names)
    others = [name for name in expected if _form(expected[name]) != _form(found[name])]
    return _listed("another shape, dtype or device", others)


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    first, second = first.contiguous(), second.contiguous()
    if first.is_floating_point() or first.is_complex():
        first, second = (each.reshape(-1).view(torch.uint8) for each in (first, second))
    return torch.equal(first, second)


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}: {', '.join(names[:3])}{more}" if names else ""


def other_kind(plain: list[torch.Tensor], found: torch.Tensor) -> str:
    """Returns how the values of a tensor differ in kind from those of plain ones; "" if they do not."""
    expected = torch.stack([each.reshape(-1).to(torch.float64) for each in map(_real, plain)])
    values = _real(found).reshape(-1).to(torch.float64)
    if not values.numel():
        return ""
    is_fixed = ((expected == expected[0]) | (expected.isnan() & expected[0].isnan())).all(0)
    if is_fixed.double().mean() >= _LEAST_SHARE:
        fixed, here = expected[0][is_fixed], values[is_fixed]
        is_other = ~((fixed == here) | (fixed.isnan() & here.isnan()))
        if is_other.any():
            at = int(is_other.nonzero()[0])
            return f"{int(is_other.sum())} fixed elements are others: {here[at]:.6g} for {fixed[at]:.6g}"
    drawn, ours = expected[:, ~is_fixed].reshape(-1), values[~is_fixed]
    if ours.numel() and distance(drawn, ours) > _CRITICAL * (1 / drawn.numel() + 1 / ours.numel()) ** 0.5:
        return f"mean {ours.mean():.3g}, std {_std(ours):.3g} for {drawn.mean():.3g}, {_std(drawn):.3g}"
    return ""


def _std(values: torch.Tensor) -> float:
    return float(values.std(unbiased=False))


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the Kolmogorov-Smirnov distance of two samples."""
    first, second = first.sort().values, second.sort().values
    both = torch.cat([first, second])
    at = [torch.searchsorted(each, both, right=True).double() / each.numel() for each in (first, second)]
    return float((at[0] - at[1]).abs().max())

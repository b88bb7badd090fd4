"""The scale of activations and gradients, layer by layer: what an initialization does before anything is trained."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .data_dependent import called
from .drawing import LINES, canvas, shortened
from .errors import InitRuntimeError, InitTypeError, check_module
from .shards.dtensor import is_sharded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Scales that differ by more than this from where the signal comes in are marked. Within a sound transformer they differ
# by a hundred: queries and keys have small gradients at the start.
_FAR = 1000.0
# Names that a picture shows, at most.
_MOST_NAMES = 60


class Signal(NamedTuple):
    """What one call of one layer puts out, and the gradients that come back; None: not known."""

    name: str
    layer: str
    """The class."""
    call: int
    """1 for the first call of the layer in the forward pass."""
    mean: float | None
    """Of the finite numbers of the output, as ``std``."""
    std: float | None
    zeros: float
    """The share of zeros in the output, from 0 to 1."""
    not_finite: float
    """The share of infinities and NaN in the output."""
    gradient_std: float | None
    """Of the loss's gradient with respect to the output."""
    gradient_not_finite: float
    weight_gradient_std: float | None
    """Of the gradient with respect to ``weight``, from all calls; without one: to all parameters but biases."""
    marks: tuple[str, ...] = ()
    """What is wrong: "constant", "not finite", "vanishes", "explodes", and the same of the gradient."""


class Signals(tuple[Signal, ...]):
    """The layers in the order in which data flows through them; prints as a table."""

    def __str__(self) -> str:
        head = ("layer", "class", "mean", "std", "zeros", "gradient std", "weight gradient std", "")
        lines = [head, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)

    def to_json(self, indent: int | None = None) -> str:
        """Returns the rows as JSON; the format's version is in ``fastinit_signals``, unknown numbers are null."""
        document = {"fastinit_signals": 1, "rows": [row._asdict() for row in self]}
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draws the standard deviations by layer: of outputs, of their gradients, and of gradients of weights.

        Args:
            path: of a file to write, in the format that its suffix names: ``.svg``, ``.png``, ``.pdf``.

        Returns:
            matplotlib's figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        n = len(self)
        names = [_title(row) for row in self]
        # Names of every layer as long as they can be read; of more layers, of some.
        shown = range(0, n, math.ceil(n / _MOST_NAMES))
        longest = max((len(names[i]) for i in shown), default=0)
        width, height = min(14.0, max(6.0, 0.2 * n)), 3.2 + 0.06 * min(longest, 40)
        with canvas("signals(...).plot()", width, height, path) as figure:
            axes = figure.subplots()
            for colour, label, numbers in zip(
                LINES,
                ("output", "gradient of output", "gradient of weight"),
                zip(*((row.std, row.gradient_std, row.weight_gradient_std) for row in self)),
            ):
                known = [(i, number or math.nan) for i, number in enumerate(numbers) if number is not None]
                at, values = zip(*known) if known else ((), ())
                axes.plot(at, values, marker="o" if n <= _MOST_NAMES else "", ms=3.5, color=colour, label=label)
            for i in (i for i, row in enumerate(self) if row.marks):
                axes.axvspan(i - 0.5, i + 0.5, color=LINES[3], alpha=0.12, linewidth=0)
            if any(row.marks for row in self):
                axes.fill_between([], [], color=LINES[3], alpha=0.25, label="marked: see the table")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_ylabel("standard deviation")
            axes.set_xlim(-0.5, n - 0.5)
            axes.set_xticks(list(shown), [shortened(names[i], 40) for i in shown], rotation=90)
            axes.grid(visible=False, axis="x")
            figure.legend(loc="outside upper left", ncols=4)
        return figure


def signals(
    model: nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    layers: Sequence[type[nn.Module]] | None = None,
) -> Signals:
    """Measures the scale of activations and gradients, layer by layer, to see a bad initialization before training.

    The model runs once forward and once backward, in the mode (train or eval) that it is in. Afterwards it is as it
    was: gradients, buffers (statistics of batch norms), and the states of random generators.

    Args:
        model: with memory, not sharded.
        batch: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        loss: makes a scalar of what the model returns. None: the entry ``loss`` of an output that has one (models of
            transformers that are given labels); else the sum of the output times fixed normal numbers, so that the
            gradient has standard deviation 1 where it starts. Outputs in tuples and dicts count together.
        layers: classes of the modules to measure. None: all that call no other module.

    Returns:
        A row for each call. A row is marked where its output is constant or not finite, where its scale is more than
        1000 times that of the first row (explodes) or less than a thousandth (vanishes), and likewise where its
        gradient is, compared with the last row. Gradients of outputs that depend on nothing trainable are None.

    Raises:
        TypeError: ``model`` is no module, its output has no floating-point tensor, or ``loss`` makes no scalar.
        RuntimeError: a tensor is sharded, on the meta device or lazy; no layer is reached; or ``loss`` makes a number
            that depends on no trainable parameter.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> found = fastinit.signals(model, torch.randn(256, 8))
        >>> [(row.name, row.layer, row.marks) for row in found]
        [('0', 'Linear', ()), ('1', 'ReLU', ()), ('2', 'Linear', ())]
    """
    check_module(model)
    _check_memory(model)
    calls: list[_Call] = []
    with _left_as_it_was(model), torch.inference_mode(False), torch.enable_grad():
        with _watched(model, None if layers is None else tuple(layers), calls):
            output = called(model, batch)
        if not calls:
            raise InitRuntimeError("signals: the batch reaches none of the layers that have an output of numbers")
        gradients = _backward(model, output, loss)
    return Signals(_marked([call.row(gradients) for call in calls]))


# --- the two passes --------------------------------------------------------------------------------------------------


class _Numbers(NamedTuple):
    mean: float | None
    std: float | None
    zeros: float
    not_finite: float


def _numbers(*tensors: torch.Tensor) -> _Numbers:
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    finite = flat[flat.isfinite()]
    if not len(finite):
        return _Numbers(None, None, 0.0, float(len(flat) > 0))
    std, mean = torch.std_mean(finite, correction=0)
    zeros = (finite == 0).sum().item() / len(flat)
    return _Numbers(mean.item(), std.item(), zeros, 1 - len(finite) / len(flat))


class _Call:
    """One call of a layer; keeps numbers and no activations."""

    def __init__(self, name: str, module: nn.Module, n: int, output: torch.Tensor) -> None:
        self.name, self.module, self.n = name, module, n
        self.output = _numbers(output)
        self.gradient: _Numbers | None = None
        if output.requires_grad:
            output.register_hook(self._note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: torch.Tensor) -> None:
        self.gradient = _numbers(gradient)

    def row(self, gradients: Mapping[torch.Tensor, torch.Tensor]) -> Signal:
        weight = self.module._parameters.get("weight")
        weights = [p for name, p in self.module.named_parameters() if not name.endswith("bias")]
        found = [gradients[p] for p in ([weight] if weight is not None else weights) if p in gradients]
        return Signal(
            self.name,
            type(self.module).__name__,
            self.n,
            *self.output,
            self.gradient.std if self.gradient else None,
            self.gradient.not_finite if self.gradient else 0.0,
            _numbers(*found).std if found else None,
        )


@contextmanager
def _watched(model: nn.Module, kinds: tuple[type[nn.Module], ...] | None, calls: list[_Call]) -> Iterator[None]:
    """Notes the calls of layers in the block."""
    names = {module: name for name, module in model.named_modules()}
    counts: dict[nn.Module, int] = {}
    # The calls that have begun, each with how many calls had begun till then: a layer is what calls no other module.
    stack: list[tuple[nn.Module, int]] = []
    n_begun = 0

    def begin(module: nn.Module, _: Any) -> None:
        nonlocal n_begun
        n_begun += 1
        stack.append((module, n_begun))

    def end(module: nn.Module, _: Any, output: Any) -> None:
        while (top := stack.pop())[0] is not module:
            pass  # ended by an exception that the model caught
        is_layer = n_begun == top[1] if kinds is None else isinstance(module, kinds)
        tensor = next(_floats(output), None)
        if is_layer and tensor is not None and tensor.numel():
            counts[module] = counts.get(module, 0) + 1
            calls.append(_Call(names[module], module, counts[module], tensor))

    with ExitStack() as hooks:
        for module in names:
            hooks.callback(module.register_forward_pre_hook(begin).remove)
            hooks.callback(module.register_forward_hook(end).remove)
        yield


def _floats(output: Any) -> Iterator[torch.Tensor]:
    """Yields the floating-point tensors in tensors, tuples, lists and dicts."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _floats(value)


def _backward(
    model: nn.Module, output: Any, loss: Callable[[Any], torch.Tensor] | None
) -> dict[torch.Tensor, torch.Tensor]:
    """Returns the gradient of each parameter that has one; ``grad`` of none is written."""
    value = _default_loss(output) if loss is None else loss(output)
    if not (isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()):
        given = f"one of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"{type(value)}"
        raise InitTypeError(f"signals: loss must return a floating-point tensor with one element, but returned {given}")
    if not value.requires_grad:
        if loss is None:
            return {}
        raise InitRuntimeError("signals: what loss returns depends on no trainable parameter: is something detached?")
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value.reshape(()), parameters, allow_unused=True)
    return {p: gradient for p, gradient in zip(parameters, found) if gradient is not None}


def _default_loss(output: Any) -> torch.Tensor:
    own = output.get("loss") if isinstance(output, Mapping) else None
    if isinstance(own, torch.Tensor) and own.numel() == 1:
        return own
    tensors = list(_floats(output))
    if not tensors:
        raise InitTypeError(
            f"signals: the model returns {type(output)} without a floating-point tensor in tuples or dicts: pass "
            f"loss=, a function that makes a scalar of it"
        )
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in tensors]
    return torch.stack([(tensor * each).sum().to(tensors[0]) for tensor, each in zip(tensors, noise)]).sum()


# --- the model is left as it was -------------------------------------------------------------------------------------


def _check_memory(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InitRuntimeError(f"signals: {name!r} has no shape yet: call the lazy model with a batch once")
        if is_sharded(tensor) or tensor.is_meta:
            what = "is sharded" if is_sharded(tensor) else "is on the meta device"
            raise InitRuntimeError(f"signals: {name!r} {what}: measure the whole model, with memory")


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Gives buffers and random generators the state back that they had before the block."""
    buffers = {module: dict(module._buffers) for module in model.modules()}
    copies = {b: b.detach().clone() for of_module in buffers.values() for b in of_module.values() if b is not None}
    states = random.getstate(), numpy.random.get_state()
    with ExitStack() as forks:
        forks.enter_context(torch.random.fork_rng(devices=[]))
        for kind in {tensor.device.type for tensor in [*model.parameters(), *copies]} - {"cpu"}:
            forks.enter_context(torch.random.fork_rng(device_type=kind))
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            for module, of_module in buffers.items():
                module._buffers.clear()
                module._buffers.update(of_module)
            with torch.no_grad():
                for buffer, copy in copies.items():
                    # Version counters do not tell: batch norms write their statistics behind them.
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)


# --- marks and texts -------------------------------------------------------------------------------------------------


def _marked(rows: Sequence[Signal]) -> list[Signal]:
    first = next((row.std for row in rows if row.std), None)
    last = next((row.gradient_std for row in reversed(rows) if row.gradient_std), None)
    return [
        row._replace(
            marks=(
                *_marks(row.std, row.not_finite, first, ""),
                *_marks(row.gradient_std, row.gradient_not_finite, last, "gradient "),
            )
        )
        for row in rows
    ]


def _marks(std: float | None, not_finite: float, reference: float | None, of: str) -> Iterator[str]:
    if not_finite:
        yield f"{of}not finite"
    if std == 0:
        yield f"{of}constant"
    elif std is not None and reference is not None and std > _FAR * reference:
        yield f"{of}explodes"
    elif std is not None and reference is not None and std < reference / _FAR:
        yield f"{of}vanishes"


def _title(row: Signal) -> str:
    name = row.name or "(the model)"
    return name if row.call == 1 else f"{name}, call {row.call}"


def _cells(row: Signal) -> tuple[str, ...]:
    numbers = (row.mean, row.std, row.zeros, row.gradient_std, row.weight_gradient_std)
    texts = ("" if n is None else f"{n:.3g}" for n in numbers)
    return _title(row), row.layer, *texts, f"! {', '.join(row.marks)}" if row.marks else ""

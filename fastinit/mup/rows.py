"""How one parameter goes with the width, by what its shape is in two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..config.matching import owner_of
from ..errors import InitValueError

OPTIMIZERS = ("adam", "sgd")
"""Those that learning rates are known for."""
# Layers whose weight is (in, out, ...), and not (out, in, ...).
_TRANSPOSED = ("Conv1D", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


class Scaled(NamedTuple):
    """How one parameter goes with the width."""

    name: str
    base_shape: tuple[int, ...]
    shape: tuple[int, ...]
    kind: str
    """"matrix" (two dimensions are widths), "input" (one is, that of the outputs; biases and norms too), "output" (one
    is, that of the inputs), "tied" (an embedding that is the output layer's weight too), or "fixed" (none is)."""
    std: float
    """Factor of the standard deviation."""
    adam: float
    """Factor of the learning rate of Adam, and of what adapts to the size of gradients as it does."""
    sgd: float
    """Factor of the learning rate of SGD."""
    output: float
    """Factor of what the output layer gives, which the model has to apply; 1 for all but "output" and "tied"."""
    aliases: tuple[str, ...] = ()
    """The other names of a parameter that is shared."""

    def factor(self, optimizer: str) -> float:
        """Returns the factor of the learning rate.

        Raises:
            ValueError: ``optimizer`` is none of ``OPTIMIZERS``.
        """
        if optimizer not in OPTIMIZERS:
            raise InitValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")
        return self.adam if optimizer == "adam" else self.sgd


def row_of(
    name: str,
    base: tuple[int, ...],
    shape: tuple[int, ...],
    other: tuple[int, ...],
    model: nn.Module,
    fan_in: int | None,
) -> Scaled:
    """Returns the row of one parameter.

    Args:
        name: one of its names.
        base, shape: its shapes in the base model and in the target.
        other: its shape in a model that differs from the base model in all widths.
        model: the target.
        fan_in: which dimension the inputs are, if that was said.

    Raises:
        ValueError: there is no rule for it; the message names it.
    """
    widths = [dim for dim, size in enumerate(base) if size != other[dim]]
    if still := [dim for dim, size in enumerate(base) if size != shape[dim] and dim not in widths]:
        raise InitValueError(
            f"dimension {still[0]} of {name!r} differs in the target ({base} and {shape}), not in delta"
        )
    if 0 in base:
        raise InitValueError(f"{name!r} has no elements in the base model: its width cannot be compared")
    factors = {dim: shape[dim] / base[dim] for dim in widths}
    if not widths:
        return Scaled(name, base, shape, "fixed", 1.0, 1.0, 1.0, 1.0)
    inputs = _input_dim(name, base, model, fan_in)
    if len(widths) == 1:
        m = factors[widths[0]]
        is_output = widths[0] == inputs
        return Scaled(name, base, shape, "output" if is_output else "input", 1.0, 1.0, m, 1 / m if is_output else 1.0)
    if len(widths) > 2:
        raise InitValueError(f"dimensions {widths} of {name!r} become wider ({base} to {shape}): muP has rules for two")
    if inputs not in widths:
        if len(set(factors.values())) > 1:
            raise InitValueError(
                f"dimensions {widths} of {name!r} become wider by different factors ({base} to {shape}), and it is not "
                f"known which the inputs are",
                hint=f": give fan_in={{{name!r}: dimension}}",
            )
        inputs = widths[0]
    (outputs,) = set(widths) - {inputs}
    m = factors[inputs]  # type: ignore[index]
    return Scaled(name, base, shape, "matrix", m**-0.5, 1 / m, factors[outputs] / m, 1.0)


def _input_dim(name: str, shape: Sequence[int], model: nn.Module, given: int | None) -> int | None:
    """Returns which dimension of a parameter the inputs are, None where that is not known or where there is none."""
    if given is not None:
        return given % len(shape)
    owner = owner_of(model, name)
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or len(shape) < 2:
        return None
    if type(owner).__name__ in _TRANSPOSED:
        return 0
    # With more dimensions it stacks experts, in an order of its own.
    is_linear = "Linear" in type(owner).__name__ and len(shape) == 2
    return 1 if isinstance(owner, nn.modules.conv._ConvNd) or is_linear else None

"""Tensors that are more than a place in a file: conjugated, negated, quantized or sparse; made when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from .on_disk import FileStorage
from .stored import StoredTensor, finished, in_memory


class DerivedTensor(StoredTensor):
    """A tensor that a function makes of stored ones. To whoever copies it, it is one that has been read already."""

    _parts: tuple[StoredTensor, ...]
    _make: Callable[..., torch.Tensor]
    _dtype: torch.dtype
    _made: torch.Tensor | None

    @staticmethod
    def of(
        parts: tuple[StoredTensor, ...],
        make: Callable[..., torch.Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        requires_grad: bool = False,
    ) -> DerivedTensor:
        """Returns what ``make`` will make of the parts' values.

        Args:
            parts: plain tensors of a file.
            make: takes their values, in memory and where they belong.
            shape, dtype, requires_grad: of what it returns.
        """
        # Quantized dtypes have no meta tensors; the geometry answers for the shape alone.
        stand_in = dtype if dtype.is_floating_point or dtype.is_complex else torch.int8
        geometry = torch.empty(tuple(shape), dtype=stand_in, device="meta")
        made: DerivedTensor = torch.Tensor._make_subclass(DerivedTensor, geometry, requires_grad)  # type: ignore[assignment]
        stretch = parts[0].storage_in_file.stretch
        assert stretch is not None, "parts are plain tensors of a file"
        # A storage of its own: tensors with the same place in the same storage count as the same tensor.
        made.storage_in_file = FileStorage(*stretch, parts[0].storage_in_file.n_bytes)
        made.offset_in_storage, made.location = 0, parts[0].location
        made.dtype_in_file, made.is_parameter, made.attributes = dtype, False, None
        made._parts, made._make, made._dtype, made._made = parts, make, dtype, None
        return made

    @property
    def tensor(self) -> torch.Tensor:  # type: ignore[override]
        """What it is; made the first time."""
        if self._made is None:
            with torch.no_grad():
                self._made = finished(self, self._make(*(in_memory(each).detach() for each in self._parts)))
        return self._made

    def make(self) -> None:
        """Makes it now.

        Raises:
            RuntimeError: what it is made of does not fit together.
        """
        in_memory(self)

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """Tensors of the file that it is made of."""
        return self._parts

    @property
    def is_read(self) -> bool:
        """Whether it has been made."""
        return self._made is not None

    def again(self, requires_grad: bool) -> DerivedTensor:
        """Returns the same tensor anew, with or without gradients."""
        return DerivedTensor.of(self._parts, self._make, self.size(), self._dtype, requires_grad)

    def turned_into(self, dtype: torch.dtype) -> StoredTensor:
        """Returns the same tensor with another dtype."""
        make = self._make
        return DerivedTensor.of(self._parts, lambda *values: make(*values).to(dtype), self.size(), dtype)

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> StoredTensor:
        """Returns a rectangle of it."""
        make = self._make

        def rectangle(*values: torch.Tensor) -> torch.Tensor:
            whole = make(*values)
            return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape))]

        return DerivedTensor.of(self._parts, rectangle, shape, self._dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == torch.Tensor.dtype.__get__ and isinstance(args[0], DerivedTensor):  # type: ignore[attr-defined]
            return args[0]._dtype
        if func in _OF_THE_MADE and isinstance(args[0], DerivedTensor):
            return func(in_memory(args[0]), *args[1:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


# What the shape does not tell of a tensor that is quantized or sparse.
_OF_THE_MADE = frozenset(
    {
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("layout", "is_sparse", "is_quantized", "nbytes", "is_sparse_csr", "itemsize")
            if hasattr(torch.Tensor, name)
        ),
        torch.Tensor.stride,
        torch.Tensor.element_size,
        torch.Tensor.is_contiguous,
    }
)

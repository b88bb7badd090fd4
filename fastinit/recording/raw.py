"""Functions of torch that reach a tensor's memory, or make one from data, without an operator that could be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..execution.version_counters import tensors_in


def _functions(owner: Any, names: Sequence[str]) -> set[Any]:
    """Returns functions by name, as far as this torch has them."""
    return {function for function in (getattr(owner, name, None) for name in names) if function is not None}


# They hand out an address that may be used later.
EXPOSE = _functions(
    torch.Tensor,
    (
        "__array__",
        "__dlpack__",
        "__reduce_ex__",
        "_reduce_ex_internal",
        "_typed_storage",
        "apply_",
        "const_data_ptr",
        "data_ptr",
        "map2_",
        "map_",
        "mutable_data_ptr",
        "numpy",
        "share_memory_",
        "storage",
        "untyped_storage",
    ),
) | {torch.Tensor.__cuda_array_interface__.__get__}  # type: ignore[attr-defined]

# They take values that no operator shows.
MAKE_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor, torch.Tensor.new}

# They write their first argument. These and the next are put together of other operators as far as torch knows, but
# read memory themselves.
_WRITE = _functions(torch, ("_sobol_engine_ff_", "_sobol_engine_initialize_state_", "_sobol_engine_scramble_"))

# They read and are done. Numbers are taken out of tensors within functions such as torch.tensor, unseen.
READ = (
    _functions(
        torch.Tensor,
        (
            "__bool__",
            "__complex__",
            "__deepcopy__",
            "__float__",
            "__format__",
            "__index__",
            "__int__",
            "__repr__",
            "tensor_split",
            "tolist",
        ),
    )
    | _functions(
        torch,
        (
            "_choose_qparams_per_tensor",
            "_reshape_from_tensor",
            "_rowwise_prune",
            "_saturate_weight_to_fp16",
            "_sobol_engine_draw",
            "choose_qparams_optimized",
            "fbgemm_linear_quantize_weight",
            "fbgemm_pack_gemm_matrix_fp16",
            "fbgemm_pack_quantized_matrix",
            "scalar_tensor",
            "sparse_bsc_tensor",
            "sparse_bsr_tensor",
            "sparse_compressed_tensor",
            "sparse_coo_tensor",
            "sparse_csc_tensor",
            "sparse_csr_tensor",
            "tensor_split",
        ),
    )
    | MAKE_FROM_DATA
    | _WRITE
)


# A tensor that comes first is not read: operators show what is done to it.
_OF_TENSORS = {torch.Tensor.new_tensor, torch.Tensor.new}
_PASS_FIRST = MAKE_FROM_DATA | {torch.tensor_split, torch.Tensor.tensor_split}


def tensors_read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yields the tensors that a function of ``READ`` reads unseen."""
    is_passed = func in _PASS_FIRST and args and isinstance(args[0], torch.Tensor)
    return tensors_in((*(args[1:] if is_passed else args), *kwargs.values()))


def writes(func: Any) -> bool:
    """Tells whether a function of ``READ`` writes its first argument, too."""
    return func in _WRITE


def values_from_data(
    func: Callable[..., Any], result: torch.Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor | None:
    """Returns what a function of ``MAKE_FROM_DATA`` has made of data, on the CPU; None if it was given other things."""
    if any(isinstance(each, torch.Tensor) for each in (*(args[1:] if func in _OF_TENSORS else args), *kwargs.values())):
        return None
    if func is torch.Tensor.new:
        is_data = len(args) == 2 and isinstance(args[1], (list, tuple)) and not isinstance(args[1], torch.Size)
        if not is_data:  # sizes
            return None
        func = torch.Tensor.new_tensor
    try:
        made = func(*args, **{**kwargs, "device": "cpu", "dtype": result.dtype})
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None  # data on the meta device, or on several
    return made.detach()  # type: ignore[no-any-return]

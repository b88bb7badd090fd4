"""``write()``: a checkpoint of a model's initial weights, without the model's memory."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .backends import AUTO, BACKENDS, checked, cpp_backend
from .checkpoint.writing import distributed, safetensors
from .checkpoint.writing.contents import Content, Drawn, Values
from .checkpoint.writing.whole_files import Layout, write_files
from .contract.streams import check_seed
from .errors import InitRuntimeError, InitTypeError, InitValueError, if_path
from .execution.calls import current_call
from .execution.defaults import Strict, default_backend, default_seed
from .execution.runner import check, prepare
from .execution.scope import Scope
from .naming import Prefix, walk
from .own_code import by_reach
from .own_init import warn_of_own_init
from .planning import is_factory, made_without_memory, planned_items
from .plans import Fill, Plan, describe
from .progress import advance, expect, showing
from .recording.capturing import default_dtype
from .recording.recipes import Recipe
from .slots import slots_in
from .version import __version__
from .written_contents import ToWrite, of_model, of_plan

_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_CPU = torch.device("cpu")


def write(
    source: nn.Module | Callable[[], nn.Module] | Plan,
    path: str | os.PathLike[str],
    init_cfg: Any = None,
    *,
    seed: int | None = None,
    format: Literal["safetensors", "dcp"] = "safetensors",
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a checkpoint of a model's initial weights, which are drawn while they are written, in bounded memory.

    The files hold what ``materialize`` (of a model) or ``build`` (of a function, and then ``init_weights``, where it
    makes a BaseModule) would give on the backend ``cpp``, under the names of ``state_dict()``. They are those of
    ``safetensors.torch.save_file`` and of huggingface_hub's ``save_torch_model``: ``model.safetensors`` or, above
    ``max_shard_size``, ``model-00001-of-00003.safetensors`` and so on, with ``model.safetensors.index.json``. Each file
    appears whole, and the one that makes a checkpoint of them last. A call that was killed leaves whole files of no
    checkpoint; the same call, made again, keeps them.

    Memory: about 150 MB beside Python and torch, for any size; besides, one tensor at a time of those that are only
    there as a whole: orthogonal and sparse matrices (and what they are made from, in float64), and what code computes.

    Args:
        source: a model on the meta device; a function or class that makes a model without arguments, as for ``plan``:
            it runs on the meta device; or a plan, of which every tensor that a state dict has is written whole, under
            its name and in its dtype in the plan, wherever the model is that was planned: on a mesh too, where one rank
            is to call this.
        path: of a folder, or of a file that ends with ``.safetensors``, whose name then stands for ``model``.
        init_cfg: as for ``materialize``, for a model; what no rule reaches gets its modules' own init.
        seed: 0 to 2^64 - 1. None: the plan's, or that of ``use``; there must be one.
        format: "safetensors", or "dcp" for a folder that ``torch.distributed.checkpoint.load`` reads.
        max_shard_size: of one file: bytes, or a text such as "5GB" (10^9). A tensor above it has a file of its own.
        metadata: texts for the files' metadata. None: ``{"format": "pt"}``, as Hugging Face's libraries write.
        dtype: the default dtype while a function makes the model; None: as outside.
        backend: None, "auto" or "cpp"; the others have the same bits, and not the CPU's memory.
        prefix, strict: as for ``materialize``.
        overwrite: replace a checkpoint of that name; without it, one that is there is an error.

    Returns:
        The files, that which makes a checkpoint of them last.

    Of tied parameters the first name by alphabet is written, as by safetensors' ``save_model``, with the others in the
    metadata; of models of transformers the name that ``save_pretrained`` writes.

    Raises:
        FileExistsError: a checkpoint is there.
        RuntimeError: values are not known before code runs, or are those of another checkpoint; all are named, and
            nothing is written. Or another process is writing there.
        TypeError, ValueError, OSError: another argument is wrong, or a file cannot be written.

    Example:
        >>> import fastinit, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = fastinit.write(lambda: torch.nn.Linear(512, 512), folder, seed=0)
        ...     model = torch.nn.Linear(512, 512)
        ...     report = fastinit.initialize(model, dict(type="Pretrained", checkpoint=folder))
        >>> built = fastinit.build(torch.nn.Linear, 512, 512, backend="cpp", seed=0)
        >>> [file.name for file in files], torch.equal(model.weight, built.weight)
        (['model.safetensors'], True)
    """
    if current_call() is not None:
        raise InitRuntimeError("write: an initialization is open around this call (capture, build): let it end first")
    if not (isinstance(source, (nn.Module, Plan)) or callable(source)):
        raise InitTypeError(
            f"write: expected a model, a function that makes one or a plan, but got {type(source)}",
            hint=if_path(source, ": fastinit.Plan.load(path) reads a plan from its file"),
        )
    if format not in ("safetensors", "dcp"):
        raise InitValueError(f"format must be 'safetensors' or 'dcp', but got {format!r}")
    max_bytes = _n_bytes(max_shard_size)
    backend = _backend(backend)
    seed = _seed(source if isinstance(source, Plan) else init_cfg, seed, prefix)
    scope = Scope(None, None, backend=backend, seed=seed)
    found = _contents(source, init_cfg, scope, prefix, strict, dtype)
    fills = _fills(found.contents)
    check(fills, scope, needs_memory=False)
    prepare(fills, scope)
    folder, stem = safetensors.stem_of(Path(path))
    values, digest = Values(scope), _Digest(seed, found)
    layout: Layout
    if format == "dcp":
        folder = Path(path)
        layout = distributed.layout_of(found.contents, values, digest=digest, max_file_bytes=max_bytes)
    else:
        layout = safetensors.layout_of(
            found.contents,
            values,
            stem=stem,
            digest=digest,
            metadata=_metadata(metadata),
            dropped=found.dropped,
            max_shard_bytes=max_bytes,
        )
    total = sum(each.n_bytes for each in found.contents)
    with showing("write", total):
        expect(total)
        kept = write_files(folder, layout, overwrite=overwrite)
        advance(sum((folder / name).stat().st_size for name in kept))
    return [folder / name for name in (*layout.jobs, *([layout.last[0]] if layout.last else []))]


def _contents(
    source: Any, init_cfg: Any, scope: Scope, prefix: Prefix, strict: Strict | None, dtype: torch.dtype | None
) -> ToWrite:
    """Returns what is to be written of what the user gave."""
    if isinstance(source, Plan):
        if init_cfg is not None or prefix or dtype is not None:
            raise InitTypeError(
                "write: a plan has its distributions, names and dtypes: init_cfg, prefix and dtype are for models"
            )
        return of_plan(source, scope)
    how: dict[str, Any] = dict(backend=scope.backends.asked, seed=scope.seed.value, prefix=prefix, strict=strict)
    model, recipe = source, None
    if is_factory(source):
        with default_dtype(dtype):
            model, recipe = made_without_memory(source, init_cfg, "write", **how)
    elif dtype is not None:
        raise InitTypeError(
            "write: dtype is for functions that make a model; model.to(dtype) costs nothing on the meta device"
        )
    planned = planned_items(model, init_cfg, recipe, _CPU, how)
    if recipe is None:
        rest, _ = by_reach(list(slots_in(walk(model))), planned.items[: planned.n_asked])
        warn_of_own_init(model, rest, scope, "write")
    recipes = [each for each in (recipe, init_cfg) if isinstance(each, Recipe)]

    def why_unknown(name: str) -> str:
        return next(filter(None, (each.why_unknown(name, prefix) for each in recipes)), "")

    return of_model(model, planned.items, planned.n_asked, scope, why_unknown)


def _fills(contents: Sequence[Content]) -> list[Fill]:
    return [draw.fill for each in contents if isinstance(each.origin, Drawn) for draw in each.origin.draws]


# --- arguments --------------------------------------------------------------------------------------------------------


def _backend(asked: str | None) -> str:
    name = checked(default_backend() if asked is None else asked)
    if name not in (AUTO, "cpp"):
        why = "values are drawn into the CPU's memory: leave backend out, the bits are the same"
        if not BACKENDS[name].IS_CONTRACT:
            why = "its values depend on what was drawn before, so no part can be drawn alone: backend='cpp' can"
        raise InitValueError(f"write: backend={name!r}: {why}")
    if reason := cpp_backend.why_not(_CPU):
        raise InitRuntimeError(f"write needs the backend 'cpp': {reason}")
    return "cpp"


def _seed(plan: Any, seed: int | None, prefix: Prefix) -> int:
    """Returns the seed of a call; ``plan`` may be one, the source or the config."""
    given = plan.seed if isinstance(plan, Plan) else None
    if isinstance(plan, Plan) and BACKENDS["cpp"].NUMBERS not in plan.numbers:
        raise InitValueError(
            f"write: the plan is for the numbers of {plan.numbers!r}, which depend on the order of the draws: make "
            f"it with backend='cpp'"
        )
    if given is not None and seed is not None and seed != given:
        raise InitValueError(f"write: the plan has seed {given}, but the call was given seed={seed}: leave it out")
    seed = given if seed is None else check_seed(seed)
    if seed is None:
        seed = default_seed(own_names=bool(prefix), take=True)
    if seed is None:
        raise InitValueError(
            "write: seed is missing: without one the same checkpoint could not be made, or gone on with, again"
        )
    return seed


def _metadata(given: Mapping[str, str] | None) -> dict[str, str]:
    metadata = {"format": "pt"} if given is None else dict(given)
    if not all(isinstance(each, str) for pair in metadata.items() for each in pair):
        raise InitTypeError(f"metadata must be texts by name, but got {given!r}")
    return metadata


def _n_bytes(size: int | str) -> int:
    """Returns the number of bytes that are meant by a number or a text such as "5GB"."""
    number: float = -1
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*(TB|GB|MB|KB)\s*", size, re.IGNORECASE)
        try:
            number = -1 if match is None else float(match[1]) * _UNITS[match[2].upper()]
        except ValueError:  # "1.2.3"
            number = -1
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    if number < 1:
        raise InitValueError(
            f"max_shard_size must be a number of bytes, or a text such as '5GB' or '200MB', but got {size!r}"
        )
    return int(number)


class _Digest:
    """What tells the contents of two checkpoints apart, as far as a plan says them."""

    def __init__(self, seed: int, found: ToWrite) -> None:
        self._seed = seed
        self._found = found

    def __call__(self, layout: str) -> str:
        """Returns a text for the contents in a layout."""
        texts: list[Any] = [__version__, cpp_backend.NUMBERS, self._seed, layout, sorted(self._found.dropped.items())]
        for content in self._found.contents:
            texts.append([content.name, str(content.dtype), content.shape])
            if isinstance(content.origin, Drawn):
                texts.append([_told(each.fill, each.part, each.numbers) for each in content.origin.draws])
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _told(fill: Fill, *where: Any) -> list[Any]:
    return [repr(fill.distribution), describe(fill.distribution), fill.stream_name, fill.seed, repr(where)]

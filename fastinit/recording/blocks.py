"""``capture()``: records the init calls that any code makes, and runs them as one plan.

Names are looked for as late as possible, because a constructor fills a parameter before it has one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import check_module
from ..execution.defaults import Strict
from ..execution.memory import ask_for_huge_pages
from ..execution.session import Session, session
from ..naming import Prefix
from ..plans import Constant
from .libraries import initialize_like_its_library
from .recipes import Recipe, recorded_fills
from .watch import Watch, current_watch

# Smaller tensors are not worth a look at where they lie: 20,000 of them would take a third of a second.
_LARGE_BYTES = 1 << 16


@contextmanager
def capture(
    module: nn.Module | None = None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
) -> Iterator[Recipe]:
    """Records the init operations in a ``with`` block, and runs them as one plan when it ends.

    Recorded are torch.nn.init's functions and the operators that they are made of (``normal_``, ``uniform_``,
    ``fill_``, ``zero_``, truncated normals as torch, timm and mmengine draw them), functions that make filled tensors
    (``torch.randn``, ``zeros``, ...), scaling and shifting by numbers, copies, and casts, on whole tensors and on
    views, and fastinit's own calls. A later fill replaces an earlier one. Whatever else touches a tensor first executes
    what waits for it, then runs as it is written. On devices where the backend is "torch", all runs at once and is only
    noted: the draws and the generator's state are those of the code alone.

    The random numbers of ``cpp``, ``triton`` and ``cuda`` go by the names of parameters and buffers: those under
    ``module`` or what ``recipe.bind`` named, else those under the one module that was put together in the block and is
    not part of another. What has no such name, or was needed before it was known, is drawn by order, and is listed in
    the report's ``unkeyed``.

    A block in a larger one (or in an ``init_weights`` of fastinit's) without a seed, prefix or module of its own is
    part of that: its names, its seed, its report. Threads that are started in the block are recorded too.

    Args:
        module: the root whose names count, where it exists already.
        backend, seed, prefix: as for ``initialize``.
        strict: raise RuntimeError where a draw would not go by a name, and where a call in the block has no effect
            (as for ``initialize``).

    Raises:
        RuntimeError: the backend that was asked for cannot run on this machine; or several modules were made in the
            block and none was bound: what waited has been executed, by order, before that is raised.

    After an exception in the block, what waited is executed: all tensors have the values that the code had asked for.

    Not seen: ``torch.utils.dlpack.to_dlpack`` (``from_dlpack`` is), and code of others that keeps the address of a
    parameter from before the block.

    Example:
        >>> import torch, fastinit
        >>> with fastinit.capture(backend="cpp", seed=0) as recipe:
        ...     model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
        ...     _ = torch.nn.init.trunc_normal_(model[0].weight, std=0.02)
        >>> recipe.report.launches, recipe.report.provenance["0.weight"]  # doctest: +ELLIPSIS
        ({'cpu': 1}, '`trunc_normal_` at ...')
    """
    if module is not None:
        check_module(module)
    opening = session(module, backend=backend, seed=seed, prefix=prefix, strict=strict)
    with opening as opened, recording(opened) as watch:
        opened.check_backend()
        is_part = opened.effective is not opened  # whose names are those of the larger block
        recipe = Recipe(None if module is not None or is_part else opened.names, prefix, is_part)
        try:
            yield recipe
        finally:
            recipe.is_open = False
        _finish(watch, opened, recipe, root=module)


@contextmanager
def recording(opened: Session) -> Iterator[Watch]:
    """Watches the memory in the block, so that the fills of a session may wait; what waits at its end is executed."""
    outer = current_watch.get()
    if outer is not None and outer.is_open:
        yield outer
        if opened.effective is opened:
            opened.flush()
        return
    watch = Watch()
    opened.deferred = watch.deferred
    token = current_watch.set(watch)
    try:
        with watch:
            yield watch
        opened.flush()
    except BaseException:
        opened.strict = False
        opened.flush()  # the values that the code had asked for
        raise
    finally:
        current_watch.reset(token)


def _finish(watch: Watch, opened: Session, recipe: Recipe, root: nn.Module | None) -> None:
    """Finds the names, executes what waits and makes the report."""
    if opened.effective is not opened:  # part of a larger block, which has the names
        return
    problem = ""
    if root is None and not recipe.bound:
        with watch.deferred.paused():
            problem = _find_roots(watch, opened, recipe)
    for each in [root] if root is not None else recipe.bound:
        initialize_like_its_library(each)
    with watch.deferred.paused():
        _execute(watch, opened, recipe, problem)
    if problem:
        raise RuntimeError(problem)


def _execute(watch: Watch, opened: Session, recipe: Recipe, problem: str) -> None:
    watch.deferred.generation += 1  # the names are those of the models as they are now
    waiting = [entry for entry in watch.deferred.waiting() if entry.session is opened]
    large = (entry.place.view() for entry in waiting if entry.place.end - entry.place.start >= _LARGE_BYTES)
    ask_for_huge_pages(view for view in large if view is not None and view.device.type == "cpu")
    if problem:
        opened.strict = False
    opened.run_deferred(waiting)
    recipe.fills, recipe.unknown = recorded_fills(opened)
    recipe.finish(opened.report())


def _find_roots(watch: Watch, opened: Session, recipe: Recipe) -> str:
    """Binds the one root that was put together in the block; returns what is wrong where there are several."""
    roots = _roots(watch, opened)
    if len(roots) > 1:
        del roots
        gc.collect()  # modules that refer to themselves outlive their use
        roots = _roots(watch, opened)
    if len(roots) > 1:
        names = ", ".join(type(each).__name__ for each in roots)
        return (
            f"capture: {len(roots)} modules were made in the block that are not part of each other ({names}), and "
            f"both may have parameters of one name. Name them in the block, e.g. recipe.bind(generator, "
            f"prefix='generator'). What was captured has been filled, by order and not by name"
        )
    for root in roots:
        recipe.bind(root)
    return ""


def _roots(watch: Watch, opened: Session) -> list[nn.Module]:
    modules = watch.modules()
    parts = {id(child) for module in modules for child in module._modules.values()}
    drawn = {
        entry.place.key
        for entry in watch.deferred.entries()
        if entry.session is opened and not isinstance(entry.distribution, Constant)
    }

    def is_drawn(module: nn.Module) -> bool:
        places = map(watch.deferred.place_of, (*module.parameters(), *module.buffers()))
        return any(place is not None and place.key in drawn for place in places)

    tops = [module for module in modules if id(module) not in parts]
    with_draws = [module for module in tops if is_drawn(module)]
    return with_draws or (tops if len(tops) == 1 else [])

"""``capture()`` and ``build()``: the init calls that any code makes are recorded, and run as one plan.

Names are looked for as late as possible, because a constructor fills a parameter before it has one.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import InitRuntimeError, InitTypeError, InitValueError, check_module
from ..execution.calls import OpenCall, open_call
from ..execution.collector import uncollected
from ..execution.defaults import Strict
from ..execution.modes import state_of_thread
from ..naming import Prefix
from ..plans import is_drawn, names_line
from ..shards.dtensor import is_sharded
from .libraries import initialize_like_its_library
from .recipes import Recipe
from .watch import Watch, current_watch

Model = TypeVar("Model", bound=nn.Module)

# Parameters of a function that no argument reaches by name.
_NAMELESS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


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

    After an exception in the block, what is pending runs: all tensors have the values that the code had asked for.
    After Ctrl-C, SystemExit and MemoryError it is dropped instead, and the log says so.

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
    with _capturing(module, backend, seed, prefix, strict, is_lost=False) as recipe:
        yield recipe


@contextmanager
def _capturing(
    module: nn.Module | None,
    backend: str | None,
    seed: int | None,
    prefix: Prefix,
    strict: Strict | None,
    *,
    is_lost: bool,
) -> Iterator[Recipe]:
    """As ``capture``; ``is_lost`` as for ``recording``: the caller of ``build`` gets a model, and no recipe either."""
    if module is not None:
        check_module(module)
    opening = open_call(module, backend=backend, seed=seed, prefix=prefix, strict=strict)
    with opening as call, recording(call, is_lost=is_lost) as watch:
        scope = call.scope
        if (reason := scope.backends.why_not_here()) is not None:
            raise InitRuntimeError(f"the backend {scope.backends.asked!r} cannot run on this machine: {reason}")
        is_part = scope.effective is not scope  # whose names are those of the larger block
        recipe = Recipe(None if module is not None or is_part else scope.names, prefix, is_part)
        if is_lost and scope.outer is None:
            watch.operators.unread = scope
        try:
            yield recipe
        finally:
            recipe.is_open = False
        _finish(watch, call, recipe, root=module, is_lost=is_lost)


def build(
    factory: Callable[..., Model],
    /,
    *args: Any,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: Strict | None = None,
    **kwargs: Any,
) -> Model:
    """Calls a function or class that makes a model, and fills each parameter once instead of drawing values twice.

    The constructor's and the library's own init code runs as it is and is recorded (``capture``): its memory is not
    touched before all is known, and then filled in one launch. What it computes otherwise, it computes. Under "torch",
    which is "auto" on the CPU, the model is the one that ``factory`` makes alone, bit for bit.

    Args:
        factory: e.g. a model's class, ``AutoModel.from_config``, ``timm.create_model``. Its own arguments called
            ``device``, ``dtype``, ``backend``, ``seed``, ``prefix`` or ``strict`` go in by a lambda:
            ``build(lambda: Model(seed=3), seed=0)``. A function that takes ``**kwargs`` gets none of them otherwise.
        device: that ``torch.device`` stands for in the call; None: as outside.
        dtype: the default dtype in the call; None: as outside.
        backend, seed, prefix, strict: as for ``capture``.

    Raises:
        TypeError: ``factory`` is a module, or returned none; or an argument is one of its own, too, and it is not clear
            whose it is to be (``device`` and ``dtype`` are both's where its default for them is None, as torch's).
        ValueError: the device is "meta": make the model under ``capture`` and ``torch.device("meta")``, and give the
            recipe to ``materialize``.
        Others: as ``capture``, and as ``factory``. Nothing is filled then: the model is lost.

    Example:
        >>> import torch, fastinit
        >>> a = fastinit.build(torch.nn.Linear, 512, 512, backend="cpp", seed=0)
        >>> b = fastinit.build(lambda: torch.nn.Linear(512, 512, dtype=torch.bfloat16), backend="cpp", seed=0)
        >>> torch.equal(a.weight.to(torch.bfloat16), b.weight)
        True
    """
    if device is not None and torch.device(device).type == "meta":
        raise InitValueError(
            "device='meta' has no memory to fill",
            hint=": `with fastinit.capture() as recipe, torch.device('meta'): ...` makes "
            "such a model, and `fastinit.materialize(model, recipe=recipe)` gives it memory and values",
        )
    if isinstance(factory, nn.Module):
        raise InitTypeError(
            f"build needs a class or a function that makes a model, but got a {type(factory).__name__} that is made",
            hint=". `fastinit.initialize` fills it by rules, and `with fastinit.capture(model):` records its own init "
            "code",
        )
    given = dict(device=device, dtype=dtype, backend=backend, seed=seed, prefix=prefix or None, strict=strict)
    _check_whose(factory, args, [name for name, value in given.items() if value is not None])
    with _capturing(None, backend, seed, prefix, strict, is_lost=True) as recipe:
        with _defaults(device, dtype):
            model = factory(*args, **kwargs)
        if not isinstance(model, nn.Module):
            raise InitTypeError(f"build needs a factory that returns a torch.nn.Module, but it returned {type(model)}")
        recipe.bind(model)
    return model


def _check_whose(factory: Callable[..., object], args: Sequence[object], names: list[str]) -> None:
    """Raises TypeError if an argument of ``build`` has the name of one that the factory would have taken."""
    if not names:
        return
    bound: set[str] = set()
    while isinstance(factory, partial):
        args, bound = (*factory.args, *args), bound | factory.keywords.keys()
        factory = factory.func
    try:
        parameters, placed = _parameters_of(factory, args)
    except (ValueError, TypeError):  # it has none that Python knows, or takes no such arguments, which it says itself
        return
    bound |= placed
    for name in names:
        parameter = parameters.get(name)
        # What torch's own layers do with None is what `build` does with a device or dtype.
        is_same = parameter is not None and name in ("device", "dtype") and parameter.default is None
        if parameter is None or is_same or name in bound or parameter.kind in _NAMELESS:
            continue
        kind = getattr(factory, "__name__", type(factory).__name__)
        raise InitTypeError(
            f"{name} is an argument of build and of {kind}, which would not get it",
            hint=f". Write build(lambda: {kind}(..., {name}=...)) for that of {kind}, or build(lambda: {kind}(...), "
            f"{name}=...) for that of build",
        )


def _parameters_of(
    factory: Callable[..., object], args: Sequence[object]
) -> tuple[dict[str, inspect.Parameter], set[str]]:
    """Returns the parameters of a function or class, and the names of those that arguments by position are for.

    A class that takes ``**kwargs`` has those of the next ``__init__``, too, to which it hands them on.

    Raises:
        TypeError, ValueError: it has no signature, or takes no such arguments.
    """
    signature = inspect.signature(factory)
    placed = signature.bind_partial(*args).arguments
    found, bound, last = dict(signature.parameters), set(placed), signature.parameters.values()
    inits = [vars(kind)["__init__"] for kind in getattr(factory, "__mro__", ()) if "__init__" in vars(kind)]
    for init in inits[1:]:
        kinds = {each.kind: each.name for each in last}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
        rest = placed.get(kinds.get(inspect.Parameter.VAR_POSITIONAL, ""), ())
        signature = inspect.signature(init)
        placed = signature.bind_partial(None, *rest).arguments  # None is for ``self``
        bound |= placed.keys()
        last = signature.parameters.values()
        found = {**signature.parameters, **found}
    return found, bound


@contextmanager
def _defaults(device: torch.device | str | None, dtype: torch.dtype | None) -> Iterator[None]:
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(torch.device(device))
        stack.enter_context(default_dtype(dtype))
        yield


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Makes a dtype the default one in the block; None: leaves it as it is."""
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def recording(call: OpenCall, *, is_lost: bool = False) -> Iterator[Watch]:
    """Watches the memory in the block, so that fills of a call may stay pending until it ends.

    Args:
        call: that has just been opened.
        is_lost: the tensors in question are thrown away if the block fails; pending fills are dropped then.
    """
    outer = current_watch.get()
    if outer is not None and outer.is_open:
        yield outer
        if call.scope.effective is call.scope:
            call.flush()
        return
    watch = Watch(call)
    state = torch.default_generator.get_state() if call.scope.seed.given is not None else None
    call.pending = watch.pending
    watch.pending.warns = not is_lost
    restore = state_of_thread()
    try:
        current_watch.set(watch)
        watch.open()
        yield watch
        watch.close()
        call.flush()
    except Exception as error:
        # Other ranks that hear of the error fill nothing, so nothing is filled here.
        if call.scope.seed.abandon(error) or is_lost or isinstance(error, MemoryError):
            watch.pending.drop(error)
        else:
            call.scope.strict = False
            call.flush()  # the values that the code had asked for
        raise
    except BaseException as error:  # Ctrl-C, and others that want an end at once
        watch.close()
        restore()
        watch.pending.drop(error)
        raise
    finally:
        try:
            _end(watch, outer, state)
        finally:  # an interrupt may come there, too
            _end(watch, outer, state)


def _end(watch: Watch, outer: Watch | None, state: torch.Tensor | None) -> None:
    """Leaves everything as it was before a watch; does nothing the second time."""
    watch.close()
    if current_watch.get() is watch:
        current_watch.set(outer)
    if state is not None and watch.operators.seeding.is_own:  # by code in the block; it was seeded for the block
        torch.default_generator.set_state(state)


def _finish(watch: Watch, call: OpenCall, recipe: Recipe, root: nn.Module | None, is_lost: bool) -> None:
    """Finds the names, executes what waits and makes the report."""
    if call.scope.effective is not call.scope:  # part of a larger block, which has the names
        return
    problem = ""
    if root is None and not recipe.bound:
        with watch.book.paused():
            problem = _find_roots(watch, call, recipe)
    for each in [root] if root is not None else recipe.bound:
        initialize_like_its_library(each)
    with watch.book.paused(), uncollected():
        _execute(watch, call, problem)
        if not is_lost or call.scope.is_part:  # a larger call reports what its part has done
            recipe.keep(watch.pending, call.scope, watch.operators.journal)
            recipe.finish(call.report())
    if problem:
        raise InitRuntimeError(problem)


def _execute(watch: Watch, call: OpenCall, problem: str) -> None:
    watch.book.generation += 1  # the names are those of the models as they are now
    waiting = [entry for entry in watch.book.pending() if entry.scope is call.scope]
    if problem:
        call.scope.strict = False
    watch.pending.run(waiting)
    by_order = watch.pending.drawn_by_order(call.scope)
    if by_order and any(is_sharded(parameter) for parameter in call.scope.names.parameters()):
        call.scope.warn_once(
            "build or capture",
            f"{names_line('draws ran by order and not by name', by_order)}: they were needed, as by fully_shard, "
            f"before it was known what their tensors will be called. Values of distributed parameters that come from "
            f"them are others on another mesh, or without one. In a capture, call recipe.bind(model) before the model "
            f"is sharded",
        )


def _find_roots(watch: Watch, call: OpenCall, recipe: Recipe) -> str:
    """Binds the one root that was put together in the block; returns what is wrong where there are several."""
    roots = _roots(watch, call)
    if len(roots) > 1:
        del roots
        gc.collect()  # modules that refer to themselves outlive their use
        roots = _roots(watch, call)
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


def _roots(watch: Watch, call: OpenCall) -> list[nn.Module]:
    modules = watch.modules()
    parts = {id(child) for module in modules for child in module._modules.values()}
    drawn = {
        entry.place.storage_id
        for entry in watch.book.fills()
        if entry.scope is call.scope and is_drawn(entry.distribution)
    }

    def has_draws(module: nn.Module) -> bool:
        places = map(watch.book.place_of, (*module.parameters(), *module.buffers()))
        return any(place is not None and place.storage_id in drawn for place in places)

    tops = [module for module in modules if id(module) not in parts]
    with_draws = [module for module in tops if has_draws(module)]
    return with_draws or (tops if len(tops) == 1 else [])

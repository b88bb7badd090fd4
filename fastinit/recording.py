"""``capture()``: records the init calls that any code makes, and runs them as one plan.

Two modes of torch watch a thread: a dispatch mode sees every operator (``operators`` says what each means to a fill
that waits), a function mode sees the ways to memory that are no operators, such as ``numpy()``. Names are looked for
as late as possible, because a constructor fills a parameter before it has one.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .deferred import Deferred
from .errors import check_module
from .execution import Session, current_session, session
from .foreign import initialize_like_its_library
from .memory import ask_for_huge_pages
from .naming import Prefix
from .operators import NOT_HANDLED, Operators, is_contract, where
from .plans import Constant, TruncatedNormal
from .recipes import Recipe, recorded_fills

_recorder: ContextVar[_Recorder | None] = ContextVar("fastinit_recorder", default=None)


@contextmanager
def capture(
    module: nn.Module | None = None,
    *,
    backend: str | None = None,
    seed: int | None = None,
    prefix: Prefix = "",
    strict: bool = False,
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
        strict: raise RuntimeError where a draw would not go by a name.

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
        ...     torch.nn.init.trunc_normal_(model[0].weight, std=0.02)
        Parameter...
        >>> recipe.report.launches, recipe.report.provenance["0.weight"]  # doctest: +ELLIPSIS
        ({'cpu': 1}, '`trunc_normal_` at ...')
    """
    if module is not None:
        check_module(module)
    with session(module, backend=backend, seed=seed, prefix=prefix) as opened, recording(opened, strict) as recorder:
        opened.check_backend()
        is_part = opened.effective is not opened  # whose names are those of the larger block
        recipe = Recipe(None if module is not None or is_part else opened.names, prefix, is_part)
        try:
            yield recipe
        finally:
            recipe.is_open = False
        recorder.finish(opened, recipe, root=module)


@contextmanager
def recording(opened: Session, strict: bool = False) -> Iterator[_Recorder]:
    """Watches the memory in the block, so that the fills of a session may wait; what waits at its end is executed."""
    outer = _recorder.get()
    if outer is not None and outer.is_open:
        with _strict(opened, strict):
            yield outer
            if opened.effective is opened:
                opened.flush()
        return
    recorder = _Recorder()
    opened.deferred = recorder.deferred
    token = _recorder.set(recorder)
    try:
        with recorder, _strict(opened, strict):
            yield recorder
        opened.flush()
    except BaseException:
        opened.strict = False
        opened.flush()  # the values that the code had asked for
        raise
    finally:
        _recorder.reset(token)


@contextmanager
def _strict(opened: Session, strict: bool) -> Iterator[None]:
    before, opened.strict = opened.strict, opened.strict or strict
    try:
        yield
    finally:
        opened.strict = before


class _Recorder:
    """What is installed while memory is watched."""

    def __init__(self) -> None:
        self.deferred = Deferred()
        self.operators = Operators(self.deferred, current_session)
        self.is_open = True
        self._modules: dict[int, weakref.ref[nn.Module]] = {}
        """Modules that got parameters, buffers or children."""
        self._stack = ExitStack()

    def __enter__(self) -> _Recorder:
        with ExitStack() as stack:
            stack.enter_context(_globally_installed())
            stack.enter_context(_Functions(self))
            stack.enter_context(_Dispatch(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.is_open = False
        self._stack.close()

    @property
    def is_idle(self) -> bool:
        """Whether operators are to pass as they are: it is over, or they are fastinit's own."""
        return not self.is_open or self.deferred.is_paused

    def saw(self, module: nn.Module) -> None:
        """Notes that a module got a parameter, a buffer or a child."""
        self.deferred.generation += 1
        if id(module) not in self._modules or self._modules[id(module)]() is not module:
            self._modules[id(module)] = weakref.ref(module)

    def run_in_thread(self, run: Callable[[], object]) -> None:
        """Runs the work of a thread that was started in the block, recorded like the block's own."""
        if not self.is_open:
            run()
            return
        with _Functions(self), _Dispatch(self):
            run()

    def truncated_normal(self, original: Callable[..., torch.Tensor], tensor: torch.Tensor, *numbers: float) -> bool:
        """Notes a truncated normal; returns False where torch's function is to run as it is."""
        mean, std, low, high = numbers

        def now() -> None:
            original(tensor, *numbers)

        with self.deferred.paused(), torch.no_grad():
            waits = is_contract(current_session().effective, tensor.device)
            noted = self.operators.fill(tensor, lambda: TruncatedNormal(mean, std, low, high), "trunc_normal_", now)
            if noted and waits:
                torch.autograd.graph.increment_version(tensor)
        return noted

    def skipped(self, tensor: torch.Tensor) -> None:
        """Notes what torch.nn.init is about to leave undone, if it is the one who asks where a tensor is."""
        frame = sys._getframe(1)
        while frame.f_code.co_name == "__torch_function__":  # ours, and those of modes such as torch.device
            frame = frame.f_back  # type: ignore[assignment]
        name = frame.f_code.co_name
        if name not in _SKIP_META or frame.f_globals.get("__name__") != "torch.nn.init":
            return
        with self.deferred.paused():
            if tensor.is_meta and (place := self.deferred.place_of(tensor)) is not None:
                self.deferred.wrote(place, f"`{name}` at {where()}", True)

    # --- the end of a block -------------------------------------------------------------------------------------------

    def finish(self, opened: Session, recipe: Recipe, root: nn.Module | None) -> None:
        """Finds the names, executes what waits and makes the report."""
        if opened.effective is not opened:  # part of a larger block, which has the names
            return
        problem = ""
        if root is None and not recipe.bound:
            with self.deferred.paused():
                problem = self._find_roots(opened, recipe)
        for each in [root] if root is not None else recipe.bound:
            initialize_like_its_library(each)
        with self.deferred.paused():
            self._execute(opened, recipe, problem)
        if problem:
            raise RuntimeError(problem)

    def _execute(self, opened: Session, recipe: Recipe, problem: str) -> None:
        self.deferred.generation += 1  # the names are those of the models as they are now
        waiting = [entry for entry in self.deferred.waiting() if entry.session is opened]
        ask_for_huge_pages(
            view for view in (entry.place.view() for entry in waiting) if view is not None and view.device.type == "cpu"
        )
        if problem:
            opened.strict = False
        opened.run_deferred(waiting)
        recipe.fills, recipe.unknown = recorded_fills(opened)
        recipe.finish(opened.report())

    def _find_roots(self, opened: Session, recipe: Recipe) -> str:
        """Binds the one root that was put together in the block; returns what is wrong where there are several."""
        roots = self._roots(opened)
        if len(roots) > 1:
            del roots
            gc.collect()  # modules that refer to themselves outlive their use
            roots = self._roots(opened)
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

    def _roots(self, opened: Session) -> list[nn.Module]:
        modules = [module for module in (ref() for ref in self._modules.values()) if module is not None]
        parts = {id(child) for module in modules for child in module._modules.values()}
        drawn = {
            entry.place.key
            for entry in self.deferred.entries()
            if entry.session is opened and not isinstance(entry.distribution, Constant)
        }

        def is_drawn(module: nn.Module) -> bool:
            places = map(self.deferred.place_of, (*module.parameters(), *module.buffers()))
            return any(place is not None and place.key in drawn for place in places)

        tops = [module for module in modules if id(module) not in parts]
        with_draws = [module for module in tops if is_drawn(module)]
        return with_draws or (tops if len(tops) == 1 else [])


# --- the two modes ---------------------------------------------------------------------------------------------------


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep torch.compile out of the method below, torch would import it first: a second, in each process.
        return False

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._recorder.is_idle:
            return func(*args, **kwargs)
        if types and any(kind.__name__ == "FakeTensor" for kind in types):
            return func(*args, **kwargs)  # there is no memory behind it
        operators = self._recorder.operators
        with self._recorder.deferred.lock, torch._C.DisableTorchFunction():
            if any(_is_wrapper(kind) for kind in types):
                result = operators.run_sharded(func, tuple(args), kwargs)
                # It takes itself apart first, and what it is made of comes by here.
                return NotImplemented if result is NOT_HANDLED else result
            return operators.run(func, tuple(args), kwargs)


def _is_wrapper(kind: type) -> bool:
    """Tells whether a kind of tensors has a dispatch of its own."""
    dispatch = getattr(kind, "__torch_dispatch__", None)
    return dispatch is not None and dispatch not in (torch.Tensor.__torch_dispatch__, nn.Parameter.__torch_dispatch__)


# Ways to the memory of a tensor that are no operators.
_RAW = {
    function
    for function in (
        getattr(torch.Tensor, name, None)
        for name in (
            "__array__",
            "__deepcopy__",
            "__dlpack__",
            "__format__",
            "__reduce_ex__",
            "__repr__",
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
            "tolist",
            "untyped_storage",
        )
    )
    if function is not None
} | {torch.Tensor.__cuda_array_interface__.__get__}  # type: ignore[attr-defined]
# They read and are done; the others hand out an address that may be used later.
_READ_ONCE = {torch.Tensor.__deepcopy__, torch.Tensor.__format__, torch.Tensor.__repr__, torch.Tensor.tolist}
_ASKS_FOR_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
# Functions of torch.nn.init that draw, and do nothing at all to a tensor on the meta device (in some releases).
_SKIP_META = ("orthogonal_", "sparse_", "dirac_", "eye_")
_SETS_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class _Functions(TorchFunctionMode):
    """Sees the ways to a tensor's memory that are no operators."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        recorder = self._recorder
        if not recorder.is_idle:
            if func in _RAW:
                with recorder.deferred.paused():
                    for tensor in args:
                        if isinstance(tensor, torch.Tensor):
                            if func in _READ_ONCE:
                                recorder.operators.read(tensor)
                            else:
                                recorder.operators.expose(tensor)
            elif func == _SETS_DATA:
                recorder.deferred.generation += 1
            elif func == _ASKS_FOR_META:
                recorder.skipped(args[0])
        return func(*args, **(kwargs or {}))


# --- what is installed for the whole process, while any block is open ------------------------------------------------

_installed = 0
_installing = threading.Lock()
_uninstall = ExitStack()


@contextmanager
def _globally_installed() -> Iterator[None]:
    """Installs hooks that act in recorded threads only: names of modules, truncated normals, new threads."""
    global _installed
    with _installing:
        if _installed == 0:
            _install(_uninstall)
        _installed += 1
    try:
        yield
    finally:
        with _installing:
            _installed -= 1
            if _installed == 0:
                _uninstall.close()


def _install(stack: ExitStack) -> None:
    for register in (
        torch_modules.register_module_parameter_registration_hook,
        torch_modules.register_module_buffer_registration_hook,
        torch_modules.register_module_module_registration_hook,
    ):
        stack.callback(register(_saw).remove)
    # torch.nn.init.trunc_normal_ draws again what falls out of bounds: no operator of it stands for all of it. However
    # the public function was imported, it looks this one up when it is called.
    _replace(stack, torch.nn.init, "_no_grad_trunc_normal_", _truncated_normal)
    _replace(stack, threading.Thread, "start", _start)


def _replace(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    stack.callback(setattr, owner, name, original)


def _saw(module: nn.Module, name: str, value: object) -> None:
    recorder = _recorder.get()
    if recorder is not None and recorder.is_open:
        recorder.saw(module)


def _truncated_normal(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(original)
    def function(
        tensor: torch.Tensor, mean: float, std: float, a: float, b: float, generator: Any = None, **others: Any
    ) -> torch.Tensor:
        recorder = _recorder.get()
        is_plain = recorder is not None and not recorder.is_idle and generator is None and not others
        if is_plain and recorder.truncated_normal(original, tensor, mean, std, a, b):  # type: ignore[union-attr]
            return tensor
        if generator is not None:
            others["generator"] = generator  # an argument since torch 2.2
        return original(tensor, mean, std, a, b, **others)

    return function


def _start(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        recorder = _recorder.get()
        if recorder is not None and recorder.is_open:
            context, run = contextvars.copy_context(), thread.run
            thread.run = lambda: context.run(recorder.run_in_thread, run)  # type: ignore[method-assign]
        original(thread)

    return start

"""Watching a thread: which operators run, and which ways to memory are taken that are no operators.

A dispatch mode sees every operator (``operators`` says what each means to a fill that waits), a function mode sees the
likes of ``numpy()``. While any block is open some functions of torch and Python are hooked besides; the hooks act in
threads that are watched, and pass in all others.
"""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_modules

from ..errors import InitRuntimeError
from ..execution.calls import OpenCall, current_call
from ..execution.memory_book import MemoryBook
from ..execution.modes import entered, entered_modes, leave
from ..execution.pending_by_memory import ByMemory
from ..execution.scope import Scope
from .compilers import keep_out, keeping_out
from .generators import generator_functions
from .handlers import FILLS, HANDLERS
from .init_functions import (
    FUNCTIONS,
    InitFunctions,
    code_calling,
    code_for,
    is_torchs,
    run_init_function,
    truncated_normals,
    with_code,
)
from .libraries import model_class, with_what_it_leaves_out
from .operators import Operators
from .raw import MAKE_FROM_DATA, tensors_read, values_from_data, writes
from .shortcuts import INIT_FUNCTIONS, call, fans
from .torch_modes import Dispatch, Functions, others_see_functions, straight_to

_local = threading.local()


def _open_here() -> list[Watch]:
    """Returns the watch that this thread has opened, if any: torch's modes are a thread's, and not a task's."""
    if not hasattr(_local, "watches"):
        _local.watches = []
    return _local.watches  # type: ignore[no-any-return]


current_watch: ContextVar[Watch | None] = ContextVar("fastinit_watch", default=None)


class Watch:
    """What is installed while memory is watched, and what was seen, in the outermost call."""

    def __init__(self, call: OpenCall) -> None:
        self.book = MemoryBook()
        self.pending = ByMemory(self.book)
        scope = partial(_scope_within, call)
        self.operators = Operators(self.pending, scope, HANDLERS, FILLS)
        self.init_functions = InitFunctions(self.operators, scope)
        self.is_open = True
        self._modules: dict[int, weakref.ref[nn.Module]] = {}
        """Modules that got parameters, buffers or children."""
        self._modes: tuple[Functions | Dispatch, ...] = Functions(self), Dispatch(self)

    def open(self) -> None:
        """Begins to watch this thread.

        Raises:
            RuntimeError: another task of the thread has a block open.
        """
        if _open_here():
            self.is_open = False
            raise InitRuntimeError(
                "another task of this thread has a block of fastinit open (capture, build, materialize), and torch "
                "would mix up what both do. Let one end before the other begins, or run them in threads"
            )
        for mode in entered_modes():  # an interrupt within torch's own code may have left one
            if isinstance(mode, (Functions, Dispatch)) and not mode.watch.is_open:
                leave(mode)
        keep_out()
        _open_here().append(self)
        _install_for(self)
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Ends it, however far it has come; does nothing the second time."""
        self.is_open = False
        for mode in reversed(self._modes):
            leave(mode)
        if self in _open_here():
            _open_here().remove(self)
        _uninstall_from(self)
        self._modes = ()  # they refer to this: with no cycle, all that was recorded is freed at once

    @property
    def is_idle(self) -> bool:
        """Whether operators are to pass as they are: it is over, or they are fastinit's own."""
        return not self.is_open or self.book.is_paused

    def saw(self, module: nn.Module) -> None:
        """Notes that a module got a parameter, a buffer or a child."""
        self.book.generation += 1
        known = self._modules.get(number := id(module))
        if known is None or known() is not module:
            self._modules[number] = weakref.ref(module)

    def run_in_thread(self, run: Callable[[], object]) -> None:
        """Runs the work of a thread that was started in the block, recorded like the block's own."""
        if not self.is_open:
            run()
            return
        with entered(Functions(self)), entered(Dispatch(self)):
            run()

    def modules(self) -> list[nn.Module]:
        """Returns the modules that got a parameter, a buffer or a child and are alive, in that order."""
        return [module for module in (ref() for ref in self._modules.values()) if module is not None]

    def read_by(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs a function that reads memory unseen. What it makes of data without memory is kept."""
        with self.book.paused():
            for tensor in tensors_read(func, args, kwargs):
                self.operators.read(tensor)
        result = func(*args, **kwargs)
        with self.book.paused():
            if writes(func):
                self.operators.wrote(func.__name__, args[0])
            elif func in MAKE_FROM_DATA and isinstance(result, torch.Tensor) and (result.is_meta or not result.dim()):
                values = values_from_data(func, result, args, kwargs)
                if values is not None:
                    self.operators.made(result, values)
        return result


def _scope_within(call: OpenCall) -> Scope:
    """Returns the scope of the innermost open call: the watch's own where code runs in a context of its own."""
    return (current_call() or call).scope


# --- what is installed for the whole process, while any block is open ------------------------------------------------

_watches: set[Watch] = set()
"""Those that are open, in all threads."""
_installing = threading.RLock()  # a signal's handler may open a block of its own
_undo: list[Callable[[], object]] = []
"""What takes the hooks away, in order."""
_is_installed = False
_REGISTRIES = (
    torch_modules._global_parameter_registration_hooks,
    torch_modules._global_buffer_registration_hooks,
    torch_modules._global_module_registration_hooks,
)


def _install_for(watch: Watch) -> None:
    """Installs hooks that act in recorded threads only: names of modules, truncated normals, new threads."""
    global _is_installed
    with _installing:
        _watches.add(watch)
        if not _is_installed:
            _is_installed = True
            _install()


def _uninstall_from(watch: Watch) -> None:
    """Takes the hooks away if no watch needs them any more."""
    global _is_installed
    with _installing:
        _watches.discard(watch)
        if _is_installed and not _watches:
            for hooks in _REGISTRIES:
                for key in [key for key, hook in hooks.items() if hook is _saw]:
                    del hooks[key]
            while _undo:
                _undo[-1]()  # again, if an interrupt comes between
                del _undo[-1:]
            _is_installed = False


def _install() -> None:
    for register in (
        torch_modules.register_module_parameter_registration_hook,
        torch_modules.register_module_buffer_registration_hook,
        torch_modules.register_module_module_registration_hook,
    ):
        register(_saw)
    # However the public function was imported, it looks this one up when it is called.
    _replace(torch.nn.init, "_no_grad_trunc_normal_", partial(truncated_normals, _recording_init))
    for name, function in FUNCTIONS.items():
        _replace(function, "__code__", partial(code_for, name))
    for name, note in INIT_FUNCTIONS.items():
        torchs = getattr(torch.nn.init, name, None)
        if is_torchs(torchs):
            original = with_code(torchs, torchs.__code__)
            _replace(torchs, "__code__", partial(code_calling, partial(call, note, straight_to, original)))
    of_fans = torch.nn.init._calculate_fan_in_and_fan_out
    if is_torchs(of_fans):
        original = with_code(of_fans, of_fans.__code__)
        _replace(of_fans, "__code__", partial(code_calling, partial(fans, others_see_functions, original)))
    _replace(threading.Thread, "start", _start)
    _replace(torch, "compile", keeping_out)
    for name, make in generator_functions(_recording_operators).items():
        for module in (torch, torch.random):
            if hasattr(module, name):
                _replace(module, name, make)
    _install_for_transformers()


_hooked_model_class: Any = None


def _install_for_transformers() -> None:
    """Installs what transformers' models need, once it is imported; ``_installing`` is held."""
    global _hooked_model_class
    kind = model_class()
    if kind is None or kind is _hooked_model_class:
        return
    _hooked_model_class = kind
    _undo.append(_forget_model_class)
    _replace(kind, "init_weights", with_what_it_leaves_out(_is_recorded))


def _forget_model_class() -> None:
    global _hooked_model_class
    _hooked_model_class = None


def _is_recorded() -> bool:
    watch = current_watch.get()
    return watch is not None and not watch.is_idle


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    original = getattr(owner, name)
    _undo.append(partial(setattr, owner, name, original))
    setattr(owner, name, make(original))


def _saw(module: nn.Module, name: str, value: object) -> None:
    watch = current_watch.get()
    if watch is not None and watch.is_open:
        watch.saw(module)
        if _hooked_model_class is None and "transformers.modeling_utils" in sys.modules:  # imported in the block
            with _installing:
                if _is_installed:
                    _install_for_transformers()


def init_function(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a function of torch.nn.init, whose code asks for it here while blocks are open; see ``init_functions``."""
    return run_init_function(_recording_init(), name, args, kwargs)


def _recording_init() -> InitFunctions | None:
    watch = current_watch.get()
    return None if watch is None or watch.is_idle else watch.init_functions


def _recording_operators() -> Operators | None:
    watch = current_watch.get()
    return None if watch is None or watch.is_idle else watch.operators


def _start(original: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        watch = current_watch.get()
        if watch is not None and watch.is_open:
            context, run = contextvars.copy_context(), thread.run
            thread.run = lambda: context.run(watch.run_in_thread, run)  # type: ignore[method-assign]
        original(thread)

    return start

"""torch's functions about its default generator, in a recorded block: there a seed's draws come from another one.

Code that keeps the generator's state, to draw again what it has drawn or to draw something aside, gets that of the
generator which its draws come from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .operators import Operators


def generator_functions(recording: Callable[[], Operators | None]) -> dict[str, Callable[[Any], Any]]:
    """Returns what makes the functions that stand in for torch's, by their names.

    Args:
        recording: returns what interprets the operators of the code that runs, None where it is not recorded.
    """

    def own() -> torch.Generator | None:
        operators = recording()
        return None if operators is None else operators.own_generator()

    def manual_seed(original: Callable[..., torch.Generator]) -> Callable[..., torch.Generator]:
        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> torch.Generator:
            operators = recording()
            if operators is not None:
                operators.seeding.set()
            return original(*args, **kwargs)

        return function

    def get_rng_state(original: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        @functools.wraps(original)
        def function() -> torch.Tensor:
            generator = own()
            return original() if generator is None else generator.get_state()

        return function

    def set_rng_state(original: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
        @functools.wraps(original)
        def function(new_state: torch.Tensor) -> None:
            generator = own()
            if generator is None:
                original(new_state)
            else:
                generator.set_state(new_state)

        return function

    def fork_rng(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        @contextmanager
        def function(devices: Any = None, enabled: bool = True, *args: Any, **kwargs: Any) -> Iterator[None]:
            operators = recording() if enabled else None
            with ExitStack() as stack:
                if operators is not None and own() is not None:  # whose state the original gives back
                    stack.callback(torch.default_generator.set_state, torch.default_generator.get_state())
                stack.enter_context(original(devices, enabled, *args, **kwargs))
                if operators is not None:
                    operators.seeding.enter_fork()
                    stack.callback(operators.seeding.leave_fork)
                yield

        return function

    return {
        "manual_seed": manual_seed,
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "fork_rng": fork_rng,
    }

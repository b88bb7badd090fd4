"""Growth: twice as many views, rows or layers take twice as many steps, counted and not timed."""

from __future__ import annotations

import growing
import needs
import pytest
from steps import n_steps

SMALL = 64


@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs.mark(needs.CPP)), "torch"])
@pytest.mark.parametrize("name", list(growing.PROGRAMS))
def test_steps_grow_with_the_number_of_parts(name: str, backend: str) -> None:
    program = growing.PROGRAMS[name]
    program(2, backend)()  # what is done once in a process
    small, large = (n_steps(program(n, backend)) for n in (SMALL, 4 * SMALL))
    assert large < 4.5 * small

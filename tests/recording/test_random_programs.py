"""Random programs of operators give what they give without ``capture``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from capturing import captured, cpp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastinit.recording import operators

SLICES = [
    lambda t: t,
    lambda t: t[1],
    lambda t: t[1:3],
    lambda t: t[:, 1],
    lambda t: t.t(),
    lambda t: t.view(-1)[3:9],
    lambda t: t.view(-1)[::5],
    lambda t: t.view(2, 3, 4)[:, 1],
]

CONSTANT_STEPS = [
    lambda t, k: t.fill_(k),
    lambda t, k: t.zero_(),
    lambda t, k: t.mul_(k),
    lambda t, k: t.add_(k, alpha=2),
    lambda t, k: t.sub_(0.1),
    lambda t, k: t.div_(3),
    lambda t, k: t.clamp_(-k, k),
    lambda t, k: t.pow_(2),
    lambda t, k: t.copy_(torch.ones_like(t) * k),
    lambda t, k: t.copy_(t.clone() + 1),
    lambda t, k: t.index_fill_(0, torch.tensor([0]), k),
    lambda t, k: t.sum().item(),
    lambda t, k: t.data.fill_(k),
    lambda t, k: t.copy_(t.to(torch.float16)),
    lambda t, k: t.copy_(torch.full(t.shape, k).neg()),
]

RANDOM_STEPS = [
    lambda t, k: t.normal_(k, 2),
    lambda t, k: t.uniform_(-k, k),
    lambda t, k: nn.init.trunc_normal_(t, std=k),
    lambda t, k: t.uniform_(-0.5, 0.5).erfinv_(),  # (a truncated normal in full has other numbers when it waits)
    *CONSTANT_STEPS[:8],
    *CONSTANT_STEPS[10:13],
]


def programs(steps):
    step = st.tuples(
        st.integers(0, 1),
        st.integers(0, len(SLICES) - 1),
        st.integers(0, len(steps) - 1),
        st.sampled_from([0.5, 1.0, 3.0]),
    )
    return st.lists(step, max_size=12)


def run_program(model, program, steps):
    for which, view, step, number in program:
        steps[step](SLICES[view]((model.a, model.d)[which]), number)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(6, 4))


@cpp
@given(programs(CONSTANT_STEPS))
def test_programs_on_constants_match_execution_without_capture(program):
    plain, model = Two(), Two()
    with torch.no_grad():
        run_program(plain, program, CONSTANT_STEPS)
    captured(lambda m: run_program(m, program, CONSTANT_STEPS), model)
    assert torch.equal(torch.nan_to_num(plain.a), torch.nan_to_num(model.a))
    assert torch.equal(torch.nan_to_num(plain.d), torch.nan_to_num(model.d))


@cpp
@settings(max_examples=300)
@given(programs(RANDOM_STEPS))
def test_programs_match_execution_with_no_pending_fills(program):
    lazy, eager = Two(), Two()
    captured(lambda m: run_program(m, program, RANDOM_STEPS), lazy)
    original = operators.Operators.run

    def run_and_flush(self, func, args, kwargs):
        result = original(self, func, args, kwargs)
        self.pending.run(self.book.pending())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators.Operators, "run", run_and_flush)
        captured(lambda m: run_program(m, program, RANDOM_STEPS), eager)
    for one, other in zip(lazy.parameters(), eager.parameters()):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5, equal_nan=True)

"""Whoever reads a tensor under ``capture`` sees its values, by whatever way."""

from __future__ import annotations

import copy
import io
import pickle

import needs
import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from capturing import Holder, captured, cpp
from helpers import named_fill, same_bits
from torch import nn

import fastinit
from fastinit import plans

READS = {
    "mean": lambda t: t.mean().item(),
    "item": lambda t: t[0, 0].item(),
    "float": lambda t: float(t[0, 0]),
    "bool": lambda t: bool((t > 0)[0, 0]),
    "tolist": lambda t: t.tolist(),
    "repr": lambda t: repr(t),
    "format": lambda t: f"{t[1, 1]:.4f}",
    "numpy": lambda t: t.detach().numpy().copy().tolist(),
    "asarray": lambda t: np.asarray(t.detach()).tolist(),
    "dlpack": lambda t: np.from_dlpack(t.detach()).tolist(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t.detach())).tolist(),
    "save": lambda t: (lambda f: (torch.save(t, f), f.seek(0), torch.load(f).tolist())[-1])(io.BytesIO()),
    "storage": lambda t: list(t.detach().untyped_storage())[:8],
    "deepcopy": lambda t: copy.deepcopy(t.detach()).tolist(),
    "cat": lambda t: torch.cat([t, t]).tolist(),
    "foreach": lambda t: torch._foreach_norm([t])[0].item(),
    "stack of lists": lambda t: torch.stack([t, t])[1].tolist(),
    "matmul": lambda t: (t @ t.t()).tolist(),
    "backward": lambda t: torch.autograd.grad((t**3).sum(), t)[0].tolist(),
    "equal": lambda t: torch.equal(t, torch.zeros_like(t)),
    "unique": lambda t: t.unique().tolist(),
    "iterate": lambda t: [row[0].item() for row in t],
    "script": lambda t: torch.jit.script(_twice)(t).tolist(),
}


def _twice(x: torch.Tensor):
    return x * x.abs()


@cpp
@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("draw", [lambda t: t.normal_(), lambda t: t.fill_(3)], ids=["normal", "constant"])
@pytest.mark.filterwarnings("ignore")
def test_reading_a_parameter_in_a_block_runs_its_fill(read, draw):
    model, seen = Holder(), []
    with fastinit.capture(model, backend="cpp", seed=0) as recipe:
        draw(model.a.data)
        seen.append(read(model.a))
        model.b.data.normal_()
    assert seen == [read(model.a)]
    assert not model.a.isnan().any()
    assert recipe.report.unkeyed == ()
    assert len(recipe.fills) == 2


@cpp
def test_memory_with_an_exposed_address_is_filled_at_once():
    model, seen = Holder(), []
    array = np.zeros(24, np.float32)
    model.from_numpy = nn.Parameter(torch.from_numpy(array))
    with fastinit.capture(model, backend="cpp", seed=0), torch.no_grad():
        view = model.a.numpy()
        pointer = model.b.data_ptr()
        model.a.normal_()
        model.b.fill_(4)
        model.from_numpy.uniform_()
        if not hasattr(torch.UntypedStorage, "resizable"):  # torch 2.1 does not tell whose memory it is
            model.from_numpy.mean().item()
        import ctypes

        seen += [view.copy(), ctypes.c_float.from_address(pointer).value, array.copy()]
    assert np.array_equal(seen[0], model.a.detach().numpy())
    assert seen[1] == 4
    assert np.array_equal(seen[2], model.from_numpy.detach().numpy())
    assert seen[2].std() > 0.1
    assert same_bits(model.a, named_fill("a", (6, 4), plans.Normal(0, 1)))


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=cpp)])
def test_unknown_operators_run_as_written(backend):
    def code(m):
        m.a.normal_()
        m.b.normal_()
        m.c.uniform_()
        torch.mul(m.a, 0, out=m.b.view(6, 4))
        torch.arange(24, out=m.c)
        m.a[torch.tensor([1, 3])] = 5
        m.a.index_fill_(1, torch.tensor([0]), 6)
        m.c.masked_fill_(m.c > 20, -1)
        torch._foreach_add_([m.b], 2)
        m.c.data[:2].copy_(m.b.data.flatten()[:2])

    model, recipe = captured(code, backend=backend)
    assert (model.b == 2).all()
    assert model.c.tolist() == [2, 2, *range(2, 21), -1, -1, -1]
    assert (model.a[1, 1:] == 5).all()
    assert (model.a[:, 0] == 6).all()
    assert model.a[0, 1:].std() > 0
    assert set(recipe.unknown) == {"a", "b", "c"}
    assert recipe.report.unreached == ()


@cpp
def test_device_contexts_and_foreign_modes_nest_with_capture():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    with fastinit.capture(backend="cpp", seed=0) as recipe, torch.device("cpu"), Count() as inner:
        model = nn.Linear(4, 4)
    assert inner.n > 0
    assert recipe.report.unkeyed == ()
    with Count(), torch.device("cpu"), fastinit.capture(backend="cpp", seed=0):
        other = nn.Linear(4, 4)
    assert same_bits(model.weight, other.weight)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with fastinit.capture(backend="cpp", seed=0) as recipe:
        with FakeTensorMode():
            nn.Linear(3, 3)
        model = nn.Linear(4, 4)
        recipe.bind(model)
    assert same_bits(model.weight, other.weight)


@needs.mark(needs.CPP, needs.torch_from(2, 2))  # which has a subclass for tests
def test_wrapper_subclasses_of_tensors_are_unwrapped():
    from torch.testing._internal.two_tensor import TwoTensor

    with fastinit.capture(backend="cpp", seed=0):
        a, b = torch.empty(3).fill_(2), torch.empty(3).fill_(3)
        both = TwoTensor(a, b)
        both.add_(1)
        total = both + both
    assert total.a.tolist() == [6, 6, 6]
    assert total.b.tolist() == [8, 8, 8]
    assert a.tolist() == [3, 3, 3]

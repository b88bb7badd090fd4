"""Modules with loading code of their own; loads in threads and forks."""

from __future__ import annotations

import subprocess
import sys
import threading

import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from loading import ACCESS, net, save, source_of
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit


@pytest.mark.parametrize("access", ACCESS)
def test_loading_code_and_hooks_get_tensors_that_behave_like_tensors(tmp_path, access):
    class Stacks(nn.Linear):
        """Old checkpoints hold two halves; the new weight is their sum, transposed."""

        def _load_from_state_dict(self, state, prefix, *args):
            first, second = state.pop(prefix + "first"), state.pop(prefix + "second")
            assert isinstance(first, torch.Tensor)
            assert first.shape == (4, 3)
            state[prefix + "weight"] = (torch.cat([first[:2], second[2:]]) * 2).t()
            super()._load_from_state_dict(state, prefix, *args)
            with torch.no_grad():
                self.weight += 1  # the values are in place when the call is over

    class Resizes(nn.Embedding):
        def __init__(self):
            super().__init__(8, 2)
            self._register_load_state_dict_pre_hook(self._resize)

        def _resize(self, state, prefix, *_):
            old = state[prefix + "weight"]
            if old.size(0) != 8:
                grown = nn.functional.interpolate(old.t()[None], size=8)[0].t()
                state[prefix + "weight"] = grown

    state = {
        "0.first": torch.full((4, 3), 1.0),
        "0.second": torch.full((4, 3), 2.0),
        "0.bias": torch.ones(3),
        "1.weight": torch.arange(8.0).view(4, 2),
    }
    torch.save(state, tmp_path / "c.pth")
    made, again = nn.Sequential(Stacks(4, 3), Resizes()), nn.Sequential(Stacks(4, 3), Resizes())
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    theirs.load_checkpoint(again, str(tmp_path / "c.pth"), map_location="cpu", logger="silent")
    assert_same_tensors(tensors(made), tensors(again))
    assert made[0].weight[0].tolist() == [3, 3, 5, 5]


def test_other_writes_of_loading_code_are_recorded(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            self.bias.data.fill_(3)  # which counts in no version

    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, tmp_path / "c.pth")
    report = fastinit.initialize(Own(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert report.unreached == ()
    assert "load from" in report.provenance["bias"]


def test_threads_may_load_at_the_same_time(tmp_path):
    source = source_of(net)
    save(source, tmp_path / "c.pth", "zip")
    models = [net() for _ in range(8)]
    cfg = dict(type="Pretrained", checkpoint=tmp_path / "c.pth")
    threads = [threading.Thread(target=fastinit.initialize, args=(each, cfg)) for each in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in models:
        assert_same_tensors(tensors(each), tensors(source))


@needs.mark(needs.FORK)
def test_a_forked_process_loads_with_threads_of_its_own(tmp_path):
    code = f"""
import os, torch, fastinit
torch.save({{"a": torch.arange(5_000_000.0)}}, {str(tmp_path / "c.pth")!r})
models = [torch.nn.ParameterDict({{"a": torch.nn.Parameter(torch.zeros(5_000_000))}}) for _ in range(2)]
def load():
    made = models.pop()  # torch's own threads do not survive a fork: the child must not use them
    fastinit.initialize(made, dict(type="Pretrained", checkpoint={str(tmp_path / "c.pth")!r}, access="read"))
    return made["a"][-1].item()
load()
child = os.fork()
if not child:
    os._exit(0 if load() == 4_999_999 else 1)
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr

"""A load is one batch of reads: in the files' order, and as good as copies made one after the other."""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from collections import OrderedDict

import mmengine.runner.checkpoint as theirs
import pytest
import safetensors.torch
import torch
from helpers import assert_same_tensors, tensors
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import batches, files, placing

ACCESS = ["auto", "map", "read"]


def stack(n=12, width=3):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(n)))


def values_for(model, seed=0):
    """A state dict with other values for every tensor of a model."""
    torch.manual_seed(seed)
    return OrderedDict((key, torch.rand_like(value)) for key, value in model.state_dict().items())


def load_as_torch_does(make, path, access="auto", **saved):
    """Loads a file into two models, by us and by mmengine, whose values must be the same; returns ours."""
    made, again = make(), make()
    ours.load_checkpoint(made, path, access=access, logger="silent")
    theirs.load_checkpoint(again, str(path), map_location="cpu", logger="silent")
    assert_same_tensors(tensors(made), tensors(again))
    return made


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that were read, and how many batches they came in."""
    seen, n_batches = [], []
    read_job, run = batches._read, batches.run
    monkeypatch.setattr(batches, "_read", lambda job: (seen.append(job), read_job(job))[1])
    monkeypatch.setattr(placing, "run", lambda pieces: (n_batches.append(1), run(pieces))[1])
    return seen, n_batches


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_a_load_is_one_batch_in_the_files_order(tmp_path, jobs, monkeypatch, kind):
    made = stack()
    state = values_for(made)
    keys = list(state)
    random.Random(1).shuffle(keys)
    shuffled = {key: state[key] for key in keys}
    if kind == "zip":
        torch.save(shuffled, tmp_path / "c")
    else:
        safetensors.torch.save_file(shuffled, tmp_path / "c")
    calls = []
    preadv = os.preadv
    monkeypatch.setattr(files.os, "preadv", lambda *args: (calls.append(args), preadv(*args))[1])
    ours.load_checkpoint(made, tmp_path / "c", logger="silent", strict=True)
    assert_same_tensors(dict(made.state_dict()), dict(state))
    seen, n_batches = jobs
    n_of_pickle = kind == "zip"  # which is read before
    # Neighbours by one system call, over what lies between.
    assert len(n_batches) == len(seen) == len(calls) - n_of_pickle == 1
    offsets = [offset for offset, _, _ in seen[0].parts]
    assert offsets == sorted(offsets) and len(offsets) == len(state)


def test_large_and_small_tensors_are_cut_into_jobs_that_hold_every_byte_once(tmp_path, jobs, monkeypatch):
    for name in ("PIECE_BYTES", "MAPPED_PIECE_BYTES"):
        monkeypatch.setattr(batches, name, 1000)
    made = nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(n)) for i, n in enumerate([1, 700, 3, 251, 249, 1, 0])})
    state = values_for(made)
    torch.save(state, tmp_path / "c.pth")
    for access in ACCESS:
        for parameter in made.values():
            parameter.data.zero_()
        ours.load_checkpoint(made, tmp_path / "c.pth", access=access, logger="silent")
        assert_same_tensors(dict(made.state_dict()), dict(state))
    seen, _ = jobs
    assert len(seen) >= 3 * 5 and max(job.n_bytes for job in seen) <= 1000
    assert sum(job.n_bytes for job in seen) == 3 * sum(value.nbytes for value in state.values())


@pytest.mark.parametrize("at_once", [1, 7, 40, 150])
def test_reads_that_come_back_short_go_on_where_they_stopped(tmp_path, monkeypatch, at_once):
    made = stack(4)
    state = values_for(made)
    torch.save(state, tmp_path / "c.pth")

    def short(fd, buffers, offset):
        left, some = at_once, []
        for each in buffers:
            some.append(each[:left])
            left -= len(some[-1])
        return preadv(fd, [each for each in some if len(each)], offset)

    preadv = os.preadv
    monkeypatch.setattr(files.os, "preadv", short)
    ours.load_checkpoint(made, tmp_path / "c.pth", access="read", logger="silent", strict=True)
    assert_same_tensors(dict(made.state_dict()), dict(state))


# --- code that looks meanwhile ---------------------------------------------------------------------------------------


class Looks(nn.Linear):
    """Its loading code uses a neighbour's values, and changes them."""

    neighbour: list[nn.Linear]

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        with torch.no_grad():
            self.weight += self.neighbour[0].weight
            self.neighbour[0].bias *= 2


class HasState(nn.Linear):
    neighbour: list[nn.Linear]

    def get_extra_state(self):
        return 2

    def set_extra_state(self, state):
        with torch.no_grad():
            self.weight.mul_(state).add_(self.neighbour[0].bias)


def before(module, *_):
    def hook(*_):
        with torch.no_grad():
            module.neighbour[0].weight.neg_()

    module._register_load_state_dict_pre_hook(hook)


def after(module, *_):
    def hook(module, keys):
        with torch.no_grad():
            module.weight.copy_(module.neighbour[0].weight)

    module.register_load_state_dict_post_hook(hook)


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize(
    ("kind", "prepare"),
    [(Looks, None), (HasState, None), (nn.Linear, before), (nn.Linear, after)],
    ids=["own code", "extra state", "pre-hook", "post-hook"],
)
def test_loading_code_sees_the_values_of_torchs_load_state_dict(tmp_path, access, at, kind, prepare):
    def make():
        torch.manual_seed(5)
        made = stack(5)
        made[at] = kind(3, 3)
        made[at].neighbour = [made[1]]
        if prepare is not None:
            prepare(made[at])
        return made

    state = values_for(stack(5))
    if kind is HasState:
        state[f"{at}._extra_state"] = 2
    torch.save(state, tmp_path / "c.pth")
    made = load_as_torch_does(make, tmp_path / "c.pth", access)
    as_in_file = [torch.equal(made[n].weight, state[f"{n}.weight"]) for n in (1, at)]
    assert not all(as_in_file) or (prepare is before and at == 0)  # where the hook's work is overwritten


def test_a_root_hook_costs_one_batch_and_sees_all_values(tmp_path, jobs):
    made = stack()
    state = values_for(made)
    torch.save(state, tmp_path / "c.pth")
    sums = []
    made.register_load_state_dict_post_hook(lambda module, keys: sums.append(float(module[-1].weight.detach().sum())))
    ours.load_checkpoint(made, tmp_path / "c.pth", logger="silent", strict=True)
    assert len(jobs[1]) == 1 and sums == [float(state["11.weight"].sum())]


# --- destinations and sources that share memory ----------------------------------------------------------------------


class Overlapping(nn.Module):
    """Parameters over one buffer, whose memory meets in part."""

    def __init__(self, order):
        super().__init__()
        base = torch.zeros(30)
        views = {
            "a": base[0:10],
            "b": base[5:15],
            "c": base[8:24:2],
            "d": base[20:24],
            "e": base[0:4].view(2, 2),
            "f": base[0:4].view(2, 2).t(),
            "g": base[24:27],
            "h": base[26:30],
        }
        for name in order:
            self.register_parameter(name, nn.Parameter(views[name]))
        self.base = base


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("order", ["abcdefgh", "hgfedcba", "cafebdgh", "dbfecahg"])
def test_the_later_of_overlapping_destinations_wins(tmp_path, access, order):
    torch.save(values_for(Overlapping("abcdefgh")), tmp_path / "c.pth")
    made, again = Overlapping(order), Overlapping(order)
    ours.load_checkpoint(made, tmp_path / "c.pth", access=access, logger="silent", strict=True)
    again.load_state_dict(torch.load(tmp_path / "c.pth"))
    assert torch.equal(made.base, again.base) and made.base.count_nonzero() == 27


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")], ids="".join)
def test_state_dicts_may_hold_the_models_own_tensors(tmp_path, names):
    def make():
        torch.manual_seed(0)
        return nn.ParameterDict({name: nn.Parameter(torch.rand(4)) for name in names})

    torch.save({"x": torch.full((4,), 7.0)}, tmp_path / "c.pth")
    made, again = make(), make()
    for model, x in ((made, read(tmp_path / "c.pth", Reading())["x"]), (again, torch.full((4,), 7.0))):
        swapped = {"a": model["b"], "b": model["a"]}
        mixed = {"a": x, "b": model["a"]}  # b gets what a has been given, or had
        for state in (swapped, mixed):
            (ours if model is made else theirs).load_state_dict(model, state, strict=True)
    assert_same_tensors(tensors(made), tensors(again))


# --- the surroundings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "context", [torch.device("meta"), torch.inference_mode(), torch.enable_grad()], ids=["meta", "inference", "grad"]
)
def test_modes_of_torch_around_a_load_change_nothing(tmp_path, context):
    made = nn.Sequential(nn.Linear(3, 3).to(torch.bfloat16), nn.Conv2d(2, 2, 2).to(memory_format=torch.channels_last))
    state = values_for(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(2, 2, 2)))
    torch.save(state, tmp_path / "c.pth")
    with context:
        ours.load_checkpoint(made, tmp_path / "c.pth", logger="silent", strict=True)
    expected = {key: value.to(made.state_dict()[key].dtype) for key, value in state.items()}
    assert_same_tensors(dict(made.state_dict()), expected)
    again = copy.deepcopy(made)
    ours.load_checkpoint(again, tmp_path / "c.pth", logger="silent", strict=True)
    assert again[0].weight.requires_grad and not again[0].weight.is_inference()


def test_no_thread_writes_after_an_error_was_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "PIECE_BYTES", 1000)
    torch.save({"weight": torch.ones(40, 100)}, tmp_path / "c.pth")
    working, lock, n_started = [0], threading.Lock(), [0]
    original = batches._read

    def slow(job):
        with lock:
            n_started[0] += 1
            mine = n_started[0]
            working[0] += 1
        try:
            if mine == 2:
                raise OSError("the disk is gone")
            time.sleep(0.05)
            return original(job)
        finally:
            with lock:
                working[0] -= 1

    monkeypatch.setattr(batches, "_read", slow)
    with pytest.raises(OSError, match=r"the disk is gone\. The model may be partly loaded"):
        ours.load_checkpoint(nn.Linear(100, 40, bias=False), tmp_path / "c.pth", logger="silent")
    assert working[0] == 0 and n_started[0] < 16


@pytest.mark.parametrize(("apart", "share"), [(20_000, 0.1), (200, 1.1)])
def test_reading_distant_rows_reads_only_their_bytes(tmp_path, jobs, apart, share):
    torch.save({"w": torch.arange(50.0 * apart).view(50, apart)}, tmp_path / "c.pth")
    whole = read(tmp_path / "c.pth", Reading())["w"]
    part = torch.zeros(50, 100)
    part.copy_(whole.part((0, 50), (50, 100)))
    assert torch.equal(part, torch.arange(50.0 * apart).view(50, apart)[:, 50:150])
    assert sum(job.n_bytes for job in jobs[0]) < share * 50 * apart * 4


def test_only_reordered_or_converted_tensors_use_a_staging_buffer(tmp_path, jobs):
    made = nn.ParameterDict(
        {
            "same": nn.Parameter(torch.zeros(6, 4)),
            "turned": nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)),
            "transposed": nn.Parameter(torch.zeros(4, 6).t()),
        }
    )
    state = {name: torch.rand(6, 4) for name in made}
    torch.save(state, tmp_path / "c.pth")
    ours.load_checkpoint(made, tmp_path / "c.pth", logger="silent", strict=True)
    assert all(torch.equal(made[name].float(), state[name]) for name in state)
    (job,) = jobs[0]
    assert {tuple(piece.destination.stride()) for _, piece in job.turned} == {(1,), (1, 6)}
    assert sum(place >= 0 for _, _, place in job.parts) == 1


def test_the_garbage_collector_is_restored_after_a_load(tmp_path):
    import gc

    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "c.pth")
    for state in (gc.enable, gc.disable):
        state()
        try:
            was = gc.isenabled()
            ours.load_checkpoint(nn.Linear(2, 2, bias=False), tmp_path / "c.pth", logger="silent")
            with pytest.raises(RuntimeError):
                ours.load_checkpoint(nn.Linear(2, 3), tmp_path / "c.pth", logger="silent", strict=True)
            assert gc.isenabled() == was
        finally:
            gc.enable()


@pytest.mark.parametrize("access", ACCESS)
def test_initialize_and_load_checkpoint_give_the_same(tmp_path, access):
    state = values_for(stack())
    torch.save(state, tmp_path / "c.pth")
    made = stack()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    assert_same_tensors(dict(made.state_dict()), dict(state))
    assert report.checkpoints[0].result.copied == tuple(state)

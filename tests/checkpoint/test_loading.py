"""From a checkpoint file into a model: copying and adopting, and what they cost."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import batches, placing

safetensors = needs.module("safetensors.torch")

ACCESS = ["map", "read"]


def net():
    """A model with layers that load in their own ways, tied weights and a frozen parameter."""
    made = nn.ModuleDict(
        {
            "tokens": nn.Embedding(50, 16),
            "conv": nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last),
            "norm": nn.BatchNorm2d(8),
            "attention": nn.MultiheadAttention(16, 2),
            "lstm": nn.LSTM(4, 4),
            "head": nn.Linear(16, 50),
        }
    )
    made["head"].weight = made["tokens"].weight
    made["attention"].out_proj.bias.requires_grad_(False)
    made.register_buffer("counter", torch.tensor(3))
    return made


def source_of(make, seed=1):
    torch.manual_seed(seed)
    source = make()
    for tensor in source.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor.float()))
        else:
            tensor.fill_(7)
    return source


def save(source, path, kind):
    if kind == "safetensors":
        safetensors.save_model(source, str(path))
    else:
        torch.save({"state_dict": source.state_dict()}, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.fixture(params=[8 << 20, 48], ids=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    for name in ("PIECE_BYTES", "MAPPED_PIECE_BYTES"):
        monkeypatch.setattr(batches, name, request.param)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
def test_a_model_gets_the_values_of_the_file_bit_for_bit(tmp_path, pieces, access, kind):
    source = source_of(net)
    save(source, tmp_path / "c", kind)
    made, again = net(), net()
    addresses = [p.data_ptr() for p in made.parameters()]
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c", access=access, strict=True))
    assert_same_tensors(tensors(made), tensors(source))
    assert [p.data_ptr() for p in made.parameters()] == addresses and made["head"].weight is made["tokens"].weight
    result = report.checkpoints[0].result
    assert set(result.copied) == set(made.state_dict()) and result.missing == result.unexpected == ()
    assert report.unreached == ()
    if kind != "safetensors":
        theirs.load_checkpoint(again, str(tmp_path / "c"), map_location="cpu", logger="silent")
        assert_same_tensors(tensors(made), tensors(again))


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("into", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_values_take_the_models_dtype_as_copy_does(tmp_path, pieces, access, into, stored):
    values = torch.randn(30, 11).mul(3).to(stored)
    torch.save({"a": values}, tmp_path / "c.pth")
    made = nn.ParameterDict({"a": nn.Parameter(torch.zeros(30, 11, dtype=into))})
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access))
    assert made["a"].dtype == into and torch.equal(made["a"], torch.zeros_like(made["a"]).copy_(values))


@pytest.mark.parametrize("access", ACCESS)
def test_layouts_of_both_sides_may_differ(tmp_path, pieces, access):
    base = torch.randn(6, 8, 4)
    sources = {
        "plain": base,
        "transposed": base.transpose(0, 2).contiguous().transpose(0, 2),
        "part": torch.randn(12, 8, 4)[3:9],
        "steps": torch.randn(6, 16, 4)[:, ::2],
        "expanded": torch.randn(1, 8, 1).expand(6, 8, 4),
        "ones": torch.randn(6, 8, 4, 1)[..., 0],
    }
    torch.save(sources, tmp_path / "c.pth")
    destinations = {
        "plain": torch.zeros(6, 8, 4),
        "transposed": torch.zeros(4, 8, 6).transpose(0, 2),
        "part": torch.zeros(10, 8, 4)[2:8],
        "steps": torch.zeros(6, 8, 8)[..., ::2],
    }
    tree = read(tmp_path / "c.pth", Reading(access=access))
    for stored in tree.values():
        for destination in destinations.values():
            before = destination._version
            assert destination.zero_().copy_(stored) is destination and destination._version > before
            assert torch.equal(destination, stored)
    assert torch.zeros(2, 6, 8, 4).copy_(tree["plain"])[1].equal(base)  # broadcast
    with pytest.raises(RuntimeError, match="size"):
        torch.zeros(5).copy_(tree["plain"])


def test_tensors_at_odd_addresses_of_a_file_are_copied_and_adopted(tmp_path):
    table = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[3],"data_offsets":[1,13]}}'
    )
    content = len(table).to_bytes(8, "little") + table + b"\x05" + torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes()
    (tmp_path / "c.safetensors").write_bytes(content)
    for options in (dict(access="map"), dict(access="read"), dict(assign=True)):
        made = nn.ParameterDict({"b": nn.Parameter(torch.zeros(3))})
        made.register_buffer("a", torch.zeros(1, dtype=torch.uint8))
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.safetensors", **options))
        assert made["b"].tolist() == [1, 2, 3] and made.a.item() == 5


def test_a_tied_weight_is_copied_once(tmp_path, monkeypatch):
    source = source_of(net)
    save(source, tmp_path / "c.pth", "zip")
    copied = []
    original = placing.run_copies
    monkeypatch.setattr(
        placing, "run_copies", lambda copies: original(each for each in copies if copied.append(each[0]) or 1)
    )
    made = net()
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert sum(each is made["head"].weight for each in copied) == 1
    # a state dict with other values for the second name: the last one counts, as in torch
    state = OrderedDict(source.state_dict())
    state["head.weight"] = torch.ones(50, 16)
    torch.save(state, tmp_path / "d.pth")
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "d.pth"))
    assert (made["tokens"].weight == 1).all()


def test_a_tied_weight_that_the_file_has_under_one_name_is_not_missing(tmp_path):
    source = source_of(net)
    state = source.state_dict()
    del state["head.weight"]
    torch.save(state, tmp_path / "c.pth")
    made = net()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=True))
    assert report.checkpoints[0].result.missing == () and torch.equal(made["head"].weight, source["tokens"].weight)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_strict_finds_out_before_anything_is_written(tmp_path, strict):
    state = source_of(net).state_dict()
    state["conv.weight"] = torch.zeros(1, 2)
    state["more"] = torch.zeros(1)
    del state["norm.bias"]
    torch.save(state, tmp_path / "c.pth")
    made = net()
    before = copy.deepcopy(tensors(made))
    load = [
        lambda: fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", strict=strict)),
        lambda: ours.load_checkpoint(made, tmp_path / "c.pth", strict=strict, logger="silent"),
        lambda: ours.load_state_dict(made, state, strict=strict, logger="silent"),
    ]
    for each in load:
        if strict:
            with pytest.raises(
                RuntimeError,
                match=r"(?s)size mismatch for conv.weight.*unexpected key.*: more.*missing keys.*: norm.bias",
            ):
                each()
            assert_same_tensors(tensors(made), before)
        else:
            each()
    if not strict:
        assert torch.equal(made["head"].weight, state["head.weight"])


def test_strict_still_raises_where_modules_have_loading_code_of_their_own(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match="missing keys in source state_dict: bias"):
        ours.load_checkpoint(Own(2, 2), tmp_path / "c.pth", strict=True)


@pytest.mark.parametrize("key", [None, "teacher", "ema.model"])
def test_the_weights_may_lie_under_a_key(tmp_path, key):
    at = {None: 1.0, "teacher": 2.0, "ema.model": 3.0}
    states = {name: {"weight": torch.full((2, 2), value)} for name, value in at.items()}
    torch.save(
        {"model": states[None], "teacher": states["teacher"], "ema": {"model": states["ema.model"]}, "epoch": 1},
        tmp_path / "c.pth",
    )
    made = nn.Linear(2, 2, bias=False)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", key=key))
    assert (made.weight == at[key]).all()
    ours.load_checkpoint(made, tmp_path / "c.pth", key=key, logger="silent", strict=True)


def test_a_key_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    torch.save({"model": {"weight": torch.ones(2, 2)}, "ema": {}, "epoch": 1}, tmp_path / "c.pth")
    with pytest.raises(
        RuntimeError, match=r"c\.pth: the checkpoint has no key 'student'. Those that hold dicts are: 'model', 'ema'"
    ):
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth", key="student"))


def test_of_several_usual_keys_mmengines_counts_first(tmp_path):
    torch.save(
        {"state_dict_ema": {"weight": torch.zeros(1, 1)}, "model": {"weight": torch.ones(1, 1)}}, tmp_path / "a.pth"
    )
    torch.save({"state_dict_ema": {"weight": torch.zeros(1, 1)}, "epoch": 3}, tmp_path / "b.pth")
    torch.save({"model": torch.full((1, 1), 5.0)}, tmp_path / "c.pth")  # a bare state dict with a tensor of that name
    made = nn.Linear(1, 1, bias=False)
    for name, value in (("a", 1), ("b", 0)):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / f"{name}.pth"))
        assert made.weight.item() == value
    bare = nn.ParameterDict({"model": nn.Parameter(torch.zeros(1, 1))})
    fastinit.initialize(bare, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert bare["model"].item() == 5


def test_keys_are_revised_before_the_prefix_counts(tmp_path):
    torch.save({"net.stem.weight": torch.ones(2, 2), "net.head.weight": torch.zeros(2, 2)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2, bias=False)
    revise = [(r"^net\.", "backbone."), (r"\.stem\.", ".first.")]
    cfg = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", prefix="backbone.first", revise_keys=revise)
    fastinit.initialize(made, cfg)
    assert (made.weight == 1).all()
    ours.load_checkpoint(made, tmp_path / "c.pth", prefix="backbone.head.", revise_keys=revise[:1], logger="silent")
    assert (made.weight == 0).all()


@pytest.mark.parametrize("access", ACCESS)
def test_dtype_rounds_on_the_way(tmp_path, pieces, access):
    values = torch.randn(40, 5)
    torch.save({"weight": values, "bias": torch.ones(40), "n": torch.tensor(3)}, tmp_path / "c.pth")
    made = nn.Linear(5, 40)
    made.register_buffer("n", torch.tensor(0))
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", dtype="bfloat16", access=access))
    assert made.weight.dtype == torch.float32 and torch.equal(made.weight, values.bfloat16().float()) and made.n == 3
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", dtype=torch.bfloat16, assign=True))
    assert (
        made.weight.dtype == torch.bfloat16
        and torch.equal(made.weight, values.bfloat16())
        and made.n.dtype == torch.int64
    )


# --- adopting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
def test_a_meta_model_adopts_the_files_tensors(tmp_path, access, kind):
    source = source_of(net)
    save(source, tmp_path / "c", kind)
    content = (tmp_path / "c").read_bytes()
    with torch.device("meta"):
        made = net()
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c", assign=True, access=access))
    assert_same_tensors(tensors(made), tensors(source))
    assert made["head"].weight is made["tokens"].weight and report.unreached == ()
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in source.parameters()]
    assert all(type(p) is nn.Parameter for p in made.parameters())
    assert sorted(row.parameter for row in report.rows) == sorted(set(made.state_dict()) - {"head.weight"})
    # training does not change the file, and what is saved of one tensor is that tensor
    loss = sum(parameter.sum() for parameter in made.parameters() if parameter.requires_grad)
    loss.backward()
    torch.optim.SGD(made.parameters(), 0.1).step()
    assert not torch.equal(made["conv"].weight, source["conv"].weight) and (tmp_path / "c").read_bytes() == content
    torch.save(made["norm"].weight, tmp_path / "one.pth")
    assert (tmp_path / "one.pth").stat().st_size < 5000


@needs.mark(needs.LINUX)
def test_what_is_adopted_is_mapped_and_not_read(tmp_path):
    torch.save({"weight": torch.ones(1000, 1000), "bias": torch.ones(1000)}, tmp_path / "c.pth")
    with torch.device("meta"):
        made = nn.Linear(1000, 1000)
    ours.load_checkpoint(made, tmp_path / "c.pth", assign=True, logger="silent")
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / "c.pth") in line]
    assert lines and all(" rw-p " in line for line in lines)
    del made
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_adopting_into_a_model_with_memory_gives_it_the_files_dtype(tmp_path):
    torch.save({"weight": torch.ones(2, 2, dtype=torch.bfloat16), "other": torch.ones(1)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2)
    bias = made.bias
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=True))
    assert made.weight.dtype == torch.bfloat16 and made.bias is bias
    assert report.checkpoints[0].result.copied == ("weight",) and report.unreached == ("bias",)


def test_rules_behind_an_adopting_one_write_the_adopted_tensors(tmp_path):
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2)
    rules = [
        dict(type="Normal", layer="Linear"),
        dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=True),
        dict(type="Constant", param="bias", val=5),
    ]
    for backend in ("torch", "cpp"):
        report = fastinit.initialize(made, rules, backend=backend, seed=0)
        assert (made.weight == 1).all() and (made.bias == 5).all()
        assert report.provenance["bias"] == "ConstantInit: val=5" and "load from" in report.provenance["weight"]


def test_a_tree_of_base_modules_adopts(tmp_path):
    class Part(fastinit.BaseModule):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg)
            self.fc = nn.Linear(2, 2)

    torch.save({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, tmp_path / "c.pth")
    tree = fastinit.Sequential(
        Part(dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), assign=True)),
        Part(dict(type="Constant", layer="Linear", val=3)),
    )
    tree.init_weights()
    assert (tree[0].fc.weight == 1).all() and (tree[1].fc.weight == 3).all()
    assert "load from" in tree.last_init_report.provenance["0.fc.weight"]


def test_a_copy_into_a_meta_model_is_refused_with_what_to_do(tmp_path):
    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "c.pth")
    with torch.device("meta"):
        made = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"'weight' of Linear is on the meta device .*assign=True"):
        ours.load_checkpoint(made, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match="meta device"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))


def test_materialize_and_pretrained_go_together(tmp_path):
    source = source_of(net)
    save(source, tmp_path / "c.pth", "zip")
    for assign in (False, True):
        with torch.device("meta"):
            made = net()
        fastinit.materialize(made, dict(type="Pretrained", checkpoint=tmp_path / "c.pth", assign=assign))
        assert_same_tensors(tensors(made), tensors(source))


# --- modules with code of their own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ACCESS)
def test_loading_code_and_hooks_get_tensors_that_behave_like_tensors(tmp_path, access):
    class Stacks(nn.Linear):
        """Old checkpoints hold two halves; the new weight is their sum, transposed."""

        def _load_from_state_dict(self, state, prefix, *args):
            first, second = state.pop(prefix + "first"), state.pop(prefix + "second")
            assert isinstance(first, torch.Tensor) and first.shape == (4, 3)
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


def test_what_loading_code_writes_besides_is_known(tmp_path):
    class Own(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            self.bias.data.fill_(3)  # which counts in no version

    torch.save({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, tmp_path / "c.pth")
    report = fastinit.initialize(Own(2, 2), dict(type="Pretrained", checkpoint=tmp_path / "c.pth"))
    assert report.unreached == () and "load from" in report.provenance["bias"]


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


# --- files that change meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_a_file_that_changes_between_planning_and_loading_is_an_error(tmp_path, access, how):
    path = tmp_path / "c.pth"
    torch.save({"a.weight": torch.ones(500, 500), "b.weight": torch.ones(500, 500)}, path)

    class Writes(fastinit.BaseInit):
        def __call__(self, module):
            if how == "cut":
                os.truncate(path, 1000)
            else:
                with path.open("r+b") as file:
                    file.write(b"x")
                os.utime(path, (1, 1))

    made = nn.ModuleDict({"a": nn.Linear(500, 500, bias=False), "b": nn.Linear(500, 500, bias=False)})
    with pytest.raises(OSError, match=r"c\.pth: the file was changed while it was being loaded"):
        fastinit.initialize(made, [Writes(), dict(type="Pretrained", checkpoint=path, access=access)])


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_that_is_cut_in_the_middle_of_a_load_is_an_error_and_not_a_mismatch(tmp_path, caplog, access):
    path = tmp_path / "c.pth"
    torch.save({"0.weight": torch.ones(500, 500), "1.weight": torch.ones(500, 500)}, path)

    class Cuts(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            os.truncate(path, 1000)

    made = nn.Sequential(Cuts(500, 500, bias=False), nn.Linear(500, 500, bias=False))
    before = made[1].weight.clone()
    with pytest.raises(OSError, match="was changed while it was being loaded"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=path, access=access))
    assert torch.equal(made[1].weight, before)
    assert "it is only partly initialized" in caplog.text


def test_a_file_that_is_replaced_by_another_does_not_disturb_a_load(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"weight": torch.ones(500, 500)}, path)
    request = ours.Request(path)
    state = request.state_dict(request.tree())
    ours.save_checkpoint({"weight": torch.zeros(500, 500)}, path)
    made = nn.Linear(500, 500, bias=False)
    made.weight.data.copy_(state["weight"])
    assert (made.weight == 1).all() and float(ours._load_checkpoint(path)["weight"].sum()) == 0


# --- what it costs, seen from outside --------------------------------------------------------------------------------


def costs(tmp_path, script, *arguments):
    """Runs a script that prints "ready", works when told to, and waits; returns (peak memory growth, bytes read)."""
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, str(path), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def number(file, name):
            lines = Path(f"/proc/{process.pid}/{file}").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

        assert process.stdout.readline() == "ready\n"
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        memory, n_read = number("status", "VmRSS"), number("io", "rchar")
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        found = (number("status", "VmHWM") - memory) * 1024, number("io", "rchar") - n_read
        process.stdin.write("end\n")
        process.stdin.flush()
    assert process.returncode == 0
    return found


LOADS = """
import sys, torch, fastinit
from torch import nn
path, tiny, access, prefix = sys.argv[1:]
def model(width, n):
    made = nn.ModuleDict({f"b{i}": nn.Linear(width, width, bias=False) for i in range(n)})
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made
def load(made, path):
    cfg = dict(type="Pretrained", checkpoint=path, access=access, prefix=prefix or None)
    fastinit.initialize(made if not prefix else made[prefix], cfg)
made = model(1000, 20)
load(model(1, 20), tiny)
print("ready", flush=True)
sys.stdin.readline()
load(made, path)
assert made["b3"].weight[5, 7] == 3.0
print("done", flush=True)
sys.stdin.readline()
"""


@needs.mark(needs.LINUX)
@pytest.mark.parametrize("kind", ["zip", "safetensors"])
@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("prefix", ["", "b3"])
def test_a_load_takes_hardly_any_memory_and_a_prefix_reads_its_part(tmp_path, access, kind, prefix):
    states = [{f"b{i}.weight": torch.full((n, n), float(i)) for i in range(20)} for n in (1000, 1)]
    for state, name in zip(states, ("big", "tiny")):
        if kind == "zip":
            torch.save(state, tmp_path / name)
        else:
            safetensors.save_file(state, tmp_path / name)
    size = (tmp_path / "big").stat().st_size
    peak, n_read = costs(tmp_path, LOADS, tmp_path / "big", tmp_path / "tiny", access, prefix)
    piece = batches.MAPPED_PIECE_BYTES if access == "map" else 2 * batches.PIECE_BYTES  # what is on the way at one time
    assert peak < 0.05 * size + piece
    if access == "read":
        assert n_read < (0.051 if prefix else 1.001) * size + 100_000
    else:
        assert n_read < 100_000


@needs.mark(needs.LINUX)
def test_the_measure_of_costs_sees_a_second_copy(tmp_path):
    """The control: what mmengine does would be noticed."""
    script = LOADS.replace("    cfg = dict", "    kept = torch.load(path)\n    cfg = dict")
    state = {f"b{i}.weight": torch.full((1000, 1000), float(i)) for i in range(20)}
    torch.save(state, tmp_path / "big")
    torch.save({key: torch.zeros(1, 1) for key in state}, tmp_path / "tiny")
    peak, n_read = costs(tmp_path, script, tmp_path / "big", tmp_path / "tiny", "read", "")
    assert peak > 70e6 and n_read > 150e6


# --- mmengine's other functions --------------------------------------------------------------------------------------


def test_state_dicts_of_wrapped_models_are_mmengines():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))

    made = nn.DataParallel(Wrapped())
    found, expected = ours.get_state_dict(made), theirs.get_state_dict(made)
    assert (
        list(found)
        == list(expected)
        == ["inner.0.weight", "inner.0.bias", *(f"inner.1.{name}" for name in nn.BatchNorm1d(2).state_dict())]
    )
    assert found._metadata == expected._metadata
    assert list(ours.get_state_dict(made, prefix="x.")) == list(theirs.get_state_dict(made, prefix="x."))
    assert ours.get_state_dict(made, keep_vars=True)["inner.0.weight"] is made.module.inner.module[0].weight
    moved = ours.weights_to_cpu(found)
    assert moved._metadata is found._metadata and list(moved) == list(found)


def test_a_checkpoint_is_saved_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "c.pth"
    ours.save_checkpoint({"a": torch.ones(2)}, str(path))
    with pytest.raises(Exception):
        ours.save_checkpoint({"a": torch.zeros(2), "b": lambda: 3}, path)  # which cannot be pickled
    assert [p.name for p in path.parent.iterdir()] == ["c.pth"]
    assert theirs._load_checkpoint(str(path))["a"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="cannot be set at the same time"):
        ours.save_checkpoint({}, str(path), file_client_args={}, backend_args={})
    with pytest.raises(NotImplementedError, match="not supported"):
        ours.save_checkpoint({}, "pavi://x/y")


def test_the_last_checkpoint_is_found_as_mmengine_finds_it(tmp_path, capsys):
    assert (
        ours.find_latest_checkpoint(str(tmp_path)) is None and "Did not find last_checkpoint" in capsys.readouterr().out
    )
    (tmp_path / "last_checkpoint").write_text(f"{tmp_path}/epoch_3.pth\n")
    assert (
        ours.find_latest_checkpoint(tmp_path)
        == theirs.find_latest_checkpoint(str(tmp_path))
        == f"{tmp_path}/epoch_3.pth"
    )


def test_every_name_that_users_import_from_mmengines_module_is_here():
    for name in [
        "CheckpointLoader",
        "load_checkpoint",
        "load_state_dict",
        "get_state_dict",
        "save_checkpoint",
        "weights_to_cpu",
        "find_latest_checkpoint",
        "get_torchvision_models",
        "get_external_models",
        "get_mmcls_models",
        "get_deprecated_model_names",
        "_load_checkpoint",
        "_load_checkpoint_with_prefix",
        "_load_checkpoint_to_model",
        "load_from_local",
        "load_from_http",
        "load_from_torchvision",
        "load_from_openmmlab",
        "load_from_mmcls",
        "load_from_pavi",
        "load_from_ceph",
    ]:
        assert callable(getattr(ours, name)) and hasattr(theirs, name)

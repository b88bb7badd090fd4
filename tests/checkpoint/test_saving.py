"""Saving: tensors of which a rank has a part are refused wherever they are, and nothing half-written stays."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import fsspec
import needs
import pytest
import torch
from torch import nn

from fastinit.checkpoint import get_state_dict, load_checkpoint, save_checkpoint, weights_to_cpu


def in_a_process_group(code, tmp_path):
    """Runs code in one process that is a group of its own, with ``model`` cut by fully_shard."""
    setup = """
    import os, sys, torch, torch.distributed as dist, fastinit
    from collections import OrderedDict
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from fastinit.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(model[1], mesh=mesh)
    folder = sys.argv[1]
    def refused(what, call, *arguments):
        try: call(*arguments)
        except RuntimeError as error: assert "each rank has its own part only" in str(error), error; print(what, "refused")
        else: print(what, "TAKEN")
    """
    source = textwrap.dedent(setup) + textwrap.dedent(code) + "\ndist.destroy_process_group()\n"
    done = subprocess.run([sys.executable, "-c", source, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


needs.torch_from(2, 6).check()  # fully_shard


def test_distributed_tensors_are_refused_wherever_they_are(tmp_path):
    code = """
    import fsspec
    state = model.state_dict()
    loss = model(torch.ones(1, 4)).sum(); loss.backward()
    optimizer = torch.optim.AdamW(model.parameters()); optimizer.step()
    class Holder:
        def __init__(self, tensor): self.tensor = tensor
    replicated = torch.distributed.tensor.distribute_tensor(torch.ones(2), mesh, [torch.distributed.tensor.Replicate()])
    cases = dict(state=state, nested={"a": [(1, {"b": state})]}, optimizer=optimizer.state_dict(),
                 parameter=model[1].weight, held=Holder(model[1].weight), key={1: {"x"}, 2: state["1.bias"]},
                 replicated={"r": replicated})
    for name, case in cases.items():
        refused(name, save_checkpoint, case, f"{folder}/c.pth")
        refused(name + " elsewhere", save_checkpoint, case, "memory://bucket/c.pth")
    assert os.listdir(folder) == [] and not fsspec.filesystem("memory").exists("/bucket/c.pth")
    refused("weights_to_cpu", weights_to_cpu, state)
    """
    lines = in_a_process_group(code, tmp_path)
    assert len(lines) == 15 and all(line.endswith("refused") for line in lines)


def test_a_refused_save_keeps_the_existing_file(tmp_path):
    code = """
    save_checkpoint({"weight": torch.ones(2)}, f"{folder}/c.pth")
    refused("state", save_checkpoint, model.state_dict(), f"{folder}/c.pth")
    print(torch.load(f"{folder}/c.pth")["weight"].tolist(), os.listdir(folder))
    """
    assert in_a_process_group(code, tmp_path) == ["state refused", "[1.0, 1.0] ['c.pth']"]


def test_the_ways_out_that_the_message_names_work(tmp_path):
    code = """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    import torch.distributed.checkpoint as dcp
    nn.init.constant_(model[1].weight, 3)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    save_checkpoint(weights_to_cpu(state), f"{folder}/c.pth")
    held = get_state_dict(model)  # as module.state_dict(): distributed tensors stay what they are
    assert type(held["1.weight"]) is type(model.state_dict()["1.weight"]) is not torch.Tensor
    dcp.save(held, checkpoint_id=f"{folder}/folder")
    for source in (f"{folder}/c.pth", f"{folder}/folder"):
        plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        fastinit.checkpoint.load_checkpoint(plain, source, strict=True, logger="silent")
        print((plain[1].weight == 3).all().item())
    """
    assert in_a_process_group(code, tmp_path) == ["True", "True"]


def test_saved_files_match_torch_save_byte_for_byte(tmp_path):
    import zipfile

    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    held = {
        "state_dict": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        "n": 3,
    }
    save_checkpoint(held, tmp_path / "ours.pth")
    torch.save(held, tmp_path / "theirs.pth")
    files = [zipfile.ZipFile(tmp_path / name) for name in ("ours.pth", "theirs.pth")]
    ours, theirs = ({name.partition("/")[2]: file.read(name) for name in file.namelist()} for file in files)
    for held in (ours, theirs):
        held.pop(".data/serialization_id", None)  # a hash of the file's own name
    assert ours == theirs and "data.pkl" in ours


def test_a_failed_save_leaves_no_file(tmp_path):
    memory = fsspec.filesystem("memory")
    for target in (tmp_path / "c.pth", "memory://bucket/half.pth"):
        with pytest.raises(Exception, match="pickle|local object"):
            save_checkpoint({"a": torch.ones(3), "b": lambda: 3}, target)
    assert not list(tmp_path.iterdir()) and not memory.exists("/bucket/half.pth")


def test_a_plain_state_dict_moves_to_the_cpu_and_back(tmp_path):
    model = nn.Linear(2, 2)
    save_checkpoint(weights_to_cpu(get_state_dict(model)), f"file://{tmp_path}/c.pth")
    other = nn.Linear(2, 2)
    load_checkpoint(other, tmp_path / "c.pth", strict=True, logger="silent")
    assert torch.equal(model.weight, other.weight)

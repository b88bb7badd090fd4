"""Checkpoint files that others wrote: packages, transformers, mmengine. Values equal what their own loaders give."""

from __future__ import annotations

import os
import pickle
import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import files as files_of

import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit import checkpoint as ours

SHIPPED = [
    "torchmetrics/functional/image/lpips_models/alex.pth",
    "torchmetrics/functional/image/lpips_models/squeeze.pth",
    "torchmetrics/functional/image/lpips_models/vgg.pth",
    "torchmetrics/functional/image/dists_models/weights.pt",
]


@pytest.mark.parametrize("name", SHIPPED)
def test_files_shipped_by_packages_read_as_torch_reads_them(name):
    path = next(file.locate() for file in files_of("torchmetrics") or [] if str(file) == name)
    expected = torch.load(path, map_location="cpu", weights_only=True)
    found = ours.CheckpointLoader.load_checkpoint(str(path), logger="silent")
    assert list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
    made = nn.Module()
    for key, value in expected.items():  # a module with these names
        at = made
        *parents, last = key.split(".")
        for parent in parents:
            at = (
                getattr(at, parent)
                if hasattr(at, parent)
                else at.add_module(parent, nn.Module()) or getattr(at, parent)
            )
        setattr(at, last, nn.Parameter(torch.zeros_like(value)))
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=path, strict=True))
    assert_same_tensors(made.state_dict(), expected)
    assert report.unreached == ()


def weights_in_packages():
    """Files of torch.save that the installed packages ship, whatever for."""
    found = {}
    for package in (
        "torchmetrics",
        "transformers",
        "lightning",
        "accelerate",
        "mmengine",
        "torch",
        "torchvision",
        "timm",
    ):
        try:
            listed = files_of(package) or []
        except PackageNotFoundError:
            continue
        for file in listed:
            if file.suffix in (".pth", ".pt", ".ckpt", ".bin") and file.locate().is_file():
                found[str(file)] = file.locate()
    return found


def test_whatever_torch_loads_of_shipped_files_is_the_same_here():
    n_loaded = 0
    for name, path in weights_in_packages().items():
        try:
            expected = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # no file of torch.save
            continue
        found = ours.CheckpointLoader.load_checkpoint(str(path), logger="silent")
        assert list(found) == list(expected), name
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        n_loaded += 1
    assert n_loaded >= len(SHIPPED)


def gpt():
    transformers = needs.module("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=3, n_head=2, n_embd=64, vocab_size=500, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def test_sharded_checkpoints_of_transformers_load_whole_and_in_part(tmp_path):
    source = gpt()
    nn.init.normal_(source.transformer.wte.weight)
    source.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists() and len(list(tmp_path.glob("*.safetensors"))) > 2
    expected = type(source).from_pretrained(tmp_path)
    for options in (dict(access="map"), dict(access="read"), dict(assign=True)):
        made = gpt()
        cfg = dict(type="Pretrained", checkpoint=str(tmp_path), **options)
        report = fastinit.initialize(made, cfg)
        assert_same_tensors(tensors(made), tensors(expected))
        result = report.checkpoints[0].result  # the head is tied, and the file has it under its first name only
        assert (result.missing, result.unexpected, result.mismatched) == ((), (), ())
        assert made.lm_head.weight is made.transformer.wte.weight
    block = gpt().transformer.h[1]
    fastinit.initialize(block, dict(type="Pretrained", checkpoint=tmp_path, prefix="transformer.h.1"))
    assert_same_tensors(tensors(block), tensors(source.transformer.h[1]))


def test_single_file_checkpoints_of_transformers_load(tmp_path):
    source = gpt()
    source.save_pretrained(tmp_path)
    with torch.device("meta"):
        made = gpt()
    report = fastinit.materialize(made, dict(type="Pretrained", checkpoint=tmp_path / "model.safetensors"))
    assert_same_tensors(tensors(made), tensors(source))
    assert report.unreached == ()


def test_a_training_checkpoint_of_mmengines_runner_reads_as_mmengine_reads_it(tmp_path):
    import mmengine
    from mmengine.logging import HistoryBuffer
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, inputs, data_samples=None, mode="tensor"):
            return dict(loss=self.net(torch.stack(inputs)).square().mean())

    data = [dict(inputs=torch.randn(4)) for _ in range(8)]
    runner = Runner(
        Model(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=data, sampler=dict(type="DefaultSampler", shuffle=False), batch_size=4, num_workers=0
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        experiment_name="fastinit",
        default_scope="mmengine",
        log_level="ERROR",
    )
    runner.train()
    path = ours.find_latest_checkpoint(tmp_path)
    found = ours.CheckpointLoader.load_checkpoint(path, logger="silent")
    expected = torch.load(path, map_location="cpu", weights_only=False)
    assert list(found) == list(expected) and found["meta"] == expected["meta"]
    scalars = found["message_hub"]["log_scalars"]
    assert type(scalars["train/loss"]) is HistoryBuffer
    assert scalars["train/loss"].mean() == expected["message_hub"]["log_scalars"]["train/loss"].mean()
    for index, state in expected["optimizer"]["state"].items():
        assert_same_tensors(found["optimizer"]["state"][index], state)
    made, again = Model(), Model()
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=path, strict=True))
    theirs.load_state_dict(again, expected["state_dict"], strict=True)
    assert_same_tensors(tensors(made), tensors(again))
    assert mmengine.__version__


# --- folders of torch.distributed.checkpoint ---------------------------------------------------------------------------


needs_dcp = needs.mark(needs.torch_from(2, 5))  # with which it was tried


def distributed_folder(path):
    from torch.distributed import checkpoint

    source = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).to(torch.bfloat16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": source.state_dict(), "optimizer": {"lr": 0.1, "steps": 3}}, checkpoint_id=path)
    return source


@needs_dcp
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_folder_of_torch_distributed_checkpoint_is_a_source_like_any_other(tmp_path):
    source = distributed_folder(tmp_path)
    for kwargs in (dict(), dict(assign=True), dict(dtype="float32")):
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).to(torch.bfloat16))
        report = fastinit.initialize(model, dict(type="Pretrained", checkpoint=tmp_path, prefix="model", **kwargs))
        assert not report.checkpoints[0].result.missing
        for (name, tensor), other in zip(source.state_dict().items(), model.state_dict().values()):
            assert torch.equal(tensor, other.to(tensor.dtype)), name
    plan = fastinit.plan(nn.Linear(6, 4), dict(type="Pretrained", checkpoint=tmp_path, prefix="model.0"))
    assert [row.description for row in plan.rows] == [
        f"copy of {k} in {tmp_path}" for k in ("model.0.weight", "model.0.bias")
    ]
    everything = fastinit.checkpoint.CheckpointLoader.load_checkpoint(str(tmp_path))
    assert torch.equal(everything["model.0.weight"], source[0].weight) and "optimizer.lr" not in everything
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).to(torch.bfloat16))
    fastinit.materialize(model, dict(type="Pretrained", checkpoint=tmp_path, prefix="model"))
    assert torch.equal(model[2].weight, source[2].weight)


@needs_dcp
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_hostile_list_of_contents_runs_no_code(tmp_path):
    distributed_folder(tmp_path)
    good = (tmp_path / ".metadata").read_bytes()
    for bad, message in (
        (pickle.dumps(os.system), r"asks for (posix|nt)\.system"),
        (good[:40], "damaged or no list"),
        (pickle.dumps([1, 2]), "damaged or no list"),
    ):
        (tmp_path / ".metadata").write_bytes(bad)
        with pytest.raises(RuntimeError, match=message):
            fastinit.initialize(nn.Linear(6, 4), dict(type="Pretrained", checkpoint=tmp_path, prefix="model.0"))
    (tmp_path / ".metadata").write_bytes(good)
    next(tmp_path.glob("*.distcp")).write_bytes(b"")
    model = nn.Linear(6, 4)
    with pytest.raises(RuntimeError, match="can not be read"):
        fastinit.checkpoint.CheckpointLoader.load_checkpoint(str(tmp_path))["model.0.weight"]
    with pytest.raises(RuntimeError, match="can not be read|do not match"):
        fastinit.initialize(model, dict(type="Pretrained", checkpoint=tmp_path, prefix="model.0", strict=True))

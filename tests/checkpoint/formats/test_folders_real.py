"""Folders that torch.distributed.checkpoint wrote, loaded here and by torch's own reader, whose values count."""

from __future__ import annotations

import json

import folders
import needs
import pytest
import torch
from folders import loaded_by_torch, quietly, save
from helpers import same_bits
from torch import nn

import fastinit
from fastinit.checkpoint import CheckpointLoader, load_checkpoint

pytestmark = folders.needs_dcp

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.uint8, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
]


def values(shape, dtype):
    made = torch.randint(0, 2 if dtype == torch.bool else 100, shape).to(
        torch.complex128 if dtype.is_complex else torch.float64
    )
    return (made * (1 + 2j) if dtype.is_complex else made).to(dtype)


def state_dict():
    """Returns a tensor of each kind."""
    found = {f"dtypes.{str(dtype)[6:]}": values((3, 5), dtype) for dtype in DTYPES}
    found |= {
        "scalar": torch.tensor(3.5),
        "one": torch.ones(1),
        "empty": torch.empty(0, 4),
        "empty.within": torch.empty(3, 0, 2, dtype=torch.int64),
        "transposed": torch.randn(4, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "slice": torch.randn(100)[20:60],
        "columns": torch.randn(6, 8)[:, 2:5],
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
        "negated": torch._neg_view(torch.randn(3)),
        "parameter": nn.Parameter(torch.randn(3)),
        "large": torch.randn(1000, 700),
    }
    found["tied.a"] = found["tied.b"] = torch.randn(5)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("folder")
    save(path, {"model": state_dict(), "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": 0.1, "f": None}})
    return path


def saved():
    torch.manual_seed(0)
    return state_dict()


@pytest.mark.parametrize("access", ["auto", "map", "read"])
def test_every_kind_of_tensor_has_its_values(folder, access):
    found = fastinit.checkpoint.load_from_local(str(folder), "cpu") if access == "auto" else None
    tree = fastinit.checkpoint.Request(folder, reading=fastinit.checkpoint.Reading(access=access)).tree()
    expected = {f"model.{key}": value for key, value in saved().items()} | {"optimizer.state.0.step": torch.tensor(3.0)}
    assert set(tree) == set(expected)
    for key, value in expected.items():
        mine = torch.empty(value.shape, dtype=value.dtype).copy_(tree[key])
        assert tree[key].dtype == value.dtype
        assert same_bits(mine, value.resolve_conj().resolve_neg().contiguous()), key
        assert same_bits(mine, loaded_by_torch(folder, key, mine)), key
        assert found is None or same_bits(found[key].contiguous(), mine), key


class Model(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(6, 4, dtype=dtype)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2, bias=False, dtype=torch.bfloat16)


def trained(path, **kwargs):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.norm.running_mean.normal_()
    save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, **kwargs)
    return model


def must_equal(model, source):
    for (name, mine), theirs in zip(model.state_dict().items(), source.state_dict().values()):
        assert torch.equal(mine.to(theirs.dtype), theirs), name


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(assign=True), dict(dtype="float32"), dict(strict=True), dict(access="read")], ids=str
)
def test_a_model_is_loaded_beside_its_optimizer(tmp_path, kwargs):
    source, model = trained(tmp_path), Model()
    load_checkpoint(model, tmp_path, prefix="model", logger="silent", **kwargs)
    must_equal(model, source)
    if kwargs.get("assign"):
        with torch.device("meta"):
            model = Model()
        report = fastinit.materialize(model, dict(type="Pretrained", checkpoint=tmp_path, prefix="model.", assign=True))
        must_equal(model, source)
        assert not report.checkpoints[0].result.missing


def test_values_are_rounded_to_the_dtype_that_is_asked_for(tmp_path):
    source, model = trained(tmp_path), Model(torch.float64)
    load_checkpoint(model, tmp_path, prefix="model", dtype="bfloat16", strict=True, logger="silent")
    assert torch.equal(model.first.weight, source.first.weight.bfloat16().double())
    assert not torch.equal(model.first.weight, source.first.weight.double())


def test_one_file_a_tensor_and_several_writers_are_read(tmp_path):
    from torch.distributed.checkpoint import FileSystemWriter

    for name, options in (("each", dict(single_file_per_rank=False)), ("threads", dict(thread_count=3))):
        path = tmp_path / name
        source, model = trained(path, storage_writer=FileSystemWriter(path, **options)), Model()
        assert len(list(path.glob("*.distcp"))) > 2
        load_checkpoint(model, path, prefix="model", strict=True, logger="silent")
        must_equal(model, source)


@needs.mark(needs.torch_from(2, 5))
def test_a_folder_that_is_saved_in_the_background_is_read(tmp_path):
    from torch import distributed
    from torch.distributed import checkpoint

    source, model = Model(), Model()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with quietly():
            checkpoint.async_save(source.state_dict(), checkpoint_id=tmp_path / "saved").result()
    finally:
        distributed.destroy_process_group()
    load_checkpoint(model, tmp_path / "saved", strict=True, logger="silent")
    must_equal(model, source)


def test_a_folder_under_a_key_that_is_a_path_is_a_prefix(tmp_path):
    source, model = Model(), Model()
    save(tmp_path, {"state_dict": {"net": source.state_dict()}})
    load_checkpoint(model, tmp_path, prefix="state_dict.net", strict=True, logger="silent")
    must_equal(model, source)
    with pytest.raises(RuntimeError, match="has no key 'net'"):
        load_checkpoint(model, tmp_path, key="net", logger="silent")


@needs.mark(needs.torch_from(2, 8))
def test_safetensors_of_torchs_writer_for_hugging_face_are_read(tmp_path):
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    source, model = Model(), Model()
    save(tmp_path, source.state_dict(), storage_writer=HuggingFaceStorageWriter(str(tmp_path)))
    assert list(tmp_path.glob("*.safetensors")) and not (tmp_path / ".metadata").exists()
    load_checkpoint(model, tmp_path, strict=True, logger="silent")
    must_equal(model, source)


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 0), (3, 7)), ((3, 0), (2, 7)), ((5, 0), (4, 7))],
        [((0, 0), (9, 3)), ((0, 3), (9, 4))],
        [((0, 0), (4, 3)), ((0, 3), (4, 4)), ((4, 0), (5, 3)), ((4, 3), (5, 4))],
        [((0, 0), (2, 5)), ((2, 0), (7, 2)), ((0, 5), (6, 2)), ((6, 2), (3, 5)), ((2, 2), (4, 3))],  # no grid
        [((i, 0), (1, 7)) for i in range(9)],
    ],
    ids=["rows", "columns", "grid", "no grid", "single rows"],
)
def test_chunks_of_any_tiling_are_assembled(tmp_path, boxes):
    whole = torch.randn(9, 7)
    folders.in_chunks(tmp_path, "weight", whole, boxes)
    model = nn.Linear(7, 9, bias=False)
    load_checkpoint(model, tmp_path, strict=True, logger="silent")
    assert torch.equal(model.weight, whole)
    assert torch.equal(whole, loaded_by_torch(tmp_path, "weight", whole))
    transposed = nn.Parameter(torch.zeros(7, 9).t(), requires_grad=False)
    transposed.copy_(fastinit.checkpoint.Request(tmp_path).tree()["weight"])
    assert torch.equal(transposed, whole) and transposed.stride() == (1, 9)


def test_chunks_lie_in_more_files_than_may_be_open(tmp_path, monkeypatch):
    from fastinit.checkpoint.formats import distributed_folder

    monkeypatch.setattr(distributed_folder, "_MAX_OPEN_FILES", 2)
    from torch.distributed.checkpoint import FileSystemWriter

    source, model = Model(), Model()
    save(tmp_path, source.state_dict(), storage_writer=FileSystemWriter(tmp_path, single_file_per_rank=False))
    tree = load_checkpoint(model, tmp_path, strict=True, logger="silent")
    must_equal(model, source)
    folder = tree["first.weight"].storage_in_file.folder
    assert len(folder._files) == 2 < len(folder._found)


def test_only_the_headers_of_unrequested_chunks_are_read(tmp_path):
    save(tmp_path, {"model": Model().state_dict(), "large": torch.randn(1 << 20)})
    file = next(tmp_path.glob("*.distcp"))
    data = bytearray(file.read_bytes())
    with folders.changed(tmp_path) as contents:
        place = folders.place_of(contents, "large")
        data[place.offset : place.offset + place.length] = bytes(place.length)
    file.write_bytes(data)
    load_checkpoint(Model(), tmp_path, prefix="model", strict=True, logger="silent")
    with pytest.raises(RuntimeError, match="'large' can not be read: its chunk at \\(0,\\), in '__0_0.distcp' at byte"):
        CheckpointLoader.load_checkpoint(str(tmp_path), logger="silent")


def test_the_plan_names_the_tensors_of_a_folder(tmp_path):
    trained(tmp_path)
    plan = fastinit.plan(Model(), dict(type="Pretrained", checkpoint=tmp_path, prefix="model"))
    assert {row["parameter"] for row in json.loads(plan.to_json())["rows"]} >= {"first.weight", "norm.running_mean"}

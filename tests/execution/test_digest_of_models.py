"""``fastinit.digest``: the same for the same bits, however they lie; another for any other; clear errors."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import needs
import pytest
import torch
from helpers import same_bits
from torch import nn
from written_models import Tied

import fastinit
from fastinit.backends import cpp_backend

FLOAT8 = [getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.bool, *FLOAT8]


def convolutions() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3))


def tensor_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    numbers = torch.randint(0, 2 if dtype == torch.bool else 100, shape)
    return numbers.to(dtype)


# --- what does not count ----------------------------------------------------------------------------------------------


def test_memory_formats_have_one_digest() -> None:
    model = convolutions()
    expected = fastinit.digest(model)
    assert not model[2].weight.to(memory_format=torch.channels_last).is_contiguous()
    assert fastinit.digest(model.to(memory_format=torch.channels_last)) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_have_the_digest_of_a_copy(dtype: torch.dtype) -> None:
    base = tensor_of(dtype, 40, 30, 6)
    views = {"t": base.transpose(0, 2), "s": base[3:, ::2, 1:5], "e": base[:, :1].expand(-1, 7, -1), "0": base[0, 0, 0]}
    copies = {name: view.clone(memory_format=torch.contiguous_format) for name, view in views.items()}
    assert fastinit.digest(views) == fastinit.digest(copies)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_same_without_the_native_core(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "a": tensor_of(dtype, 33, 7),
        "b": tensor_of(dtype, 33, 7).t(),
        "0": tensor_of(dtype),
        "none": tensor_of(dtype, 0, 4),
    }
    expected = fastinit.digest(tensors)
    monkeypatch.setattr(cpp_backend, "_native", None)
    assert fastinit.digest(tensors) == expected


def test_wrappers_do_not_change_names() -> None:
    model = convolutions()
    expected = fastinit.digest(model)
    compiled = torch.compile(model)
    assert fastinit.digest(compiled) == expected
    assert fastinit.digest(compiled.state_dict()) == expected
    assert fastinit.digest(nn.DataParallel(model)) == expected


def test_a_model_and_its_state_dict_have_one_digest() -> None:
    model = convolutions()
    assert fastinit.digest(model.state_dict()) == fastinit.digest(model)


def test_a_digest_reads_only() -> None:
    model = convolutions()
    before, version = [p.detach().clone() for p in model.parameters()], model[0].weight._version
    fastinit.digest(model)
    assert all(map(same_bits, model.parameters(), before)) and model[0].weight._version == version


def test_tied_tensors_are_stated_under_each_name_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastinit.digesting as digesting

    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    counted, summed = [], digesting.sums
    monkeypatch.setattr(digesting, "sums", lambda boxes: counted.append(len(boxes)) or summed(boxes))
    digest = fastinit.digest(model)
    assert list(digest) == ["embed.weight", "head.weight"] and digest["embed.weight"] == digest["head.weight"]
    assert fastinit.digest(model.state_dict()) == digest
    assert counted == [1, 1]


class TiedAndEmpty(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.empty(0))
        self.also_empty = nn.Parameter(torch.empty(0))


def test_without_tied_names_a_model_has_the_digest_of_its_checkpoint(tmp_path: Path) -> None:
    model, path = TiedAndEmpty(), tmp_path / "model.safetensors"
    needs.module("safetensors.torch").save_model(model, str(path))
    digest = fastinit.digest(path)
    assert list(digest) == ["also_empty", "empty", "lm_head.weight"]
    for source in (model, torch.compile(model), path):
        assert fastinit.digest(source, tied_names=False) == digest
    assert (
        fastinit.digest(nn.ModuleDict({"a": model}), tied_names=False)["a.lm_head.weight"] == digest["lm_head.weight"]
    )
    diff = fastinit.digest(model).diff(digest)
    assert diff.removed == ("wte.weight",) and diff.equal == (("wte.weight", "lm_head.weight"),)


@needs.mark(needs.built_for_torch("transformers"))
def test_models_of_transformers_have_the_names_of_save_pretrained(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    saved, digest = fastinit.digest(tmp_path), fastinit.digest(model)
    assert fastinit.digest(model, tied_names=False) == saved and "lm_head.weight" not in saved
    assert digest.diff(saved).equal == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert fastinit.digest(model, tied_names=False, prefix="a") == fastinit.digest(tmp_path, prefix="a")


def test_values_that_are_equal_are_not_tied() -> None:
    model = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])
    assert fastinit.digest(model, tied_names=False) == fastinit.digest(model)


def test_extra_states_are_left_out() -> None:
    state = OrderedDict(convolutions().state_dict())
    expected = fastinit.digest(state)
    state["1._extra_state"] = b"anything"
    assert fastinit.digest(state) == expected


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 70, -1])
@pytest.mark.parametrize("bit", [0, 13, 31])
def test_one_flipped_bit_is_found_and_named(at: int, bit: int) -> None:
    model = convolutions()
    before = fastinit.digest(model)
    words = model[2].weight.detach().view(-1).view(torch.int32)
    words[at] ^= (1 << bit) - (1 << 32) * (bit == 31)
    assert before.diff(fastinit.digest(model)).values == ("2.weight",)


CHANGES = {
    "two elements exchanged": lambda x: x[[1, 0, *range(2, 12)]],
    "shifted": lambda x: x.roll(1, 0),
    "reversed": lambda x: x.flip(0),
    "transposed": lambda x: x.t().reshape(12, 12),
    "negated": lambda x: -x,
    "doubled": lambda x: 2 * x,
    "one element moved by one unit in the last place": lambda x: torch.where(
        x == x[3, 3], torch.nextafter(x, x + 1), x
    ),
    "one row copied over the next": lambda x: x[[0, 0, *range(2, 12)]],
    "another zero": lambda x: torch.where(x == x[0, 0], -0.0 * x.abs(), x),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_values_change_the_digest(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = torch.randn(12, 12)
    tensor[0, 0] = 0.0
    changed = change(tensor)
    assert changed.shape == tensor.shape
    assert fastinit.digest({"w": tensor}) != fastinit.digest({"w": changed})


def test_payloads_of_nan_count() -> None:
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    first, second = (fastinit.digest({"w": nan}) for nan in nans)
    assert first != second


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shape_and_dtype_count(dtype: torch.dtype) -> None:
    zeros = torch.zeros(4, 6, dtype=dtype)
    others = [zeros.view(6, 4), zeros.view(24), torch.zeros(4, 6, dtype=torch.int16), zeros[:, :5]]
    assert all(fastinit.digest({"w": zeros}) != fastinit.digest({"w": other}) for other in others)


def test_the_state_of_buffers_counts() -> None:
    model = convolutions()
    before = fastinit.digest(model)
    model[1].running_mean += 1
    assert before.diff(fastinit.digest(model)).values == ("1.running_mean",)


def test_non_persistent_buffers_are_stated_on_request() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.arange(3), persistent=False)
    assert list(fastinit.digest(model)) == list(model.state_dict())
    assert list(fastinit.digest(model, non_persistent_buffers=True)) == ["weight", "bias", "table"]


def test_a_prefix_states_the_names_in_the_whole() -> None:
    model = convolutions()
    parts = [
        fastinit.digest(model[0], prefix="0"),
        fastinit.digest(nn.Sequential(*model[1:]), prefix={"0": "1", "1": "2"}),
    ]
    assert fastinit.Digest({**parts[0].tensors, **parts[1].tensors}) == fastinit.digest(model)


# --- checkpoints and reports ------------------------------------------------------------------------------------------


def test_checkpoints_have_the_digest_of_their_model(tmp_path: Path) -> None:
    model = convolutions()
    expected = fastinit.digest(model)
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 1}}, tmp_path / "last.pth")
    assert fastinit.digest(tmp_path / "last.pth") == expected
    needs.module("safetensors.torch").save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert fastinit.digest(str(tmp_path / "model.safetensors")) == expected


def test_tensors_of_a_file_are_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = convolutions()
    torch.save(model.state_dict(), tmp_path / "last.pth")
    read: list[object] = []
    monkeypatch.setattr("fastinit.checkpoint.loading.in_memory", lambda stored: read.append(stored) or stored)
    assert fastinit.digest(tmp_path / "last.pth") == fastinit.digest(model)
    assert read == []


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastinit.digest(tmp_path / "none.pth")


def test_a_report_has_the_digest_on_request() -> None:
    cfg = dict(type="Normal", std=0.02, param="*")
    model = nn.Linear(4, 3)
    report = fastinit.initialize(model, cfg, backend="torch", seed=0, digest=True, prefix="head")
    assert report.digest == fastinit.digest(model, prefix="head")
    assert f"digest of 2 tensors: {report.digest.total}" in report.summary()
    assert json.loads(report.to_json())["digest"] == report.digest.total
    assert fastinit.initialize(model, cfg, backend="torch", seed=0).digest is None
    with torch.device("meta"):
        other = nn.Linear(4, 3)
    assert fastinit.materialize(other, cfg, backend="torch", seed=0, digest=True, prefix="head").digest == report.digest


@needs.mark(needs.CPP)
def test_a_digest_within_a_recorded_block_is_that_of_the_values() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(40, 30)
            self.digest = fastinit.digest(self)

    model = fastinit.build(Module, backend="cpp", seed=0)
    assert model.digest == fastinit.digest(model)


# --- errors -----------------------------------------------------------------------------------------------------------


def fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(3)


def released() -> torch.Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    return tensor


WITHOUT = {
    "meta": (lambda: torch.empty(3, device="meta"), "is on the meta device and has no values"),
    "lazy": (lambda: nn.UninitializedParameter(), "is lazy: it has neither shape nor values"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "is torch.sparse_coo: .* Digest its dense form"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "is torch.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is nested"),
    "fake": (fake, "is a FakeTensor, which keeps its values in other tensors"),
    "released": (released, "has no memory: its storage was released"),
}
if hasattr(torch, "jagged"):  # since torch 2.2
    WITHOUT["jagged"] = (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "is (nested|a NestedTensor)",
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "message"), WITHOUT.values(), ids=WITHOUT)
def test_tensors_without_plain_values_are_refused_by_name(make: Callable[[], torch.Tensor], message: str) -> None:
    tensors = {"good": torch.ones(2), "encoder.weight": make(), "other": torch.empty(1, device="meta")}
    with pytest.raises(RuntimeError, match=rf"^digest: 'encoder.weight' {message}.*\(and 1 more such tensors\)"):
        fastinit.digest(tensors)


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_refused() -> None:
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(RuntimeError, match="'w' is quantized"):
        fastinit.digest({"w": quantized})


@pytest.mark.parametrize("source", [3, None, torch.ones(2), [torch.ones(2)]], ids=["number", "none", "tensor", "list"])
def test_other_sources_are_refused(source: object) -> None:
    with pytest.raises(TypeError, match="expected a torch.nn.Module, a mapping of names to tensors or a path"):
        fastinit.digest(source)


def test_a_value_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="got 'meta' with a dict. Pass the part that holds the weights"):
        fastinit.digest({"w": torch.ones(1), "meta": {"epoch": 3}})

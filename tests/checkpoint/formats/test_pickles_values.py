"""Tensors of unusual kinds: the values that torch.load gives, or a refusal; every way into a model."""

from __future__ import annotations

import warnings

import needs
import pytest
import torch
from torch import nn
from written_files import loaded, save

import fastinit
from fastinit.checkpoint import load_checkpoint
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage.stored import StoredTensor

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*quantized:UserWarning",
    "ignore:.*CSR:UserWarning",
    "ignore:.*Sparse:UserWarning",
    "ignore:.*Storage:UserWarning",
)


def same(ours, theirs):
    assert type(ours) is type(theirs) and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert ours.layout == theirs.layout and ours.requires_grad == theirs.requires_grad
    assert ours.is_conj() == theirs.is_conj() and ours.is_neg() == theirs.is_neg()
    assert vars(ours) == vars(theirs)
    if ours.is_quantized:
        assert ours.qscheme() == theirs.qscheme() and ours.stride() == theirs.stride()
        assert (
            torch.equal(ours.int_repr(), theirs.int_repr())
            if ours.dtype.itemsize and ours.dtype not in SUB_BYTE
            else True
        )
        assert torch.equal(ours.dequantize(), theirs.dequantize())
    elif ours.layout != torch.strided:
        assert ours.layout != torch.sparse_coo or ours.is_coalesced() == theirs.is_coalesced()
        assert torch.equal(ours.to_dense(), theirs.to_dense())
    else:
        assert torch.equal(ours, theirs)


SUB_BYTE = (torch.quint4x2, torch.quint2x4)


def complex_numbers():
    torch.manual_seed(0)
    return torch.randn(3, 4, dtype=torch.complex64)


def special():
    """Tensors whose bytes are not simply their values."""
    torch.manual_seed(0)
    base, channels = complex_numbers(), torch.randn(4, 8)
    scales, zeros = torch.rand(4).double() + 0.1, torch.tensor([0, 1, -2, 3])
    coo = torch.randn(4, 5).relu().to_sparse()
    found = {
        "conj": base.conj(),
        "conj of a view": base[1:, ::2].conj(),
        "conj, transposed": base.t().conj(),
        "neg": torch._neg_view(torch.randn(3)),
        "imaginary of conj": base.conj().imag,
        "conj and neg": torch._neg_view(base.conj()),
        "parameter of conj": nn.Parameter(base.conj()),
        "coo": coo,
        "coo, not coalesced": torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 2]], [1.0, 2.0, 3.0], (2, 3)),
        "coo of blocks": torch.sparse_coo_tensor([[0, 2]], torch.randn(2, 3), (4, 3)),
        "coo, empty": torch.sparse_coo_tensor(size=(3, 3)),
        "coo of integers": torch.eye(3, dtype=torch.int64).to_sparse(),
        "per tensor": torch.quantize_per_tensor(channels, 0.1, 3, torch.qint8),
        "per tensor, unsigned": torch.quantize_per_tensor(channels, 0.1, 30, torch.quint8),
        "per tensor, int32": torch.quantize_per_tensor(channels, 0.01, 0, torch.qint32),
        "per tensor, expanded": torch.quantize_per_tensor(channels[:1], 0.1, 3, torch.qint8).expand(3, 8),
        "per tensor, of no dimension": torch.quantize_per_tensor(torch.tensor(1.0), 0.1, 3, torch.qint8),
        "per tensor, transposed": torch.quantize_per_tensor(channels, 0.1, 3, torch.qint8).t(),
        "per channel": torch.quantize_per_channel(channels, scales, zeros, 0, torch.qint8),
        "per channel, second": torch.quantize_per_channel(channels.t().contiguous(), scales, zeros, 1, torch.qint32),
        "per channel of one dimension": torch.quantize_per_channel(torch.randn(4), scales, zeros, 0, torch.qint8),
        "four bits": torch.quantize_per_channel(channels, scales.float(), zeros.abs().float(), 0, torch.quint4x2),
        "two bits": torch.quantize_per_channel(channels, scales.float(), zeros.abs().float() * 0, 0, torch.quint2x4),
    }
    for layout in (torch.sparse_csr, torch.sparse_csc):
        found[str(layout)] = torch.randn(4, 6).relu().to_sparse(layout=layout)
    for layout in (torch.sparse_bsr, torch.sparse_bsc):
        found[str(layout)] = torch.randn(4, 6).relu().to_sparse(layout=layout, blocksize=(2, 3))
    return found


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SPECIAL = special()


@FORMS
@pytest.mark.parametrize("name", SPECIAL)
def test_special_tensors_match_torch_load(tmp_path, name, zipped):
    path = save({"plain": torch.arange(3.0), "x": SPECIAL[name]}, tmp_path / "c.pth", zipped)
    same(loaded(path)["x"], torch.load(path, weights_only=False)["x"])  # torch 2.1 has no quantized ones among weights
    lazily = read(path, Reading())["x"]
    assert (
        isinstance(lazily, StoredTensor) and lazily.shape == SPECIAL[name].shape and lazily.dtype == SPECIAL[name].dtype
    )
    assert lazily.layout == SPECIAL[name].layout and lazily.is_quantized == SPECIAL[name].is_quantized


@FORMS
@pytest.mark.parametrize("options", [dict(access="map"), dict(access="read"), dict(assign=True), dict(strict=True)])
@pytest.mark.parametrize("name", [name for name in SPECIAL if "conj" in name or name == "neg"])
def test_conjugated_and_negated_tensors_load_with_their_values(tmp_path, name, options, zipped):
    value = SPECIAL[name].detach()
    path = save({"x": value, "y": value.resolve_conj().resolve_neg().clone()}, tmp_path / "c.pth", zipped)
    for load in (
        load_checkpoint,
        lambda model, path, **kw: fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, **kw)),
    ):
        made = nn.ParameterDict({key: nn.Parameter(torch.zeros(value.shape, dtype=value.dtype)) for key in "xy"})
        load(made, path, **options)
        assert torch.equal(made["x"], value) and torch.equal(made["y"], value)


def test_two_readings_of_one_place_are_two_tensors(tmp_path):
    """A tied parameter gets the value that its last name has in the file, as with torch."""
    value = complex_numbers()
    path = save({"a": value, "b": value.conj()}, tmp_path / "c.pth")
    made, expected = (nn.ParameterDict({"a": nn.Parameter(torch.zeros_like(value))}) for _ in range(2))
    for each in (made, expected):
        each["b"] = each["a"]
    load_checkpoint(made, path)
    expected.load_state_dict(torch.load(path))
    assert torch.equal(made["a"], expected["a"]) and torch.equal(made["a"], value.conj())


def test_a_special_tensor_is_rounded_to_the_dtype_that_is_asked_for(tmp_path):
    path = save({"x": SPECIAL["neg"]}, tmp_path / "c.pth")
    made = nn.ParameterDict({"x": nn.Parameter(torch.zeros(3, dtype=torch.float64))})
    load_checkpoint(made, path, dtype="bfloat16")
    assert torch.equal(made["x"], SPECIAL["neg"].bfloat16().double())


@pytest.mark.parametrize("name", ["coo", "per tensor", "torch.sparse_csr"])
def test_a_special_buffer_is_adopted(tmp_path, name):
    made = nn.Module()
    made.register_buffer("x", torch.zeros_like(SPECIAL[name]) if "per" not in name else SPECIAL[name].clone())
    load_checkpoint(made, save({"x": SPECIAL[name]}, tmp_path / "c.pth"), assign=True)
    same(made.x, SPECIAL[name])


def test_a_quantized_module_is_loaded(tmp_path):
    torch.manual_seed(0)

    def made():
        return torch.ao.nn.quantized.Linear(4, 3)

    source = made()
    source.set_weight_bias(torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8), torch.randn(3))
    path = save(source.state_dict(), tmp_path / "c.pth")
    target = made()
    load_checkpoint(target, path)
    assert torch.equal(target.weight().dequantize(), source.weight().dequantize())


# The torch that saves each: the first, or the first that was tried.
DTYPES_SINCE = {
    "float4_e2m1fn_x2": (2, 8),
    "float8_e4m3fn": (2, 3),
    "float8_e8m0fnu": (2, 7),
    "uint16": (2, 5),
    "uint64": (2, 5),
    "complex32": (2, 3),
}


@pytest.mark.parametrize("dtype", DTYPES_SINCE)
def test_dtypes_without_a_storage_class_are_read(tmp_path, dtype):
    needs.torch_from(*DTYPES_SINCE[dtype]).check()
    dtype = getattr(torch, dtype)
    value = torch.arange(8 * dtype.itemsize, dtype=torch.uint8).view(dtype).view(2, 4)
    path = save({"x": value, "y": value[1:, 1:]}, tmp_path / "c.pth")
    found = loaded(path)
    for key, expected in (("x", value), ("y", value[1:, 1:])):
        assert (
            found[key].dtype == dtype
            and found[key].shape == expected.shape
            and found[key].stride() == expected.stride()
        )
        assert torch.equal(
            found[key].contiguous().view(torch.uint8) if key == "x" else found[key].clone().view(torch.uint8),
            expected.clone().view(torch.uint8),
        )


@FORMS
def test_attributes_of_parameters_and_tensors_come_back(tmp_path, zipped):
    parameter = nn.Parameter(torch.ones(2), requires_grad=False)
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.names_ = True, 0, ["a", 1.5, None]
    tensor = torch.ones(3)
    tensor.persistent, tensor.scale, tensor.place = True, torch.full((2,), 7.0), {"axis": 1}
    path = save({"p": parameter, "t": tensor, "b": tensor[:1]}, tmp_path / "c.pth", zipped)
    found, expected = loaded(path), torch.load(path, weights_only=False)
    assert type(found["p"]) is nn.Parameter and vars(found["p"]) == vars(expected["p"]) == vars(parameter)
    assert (
        found["t"].persistent is True
        and torch.equal(found["t"].scale, tensor.scale)
        and found["t"].place == {"axis": 1}
    )
    assert not found["p"].requires_grad and vars(found["b"]) == {}


def test_an_attribute_of_nested_data_is_a_stub(tmp_path):
    parameter = nn.Parameter(torch.ones(2))
    parameter.nested, parameter.loader = [[1]], print
    found = read(save({"p": parameter}, tmp_path / "c.pth"), Reading())["p"] + 0
    assert torch.equal(found, parameter)
    held = loaded(tmp_path / "c.pth")["p"]
    assert repr(held.nested) == "<the attribute nested of a tensor, not loaded>"
    with pytest.raises(RuntimeError, match=r"builtins\.print"):
        held.loader("x")


class Subclass(torch.Tensor):
    pass


def test_subclasses_of_tensors_are_stubs_unless_they_are_allowed(tmp_path):
    value = torch.arange(3.0).as_subclass(Subclass)
    value.unit = "m"
    path = save({"x": value, "y": torch.ones(1)}, tmp_path / "c.pth")
    assert repr(read(path, Reading())["x"]) == f"<{__name__}.Subclass, not loaded>"
    found = read(path, Reading(allow=(Subclass,)))["x"].tensor
    assert type(found) is Subclass and torch.equal(found, value) and found.unit == "m"


@pytest.mark.parametrize("kind", ["meta", "nested"])
def test_tensors_without_values_of_their_own_are_stubs(tmp_path, kind):
    if kind == "nested":
        needs.torch_from(2, 4).check()  # 2.1 cannot save them
    value = (
        torch.empty(3, device="meta") if kind == "meta" else torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    )
    path = save({"x": value, "weight": torch.full((2, 2), 3.0)}, tmp_path / "c.pth")
    made = nn.Linear(2, 2, bias=False)
    tree = load_checkpoint(made, path)
    assert (made.weight == 3).all() and "_rebuild_" in repr(tree["x"])
    with pytest.raises(RuntimeError, match="more than tensors"):
        loaded(path)


def test_sparse_indices_are_checked_when_the_file_is_read(tmp_path):
    content = save({"x": torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,))}, tmp_path / "c.pth").read_bytes()
    good = torch.tensor([[0, 1]]).numpy().tobytes()
    assert content.count(good) == 1
    for bad in ([[0, 10**6]], [[0, -1]]):
        (tmp_path / "c.pth").write_bytes(content.replace(good, torch.tensor(bad).numpy().tobytes()))
        with pytest.raises(RuntimeError, match="damaged or no checkpoint: .*index"):
            read(tmp_path / "c.pth", Reading())


def test_a_tensor_that_only_claims_to_be_coalesced_is_refused(tmp_path):
    value = torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,)).coalesce()
    content = save({"x": value}, tmp_path / "c.pth").read_bytes()
    good, bad = (torch.tensor(each).numpy().tobytes() for each in ([[0, 1]], [[1, 0]]))
    (tmp_path / "c.pth").write_bytes(content.replace(good, bad))
    with pytest.raises(RuntimeError, match="coalesced"):
        read(tmp_path / "c.pth", Reading())


def test_a_function_for_the_map_location_is_asked_and_not_given_the_values(tmp_path):
    path = save({"a": torch.ones(2)}, tmp_path / "c.pth")
    asked = []

    def where(storage, location):
        asked.append((storage.nbytes(), location))
        return storage if len(asked) == 1 else None

    for _ in range(2):
        found = read(path, Reading(map_location=where))["a"]
        assert isinstance(found, StoredTensor) and found.device.type == "cpu" and found.tolist() == [1, 1]
    assert asked == [(0, "cpu")] * 2

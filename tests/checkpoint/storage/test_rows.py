"""The native core reads rows of files, and converts them to the bits of torch's copy."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from cpp_core import ISAS, NATIVE

from fastinit.backends import cpp_backend, file_rows
from fastinit.backends.file_rows import Rows
from fastinit.checkpoint.formats.by_content import Reading, read
from fastinit.checkpoint.storage import batches
from fastinit.checkpoint.storage.copying import copy_into
from fastinit.contract.records import DTYPES

NARROW = [torch.bfloat16, torch.float16]
# Bits of float32 around which conversions go wrong: zeros, subnormals, the largest, infinities, NaNs, each exponent.
EDGES = [
    0,
    1,
    2,
    0x007FFFFF,
    0x00800000,
    0x7F7FFFFF,
    0x7F7F7FFF,
    0x7F7F8000,
    0x7F800000,
    0x7F800001,
    0x7FC00000,
    0x7FFFFFFF,
]
EDGES += [
    (exponent << 23) + rest for exponent in range(256) for rest in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x8000, 0x18000)
]


def float32s() -> torch.Tensor:
    """Values of every kind, and many of which none was chosen; as many as no vector divides."""
    chosen = torch.tensor([bits | sign << 31 for bits in EDGES for sign in (0, 1)], dtype=torch.int64)
    others = torch.randint(0, 1 << 32, (200_003,), generator=torch.Generator().manual_seed(1))
    return torch.cat([chosen, others]).to(torch.int32).view(torch.float32)


def read_rows(path: Any, rows: Rows, offset: int = 0, isa: str = "") -> torch.Tensor:
    """Returns what the core reads, with its rows one behind the other where they are so in memory."""
    made = torch.zeros(rows.n_rows * rows.memory_step // rows.dtype.itemsize, dtype=rows.dtype)
    codes = (8, 8) if rows.dtype == rows.dtype_in_file else (DTYPES[rows.dtype_in_file], DTYPES[rows.dtype])
    fd = os.open(path, os.O_RDONLY)
    try:
        shape, steps = (rows.n_rows, rows.n_columns), (rows.file_step, rows.memory_step)
        sizes = rows.dtype_in_file.itemsize, rows.dtype.itemsize
        assert NATIVE.read_rows(fd, offset, shape, steps, codes, sizes, made.data_ptr(), isa=isa)
    finally:
        os.close(fd)
    return made


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int16 if values.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_gives_the_values_of_torch(tmp_path, isa, dtype):
    values = float32s()
    (tmp_path / "f").write_bytes(values.numpy().tobytes())
    n = values.numel()
    made = read_rows(tmp_path / "f", Rows(1, n, 4 * n, 2 * n, torch.float32, dtype), isa=isa)
    expected, is_nan = values.to(dtype), values.isnan()
    assert torch.equal(bits(made)[~is_nan], bits(expected)[~is_nan])
    assert made[is_nan].isnan().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", NARROW)
def test_widening_gives_the_values_of_torch(tmp_path, isa, dtype):
    values = torch.arange(-(1 << 15), (1 << 15) - 5, dtype=torch.int32).to(torch.int16).view(dtype)
    (tmp_path / "f").write_bytes(values.view(torch.int16).numpy().tobytes())
    n = values.numel()
    made = read_rows(tmp_path / "f", Rows(1, n, 2 * n, 4 * n, dtype, torch.float32), isa=isa)
    expected, is_nan = values.float(), values.isnan()
    assert torch.equal(bits(made)[~is_nan], bits(expected)[~is_nan])
    assert made[is_nan].isnan().all()


# Of 300 rows: read together with their gaps, one by one, one by one with advice, far apart, longer than the buffer.
@pytest.mark.parametrize(("whole", "part"), [(40, 12), (1500, 100), (9000, 64), (40_000, 8), (50_000, 49_900)])
@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_columns_are_those_of_the_matrix(tmp_path, whole, part, into):
    n_rows = 300 if whole < 40_000 else 7
    values = torch.randn(n_rows, whole, generator=torch.Generator().manual_seed(2))
    (tmp_path / "f").write_bytes(values.numpy().tobytes())
    first, item = whole - part - 3, into.itemsize
    rows = Rows(n_rows, part, 4 * whole, (part + 2) * item, torch.float32, into)
    made = read_rows(tmp_path / "f", rows, 4 * first).view(n_rows, part + 2)
    assert torch.equal(made[:, :part], values[:, first : first + part].to(into))
    assert not made[:, part:].any()  # what is between the rows in memory stays


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_columns_come_out_of_a_mapping(into):
    values = torch.randn(50, 700, generator=torch.Generator().manual_seed(2))
    rows = Rows(50, 333, 4 * 700, 335 * into.itemsize, torch.float32, into)
    made = torch.zeros(50, 335, dtype=into)
    assert file_rows.read(-1, 4 * 11, rows, made.data_ptr(), values.data_ptr())  # of no file
    assert torch.equal(made[:, :333], values[:, 11:344].to(into)) and not made[:, 333:].any()


@pytest.mark.parametrize("whole", [40, 3000, 70_000])
def test_a_file_that_ends_before_is_told(tmp_path, whole):
    values = torch.zeros(5, whole)
    (tmp_path / "f").write_bytes(values.numpy().tobytes()[:-1])
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    rows = Rows(5, whole - 2, 4 * whole, 2 * whole, torch.float32, torch.bfloat16)
    made = torch.zeros(5, whole, dtype=torch.bfloat16)
    assert not file_rows.read(fd, 8, rows, made.data_ptr())
    assert file_rows.read(fd, 0, rows, made.data_ptr())  # without the last two columns
    os.close(fd)


def test_a_system_that_cannot_read_raises_its_error(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)  # a folder
    with pytest.raises(IsADirectoryError):
        file_rows.read(fd, 0, Rows(1, 4, 16, 16, torch.float32, torch.float32), torch.zeros(4).data_ptr())
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        file_rows.read(fd, 0, Rows(1, 4, 16, 16, torch.float32, torch.float32), torch.zeros(4).data_ptr())


def test_a_conversion_that_the_core_does_not_know_is_refused():
    assert not file_rows.reads(torch.float64, torch.float16)
    assert not file_rows.reads(torch.float32, torch.bool)
    with pytest.raises(ValueError, match="no such conversion"):
        NATIVE.read_rows(0, 0, (1, 1), (8, 2), (3, 2), (8, 2), torch.zeros(1, dtype=torch.float16).data_ptr())


@pytest.fixture
def stored(tmp_path):
    """A matrix of float32 in a file; and its values."""
    values = torch.randn(300, 400, generator=torch.Generator().manual_seed(3))
    torch.save({"a": values}, tmp_path / "c.pth")
    return read(tmp_path / "c.pth", Reading(access="read"))["a"], values


@pytest.mark.parametrize("has_core", [True, False])
def test_copies_are_the_same_with_and_without_the_core(monkeypatch, stored, has_core):
    tensor, values = stored
    used = []
    whole = file_rows.read
    monkeypatch.setattr(batches.file_rows, "read", lambda *args: used.append(args) or whole(*args))
    file_rows.reads.cache_clear()
    if not has_core:
        monkeypatch.setattr(cpp_backend, "_native", None)
    try:
        rounded, columns = torch.zeros(300, 400, dtype=torch.bfloat16), torch.zeros(300, 390)
        copy_into(rounded, tensor)
        copy_into(columns, tensor.part([0, 7], (300, 390)))
    finally:
        file_rows.reads.cache_clear()
    assert torch.equal(rounded, values.bfloat16()) and torch.equal(columns, values[:, 7:397])
    assert len(used) == (2 if has_core else 0)


# In a file of torch.save, elements lie on multiples of their size; behind a header of 11 bytes, they do not.
@pytest.mark.parametrize(
    ("access", "n_before", "is_mapped"), [("map", 8, True), ("map", 11, False), ("read", 8, False)]
)
def test_the_core_copies_out_of_the_mapping_where_access_says_so(monkeypatch, tmp_path, access, n_before, is_mapped):
    values = torch.randn(300, 400, generator=torch.Generator().manual_seed(3))
    header = json.dumps({"a": {"dtype": "F32", "shape": [300, 400], "data_offsets": [0, 480_000]}}).encode()
    header += b" " * ((n_before - len(header)) % 16)
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    mappings = []
    whole = file_rows.read
    monkeypatch.setattr(batches.file_rows, "read", lambda *args: mappings.append(args[4]) or whole(*args))
    tensor = read(path, Reading(access=access))["a"]
    rounded, columns = torch.zeros(300, 400, dtype=torch.bfloat16), torch.zeros(300, 390)
    copy_into(rounded, tensor)
    copy_into(columns, tensor.part([0, 7], (300, 390)))
    assert torch.equal(rounded, values.bfloat16()) and torch.equal(columns, values[:, 7:397])
    assert [mapping != 0 for mapping in mappings] == [is_mapped] * 2


def test_a_mapped_file_that_was_truncated_is_an_error_and_not_a_death(tmp_path):
    torch.save({"a": torch.zeros(300, 400)}, tmp_path / "c.pth")
    tensor = read(tmp_path / "c.pth", Reading(access="map"))["a"]
    os.truncate(tmp_path / "c.pth", 1000)
    with pytest.raises(OSError, match="the file was changed while it was being loaded"):
        copy_into(torch.zeros(300, 400, dtype=torch.bfloat16), tensor)


def test_a_copy_by_the_core_counts_as_a_write(stored):
    tensor, _ = stored
    made = torch.zeros(300, 400, dtype=torch.bfloat16)
    before = made._version
    copy_into(made, tensor)
    assert made._version > before
    with torch.inference_mode():
        counted_by_none = torch.zeros(300, 400, dtype=torch.bfloat16)
        copy_into(counted_by_none, tensor)
    assert torch.equal(made, counted_by_none)


def test_rows_that_are_one_in_the_file_are_the_same_in_memory(tmp_path):
    values = torch.randn(400, generator=torch.Generator().manual_seed(4)).expand(300, 400)
    torch.save({"a": values}, tmp_path / "c.pth")
    made = torch.zeros(300, 400, dtype=torch.bfloat16)
    copy_into(made, read(tmp_path / "c.pth", Reading(access="read"))["a"])
    assert torch.equal(made, values.bfloat16())


def test_layouts_that_are_no_rows_are_left_to_torch(stored):
    tensor, values = stored
    for made in (torch.zeros(400, 300, dtype=torch.bfloat16).t(), torch.zeros(300, 800, dtype=torch.bfloat16)[:, ::2]):
        copy_into(made, tensor)
        assert torch.equal(made, values.bfloat16())
    spread = torch.zeros(300, 500, dtype=torch.bfloat16)
    copy_into(spread[:, 50:450], tensor)
    assert torch.equal(spread[:, 50:450], values.bfloat16()) and not spread[:, 450:].any() and not spread[:, :50].any()

"""The GPU backends' host side: what they say where there is no GPU, how "auto" chooses, and with --device cuda the real thing."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import needs
import pytest
import torch
from helpers import same_bits, tensors
from torch import nn

import fastinit
from fastinit import backends, plans
from fastinit.backends import cpp_backend, cuda_backend, gpu_launch, limits, triton_backend
from fastinit.contract import gpu_work as device_work
from fastinit.contract import records as lowering
from fastinit.execution import runner
from fastinit.execution.scope import Scope

CUDA = torch.device("cuda")
NORMAL = dict(type="Normal", std=0.5, layer="Linear")


# --- without a GPU ----------------------------------------------------------------------------------------------------


@needs.mark(needs.NO_GPU)
def test_available_backends_says_why_a_gpu_backend_cannot_run():
    available = fastinit.available_backends()
    assert list(available) == ["torch", "cpp", "triton", "cuda"]
    assert available["triton"] and available["cuda"]


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_gpu_backend_asked_for_by_name_refuses_memory_of_the_cpu_before_it_writes(name):
    model = nn.Linear(3, 4)
    before = tensors(model)
    with pytest.raises(RuntimeError, match=rf"the backend '{name}' cannot fill the parameter 'weight'.*: "):
        fastinit.initialize(model, NORMAL, backend=name)
    assert all(same_bits(before[key], value) for key, value in tensors(model).items())


def test_importing_fastinit_imports_no_triton():
    code = "import sys, fastinit; fastinit.available_backends(); print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@needs.mark(needs.CUDA)
def test_the_extension_and_the_lowering_have_the_same_records():
    core = cuda_backend._core()
    assert core.RECORD_BYTES == lowering.RECORD.itemsize and core.WORK_BYTES == device_work.WORK.itemsize
    assert cuda_backend._trips() == device_work.Trips(4096, 16384)  # what the tests of its PTX take


@needs.mark(needs.TRITON)
def test_the_triton_kernel_and_the_lowering_have_the_same_records():
    from fastinit.kernels import layout

    assert layout.RECORD_WORDS.value * 8 == lowering.RECORD.itemsize
    assert layout.WORK_WORDS.value * 8 == device_work.WORK.itemsize
    fields = dict(key="SEED", first_index="FIRST_INDEX", size="SIZE", stride="STRIDE", index_stride="INDEX_STRIDE")
    for field, name in {
        **fields,
        "params": "PARAMS",
        "raw": "RAW",
        "distribution": "KIND",
        "element_bytes": "ELEMENT",
    }.items():
        assert getattr(layout, name).value * 8 == lowering.RECORD.fields[field][1], field


@needs.mark(needs.CUDA, needs.NO_GPU)
def test_a_launch_without_a_device_raises_with_cudas_words():
    assert cuda_backend._core().why_not()
    with pytest.raises(RuntimeError, match=r"the CUDA kernel could not be launched: .*CUDA"):
        cuda_backend._core().launch(0, 0, 1, 0, 0)


def with_gpu(monkeypatch, capability=(9, 0)):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)


def test_why_not_names_what_a_device_lacks(monkeypatch):
    assert "on cpu" in gpu_launch.why_not_device(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_launch.why_not_device(CUDA) == "torch finds no CUDA device"
    with_gpu(monkeypatch, capability=(7, 5))
    assert "compute capability 8.0" in gpu_launch.why_not_device(CUDA)
    with_gpu(monkeypatch)
    assert gpu_launch.why_not_device(CUDA) is None


def test_why_not_names_the_package_that_is_missing_or_too_old(monkeypatch):
    def version_of(found):
        def version(name):
            if found is None:
                raise triton_backend.PackageNotFoundError(name)
            return found

        triton_backend.why_not_installed.cache_clear()
        monkeypatch.setattr(triton_backend, "version", version)
        return triton_backend.why_not_installed()

    try:
        assert version_of(None) == "the package triton is not installed: pip install triton"
        assert "or later, and found 2.1.0" in version_of("2.1.0")
        assert version_of("3.4.0") is None and version_of("3.10.1+git1") is None and version_of("4.0.0") is None
    finally:
        triton_backend.why_not_installed.cache_clear()


def test_the_extension_is_for_nvidia(monkeypatch):
    if cuda_backend._extension is None:
        monkeypatch.setattr(cuda_backend, "_extension", SimpleNamespace())
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert "built for AMD GPUs" in cuda_backend.why_not(CUDA)


@needs.mark(needs.CPP)
def test_memory_that_was_released_is_refused():
    model = nn.Linear(3, 4)
    model.weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="its memory was released"):
        fastinit.initialize(model, NORMAL, backend="cpp")


# --- what "auto" chooses ----------------------------------------------------------------------------------------------


def test_auto_is_triton_on_a_gpu_else_the_extension_else_torch(monkeypatch):
    able = {"triton": None, "cuda": None}
    for name in able:
        monkeypatch.setattr(backends.BACKENDS[name], "why_not", lambda device, name=name: able[name])
    assert backends.Choice("auto").on(CUDA) == "triton"
    able["triton"] = "missing"
    assert backends.Choice("auto").on(CUDA) == "cuda"
    able["cuda"] = "missing"
    assert backends.Choice("auto").on(CUDA) == "torch"
    assert backends.Choice("auto").on(torch.device("cpu")) == "torch"
    assert backends.Choice("triton").on(CUDA) == "triton"  # only auto chooses


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.complex = nn.Linear(3, 4, dtype=torch.complex64)
        self.last = nn.Linear(4, 5)


@pytest.fixture
def cpp_is_automatic(monkeypatch):
    """As on a GPU, where auto is a contract backend that cannot do everything."""
    needs.CPP.check()
    monkeypatch.setattr(backends, "_PREFERRED", {"cpu": ("cpp",)})


def test_auto_leaves_to_torch_what_a_contract_backend_cannot_do(cpp_is_automatic):
    model = Mixed()
    plan = fastinit.plan(model, NORMAL, seed=1)
    assert [row.backend for row in plan.rows if row.parameter.endswith("weight")] == ["cpp", "torch", "cpp"]
    assert plan.numbers == f"{lowering.NUMBERS} and torch"
    report = fastinit.initialize(model, NORMAL, seed=1)
    assert "torch.nn.init" in report.engine and "threads" in report.engine
    assert report.seed == 1 and {row.backend for row in report.rows} == {"cpp", "torch"}
    alone = Mixed()
    fastinit.initialize(alone.first, NORMAL, seed=1, backend="cpp", prefix="first")
    assert same_bits(model.first.weight, alone.first.weight)
    torch.manual_seed(1)
    assert same_bits(
        model.complex.weight.detach(), nn.init.normal_(torch.empty_like(model.complex.weight.detach()), 0, 0.5)
    )


@pytest.mark.parametrize("torch_is_last", [True, False])
def test_the_later_fill_of_a_tensor_wins_whichever_backends_do_them(cpp_is_automatic, monkeypatch, torch_is_last):
    why_not_fill = limits.why_not_fill

    def no_uniform(fill):
        return "no uniforms today" if isinstance(fill.distribution, plans.Uniform) else why_not_fill(fill)

    monkeypatch.setattr(cpp_backend, "why_not_fill", no_uniform)
    rules = [dict(type="Constant", val=7, layer="Linear"), dict(type="Uniform", a=2, b=3, layer="Linear")]
    model = nn.Linear(3, 4)
    fastinit.initialize(model, rules if torch_is_last else rules[::-1], seed=0)
    values = model.weight.detach()
    assert ((values >= 2) & (values < 3)).all() if torch_is_last else (values == 7).all()


def test_auto_draws_its_seed_only_where_a_contract_backend_needs_one(cpp_is_automatic, monkeypatch):
    model = nn.Linear(2, 2)
    torch.manual_seed(5)
    expected = int(torch.empty((), dtype=torch.int64).random_())
    torch.manual_seed(5)
    assert fastinit.initialize(model, NORMAL).seed == expected
    monkeypatch.setattr(backends, "_PREFERRED", {})
    assert fastinit.initialize(model, NORMAL).seed is None


# --- launches ---------------------------------------------------------------------------------------------------------


def test_a_run_is_of_one_device_and_counts_versions(monkeypatch):
    runs = []
    monkeypatch.setattr(cpp_backend, "run", lambda fills, seed, **_: runs.append([fill.name for fill in fills]) or 1)
    devices = ["cpu", "meta", "cpu"]
    fills = [
        plans.Fill.whole(f"p{i}", torch.empty(4, device=device), plans.Normal(0, 1), "", "")
        for i, device in enumerate(devices)
    ]
    scope = Scope(None, None, backend="cpp", seed=0)
    runner.execute(fills, scope)
    assert runs == [["p0", "p2"], ["p1"]]
    assert scope.launches == {torch.device("cpu"): 1, torch.device("meta"): 1}
    assert [fill.tensor._version for fill in fills] == [1, 1, 1]


def test_tensors_that_share_memory_are_launched_in_order(monkeypatch):
    launches = []
    monkeypatch.setattr(gpu_launch, "why_not_now", lambda device: None)
    monkeypatch.setattr(gpu_launch, "execute", lambda records, *_: launches.append(records["data"].tolist()))
    base = torch.empty(8)
    views, others = [base[1:6], base[0:5]], [torch.empty(4), torch.empty(4)]
    tensors = [others[0], *views, others[1]]
    several = [plans.Fill.whole(f"p{i}", each, plans.Normal(0, 1), "", "") for i, each in enumerate(tensors)]
    gpu_launch.run(several, 0, device_work.Trips(4096, 16384), lambda *_: None)
    together = [each.data_ptr() for each in others]
    assert launches == [together, [base.data_ptr() + 4], [base.data_ptr()]]


# --- with a GPU (--device cuda) ---------------------------------------------------------------------------------------


@pytest.fixture(params=["triton", "cuda"])
def on_gpu(request):
    needs.GPU.check()
    needs.CPP.check()  # what their bits are compared with
    needs.backend(request.param, backends.BACKENDS[request.param].why_not(CUDA)).check()
    return request.param


def model_of(device):
    torch.manual_seed(0)
    layers = [
        nn.Linear(300, 500),
        nn.LayerNorm(500),
        nn.Conv2d(3, 8, 3),
        nn.Linear(500, 7).bfloat16(),
        nn.Linear(9, 9).double(),
    ]
    return nn.Sequential(*layers).to(device)


RULES = [
    dict(type="TruncNormal", std=0.02, layer="Linear"),
    dict(type="Kaiming", layer="Conv2d"),
    dict(type="Constant", val=1, layer="LayerNorm"),
]


def test_a_model_on_the_gpu_has_the_bits_of_the_cpu(on_gpu):
    expected, model = model_of("cpu"), model_of("cuda")
    fastinit.initialize(expected, RULES, seed=3, backend="cpp")
    versions = [parameter._version for parameter in model.parameters()]
    report = fastinit.initialize(model, RULES, seed=3, backend=on_gpu)
    assert {row.backend for row in report.rows} == {on_gpu}
    assert all(after._version > before for before, after in zip(versions, model.parameters()))
    for (name, right), found in zip(expected.named_parameters(), model.parameters()):
        if right.dtype == torch.float64:
            assert (right - found.cpu()).abs().max() < 1e-12
        else:
            assert same_bits(right.detach(), found.detach().cpu()), name


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (80, 80)])
def test_an_orthogonal_matrix_on_the_gpu_is_that_of_the_cpu_but_for_roundings(on_gpu, shape):
    here = torch.empty(shape, device=CUDA)
    fill = plans.Fill.whole("w", here, plans.Orthogonal(1.0, 0), "", "")
    backends.BACKENDS[on_gpu].run([fill], 0)
    expected = torch.empty(shape)
    cpp_backend.run([plans.Fill.whole("w", expected, plans.Orthogonal(1.0, 0), "", "")], 0)
    apart = (here.cpu() - expected).abs()
    assert (apart <= torch.finfo(torch.float32).eps * expected.abs().clamp(min=1e-9)).all()  # a unit in the last place
    assert apart.count_nonzero() < 10


@pytest.mark.parametrize("distribution", [plans.Identity(), plans.Sparse(0.3, 1.0)], ids=lambda each: each.kind)
def test_other_matrices_on_the_gpu_have_the_bits_of_the_cpu(on_gpu, distribution):
    here, expected = torch.empty(50, 40, device=CUDA), torch.empty(50, 40)
    backends.BACKENDS[on_gpu].run([plans.Fill.whole("w", here, distribution, "", "")], 0)
    cpp_backend.run([plans.Fill.whole("w", expected, distribution, "", "")], 0)
    assert same_bits(here.cpu(), expected)


def test_fills_run_on_the_current_stream_without_waiting(on_gpu):
    stream, tensor = torch.cuda.Stream(), torch.empty(1 << 20, device="cuda")
    fill = plans.Fill.whole("weight", tensor, plans.Normal(0, 1), "", "")
    backends.BACKENDS[on_gpu].run([fill], 0)  # compiled
    tensor.zero_()  # loaded: CUDA may wait for all streams when it loads a kernel
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)  # a second or so of the device's time
        tensor.zero_()
        backends.BACKENDS[on_gpu].run([fill], 0)
        assert not stream.query()
    torch.cuda.synchronize()
    assert tensor.std() > 0.9


def test_a_capture_is_refused(on_gpu):
    tensor = nn.Linear(4, 4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match="captured into a CUDA graph"):
        fastinit.initialize(tensor, NORMAL, backend=on_gpu)


def test_all_devices_are_filled_by_one_call(on_gpu):
    needs.GPUS.check()
    several = [torch.empty(5000, device=f"cuda:{i}") for i in range(torch.cuda.device_count())]
    backends.BACKENDS[on_gpu].run([plans.Fill.whole("w", each, plans.Normal(0, 1), "", "") for each in several], 0)
    assert all(torch.equal(several[0].cpu(), each.cpu()) for each in several)

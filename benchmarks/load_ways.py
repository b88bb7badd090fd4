"""What bench_load.py measures: checkpoint files, models to load them into, and ways to load them, ours and others'."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load as load_folder
from torch.distributed.checkpoint.state_dict_saver import save as write_folder

import fastinit
from fastinit.demo import GPT

LAYERS, WIDTH, VOCABULARY, CONTEXT = 27, 1280, 50257, 1024  # 597 million parameters
PREFIX = "blocks.0"  # one of 27 layers
# What a load costs beside its bytes: 200 groups of 50 layers, each with a weight of 4 KiB and a bias.
GROUPS, IN_GROUP, SMALL_WIDTH = 200, 50, 32
N_SHARDS = 400
# One rank of tensor parallelism: an eighth of the columns of each matrix.
N_RANKS, RANK = 8, 3

PTH, SAFE, FOLDER = "model.pth", "model.safetensors", "model.folder"
HALF_PTH, HALF_SAFE = "half.pth", "half.safetensors"
MANY_PTH, MANY_SAFE, MANY_FOLDER, MANY_INDEX = "many.pth", "many.safetensors", "many.folder", "many.index"


# --- models ----------------------------------------------------------------------------------------------------------


def model_of(what: str) -> nn.Module:
    """Returns the model to load into, with its memory touched; "meta" has no memory."""
    if what == "many":
        return nn.Sequential(
            *(nn.Sequential(*(nn.Linear(SMALL_WIDTH, SMALL_WIDTH) for _ in range(IN_GROUP))) for _ in range(GROUPS))
        )
    with torch.device("meta"):
        model = GPT(LAYERS, WIDTH, VOCABULARY, CONTEXT)
    if what == "meta":
        return model
    if what == "columns":
        _cut_into_columns(model)
        model.head.weight = model.tokens.weight
        return model
    part: nn.Module = model.blocks[0] if what == "part" else model
    if what == "half":
        part.to(torch.bfloat16)
    part.to_empty(device="cpu")
    if part is model:
        model.head.weight = model.tokens.weight
    for parameter in part.parameters():
        nn.init.zeros_(parameter)
    return part


def _cut_into_columns(model: nn.Module) -> None:
    """Gives a model on the meta device what one of eight ranks holds, of matrices an eighth of the columns."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not distributed.is_initialized():
        distributed.init_process_group("fake", rank=RANK, world_size=N_RANKS, store=FakeStore())
    mesh = init_device_mesh("cpu", (N_RANKS,))
    for module in model.modules():
        for name, whole in list(module._parameters.items()):
            if whole is None:
                continue
            shape = list(whole.shape)
            placements: list[Any] = [Shard(1)] if len(shape) == 2 else [Replicate()]
            if len(shape) == 2:
                shape[1] //= N_RANKS
            local = torch.zeros(shape)
            cut = DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
            module._parameters[name] = nn.Parameter(cut)


def local_of(tensor: Any) -> torch.Tensor:
    """Returns the memory of a tensor that is here."""
    local: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return local.detach()


def part_of(tensor: Any, whole: torch.Tensor) -> torch.Tensor:
    """Returns what a rank holds of a whole tensor."""
    n_columns = local_of(tensor).shape[-1]
    return whole if whole.shape == local_of(tensor).shape else whole[:, RANK * n_columns : (RANK + 1) * n_columns]


# --- the ways; each gets a model and a path --------------------------------------------------------------------------


def mmengine_load(model: nn.Module, path: str) -> None:
    """mmengine, as it is."""
    from mmengine.runner import checkpoint

    checkpoint.load_checkpoint(model, path, map_location="cpu", logger="silent")


def mmengine_prefix(model: nn.Module, path: str) -> None:
    """mmengine's Pretrained with a prefix."""
    from mmengine.runner import checkpoint

    state_dict = checkpoint._load_checkpoint_with_prefix(PREFIX, path, map_location="cpu")
    checkpoint.load_state_dict(model, state_dict, strict=False, logger="silent")


def torch_load(model: nn.Module, path: str) -> None:
    """torch.load, then copy."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


def torch_mmap(model: nn.Module, path: str) -> None:
    """torch.load with mmap, then copy."""
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"])


def torch_assign(model: nn.Module, path: str) -> None:
    """torch.load with mmap, assigned."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    model.load_state_dict(state_dict, assign=True)


def torch_columns(model: nn.Module, path: str) -> None:
    """torch.load with mmap, then a copy of the columns that are here."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            local_of(tensor).copy_(part_of(tensor, state_dict[name]))


def safetensors_load(model: nn.Module, path: str) -> None:
    """safetensors' own function."""
    safetensors.torch.load_model(model, path)


def safetensors_shards(model: nn.Module, path: str) -> None:
    """safetensors' load_file for each shard, then copy."""
    weight_map = json.loads((Path(path) / "model.safetensors.index.json").read_text())["weight_map"]
    state_dict: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(weight_map.values()):
        state_dict.update(safetensors.torch.load_file(Path(path) / name))
    model.load_state_dict(state_dict)


def safetensors_columns(model: nn.Module, path: str) -> None:
    """safetensors' slices of the columns that are here."""
    with safetensors.safe_open(path, "pt") as file, torch.no_grad():  # type: ignore[attr-defined]
        names = set(file.keys())
        for name, tensor in model.state_dict().items():
            if name not in names:  # tied
                continue
            local, whole = local_of(tensor), file.get_slice(name)
            if tuple(whole.get_shape()) == tuple(local.shape):
                local.copy_(whole[:])
            else:
                n_columns = local.shape[1]
                local.copy_(whole[:, RANK * n_columns : (RANK + 1) * n_columns])


def torch_folder(model: nn.Module, path: str) -> None:
    """torch.distributed.checkpoint, straight into the model's tensors."""
    with warnings.catch_warnings():  # that the process is alone
        warnings.simplefilter("ignore")
        load_folder(model.state_dict(), checkpoint_id=path, no_dist=True)


def ours(model: nn.Module, path: str) -> None:
    """Ours, by default."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path))


def ours_map(model: nn.Module, path: str) -> None:
    """Ours, mapped."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, access="map"))


def ours_load(model: nn.Module, path: str) -> None:
    """Ours, through mmengine's function."""
    fastinit.checkpoint.load_checkpoint(model, path, logger="silent")


def ours_load_map(model: nn.Module, path: str) -> None:
    """The same, mapped."""
    fastinit.checkpoint.load_checkpoint(model, path, logger="silent", access="map")


def ours_assign(model: nn.Module, path: str) -> None:
    """Ours, assigned."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, assign=True))


def ours_prefix(model: nn.Module, path: str) -> None:
    """Ours, one layer of the file."""
    fastinit.initialize(model, dict(type="Pretrained", checkpoint=path, prefix=PREFIX))


@dataclass(frozen=True)
class Way:
    """One way to load one file into one model."""

    load: str
    """Its group in the table; the first way of a group is what the others are compared with."""
    model: str
    file: str
    run: Callable[[nn.Module, str], None]
    label: str


_COPY = "copy"
_MANY = "20,000 tensors"
_SHARDS = f"20,000 tensors, {N_SHARDS} shards"
_ROUND = "float32 into bfloat16"
_WIDEN = "bfloat16 into float32"
_COLUMNS = f"columns, 1 of {N_RANKS} ranks"
_MMENGINE = "mmengine load_checkpoint"
_TORCH_MMAP = "torch.load(mmap=True), load_state_dict"
_FOLDER = "torch.distributed.checkpoint.load"

WAYS: list[Way] = [
    Way(_COPY, "model", PTH, mmengine_load, _MMENGINE),
    Way(_COPY, "model", PTH, torch_load, "torch.load, load_state_dict"),
    Way(_COPY, "model", PTH, torch_mmap, _TORCH_MMAP),
    Way(_COPY, "model", PTH, ours, "fastinit"),
    Way(_COPY, "model", PTH, ours_map, "fastinit, access='map'"),
    Way(_COPY, "model", PTH, ours_load, "fastinit load_checkpoint"),
    Way(_COPY, "model", SAFE, safetensors_load, "safetensors load_model"),
    Way(_COPY, "model", SAFE, ours, "fastinit"),
    Way(_COPY, "model", SAFE, ours_map, "fastinit, access='map'"),
    Way(_COPY, "model", FOLDER, torch_folder, _FOLDER),
    Way(_COPY, "model", FOLDER, ours, "fastinit"),
    Way(_MANY, "many", MANY_PTH, mmengine_load, _MMENGINE),
    Way(_MANY, "many", MANY_PTH, torch_load, "torch.load, load_state_dict"),
    Way(_MANY, "many", MANY_PTH, torch_mmap, _TORCH_MMAP),
    Way(_MANY, "many", MANY_PTH, ours, "fastinit"),
    Way(_MANY, "many", MANY_PTH, ours_load, "fastinit load_checkpoint"),
    Way(_MANY, "many", MANY_SAFE, safetensors_load, "safetensors load_model"),
    Way(_MANY, "many", MANY_SAFE, ours, "fastinit"),
    Way(_MANY, "many", MANY_SAFE, ours_load, "fastinit load_checkpoint"),
    Way(_MANY, "many", MANY_FOLDER, torch_folder, _FOLDER),
    Way(_MANY, "many", MANY_FOLDER, ours, "fastinit"),
    Way(_SHARDS, "many", MANY_INDEX, safetensors_shards, "safetensors load_file of each, load_state_dict"),
    Way(_SHARDS, "many", MANY_INDEX, ours, "fastinit"),
    Way(_ROUND, "half", PTH, mmengine_load, _MMENGINE),
    Way(_ROUND, "half", PTH, torch_mmap, _TORCH_MMAP),
    Way(_ROUND, "half", PTH, ours, "fastinit"),
    Way(_ROUND, "half", PTH, ours_map, "fastinit, access='map'"),
    Way(_ROUND, "half", SAFE, safetensors_load, "safetensors load_model"),
    Way(_ROUND, "half", SAFE, ours, "fastinit"),
    Way(_ROUND, "half", SAFE, ours_map, "fastinit, access='map'"),
    Way(_WIDEN, "model", HALF_PTH, mmengine_load, _MMENGINE),
    Way(_WIDEN, "model", HALF_PTH, torch_mmap, _TORCH_MMAP),
    Way(_WIDEN, "model", HALF_PTH, ours, "fastinit"),
    Way(_WIDEN, "model", HALF_PTH, ours_map, "fastinit, access='map'"),
    Way(_WIDEN, "model", HALF_SAFE, safetensors_load, "safetensors load_model"),
    Way(_WIDEN, "model", HALF_SAFE, ours, "fastinit"),
    Way(_WIDEN, "model", HALF_SAFE, ours_map, "fastinit, access='map'"),
    Way(_COLUMNS, "columns", PTH, torch_columns, "torch.load(mmap=True), copy of the columns"),
    Way(_COLUMNS, "columns", PTH, ours_load, "fastinit load_checkpoint"),
    Way(_COLUMNS, "columns", PTH, ours_load_map, "fastinit load_checkpoint, access='map'"),
    Way(_COLUMNS, "columns", SAFE, safetensors_columns, "safetensors get_slice"),
    Way(_COLUMNS, "columns", SAFE, ours_load, "fastinit load_checkpoint"),
    Way(_COLUMNS, "columns", SAFE, ours_load_map, "fastinit load_checkpoint, access='map'"),
    Way(_COLUMNS, "columns", FOLDER, torch_folder, _FOLDER),
    Way(_COLUMNS, "columns", FOLDER, ours_load, "fastinit load_checkpoint"),
    Way("assign", "meta", PTH, torch_assign, "torch.load(mmap=True), assign=True"),
    Way("assign", "meta", PTH, ours_assign, "fastinit, assign=True"),
    Way("assign", "meta", SAFE, ours_assign, "fastinit, assign=True"),
    Way("one layer", "part", PTH, mmengine_prefix, "mmengine, prefix"),
    Way("one layer", "part", PTH, ours_prefix, "fastinit, prefix"),
    Way("one layer", "part", SAFE, ours_prefix, "fastinit, prefix"),
]


# Groups with a table of their own.
TURNED = (_ROUND, _WIDEN, _COLUMNS)


# --- files -----------------------------------------------------------------------------------------------------------


def source_of(file: str) -> nn.Module:
    """Returns a model with the values that a file is to hold."""
    source = model_of("many") if file.startswith("many") else GPT(LAYERS, WIDTH, VOCABULARY, CONTEXT)
    fastinit.initialize(source, dict(type="Normal", param="*"), backend="cpp", seed=0)
    return source.to(torch.bfloat16) if file.startswith("half") else source


def save(model: nn.Module, path: Path) -> None:
    """Writes a file, by what its name ends with."""
    if path.suffix == ".pth":
        torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 12}}, path)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_model(model, str(path))
    elif path.suffix == ".folder":
        save_folder(model.state_dict(), path)
    else:
        save_shards(model.state_dict(), path)


def save_shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes shards of safetensors with an index."""
    folder.mkdir()
    names = list(state)
    weight_map: dict[str, str] = {}
    n_files = min(N_SHARDS, len(names))
    for number in range(n_files):
        file = f"model-{number + 1:05}-of-{n_files:05}.safetensors"
        of_this = names[number * len(names) // n_files : (number + 1) * len(names) // n_files]
        safetensors.torch.save_file({name: state[name] for name in of_this}, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(of_this, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_folder(state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes a folder of torch.distributed.checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_folder(state, checkpoint_id=folder, no_dist=True)


def tiny_like(path: Path, prefix: str) -> str:
    """Returns a file of the same kind for a Linear of one element; it is written the first time."""
    tiny = path.with_name(f"tiny-{prefix}{path.name}")
    if not tiny.exists():
        layer = nn.Linear(1, 1)
        if prefix:
            layer = nn.ModuleDict({"blocks": nn.ModuleList([layer])})  # type: ignore[assignment]
        save(layer, tiny)
    return str(tiny)

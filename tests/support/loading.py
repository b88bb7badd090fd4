"""Models and files for tests of loading."""

from __future__ import annotations

import needs
import torch
from torch import nn

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

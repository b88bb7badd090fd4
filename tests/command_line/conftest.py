"""A folder with a model, configs and files, in which commands run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

MODELS = """
import torch
from torch import nn

def make(width=8):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(6)), nn.LayerNorm(width))

def tied():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    return model

class WithTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(10.0).sin(), persistent=False)
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.layer = nn.Linear(3, 3)

def broken():
    raise ZeroDivisionError("on purpose")

ready = nn.Linear(2, 2)
number = 3
rules = [dict(type="Normal", std=0.5, param="*.weight")]

def rules_for(std):
    return [dict(type="Normal", std=std, param="*.weight")]
"""
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``models.py``, ``rules.json`` and ``llama/config.json``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTINIT_PROGRESS", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "rules.json").write_text(json.dumps([dict(type="Normal", std=0.25, param="*.weight")]))
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text(json.dumps(LLAMA))
    return tmp_path

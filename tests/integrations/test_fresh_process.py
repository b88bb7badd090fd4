"""Integrations as the documentation tells: in a new interpreter, as the first lines of a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import needs
import pytest

needs.module("mmengine")

DETECTOR = """
import torch
from torch import nn
from mmengine.model import BaseModule

class Detector(BaseModule):
    def __init__(self):
        super().__init__(dict(type="Constant", val=4.0, layer="Linear"))
        self.fc = nn.Linear(2, 2)

class Own(Detector):
    def init_weights(self):
        super().init_weights()
        nn.init.constant_(self.fc.bias, 7.0)
"""


def run(tmp_path: Path, code: str) -> str:
    """Returns the last line that a program prints."""
    script = tmp_path / "program.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]  # mmengine logs before it


@pytest.mark.parametrize("first", ["import fastinit", "import fastinit.integrations.mmengine"])
@pytest.mark.parametrize("verb", ["enable", "register"])
def test_the_first_line_of_a_program_may_be_the_integrations(tmp_path: Path, first: str, verb: str) -> None:
    code = f"{first}\nfastinit.integrations.mmengine.{verb}()\n{DETECTOR}\n"
    code += "from mmengine.registry import WEIGHT_INITIALIZERS\nprint(WEIGHT_INITIALIZERS.get('Constant').__module__)"
    assert run(tmp_path, code) == "fastinit.config.initializers"


@pytest.mark.parametrize("verb", ["enable", "register"])
def test_mmengine_has_all_of_its_initializers_back_afterwards(tmp_path: Path, verb: str) -> None:
    back = {"enable": "disable", "register": "unregister"}[verb]
    code = f"""
import fastinit.integrations.mmengine as f
f.{verb}()
f.{back}()
from mmengine.registry import WEIGHT_INITIALIZERS
print(sorted({{each.__module__ for each in WEIGHT_INITIALIZERS.module_dict.values()}}), len(WEIGHT_INITIALIZERS))
"""
    assert run(tmp_path, code) == "['mmengine.model.weight_init'] 8"


@pytest.mark.parametrize(("kind", "bias"), [("Detector", 0.0), ("Own", 7.0)])
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_materialize_follows_the_configs_of_mmengines_modules(
    tmp_path: Path, kind: str, bias: float, backend: str
) -> None:
    code = f"""
import fastinit
fastinit.integrations.mmengine.enable()
{DETECTOR}
with torch.device("meta"):
    model = {kind}()
fastinit.materialize(model, backend={backend!r})
print(model.fc.weight.tolist(), model.fc.bias.tolist(), model.is_init)
"""
    assert run(tmp_path, code) == f"[[4.0, 4.0], [4.0, 4.0]] [{bias}, {bias}] True"


def test_a_module_of_mmengines_has_a_plan(tmp_path: Path) -> None:
    code = f"""
import fastinit
fastinit.integrations.mmengine.enable()
{DETECTOR}
print([(each.name, each.distribution.value) for each in fastinit.plan(Detector()).items])
"""
    assert run(tmp_path, code) == "[('fc.weight', 4.0), ('fc.bias', 0)]"


def test_transformers_models_are_made_from_their_configs(tmp_path: Path) -> None:
    needs.module("transformers")
    code = """
import fastinit
from transformers import BertConfig, BertModel
config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=50)
model = fastinit.integrations.transformers.from_config(config, auto_class=BertModel, backend="cpp", seed=0)
print(model.embeddings.word_embeddings.weight[0].abs().sum().item())
"""
    assert run(tmp_path, code) == "0.0"

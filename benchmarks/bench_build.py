"""Constructing transformers models: plainly, through the meta device and ``to_empty``, and with ``fastinit.build``.

Each measurement runs in its own process, in fresh memory (see fresh.py), after importing transformers' modules. Values
are checked first: on "torch" the bits of the plain constructor, on ``cpp`` the moments of every parameter and the
contract's bits. Writes ``results/bench_build.csv``; ``--only TEXT`` keeps the other models' rows. Run it with
``make bench``.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fresh
import torch
import transformers
from tables import replace
from transformers.models.llama import modeling_llama  # noqa: F401  (transformers imports it at first use)
from transformers.models.mixtral import modeling_mixtral  # noqa: F401

import fastinit
from fastinit import plans
from fastinit.backends import cpp_backend

Config = Callable[[], Any]
# Its methods are untyped.
AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM


def llama(width: int, inner: int, layers: int, dtype: str) -> Any:
    """Returns the config of a Llama-like model."""
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        vocab_size=32000,
        dtype=dtype,
    )


def mixtral(width: int, inner: int, layers: int, experts: int, dtype: str) -> Any:
    """Returns the config of a Mixtral-like model: the experts of a layer are stacked in one parameter."""
    return transformers.MixtralConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        num_local_experts=experts,
        vocab_size=32000,
        dtype=dtype,
    )


# (name, config, rounds); sized so that the plain ways fit in 24 GB.
MODELS: list[tuple[str, Config, int]] = [
    ("Llama", partial(llama, 1536, 4096, 17, "float32"), 3),
    ("Mixtral", partial(mixtral, 1024, 2048, 8, 16, "bfloat16"), 3),
    ("Llama", partial(llama, 3072, 8192, 24, "bfloat16"), 3),
]


def plain(config: Config) -> Any:
    """The way that users write today."""
    return AutoModelForCausalLM.from_config(config())


def to_empty(config: Config) -> Any:
    """PyTorch's faster way: the constructor draws nothing."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config())
    model.to_empty(device="cpu")
    model.initialize_weights()
    return model


def build(config: Config, backend: str) -> Any:
    """Ours."""
    return fastinit.build(plain, config, backend=backend, seed=0)


def must_be_right() -> None:
    """Raises SystemExit unless every way gives transformers' model, in bits or in distribution."""
    for config in (partial(llama, 256, 512, 2, "float32"), partial(mixtral, 256, 512, 2, 4, "bfloat16")):
        torch.manual_seed(0)
        theirs, same, ours, empty = plain(config), build(config, "torch"), build(config, "cpp"), to_empty(config)
        for name, tensor in theirs.named_parameters():
            if not torch.equal(tensor, same.get_parameter(name)):
                raise SystemExit(f"{name}: torch's numbers differ")
            std = tensor.float().std().item()
            error = 6 * std * (2 / tensor.numel()) ** 0.5  # six standard errors of a difference
            for other in (ours.get_parameter(name).float(), empty.get_parameter(name).float()):
                if abs(other.mean() - tensor.float().mean()) > error or abs(other.std().item() - std) > error:
                    raise SystemExit(f"{name}: {other.mean()}, {other.std()}")
        for (name, tensor), other in zip(theirs.named_buffers(), ours.buffers()):
            if not torch.equal(tensor, other):
                raise SystemExit(f"{name}: the buffers differ")
        name, weight = "model.layers.1.self_attn.q_proj.weight", ours.model.layers[1].self_attn.q_proj.weight
        expected = torch.empty_like(weight)
        cpp_backend.run([plans.Fill.whole(name, expected, plans.Normal(0, 0.02), "", "")], 0)
        if not torch.equal(expected, weight):
            raise SystemExit(f"{name}: not the numbers of the contract")


def named(label: str, config: Config) -> tuple[str, int]:
    """Returns a model's row name, and the bytes of its parameters."""
    with torch.device("meta"):
        parameters = list(AutoModelForCausalLM.from_config(config()).parameters())
    n_elements, n_bytes = sum(each.numel() for each in parameters), sum(each.nbytes for each in parameters)
    return f"{label}, {n_elements / 1e6:.0f}M, {config().dtype}".replace("torch.", ""), n_bytes


def main() -> None:
    """Measures in turns, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="of the models, those with this in their names")
    options = parser.parse_args()
    models = [(*named(label, config), config, rounds) for label, config, rounds in MODELS]
    wanted = [each for each in models if options.only in each[0]]
    if not wanted:
        parser.error(f"--only {options.only!r} matches no model; there are: {'; '.join(each[0] for each in models)}")
    fresh.check(must_be_right)
    ways: dict[str, Callable[[Config], Any]] = {
        "from_config": plain,
        "meta, to_empty, initialize_weights": to_empty,
        "build, torch": partial(build, backend="torch"),
        "build, cpp": partial(build, backend="cpp"),
    }
    for name, n_bytes, config, rounds in wanted:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, make in ways.items():
                found[way].append(fresh.seconds_and_gigabytes(partial(make, config), n_bytes))
        medians = {way: [statistics.median(each[i] for each in found[way]) for i in (0, 1)] for way in ways}
        rows: list[dict[str, Any]] = []
        for way, (seconds, gigabytes) in medians.items():
            rows.append(
                {
                    "model": name,
                    "way": way,
                    "seconds": f"{seconds:.2f}",
                    "peak memory, GB": f"{gigabytes:.2f}",
                    "times faster": f"{medians['from_config'][0] / seconds:.1f}",
                }
            )
        replace("bench_build.csv", rows, "model", "way")


if __name__ == "__main__":
    main()

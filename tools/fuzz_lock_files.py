"""Damages the files of plans, and reports files that are neither refused nor read as what they say.

    python tools/fuzz_lock_files.py --seed 1 --n 10000

A mutant is a change of a value, a key, a character or a length. It is right if ``Plan.load`` refuses it with a short
ValueError that can be printed, or if what it gives is what Python's json reads in the file: saving it again gives the
same values, but for keys that say what holds without them (a part that is the whole, a stream of the parameter's name).
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastinit
from fastinit import Plan

_LONGEST_MESSAGE = 2000
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 1e308, 5e-324, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 10**30),
    *("", "a", "inf", "-inf", "nan", "1e5", "(1+2j)", "1j", "0x10", " 1", "\ud800", "float32", "half", "int8", "cuda"),
    *("normal", "uniform", "constant", "orthogonal", "fill", "copy", "compute", "call", "torch", "contract 2"),
    *(
        [],
        {},
        [[]],
        [0],
        [4, 8],
        [2**40, 2**40],
        [-1],
        ["a"],
        {"kind": "normal"},
        {"first": 0, "shape": [], "steps": []},
    ),
]
_TEXTS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "01",
    "1.",
    "'a'",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    "\0",
    "//",
]


def honest(folder: Path) -> list[str]:
    """Returns texts of files with every kind of item, written into a folder for it."""

    def with_tables() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        model.register_buffer("table", torch.arange(4.0) / 3)
        model.register_buffer("scale", torch.ones(2), persistent=False)
        return model

    def parts(model: nn.Sequential) -> None:
        first, second = (layer.get_parameter("weight") for layer in model)
        nn.init.normal_(first)
        nn.init.uniform_(first[:, 1:3])
        nn.init.orthogonal_(second)
        for layer in model:
            nn.init.zeros_(layer.get_parameter("bias"))

    def made() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))

    kinds = [
        dict(type="Xavier", layer="Linear"),
        dict(type="TruncNormal", std=0.02, param="0.bias"),
        dict(type="Orthogonal", param="1.weight"),
        dict(type="Constant", val=float("inf"), param="1.bias"),
    ]
    with fastinit.capture(recorded := made(), backend="cpp", seed=1) as recipe, torch.no_grad():
        parts(recorded)
    torch.save(made().state_dict(), folder / "net.pth")
    copied = [dict(type="Pretrained", checkpoint=str(folder / "net.pth")), dict(type="Constant", val=1, param="0.bias")]
    plans = [
        fastinit.plan(made(), kinds, backend="cpp", seed=7),
        fastinit.plan(made(), recipe, backend="cpp", seed=7),
        fastinit.plan(made(), copied, backend="cpp", seed=7),
        fastinit.plan(with_tables, backend="cpp", seed=7),
        fastinit.plan(made(), lambda module: None, backend="torch"),
    ]
    texts = []
    for plan in plans:
        plan.save(folder / "plan.json", exact=not plan.why_not_exact)
        texts.append((folder / "plan.json").read_text(encoding="utf-8"))
    return texts


def mutant(text: str, draw: random.Random) -> bytes:
    """Returns a damaged file."""
    way: Callable[[str, random.Random], bytes] = draw.choice([_of_values, _of_values, _of_values, _of_text, _of_bytes])
    return way(text, draw)


def _of_values(text: str, draw: random.Random) -> bytes:
    document = json.loads(text)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder, key = draw.choice(list(_places(document)))
        what = draw.randrange(5)
        if what == 0 and isinstance(holder, dict):
            holder[draw.choice(["part", "drawn_at", "stream", "seed", "extra", "first", "shape"])] = draw.choice(
                _VALUES
            )
        elif what == 1:
            del holder[key]
        elif what == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif what == 3:
            others = list(_places(document))
            other, at = draw.choice(others)
            holder[key] = copy.deepcopy(other[at])
        else:
            holder[key] = copy.deepcopy(draw.choice(_VALUES))
        if not document:
            break
    return json.dumps(document, ensure_ascii=True).encode()


def _places(value: Any) -> Sequence[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [each for key in keys for each in _places(value[key])]


def _of_text(text: str, draw: random.Random) -> bytes:
    at = draw.randrange(len(text))
    put, cut = draw.choice(_TEXTS), draw.choice([0, 1, 5])
    if draw.randrange(4) == 0:  # a line, which is an item, once more
        lines = text.splitlines(keepends=True)
        lines.insert(draw.randrange(len(lines)), draw.choice(lines))
        return "".join(lines).encode()
    return (text[:at] + put + text[at + cut :]).encode()


def _of_bytes(text: str, draw: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 2, 8])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data))]) if draw.randrange(4) == 0 else bytes(data)


def verdict(data: bytes, path: Path) -> str:
    """Returns "refused" or "read", or what is wrong."""
    path.write_bytes(data)
    try:
        plan = Plan.load(path)
    except ValueError as error:
        message = str(error)
        is_right = isinstance(error, fastinit.Error) and message.startswith(f"{path}: ") and message.isprintable()
        return "refused" if is_right and len(message) < _LONGEST_MESSAGE else f"refused badly: {message[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    plan.save(path, exact=False)
    said, read = (json.loads(text) for text in (data.decode(), path.read_text(encoding="utf-8")))
    if plan.why_not_exact == "":
        plan.save(path)  # with digests
        read = json.loads(path.read_text(encoding="utf-8"))
    return "read" if _plain(said) == _plain(read) else f"read as something else: {_plain(said)} {_plain(read)}"


def _plain(document: Any) -> Any:
    """Returns what a file says, without keys that say what holds without them."""
    for key in ("order", "non_persistent"):
        if document.get(key) == []:
            del document[key]
    for item in document["items"]:
        for tensor in item.get("tensors", ()):
            tensor.pop("sha256", None)
        values = item.get("values", {})
        if values.get("kind") != "constant":  # 2 is 2.0, where only a number's value counts
            for key, value in values.items():
                if type(value) is int and key not in ("groups", "batch_dims"):
                    values[key] = float(value)
        shape = item.get("shape", ()) if item["do"] == "fill" else ()  # elsewhere nobody has looked at it
        steps = [1] * len(shape)
        for dim in range(len(shape) - 1, 0, -1):
            steps[dim - 1] = steps[dim] * shape[dim]
        if item.get("stream") == item.get("name") or item.get("values", {}).get("kind") in _UNDRAWN:
            item.pop("stream", None)
        if item.get("values", {}).get("kind") in _UNDRAWN:
            item.pop("drawn_at", None)
        part = {"first": 0, "shape": shape, "steps": steps}
        if item.get("part") == part:
            del item["part"]
        at = item.get("part", part)
        if item.get("drawn_at") == {"first": at["first"], "steps": at["steps"]}:
            del item["drawn_at"]
    return json.dumps(document, sort_keys=True)


_UNDRAWN = ("constant", "identity", "dirac")


def fuzz(n: int, seed: int) -> Counter[str]:
    """Returns how many of ``n`` mutants had which verdict."""
    draw = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = honest(folder)
        for _ in range(n):
            found[verdict(mutant(draw.choice(texts), draw), folder / "mutant.json")] += 1
    return found


def main() -> None:
    """Runs the command line; the exit code is 1 if a mutant was read wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=10_000)
    arguments = parser.parse_args()
    found = fuzz(arguments.n, arguments.seed)
    for what, count in found.most_common():
        print(f"{count:8,}  {what}")
    raise SystemExit(any(what not in ("refused", "read") for what in found))


if __name__ == "__main__":
    main()

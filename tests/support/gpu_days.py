"""What the tests of the GPU day share: its modules can be imported, and findings are collected."""

from __future__ import annotations

import json

import gpu_day_step
import needs

from fastinit.backends import cpp_backend

needs_cpp = needs.mark(needs.CPP)


def collected(tmp_path, monkeypatch):
    """A fixture's function: returns a function that returns the findings so far, (kind, text), of steps called here."""
    path = tmp_path / "findings.jsonl"
    monkeypatch.setenv(gpu_day_step.FINDINGS, str(path))
    monkeypatch.setenv("FASTINIT_GPU_DAY_OUT", str(tmp_path))
    monkeypatch.setattr(gpu_day_step, "_kinds", set())

    def so_far():
        lines = path.read_text().splitlines() if path.exists() else []
        return [(each["kind"], each["text"]) for each in map(json.loads, lines)]

    return so_far


def another_seed(fills, seed, **_):
    """Runs fills of ``cpp`` wrongly: with the numbers of another seed."""
    return cpp_backend.run(fills, seed + 1)


def wrong_ones(findings):
    return [text for kind, text in findings() if kind == "wrong"]

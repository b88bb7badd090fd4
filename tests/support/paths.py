"""Where the checkout's folders are, so that no test counts its own parents."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"
PACKAGE = ROOT / "fastinit"

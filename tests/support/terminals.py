"""The command line in a process of its own, piped or in a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from paths import ROOT

COMMAND = [sys.executable, "-m", "fastinit"]


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a process that imports this checkout, whatever its folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FASTINIT_PROGRESS")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def piped(*arguments: str, cwd: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command line whose output is piped."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment(), **how
    )


def in_terminal(*arguments: str, cwd: Path, columns: int) -> tuple[int, str]:
    """Runs a command line in a terminal of so many columns; returns its exit code and all that it shows."""
    mine, its = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=its, stdout=its, stderr=its, cwd=cwd, env=environment(COLUMNS=str(columns))
    ) as process:
        os.close(its)
        shown = b""
        while True:
            try:
                block = os.read(mine, 65536)
            except OSError:  # Linux's way to say that nobody has the other end
                break
            if not block:
                break
            shown += block
    os.close(mine)
    return process.returncode, shown.decode().replace("\r\n", "\n")

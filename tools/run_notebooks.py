"""Runs the notebooks of docs/notebooks and puts what they print into them; needs no Jupyter.

    python tools/run_notebooks.py          # all
    python tools/run_notebooks.py ranks    # one of them

A cell that fails ends it, and its notebook stays as it was.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs" / "notebooks"


def run(path: Path) -> dict[str, Any]:
    """Returns a notebook with the output of its code cells, which run one after the other in a folder of their own.

    Raises:
        Exception: whatever a cell raises.
    """
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    before, found_in = Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
            for number, cell in enumerate(code, 1):
                printed = io.StringIO()
                with redirect_stdout(printed):
                    exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
                cell["execution_count"], cell["outputs"] = number, _outputs(printed.getvalue())
        finally:
            os.chdir(before)
            sys.path[:] = found_in
            # What cells wrote and imported would be in the way of others with these names.
            for name in [path.stem for path in Path(folder).glob("*.py")]:
                sys.modules.pop(name, None)
    return notebook


def _outputs(text: str) -> list[dict[str, Any]]:
    """Returns what was printed as a notebook keeps it."""
    return [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}] if text else []


def main() -> None:
    """Runs the notebooks that the command line names."""
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all if not given")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"there is no notebook {unknown[0]!r}; there are {', '.join(known)}")
    for name in options.names or known:
        path = NOTEBOOKS / f"{name}.ipynb"
        path.write_text(json.dumps(run(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: ran")


if __name__ == "__main__":
    main()

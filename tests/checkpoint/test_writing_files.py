"""The files of ``write``: each whole or not there, the last of them last, and what was finished is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from limits import status_bytes
from torch import nn

import fastinit
from fastinit.checkpoint.writing import behind, distributed, safetensors, whole_files
from fastinit.checkpoint.writing.contents import Values

pytestmark = needs.mark(needs.CPP)
N_SHARDS = 4


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(2 * N_SHARDS)))


def write(folder: Path, **how: Any) -> list[Path]:
    return fastinit.write(model, folder, **{"seed": 3, "max_shard_size": 2 * 64 * 64 * 4, **how})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "expected")
    return contents(tmp_path / "expected")


def stopping_at(n: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises an error where values are put into memory for the n-th time."""
    original, calls = Values.put, count(1)

    def put(self: Values, ranges: Any) -> None:
        if next(calls) == n:
            raise error
        original(self, ranges)

    monkeypatch.setattr(Values, "put", put)


def whole(folder: Path) -> bool:
    """Tells whether a reader would take a folder for a checkpoint."""
    return any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json", ".metadata"))


# --- stopped and gone on with -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
def test_a_call_that_is_stopped_leaves_whole_shards_of_no_checkpoint(
    error: BaseException, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stopping_at(3, error, patched)
        with pytest.raises(type(error)):
            write(tmp_path / "new")
    left = contents(tmp_path / "new")
    assert set(left) == {".model.writing", *sorted(expected)[:2]}
    assert {left[name] == expected[name] for name in sorted(expected)[:2]} == {True}


def test_the_same_call_keeps_what_was_finished(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping_at(3, KeyboardInterrupt(), patched)
        write(tmp_path / "new")
    names = sorted(expected)
    before = (tmp_path / "new" / names[0]).stat().st_ino
    write(tmp_path / "new")
    assert (tmp_path / "new" / names[0]).stat().st_ino == before
    assert contents(tmp_path / "new") == expected


@pytest.mark.parametrize(
    "how", [dict(seed=4), dict(max_shard_size=10**4), dict(dtype=torch.bfloat16), dict(metadata={})]
)
def test_another_call_starts_anew(how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping_at(3, KeyboardInterrupt(), patched)
        write(tmp_path / "new")
    write(tmp_path / "new", **how)
    write(tmp_path / "plain", **how)
    assert contents(tmp_path / "new") == contents(tmp_path / "plain")


def cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [cut_off, touch, Path.unlink])
def test_a_finished_file_that_was_changed_is_written_again(
    change: Callable[[Path], object], tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping_at(3, KeyboardInterrupt(), patched)
        write(tmp_path / "new")
    first = tmp_path / "new" / min(expected)
    inode = first.stat().st_ino
    change(first)
    write(tmp_path / "new")
    assert contents(tmp_path / "new") == expected and first.stat().st_ino != inode


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"fastinit_write": 1}', '{"fastinit_write": 1, "digest": 1, "done": 2}']
)
def test_a_damaged_journal_only_costs_work(text: str, tmp_path: Path, expected: dict[str, bytes]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".model.writing").write_text(text)
    write(tmp_path / "new")
    assert contents(tmp_path / "new") == expected


def test_a_journal_names_no_files_of_others(tmp_path: Path, expected: dict[str, bytes]) -> None:
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "new").mkdir()
    done = {name: {"status": [4, 0], "known": 1} for name in ("../mine", "config.json")}
    (tmp_path / "new" / "config.json").write_text("kept")
    journal = {"fastinit_write": 1, "digest": "another", "done": done}
    (tmp_path / "new" / ".model.writing").write_text(json.dumps(journal))
    write(tmp_path / "new")
    assert (tmp_path / "mine").read_text() == (tmp_path / "new" / "config.json").read_text() == "kept"


def test_files_with_computed_values_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [1.0]

    def make() -> nn.Module:
        made = model()
        made.register_buffer("held", torch.tensor(numbers, device="cpu"))
        return made

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stopping_at(5, KeyboardInterrupt(), patched)
        fastinit.write(make, tmp_path, seed=3, max_shard_size=4 * 64 * 64)
    numbers[0] = 2.0
    fastinit.write(make, tmp_path, seed=3, max_shard_size=4 * 64 * 64)
    numbers[0] = 3.0
    fastinit.checkpoint.load_checkpoint(made := make(), str(tmp_path))
    assert made.held.tolist() == [2.0]


def test_a_call_that_was_killed_before_its_last_step_is_ended(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(writer: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(whole_files._Writer, "forget", interrupted)
        write(tmp_path / "new")
    assert ".model.writing" in contents(tmp_path / "new")
    write(tmp_path / "new")
    assert contents(tmp_path / "new") == expected


@needs.mark(needs.FORK)
@pytest.mark.parametrize("format", ["safetensors", "dcp"])
def test_a_process_that_is_killed_anywhere_is_gone_on_with(format: str, tmp_path: Path) -> None:
    def large() -> nn.Module:
        return nn.Sequential(*(nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16) for _ in range(24)))

    def make(folder: Path) -> None:
        fastinit.write(large, folder, seed=3, format=format, max_shard_size="6MB")  # type: ignore[arg-type]

    make(tmp_path / "expected")
    expected, folder = contents(tmp_path / "expected"), tmp_path / "new"
    for attempt in range(30):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                make(folder)
            finally:
                os._exit(0)
        time.sleep(0.004 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = {name: data for name, data in contents(folder).items() if name[0] != "."} if folder.exists() else {}
        assert all(data == expected[name] for name, data in left.items())
        if whole(folder):
            assert set(left) == {name for name in expected if name[0] != "."}
            break
    if not whole(folder):
        make(folder)
    for hidden in folder.glob(".*.*ing"):  # of a kill between the last two steps
        assert hidden.name == f".{'__0' if format == 'dcp' else 'model'}.writing"
        make(folder)
    assert contents(folder) == expected


# --- beside others ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_there_is_not_touched(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write(tmp_path / "new")
    with pytest.raises(FileExistsError, match=re.escape("there is a checkpoint already. Pass overwrite=True")):
        write(tmp_path / "new", seed=4)
    assert contents(tmp_path / "new") == expected


def test_overwriting_leaves_nothing_of_what_was_there(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write(tmp_path / "new", seed=4, max_shard_size=2 * 10**4)
    (tmp_path / "new" / "config.json").write_text("kept")
    write(tmp_path / "new", overwrite=True)
    assert contents(tmp_path / "new") == {**expected, "config.json": b"kept"}


def test_what_says_that_a_checkpoint_is_whole_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "new", seed=4)
    removed: list[str] = []
    original = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        removed.append(path.name)
        original(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    write(tmp_path / "new", overwrite=True)
    assert next(name for name in removed if name[0] != ".") == "model.safetensors.index.json"


def test_while_it_is_overwritten_there_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "new", seed=4)
    stopping_at(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", overwrite=True)
    assert set(contents(tmp_path / "new")) == {".model.writing"}


def test_two_checkpoints_of_one_folder_do_not_meet(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write(tmp_path / "new" / "model-ema.safetensors", seed=4)
    write(tmp_path / "new")
    found = contents(tmp_path / "new")
    assert {name: found[name] for name in expected} == expected and len(found) == 2 * len(expected)


def test_two_calls_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    original = Values.put

    def put(self: Values, ranges: Any) -> None:
        begun.set()
        may_end.wait(60)
        original(self, ranges)

    monkeypatch.setattr(Values, "put", put)
    first = threading.Thread(target=write, args=(tmp_path,))
    first.start()
    begun.wait(60)
    try:
        with pytest.raises(RuntimeError, match="another process is writing this checkpoint"):
            write(tmp_path)
    finally:
        may_end.set()
        first.join()
    assert whole(tmp_path)


def test_files_that_cannot_be_written_are_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_an_error_of_the_writing_thread_is_raised(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError("full")

    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match="full"), behind.Behind(file) as writes:
        for _ in range(5):
            writes.wait_for_room()
            writes.submit(full)


def test_no_more_pieces_are_there_than_one_that_is_filled_and_one_that_is_written(tmp_path: Path) -> None:
    may_end, n = threading.Event(), []
    with open(tmp_path / "file", "wb") as file, behind.Behind(file) as writes:
        threading.Timer(0.2, may_end.set).start()
        for _ in range(6):
            writes.wait_for_room()
            n.append(len(writes._waiting) + 1)
            writes.submit(lambda: may_end.wait(60))
    assert max(n) == behind.PIECES


def of_256_mib() -> nn.Module:
    return nn.Linear(8192, 8192, bias=False)


@needs.mark(needs.LINUX, needs.FORK)
@pytest.mark.parametrize("format", ["safetensors", "dcp"])
def test_memory_does_not_grow_with_the_model(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "WINDOW_BYTES", 1 << 20)
    monkeypatch.setattr(distributed, "CHUNK_BYTES", 1 << 20)
    read, wrote = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            before = status_bytes("VmRSS")
            fastinit.write(of_256_mib, tmp_path, seed=3, format=format)  # type: ignore[arg-type]
            os.write(wrote, str(max(0, status_bytes("VmHWM") - before)).encode())
        finally:
            os._exit(0)
    os.close(wrote)
    os.waitpid(child, 0)
    assert int(os.read(read, 100)) < 64 << 20


def test_a_system_that_keeps_open_files_keeps_the_lock_until_it_is_free(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, kept = Path.unlink, []

    def refuse_locks(self: Path, missing_ok: bool = False) -> None:  # as Windows does
        if self.suffix == ".lock":
            kept.append(self.name)
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse_locks)
    write(tmp_path / "other")
    assert kept and {name: data for name, data in contents(tmp_path / "other").items() if name not in kept} == expected

"""Windows and macOS: the torch backend and the loaders do without what only Linux, or only POSIX, has.

Simulated in a process of its own on this system: once torch is there, what another system lacks is taken out of the
standard library, and then fastinit is imported and used. What else differs there is not tried by this.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file

# Taken out before fastinit is imported. Not among them: what the standard library itself uses here for good.
MACOS = {
    "extensions": [],
    "modules": ["triton"],
    "os": ["preadv", "pwritev", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "fdatasync", "O_DIRECT"],
    "mmap": ["MADV_POPULATE_WRITE", "MADV_HUGEPAGE", "MAP_POPULATE"],
}
WINDOWS = {
    "modules": ["fcntl", "resource", "pwd", "grp", "termios", "tty", "syslog", "triton"],
    # Nothing has been compiled there.
    "extensions": ["fastinit._native", "fastinit._cuda"],
    "os": [
        *MACOS["os"],
        *("pread", "pwrite", "fork", "register_at_fork", "sysconf", "uname", "getuid", "geteuid", "getgid"),
        *(
            "O_CLOEXEC",
            "O_DIRECTORY",
            "O_NOFOLLOW",
            "fchmod",
            "fchown",
            "statvfs",
            "mkfifo",
            "killpg",
            "setsid",
            "lockf",
        ),
    ],
    "mmap": [
        *("MAP_PRIVATE", "MAP_SHARED", "MAP_ANONYMOUS", "MAP_NORESERVE", "PROT_READ", "PROT_WRITE", "PROT_EXEC"),
        *("MADV_DONTNEED", "MADV_SEQUENTIAL", "MADV_WILLNEED", *MACOS["mmap"]),
    ],
}
SYSTEMS = {"darwin": MACOS, "win32": WINDOWS}

TAKE_OUT = """
import importlib.abc, importlib.util, os, mmap, pathlib, sys, tempfile, warnings
import filelock, numpy, torch
lacking = {lacking!r}

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in lacking["modules"]:
            raise ModuleNotFoundError(f"No module named {{name!r}} on {system}", name=name)

sys.meta_path.insert(0, Missing())
for name in lacking["modules"]:
    sys.modules.pop(name, None)
whole_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in lacking["extensions"] else whole_find_spec(name)
for name in lacking["os"]:
    vars(os).pop(name, None)
for name in lacking["mmap"]:
    vars(mmap).pop(name, None)
sys.platform = {system!r}
# Text without an encoding is another text on Windows.
warnings.filterwarnings("error", category=EncodingWarning, module="fastinit")
folder = pathlib.Path(sys.argv[1])
"""

USE = """
import fastinit
from torch import nn

def make(**where):
    return nn.Sequential(nn.Linear(64, 300, **where), nn.BatchNorm1d(300, **where), nn.Linear(300, 4, **where))

cfg = [dict(type="Kaiming", layer="Linear"), dict(type="Constant", val=1, layer="BatchNorm1d")]
model = make()
torch.manual_seed(0)
fastinit.initialize(model, cfg, backend="torch")
torch.manual_seed(0)
expected = nn.init.kaiming_normal_(torch.empty(300, 64), a=0, mode="fan_out", nonlinearity="relu")
assert torch.equal(model[0].weight, expected)
plan = fastinit.plan(model, cfg, backend="torch")
plan.save(folder / "plan.json", exact=False)
assert str(fastinit.Plan.load(folder / "plan.json")) is not None
fastinit.materialize(make(device="meta"), cfg, backend="torch")
with fastinit.capture(make()) as recipe:
    pass
stored = torch.load(folder / "zip.pth", weights_only=True)
for name in ("zip.pth", "old.pth", "a.safetensors"):
    for options in ({}, dict(access="map"), dict(access="read"), dict(assign=True), dict(access="map", assign=True)):
        loaded = make()
        fastinit.initialize(loaded, dict(type="Pretrained", checkpoint=str(folder / name), **options), strict=True)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, stored[key]), (name, options, key)
    half = make(dtype=torch.float64)
    fastinit.initialize(half, dict(type="Pretrained", checkpoint=str(folder / name)), strict=True)
    assert torch.equal(half[0].weight, stored["0.weight"].double())
digest = fastinit.digest(loaded)
assert not digest.diff(fastinit.digest(folder / "zip.pth")), digest
backends = fastinit.available_backends()
assert backends["torch"] is None and backends["triton"]
if backends["cpp"] is None:
    fastinit.write(make, folder / "written", cfg, seed=0, backend="cpp")
print("used", sorted(name for name, missing in backends.items() if missing is None))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one state dict in three formats."""
    made = tmp_path_factory.mktemp("checkpoints")
    model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.BatchNorm1d(300), torch.nn.Linear(300, 4))
    state = model.state_dict()
    torch.save(state, made / "zip.pth")
    torch.save(state, made / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, made / "a.safetensors")
    return made


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_torch_backend_and_the_loaders_need_nothing_that_other_systems_lack(system, folder):
    code = TAKE_OUT.format(lacking=SYSTEMS[system], system=system) + textwrap.dedent(USE)
    command = [sys.executable, "-X", "warn_default_encoding", "-c", code, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("used ['")
    assert ("cpp" in done.stdout) <= (system != "win32")

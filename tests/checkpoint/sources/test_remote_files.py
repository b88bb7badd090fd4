"""Remote file systems through fsspec, and the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import needs
import pytest
import torch
from file_servers import loaded, saved, serve
from torch import nn

import fastinit
from fastinit import checkpoint as ours

safetensors = needs.module("safetensors.torch")
server = pytest.fixture(serve, name="server")


def test_other_file_systems_are_reached_through_fsspec_and_cached(tmp_path, cache):
    fsspec = needs.module("fsspec")

    memory = fsspec.filesystem("memory")
    content = saved({"weight": torch.full((200, 300), 6.0), "bias": torch.ones(200)}, tmp_path)
    memory.pipe("/bucket/net.pth", content)
    assert (loaded("memory://bucket/net.pth").weight == 6).all()
    memory.pipe("/bucket/net.pth", saved({"weight": torch.full((200, 300), 7.0), "bias": torch.ones(200)}, tmp_path))
    assert (loaded("memory://bucket/net.pth").weight == 7).all()  # another version of the file
    with pytest.raises(FileNotFoundError, match="memory:///bucket/none.pth can not be found"):
        loaded("memory://bucket/none.pth")
    assert len(fastinit.plan(nn.Linear(1, 1), dict(type="Pretrained", checkpoint="memory://bucket/net.pth")).rows) == 1
    ours.save_checkpoint({"weight": torch.full((200, 300), 8.0)}, "memory://bucket/out.pth")
    assert (loaded("memory://bucket/out.pth").weight == 8).all()


@pytest.mark.parametrize(
    ("checkpoint", "hidden", "message"),
    [
        ("hf://org/name", "huggingface_hub", r"needs huggingface_hub: pip install 'torch-fastinit\[hf\]'"),
        ("s3://bucket/x.pth", "fsspec", r"needs fsspec: pip install 'torch-fastinit\[remote\]'"),
        ("s3://bucket/x.pth", "s3fs", "fsspec cannot reach s3://.*s3fs"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, checkpoint, hidden, message):
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ImportError, match=message):
        loaded(checkpoint)


def test_a_hub_name_is_checked_before_the_hub_is_asked():
    for wrong in ("hf://name", "hf://", "hf://a/b@", "hf://a/b@x@y"):
        with pytest.raises(ValueError, match="must be hf://org/name"):
            loaded(wrong)


def hub(server, repository, revision, files):
    """Makes the server answer as the Hub does for one repository."""
    commit = hashlib.sha1(revision.encode()).hexdigest()
    server.extra = {"X-Repo-Commit": commit}
    listing = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    for name in (revision, commit):
        server.files[f"/api/models/{repository}/revision/{name}"] = json.dumps(listing).encode()
        tree = [{"type": "file", "path": file, "oid": "0" * 40, "size": len(data)} for file, data in files.items()]
        server.files[f"/api/models/{repository}/tree/{name}"] = json.dumps(tree).encode()
        for file, data in files.items():
            server.files[f"/{repository}/resolve/{name}/{file}"] = data
    if revision == "main":
        server.files[f"/api/models/{repository}"] = json.dumps(listing).encode()


def test_checkpoints_of_the_hub_are_found_by_name_revision_and_file(server, tmp_path):
    one, two = (tmp_path / f"model-{i}.safetensors" for i in (1, 2))
    safetensors.save_file({"a.weight": torch.full((2, 2), 1.0)}, one)
    safetensors.save_file({"b.weight": torch.full((2, 2), 2.0)}, two)
    index = json.dumps({"weight_map": {"a.weight": one.name, "b.weight": two.name}}).encode()
    shards = {"model.safetensors.index.json": index, one.name: one.read_bytes(), two.name: two.read_bytes()}
    hub(server, "org/sharded", "main", {"README.md": b"#", **shards})
    hub(
        server,
        "org/tagged",
        "v2",
        {"sub/net.pth": saved({"state_dict": {"a.weight": torch.full((2, 2), 3.0)}}, tmp_path)},
    )
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys, fastinit, torch
def load(checkpoint, prefix="a"):
    made = torch.nn.Linear(2, 2, bias=False)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=checkpoint, prefix=prefix))
    return made.weight[0, 0].item()
def planned(checkpoint):
    return len(fastinit.plan(torch.nn.Linear(2, 2, bias=False), dict(type="Pretrained", checkpoint=checkpoint, prefix="a")).rows)
"""
        + "print(planned('hf://org/sharded'), load('hf://org/sharded'), load('hf://org/tagged@v2/sub/net.pth'))\n"
        + "print(planned('hf://org/tagged@v2/sub/net.pth'))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"  # benchmarks, of which tests import some, switch it on
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["1 1.0 3.0", "1"]
    asked = {path for path, _ in server.requests}
    assert any(one.name in path for path in asked)
    assert not any(two.name in path for path in asked)

"""Where checkpoints come from: schemes, downloads from a server that misbehaves, the Hub, remote file systems."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import pytest
import torch
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint import CheckpointLoader
from fastinit.checkpoint.sources import downloads, schemes

safetensors = needs.module("safetensors.torch")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; what is in ``server.tricks`` for a path goes wrong, in turn."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        path = self.path.partition("?")[0]
        with server.lock:
            server.requests.append((path, self.headers.get("Range")))
            trick = server.tricks[path].pop(0) if server.tricks.get(path) else None
        if isinstance(trick, int):
            return self.answer(trick, b"no", {"Retry-After": "0"})
        if trick == "redirect":
            return self.answer(302, b"", {"Location": "/elsewhere" + path})
        if trick == "slow":
            time.sleep(3)
        data = server.files.get(path.removeprefix("/elsewhere"))
        if data is None:
            return self.answer(404, b"not here")
        extra = {} if server.no_validator else {"ETag": f'"{hashlib.md5(data).hexdigest()}"', **server.extra}
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, extra.get("ETag"))
        start = int(wanted[6:-1]) if wanted and same and server.resumes else 0
        if start > len(data):
            return self.answer(416, b"")
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.send_response(206 if start else 200)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if trick == "break":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        return None

    def answer(self, code, body, headers=()):
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture()
def server(monkeypatch):
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.files, made.tricks, made.requests, made.extra = {}, {}, [], {}
    made.lock, made.resumes, made.no_validator = threading.Lock(), True, False
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(downloads, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT_S", 1.0)
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def saved(state, tmp_path):
    torch.save(state, tmp_path / "saved.pth")
    return (tmp_path / "saved.pth").read_bytes()


def hashed(name, data):
    return f"/{name}-{hashlib.sha256(data).hexdigest()[:8]}.pth"


def offer(server, tmp_path, state=None, name="net"):
    """Puts a checkpoint onto the server, under a name with its hash."""
    data = saved(state or {"state_dict": {"weight": torch.full((200, 300), 2.0), "bias": torch.ones(200)}}, tmp_path)
    path = hashed(name, data)
    server.files[path] = data
    return server.url + path, path


def loaded(url, **options):
    made = nn.Linear(300, 200)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=url, **options))
    return made


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_into_torch_hubs_cache(server, tmp_path, cache):
    url, path = offer(server, tmp_path)
    for _ in range(2):
        assert (loaded(url).weight == 2).all()
    assert server.requests == [(path, None)]
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == [path[1:]]
    # what torch.hub has downloaded is found
    other, other_path = offer(server, tmp_path, {"weight": torch.zeros(200, 300), "bias": torch.zeros(200)}, "other")
    torch.hub.load_state_dict_from_url(other, progress=False)
    assert (loaded(other).weight == 0).all() and [p for p, _ in server.requests].count(other_path) == 1


def test_files_of_one_name_and_different_addresses_do_not_meet(server, tmp_path):
    for folder, value in (("a", 1.0), ("b", 2.0)):
        server.files[f"/{folder}/pytorch_model.bin"] = saved(
            {"weight": torch.full((200, 300), value), "bias": torch.ones(200)}, tmp_path
        )
    assert (loaded(f"{server.url}/a/pytorch_model.bin").weight == 1).all()
    assert (loaded(f"{server.url}/b/pytorch_model.bin").weight == 2).all()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    url, path = offer(server, tmp_path)
    server.tricks[path] = ["break", "break"]
    assert (loaded(url).weight == 2).all()
    size = len(server.files[path])
    assert server.requests == [
        (path, None),
        (path, f"bytes={size // 2}-"),
        (path, f"bytes={size // 2 + (size - size // 2) // 2}-"),
    ]


@pytest.mark.parametrize("how", ["cannot resume", "no validator"])
def test_a_broken_download_starts_anew_where_the_server_cannot_resume(server, tmp_path, how):
    url, path = offer(server, tmp_path)
    server.tricks[path] = ["break"]
    server.resumes, server.no_validator = how != "cannot resume", how == "no validator"
    assert (loaded(url).weight == 2).all() and len(server.requests) == 2


def test_what_a_killed_process_left_is_resumed_by_the_next_one(server, tmp_path, cache, monkeypatch):
    url, path = offer(server, tmp_path)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.tricks[path] = ["break"]
    with pytest.raises(
        RuntimeError, match=r"the download failed 1 times.*the connection ended after .* bytes are kept in"
    ):
        loaded(url)
    assert not (cache / path[1:]).exists()
    assert (loaded(url).weight == 2).all() and server.requests[-1][1] is not None
    assert not [p for p in cache.iterdir() if "partial" in p.name]


def test_a_file_that_changed_on_the_server_meanwhile_is_not_patched_together(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    url, path = f"{server.url}/m/model.pth", "/m/model.pth"
    server.files[path] = saved({"weight": torch.zeros(200, 300), "bias": torch.zeros(200)}, tmp_path)
    server.tricks[path] = ["break"]
    with pytest.raises(RuntimeError, match="the connection ended"):
        loaded(url)
    server.files[path] = saved({"weight": torch.ones(200, 300), "bias": torch.ones(200)}, tmp_path)
    assert (loaded(url).weight == 1).all() and server.requests[-1][1] is not None
    # shorter than what we have: the server refuses the range
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    url, path = f"{server.url}/n/model.pth", "/n/model.pth"
    server.no_validator = False
    server.files[path] = b"PK\x03\x04" + bytes(10**6)
    server.tricks[path] = ["break", 500]
    with pytest.raises(RuntimeError, match="500"):
        loaded(url)
    server.files[path] = saved({"weight": torch.ones(200, 300), "bias": torch.ones(200)}, tmp_path)
    server.tricks[path] = [416]
    assert (loaded(url).weight == 1).all()


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, tmp_path, cache):
    url, path = offer(server, tmp_path)
    server.files[path] = server.files[path][:-1] + b"x"
    made = nn.Linear(300, 200)
    before = made.weight.clone()
    with pytest.raises(
        RuntimeError, match=rf"init_cfg: {url}: the file's SHA-256 is .*begins with {path[-12:-4]}. Nothing was kept"
    ):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=url))
    assert torch.equal(made.weight, before) and not [p for p in cache.iterdir() if not p.name.endswith(".lock")]


def test_dates_at_the_end_of_a_name_are_no_hashes():
    for name, expected in [
        ("resnet50-0676ba61.pth", "0676ba61"),
        ("resnet50_8xb32_in1k_20210831-ea4938fc.pth", "ea4938fc"),
        ("mobilenet_v3_small-8427ecf0.pth", "8427ecf0"),
        ("faster_rcnn_20181010.pth", None),
        ("vgg13-19584684.pth", "19584684"),
        ("model.safetensors", None),
        ("net-cafe.pth", None),
        ("net-0676ba61.pth.tar", "0676ba61"),
    ]:
        assert downloads.hash_in(name) == expected
    tables = [ours.get_external_models(), ours.get_mmcls_models(), ours.get_torchvision_models()]
    names = [url.rpartition("/")[2] for table in tables for url in table.values()]
    assert sum(downloads.hash_in(name) is None for name in names) == 3  # which have none in their names


@pytest.mark.parametrize("code", [404, 403, 410])
def test_an_answer_that_will_not_change_is_told_at_once(server, tmp_path, code):
    url, path = offer(server, tmp_path)
    server.tricks[path] = [code] * 9
    with pytest.raises(RuntimeError, match=rf"init_cfg: {url}: the server answers {code}"):
        loaded(url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("trick", [503, 429, "slow", "redirect"])
def test_busy_slow_and_redirecting_servers_are_borne_with(server, tmp_path, trick):
    url, path = offer(server, tmp_path)
    server.tricks[path] = [trick]
    assert (loaded(url).weight == 2).all() and len(server.requests) == 2


def test_a_server_that_is_not_there_is_told_after_some_attempts(server, tmp_path):
    url, _ = offer(server, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(RuntimeError, match=rf"{url}: the download failed 5 times, at last because: .*[Cc]onnection"):
        loaded(url)
    with pytest.raises(RuntimeError, match="the server cannot be found .*Is this machine offline"):
        loaded("http://no-such-host.invalid/x-01234567.pth")


def test_of_many_that_want_a_file_one_downloads_it(server, tmp_path, cache):
    url, path = offer(server, tmp_path)
    server.tricks[path] = ["break"]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(loaded, [url] * 8))
    assert all((each.weight == 2).all() for each in made) and len(server.requests) == 2
    # and processes
    other, other_path = offer(server, tmp_path, {"weight": torch.zeros(2)}, "other")
    code = f"import fastinit; print(fastinit.checkpoint.load_from_http({other!r})['weight'].tolist())"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["[0.0, 0.0]"] * 3
    assert [p for p, _ in server.requests].count(other_path) == 1


def test_a_plan_downloads_nothing_and_says_so(server, tmp_path):
    url, _ = offer(server, tmp_path)
    made = nn.Linear(300, 200)
    plan = fastinit.plan(made, [dict(type="Normal", layer="Linear"), dict(type="Pretrained", checkpoint=url)])
    assert server.requests == []
    assert f"copy of what {url} holds (not downloaded yet)" in str(plan)
    assert json.loads(plan.to_json())["rows"][2]["values"] == {"kind": "copy", "checkpoint": url, "key": None}
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=url))
    rows = fastinit.plan(made, dict(type="Pretrained", checkpoint=url)).rows
    assert [row.parameter for row in rows] == ["weight", "bias"] and len(server.requests) == 1


def test_a_meta_model_is_materialized_from_the_web(server, tmp_path):
    url, _ = offer(server, tmp_path)
    with torch.device("meta"):
        made = nn.Linear(300, 200)
    report = fastinit.materialize(made, dict(type="Pretrained", checkpoint=url))
    assert (made.weight == 2).all() and report.unreached == ()


def test_a_checkpoint_is_downloaded_before_anything_is_written(server, tmp_path):
    made = nn.Linear(300, 200)
    before = made.weight.clone()
    with pytest.raises(RuntimeError, match=r"init_cfg\[1\]: .*404"):
        fastinit.initialize(
            made, [dict(type="Normal", layer="Linear"), dict(type="Pretrained", checkpoint=server.url + "/x.pth")]
        )
    assert torch.equal(made.weight, before)


def test_a_sharded_checkpoint_of_the_web_is_fetched_as_far_as_it_is_needed(server, tmp_path):
    weight_map = {}
    for i in range(3):
        name = f"model-{i}.safetensors"
        safetensors.save_file({f"b{i}.weight": torch.full((2, 2), float(i))}, tmp_path / name)
        server.files[f"/m/{name}"] = (tmp_path / name).read_bytes()
        weight_map[f"b{i}.weight"] = name
    server.files["/m/model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    made = nn.Linear(2, 2, bias=False)
    url = server.url + "/m/model.safetensors.index.json"
    fastinit.initialize(made, dict(type="Pretrained", checkpoint=url, prefix="b1"))
    assert (made.weight == 1).all()
    assert [path for path, _ in server.requests] == ["/m/model.safetensors.index.json", "/m/model-1.safetensors"]


def test_an_address_without_a_file_is_refused():
    for url in (
        "http://127.0.0.1:1/",
        "http://127.0.0.1:1",
        "http://127.0.0.1:1/a/%2e%2e",
        "http://127.0.0.1:1/..%2fx",
    ):
        with pytest.raises(ValueError, match="names no file"):
            loaded(url)


# --- the table of schemes --------------------------------------------------------------------------------------------


@pytest.fixture()
def own_schemes(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))


def test_schemes_are_registered_as_in_mmengine(own_schemes):
    calls = []

    @CheckpointLoader.register_scheme(prefixes=["my://", "mine://"])
    def load_from_mine(filename, map_location=None):
        calls.append((filename, map_location))
        return {"state_dict": {"weight": torch.ones(2, 2)}}

    CheckpointLoader.register_scheme("my2://", load_from_mine)
    made = nn.Linear(2, 2)
    fastinit.initialize(made, dict(type="Pretrained", checkpoint="mine://x"))
    assert (made.weight == 1).all() and calls == [("mine://x", "cpu")]
    assert ours.load_checkpoint(nn.Linear(2, 2), "my2://y", map_location="cpu", logger="silent")["state_dict"]
    assert fastinit.plan(made, dict(type="Pretrained", checkpoint="my://z")).rows[0].parameter == "" and len(calls) == 2
    for library in (CheckpointLoader, theirs.CheckpointLoader):
        if library is theirs.CheckpointLoader:
            library.register_scheme("my://", load_from_mine)
        with pytest.raises(KeyError, match='my:// is already registered as a loader backend, add "force=True"'):
            library.register_scheme("my://", load_from_mine)
        library.register_scheme("my://", len, force=True)
        assert library._get_checkpoint_loader("my://q") is len
    theirs.CheckpointLoader._schemes.pop("my://")


def test_the_same_names_go_to_the_same_kind_of_loader_as_in_mmengine():
    for name in [
        "a.pth",
        "/a/b.pth",
        "http://x/y.pth",
        "https://x/y.pth",
        "torchvision://resnet50",
        "modelzoo://resnet50",
        "open-mmlab://vgg16_caffe",
        "openmmlab://vgg16_caffe",
        "mmcls://vgg11",
        "pavi://x/y",
        "petrel://x/y",
        "cluster:s3://x/y",
    ]:
        assert (
            CheckpointLoader._get_checkpoint_loader(name).__name__
            == theirs.CheckpointLoader._get_checkpoint_loader(name).__name__
        )
    assert CheckpointLoader._get_checkpoint_loader("hf://a/b").__name__ == "load_from_hf"
    assert CheckpointLoader._get_checkpoint_loader("s3://a/b").__name__ == "load_from_fsspec"


def test_where_a_checkpoint_comes_from_is_logged_in_mmengines_words(tmp_path, capsys):
    torch.save({"weight": torch.ones(1)}, tmp_path / "c.pth")
    lines = []
    for library in (ours, theirs):
        library.CheckpointLoader.load_checkpoint(str(tmp_path / "c.pth"), logger=None)
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] == f"Loads checkpoint by local backend from path: {tmp_path}/c.pth\n"


def test_the_tables_of_names_are_mmengines():
    assert ours.get_external_models() == theirs.get_external_models()
    assert ours.get_mmcls_models() == theirs.get_mmcls_models()
    assert ours.get_deprecated_model_names() == theirs.get_deprecated_model_names()


def named(server, tmp_path, monkeypatch, table, name, state):
    """Makes an own table send a name to the server."""
    url, path = offer(server, tmp_path, state)
    home = tmp_path / "mmengine"
    home.mkdir(exist_ok=True)
    (home / f"{table}.json").write_text(json.dumps({name: url, "local": "sub/own.pth"}))
    return path


def test_names_of_the_zoos_are_looked_up_and_can_be_overridden(server, tmp_path, monkeypatch, caplog):
    state = {"weight": torch.full((200, 300), 3.0), "bias": torch.ones(200)}
    for table, name, spelt in [
        ("open_mmlab", "detectron/resnet50_caffe", "open-mmlab://detectron/resnet50_caffe"),
        ("open_mmlab", "detectron/resnet50_caffe", "openmmlab://resnet50_caffe"),
        ("torchvision", "resnet50", "torchvision://resnet50"),
        ("torchvision", "resnet50", "modelzoo://resnet50"),
    ]:
        named(server, tmp_path, monkeypatch, table, name, state)
        assert (loaded(spelt).weight == 3).all()
    assert "openmmlab://resnet50_caffe is deprecated in favor of openmmlab://detectron/resnet50_caffe" in caplog.text
    assert 'The URL scheme of "modelzoo://" is deprecated' in caplog.text
    with pytest.raises(FileNotFoundError, match=r"sub/own\.pth can not be found"):
        loaded("open-mmlab://local")
    (tmp_path / "mmengine" / "sub").mkdir()
    torch.save({"weight": torch.full((200, 300), 4.0)}, tmp_path / "mmengine" / "sub" / "own.pth")
    assert (loaded("open-mmlab://local").weight == 4).all()


def test_of_a_classifier_of_mmcls_the_backbone_counts(server, tmp_path, monkeypatch):
    state = {
        "state_dict": {
            "backbone.weight": torch.full((200, 300), 5.0),
            "backbone.bias": torch.ones(200),
            "head.weight": torch.ones(1),
        }
    }
    named(server, tmp_path, monkeypatch, "mmcls", "vgg11", state)
    assert (loaded("mmcls://vgg11").weight == 5).all()
    found = ours.load_from_mmcls("mmcls://vgg11")
    assert list(found) == ["state_dict"] and list(found["state_dict"]) == ["weight", "bias"]


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    for name, near in [
        ("open-mmlab://resnet50_v1", "resnet50_v1c"),
        ("openmmlab://vgg16_cafe", "vgg16_caffe"),
        ("mmcls://resnet5", "resnet50"),
        ("torchvision://rsnet50", "resnet50"),
    ]:
        with pytest.raises(KeyError, match=f"{name}: no checkpoint of that name. Did you mean .*'{near}'"):
            loaded(name)
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine" / "mmcls.json").write_text("[1]")
    with pytest.raises(RuntimeError, match=r"mmcls\.json: the file should be a dict of names with addresses"):
        loaded("mmcls://resnet50")


def test_a_newer_torchvision_adds_its_names(monkeypatch):
    import enum
    import types

    class ResNet50_Weights(enum.Enum):
        IMAGENET1K_V1 = "a"
        IMAGENET1K_V2 = "b"
        DEFAULT = "b"  # noqa: PIE796 (as torchvision's)

        @property
        def url(self):
            return f"https://x/{self.value}-01234567.pth"

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["resnet50"]
    models.get_model_weights = lambda name: ResNet50_Weights
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    sys.modules["torchvision"].models = models
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    table = ours.get_torchvision_models()
    assert table["resnet50.default"] == table["resnet50.imagenet1k_v2"] == "https://x/b-01234567.pth"
    asked = []
    monkeypatch.setattr(schemes, "download", lambda url, offline: asked.append(url) or Path("/nowhere"))
    for name in ("resnet50.imagenet1k_v2", "ResNet50_Weights.IMAGENET1K_V2", "resnet50"):
        with pytest.raises(FileNotFoundError):
            loaded(f"torchvision://{name}")
    assert asked[:2] == ["https://x/b-01234567.pth"] * 2 and asked[2].endswith("resnet50-0676ba61.pth")


def test_a_pickle_with_more_than_data_is_refused_from_everywhere(server, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("code of the file was run",)

    url, _ = offer(server, tmp_path, {"weight": Evil()})
    for load in (loaded, ours.load_from_http, ours.CheckpointLoader.load_checkpoint):
        with pytest.raises(RuntimeError, match="more than tensors and plain containers: it asks for builtins.print"):
            load(url)
    assert "code of the file" not in capsys.readouterr().out


# --- remote file systems and the Hub ---------------------------------------------------------------------------------


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
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["1 1.0 3.0", "1"]
    asked = {path for path, _ in server.requests}
    assert any(one.name in path for path in asked) and not any(two.name in path for path in asked)

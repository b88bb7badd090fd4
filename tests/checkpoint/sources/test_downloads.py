"""Downloads: once into torch.hub's cache, resumed where they stopped, refused where the hash is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import needs
import pytest
import torch
from file_servers import loaded, offer, saved, serve
from torch import nn

import fastinit
from fastinit import checkpoint as ours
from fastinit.checkpoint.sources import downloads

safetensors = needs.module("safetensors.torch")
server = pytest.fixture(serve, name="server")


def test_a_file_is_downloaded_once_into_torch_hubs_cache(server, tmp_path, cache):
    url, path = offer(server, tmp_path)
    for _ in range(2):
        assert (loaded(url).weight == 2).all()
    assert server.requests == [(path, None)]
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == [path[1:]]
    # what torch.hub has downloaded is found
    other, other_path = offer(server, tmp_path, {"weight": torch.zeros(200, 300), "bias": torch.zeros(200)}, "other")
    torch.hub.load_state_dict_from_url(other, progress=False)
    assert (loaded(other).weight == 0).all()
    assert [p for p, _ in server.requests].count(other_path) == 1


def test_files_of_one_name_from_two_addresses_are_kept_apart(server, tmp_path):
    for folder, value in (("a", 1.0), ("b", 2.0)):
        server.files[f"/{folder}/pytorch_model.bin"] = saved(
            {"weight": torch.full((200, 300), value), "bias": torch.ones(200)}, tmp_path
        )
    assert (loaded(f"{server.url}/a/pytorch_model.bin").weight == 1).all()
    assert (loaded(f"{server.url}/b/pytorch_model.bin").weight == 2).all()


def test_an_interrupted_download_resumes_where_it_stopped(server, tmp_path):
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
def test_an_interrupted_download_restarts_where_the_server_cannot_resume(server, tmp_path, how):
    url, path = offer(server, tmp_path)
    server.tricks[path] = ["break"]
    server.resumes, server.no_validator = how != "cannot resume", how == "no validator"
    assert (loaded(url).weight == 2).all()
    assert len(server.requests) == 2


def test_the_next_process_resumes_the_download_of_a_killed_one(server, tmp_path, cache, monkeypatch):
    url, path = offer(server, tmp_path)
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.tricks[path] = ["break"]
    with pytest.raises(
        RuntimeError, match=r"the download failed 1 times.*the connection ended after .* bytes are kept in"
    ):
        loaded(url)
    assert not (cache / path[1:]).exists()
    assert (loaded(url).weight == 2).all()
    assert server.requests[-1][1] is not None
    assert not [p for p in cache.iterdir() if "partial" in p.name]


def test_a_download_never_mixes_two_versions_of_a_file(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    url, path = f"{server.url}/m/model.pth", "/m/model.pth"
    server.files[path] = saved({"weight": torch.zeros(200, 300), "bias": torch.zeros(200)}, tmp_path)
    server.tricks[path] = ["break"]
    with pytest.raises(RuntimeError, match="the connection ended"):
        loaded(url)
    server.files[path] = saved({"weight": torch.ones(200, 300), "bias": torch.ones(200)}, tmp_path)
    assert (loaded(url).weight == 1).all()
    assert server.requests[-1][1] is not None
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
    assert torch.equal(made.weight, before)
    assert not [p for p in cache.iterdir() if not p.name.endswith(".lock")]


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
def test_permanent_http_errors_are_raised_at_once(server, tmp_path, code):
    url, path = offer(server, tmp_path)
    server.tricks[path] = [code] * 9
    with pytest.raises(RuntimeError, match=rf"init_cfg: {url}: the server answers {code}"):
        loaded(url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("trick", [503, 429, "slow", "redirect"])
def test_busy_slow_and_redirecting_servers_are_retried(server, tmp_path, trick):
    url, path = offer(server, tmp_path)
    server.tricks[path] = [trick]
    assert (loaded(url).weight == 2).all()
    assert len(server.requests) == 2


def test_an_unreachable_server_is_an_error_after_some_attempts(server, tmp_path):
    url, _ = offer(server, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(RuntimeError, match=rf"{url}: the download failed 5 times, at last because: .*[Cc]onnection"):
        loaded(url)
    with pytest.raises(RuntimeError, match="the server cannot be found .*Is this machine offline"):
        loaded("http://no-such-host.invalid/x-01234567.pth")


def test_concurrent_requests_download_a_file_once(server, tmp_path, cache):
    url, path = offer(server, tmp_path)
    server.tricks[path] = ["break"]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(loaded, [url] * 8))
    assert all((each.weight == 2).all() for each in made)
    assert len(server.requests) == 2
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
    assert [row.parameter for row in rows] == ["weight", "bias"]
    assert len(server.requests) == 1


def test_a_meta_model_is_materialized_from_the_web(server, tmp_path):
    url, _ = offer(server, tmp_path)
    with torch.device("meta"):
        made = nn.Linear(300, 200)
    report = fastinit.materialize(made, dict(type="Pretrained", checkpoint=url))
    assert (made.weight == 2).all()
    assert report.unreached == ()


def test_a_checkpoint_is_downloaded_before_anything_is_written(server, tmp_path):
    made = nn.Linear(300, 200)
    before = made.weight.clone()
    with pytest.raises(RuntimeError, match=r"init_cfg\[1\]: .*404"):
        fastinit.initialize(
            made, [dict(type="Normal", layer="Linear"), dict(type="Pretrained", checkpoint=server.url + "/x.pth")]
        )
    assert torch.equal(made.weight, before)


def test_only_the_needed_shards_are_downloaded(server, tmp_path):
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

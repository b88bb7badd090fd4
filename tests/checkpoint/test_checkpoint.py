"""Local checkpoints: what is loaded, what is told, what is refused."""

from __future__ import annotations

import logging
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import needs
import pytest
import torch
from helpers import assert_same_tensors, tensors
from mmengine_parity import CHECKPOINT as theirs
from torch import nn

import fastinit
from fastinit import checkpoint as ours

safetensors = needs.module("safetensors.torch")


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(4, 5)))


def filled() -> nn.Sequential:
    made = model()
    for tensor in (*made.parameters(), made[1].running_mean, made[1].running_var):
        nn.init.uniform_(tensor, 1, 2)
    return made


def load_both(state, **options):
    """Loads a state dict with both libraries and returns the message; the tensors must be the same.

    Where all must fit, we find out before anything is copied.
    """
    messages = []
    results = []
    for library, target in ((ours, "fastinit.checkpoint.print_log"), (theirs, "mmengine.runner.checkpoint.print_log")):
        torch.manual_seed(0)
        made = model()
        with mock.patch(target) as log:
            try:
                library.load_state_dict(made, state, **options)
                messages.append([call.args[0] for call in log.call_args_list])
            except RuntimeError as error:
                messages.append(str(error))
        results.append(tensors(made))
    if isinstance(messages[0], str):
        torch.manual_seed(0)
        results[1] = tensors(model())
    assert_same_tensors(*results)
    assert messages[0] == messages[1]
    return messages[0]


def test_a_matching_state_dict_loads_silently():
    assert load_both(filled().state_dict()) == []


@pytest.mark.parametrize("strict", [False, True])
def test_all_mismatches_are_reported_at_once_in_mmengines_words(strict):
    state = filled().state_dict()
    state["0.weight"] = torch.zeros(5, 2)
    del state["2.0.bias"], state["1.num_batches_tracked"]
    state["2.0.other"] = state["other.deep"] = torch.zeros(1)
    message = load_both(state, strict=strict)
    text = message if strict else "".join(message)
    assert "size mismatch for 0.weight" in text and "missing keys in source state_dict: 2.0.bias" in text
    assert "num_batches_tracked" not in text


def test_a_missing_batch_counter_alone_is_no_mismatch():
    state = filled().state_dict()
    del state["1.num_batches_tracked"]
    assert load_both(state) == []


def test_values_take_the_models_dtype():
    state = {
        key: value.double() if value.is_floating_point() else value for key, value in filled().state_dict().items()
    }
    load_both(state)


def test_an_old_scalar_of_one_dimension_fits():
    made, source = nn.PReLU(), nn.PReLU()
    made.weight, source.weight = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([3.0]))
    ours.load_state_dict(made, source.state_dict())
    assert made.weight.item() == 3


def test_hooks_of_modules_run_and_may_clear_missing_keys():
    class Renames(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "old_weight")
            super()._load_from_state_dict(state_dict, prefix, *args)

    made = nn.Sequential(Renames(2, 2))
    made.register_load_state_dict_post_hook(lambda module, keys: keys.missing_keys.clear())
    with mock.patch("fastinit.checkpoint.print_log") as log:
        ours.load_state_dict(made, {"0.old_weight": torch.ones(2, 2)})
    assert (made[0].weight == 1).all() and not log.called
    made.register_load_state_dict_post_hook(lambda module, keys: 3)
    with pytest.raises(AssertionError, match="return None"):
        ours.load_state_dict(made, {"0.old_weight": torch.ones(2, 2)})


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module."])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_files_are_read_by_their_content_and_give_mmengines_result(tmp_path, kind, wrap):
    source = filled()
    state = source.state_dict()
    if wrap == "module.":
        state = OrderedDict((f"module.{key}", value) for key, value in state.items())
    path = tmp_path / "file.bin"
    if kind == "safetensors":
        safetensors.save_file(dict(state), path)
    else:
        content = {"state_dict": state, "meta": {"epoch": 3, "names": ["a"]}} if wrap == "state_dict" else state
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    made = model()
    returned = ours.load_checkpoint(made, str(path))
    assert_same_tensors(tensors(made), tensors(source))
    if kind != "safetensors":
        again = model()
        assert theirs.load_checkpoint(again, str(path), map_location="cpu").keys() == returned.keys()
        assert_same_tensors(tensors(made), tensors(again))
    planned = fastinit.plan(model(), dict(type="Pretrained", checkpoint=path))
    assert [row.parameter for row in planned.rows] == list(model().state_dict())


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


@needs.mark(needs.LINUX)
def test_a_file_is_mapped_while_it_is_copied_and_not_afterwards(tmp_path):
    class Looks(nn.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            self.was_mapped = is_mapped(tmp_path / "c.pth")
            assert (self.weight == 1).all()  # loading code finds its values in place

    torch.save({"weight": torch.ones(1000, 1000), "bias": torch.ones(1000)}, tmp_path / "c.pth")
    for access, expected in (("map", True), ("read", False)):
        made = Looks(1000, 1000)
        cfg = dict(type="Pretrained", checkpoint=tmp_path / "c.pth", access=access)
        plan = fastinit.plan(made, cfg)
        assert len(plan.rows) == 2 and not is_mapped(tmp_path / "c.pth")
        fastinit.initialize(made, cfg)
        assert made.was_mapped is expected and not is_mapped(tmp_path / "c.pth")


def test_tensors_returned_to_the_user_survive_overwriting_the_file(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(1000, 1000)}, "epoch": 1}, tmp_path / "latest.pth")
    state = ours._load_checkpoint(tmp_path / "latest.pth", logger="silent")
    torch.save({**state, "epoch": 2}, tmp_path / "latest.pth")
    # what comes with a load into a model is read when it is used: a rename leaves the old file where it is
    state = ours.load_checkpoint(nn.Linear(1000, 1000), tmp_path / "latest.pth", logger="silent")
    ours.save_checkpoint({**state, "epoch": 3}, tmp_path / "latest.pth")
    found = ours._load_checkpoint(tmp_path / "latest.pth", logger="silent")
    assert float(found["state_dict"]["weight"].sum()) == 1e6 and found["epoch"] == 3


def test_a_file_overwritten_in_place_is_detected(tmp_path):
    torch.save({"weight": torch.ones(1000, 1000), "bias": torch.ones(1000)}, tmp_path / "latest.pth")
    state = ours.load_checkpoint(nn.Linear(1000, 1000), tmp_path / "latest.pth", logger="silent")
    os.truncate(tmp_path / "latest.pth", 3_000_000)
    with pytest.raises(OSError, match=r"latest\.pth: the file was changed while it was being loaded.*has 3,000,000"):
        state["weight"].sum()


def test_a_prefix_may_begin_with_ddps_module(tmp_path):
    state = {"module.encoder_q.weight": torch.ones(2, 2), "module.encoder_q.bias": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "c.pth")
    for prefix in ("module.encoder_q", "encoder_q", "module.encoder_q."):
        made = nn.Linear(2, 2)
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), prefix=prefix))
        assert (made.weight == 1).all()


def test_the_report_lists_what_was_copied_rather_than_planned(tmp_path):
    class Renames(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self._register_load_state_dict_pre_hook(self._rename)

        def _rename(self, state_dict, prefix, *_):
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel")

    torch.save({"0.kernel": torch.ones(2, 2), "1.weight": [1, 2], "1.bias": torch.ones(2)}, tmp_path / "c.pth")
    made = nn.Sequential(Renames(), nn.Linear(2, 2))
    made.register_load_state_dict_post_hook(lambda module, keys: keys.missing_keys.clear())
    report = fastinit.initialize(made, dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth")))
    assert report.checkpoints[0].result.copied == ("0.weight", "1.bias")
    assert [row.parameter for row in report.rows] == ["0.weight", "1.bias"] and report.n_bytes == 4 * 6
    assert report.unreached == ("0.bias", "1.weight")


def test_names_of_buffers_are_canonical_too(tmp_path):
    torch.save(nn.Sequential(torch.compile(nn.BatchNorm1d(2))).state_dict(), tmp_path / "c.pth")
    made = nn.Sequential(torch.compile(nn.BatchNorm1d(2)))
    rows = fastinit.plan(made, dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"))).rows
    assert [row.parameter for row in rows] == [f"0.{name}" for name in nn.BatchNorm1d(2).state_dict()]


def test_keys_that_are_not_strings_are_refused_with_the_file(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "c.pth")
    with pytest.raises(RuntimeError, match=r"No state_dict found in checkpoint file .*c\.pth: its keys are no names"):
        fastinit.initialize(nn.Linear(2, 2), dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth")))


def test_keys_are_revised_in_order(tmp_path):
    torch.save({"net.a.weight": torch.ones(2, 2), "net.a.bias": torch.ones(2)}, tmp_path / "c.pth")
    made = nn.ModuleDict({"b": nn.Linear(2, 2)})
    ours.load_checkpoint(made, tmp_path / "c.pth", revise_keys=[(r"^net\.", ""), (r"^a\.", "b.")], strict=True)
    assert (made["b"].weight == 1).all()


def test_module_versions_reach_the_modules(tmp_path):
    source = nn.Sequential(nn.BatchNorm1d(2))
    state = source.state_dict()
    torch.save({"state_dict": OrderedDict((f"x.{k}", v) for k, v in state.items())}, tmp_path / "c.pth")
    seen = []

    class Sees(nn.BatchNorm1d):
        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            seen.append(local_metadata.get("version"))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    ours.load_state_dict(nn.Sequential(Sees(2)), state)
    wrapped = nn.ModuleDict({"net": nn.Sequential(nn.BatchNorm1d(2))})
    torch.save(wrapped.state_dict(), tmp_path / "d.pth")
    below = ours._load_checkpoint_with_prefix("net", str(tmp_path / "d.pth"))
    ours.load_state_dict(nn.Sequential(Sees(2)), below)
    assert seen == [2, 2]


def test_an_unmatched_prefix_is_refused_in_mmengines_words(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "c.pth")
    for library in (ours, theirs):
        with pytest.raises(AssertionError, match="^head. is not in the pretrained model"):
            library._load_checkpoint_with_prefix("head", str(tmp_path / "c.pth"))
    with pytest.raises(AssertionError, match=r"^init_cfg\[1\]: head\. is not in the pretrained model"):
        fastinit.initialize(
            model(),
            [
                dict(type="Normal", layer="Linear"),
                dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth"), prefix="head"),
            ],
        )


class Evil:
    def __reduce__(self):
        return print, ("code of the file was run",)


def hostile_files(folder):
    """Returns files that must be refused, with what the message must say."""
    good = folder / "good.pth"
    torch.save(filled().state_dict(), good)
    content = good.read_bytes()
    safetensors.save_file({"0.bias": torch.zeros(3)}, folder / "good.safetensors")
    safe = (folder / "good.safetensors").read_bytes()
    files = {
        "empty": (b"", "damaged or no checkpoint"),
        "cut.zip": (content[: len(content) // 2], "damaged or no checkpoint"),
        "text": (b"this is no checkpoint at all", "code that|damaged or no checkpoint"),
        "cut.safetensors": (safe[:-5], "damaged or no checkpoint"),
        "long header.safetensors": ((2**60).to_bytes(8, "little") + safe[8:], "damaged or no checkpoint"),
        "list": (pickle.dumps([1]), "damaged or no checkpoint|code that"),
    }
    for name, (data, message) in files.items():
        (folder / name).write_bytes(data)
        yield folder / name, message
    torch.save({"state_dict": {**filled().state_dict(), "0.weight": Evil()}}, folder / "evil.pth")
    yield folder / "evil.pth", "could run code that came with the file.*weights_only=False"
    torch.save([1, 2], folder / "no dict.pth")
    yield folder / "no dict.pth", "No state_dict found in checkpoint file"
    torch.save({"state_dict": 3}, folder / "no state.pth")
    yield folder / "no state.pth", "No state_dict found in checkpoint file"


def test_hostile_and_broken_files_are_refused_before_any_write(tmp_path, capsys):
    for path, message in hostile_files(tmp_path):
        made = model()
        before = tensors(made)
        with pytest.raises(RuntimeError, match=r"(?s)init_cfg\[1\]: .*(" + message + ")"):
            fastinit.initialize(
                made, [dict(type="Normal", layer="Linear"), dict(type="Pretrained", checkpoint=str(path))]
            )
        assert_same_tensors(tensors(made), before)
    assert "code of the file was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        ("no/such/file.pth", FileNotFoundError, "no/such/file.pth can not be found"),
        (
            "gridfs://resnet50",
            FileNotFoundError,
            "gridfs://resnet50 can not be found. The scheme gridfs:// is not known",
        ),
        ("petrel://a/b.pth", NotImplementedError, "use 's3://a/b.pth'"),
        ("pavi://a/b.pth", NotImplementedError, "pavi's model cloud is not supported"),
        ("torchvision://resnet", KeyError, "torchvision://resnet: no checkpoint of that name. Did you mean 'resnet"),
        (None, TypeError, "NoneType"),
        (3, TypeError, "int"),
    ],
)
def test_a_missing_checkpoint_is_refused_before_any_write(checkpoint, error, message):
    made = model()
    before = tensors(made)
    with pytest.raises(error, match=message):
        fastinit.initialize(made, [dict(type="Normal", layer="Linear"), dict(type="Pretrained", checkpoint=checkpoint)])
    assert_same_tensors(tensors(made), before)


def test_a_file_url_and_a_path_object_name_a_file(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "c.pth")
    for checkpoint in (tmp_path / "c.pth", f"file://{tmp_path}/c.pth"):
        report = fastinit.initialize(model(), dict(type="Pretrained", checkpoint=checkpoint))
        assert report.unreached == () and len(report.checkpoints[0].result.copied) == len(model().state_dict())


def test_initialize_loads_in_rule_order_and_an_override_loads_a_part(tmp_path):
    source = filled()
    torch.save(source[2].state_dict(), tmp_path / "c.pth")
    made = model()
    report = fastinit.initialize(
        made,
        [
            dict(
                type="Constant", val=1, override=dict(type="Pretrained", name="2", checkpoint=str(tmp_path / "c.pth"))
            ),
            dict(type="Constant", val=9, param="2.0.bias"),
        ],
    )
    assert torch.equal(made[2][0].weight, source[2][0].weight) and (made[2][0].bias == 9).all()
    assert report.provenance == {
        "2.0.weight": f"PretrainedInit: load from {tmp_path / 'c.pth'} (init_cfg[0].override)",
        "2.0.bias": "ConstantInit: val=9 (init_cfg[1])",
    }


def test_where_a_checkpoint_comes_from_is_logged(tmp_path, caplog):
    torch.save(filled().state_dict(), tmp_path / "c.pth")
    with caplog.at_level(logging.INFO, "fastinit"):
        fastinit.initialize(model(), dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth")))
    assert f"load model from: {tmp_path / 'c.pth'}" in caplog.text


def test_loading_into_a_meta_model_is_refused(tmp_path):
    torch.save(filled().state_dict(), tmp_path / "c.pth")
    with torch.device("meta"):
        made = model()
    with pytest.raises(RuntimeError, match="meta device"):
        fastinit.initialize(made, dict(type="Pretrained", checkpoint=str(tmp_path / "c.pth")))


@pytest.mark.parametrize("logger", [None, "silent", "current", "by name", logging.getLogger("an object")])
def test_print_log_goes_to_the_given_logger(logger, capsys, caplog):
    with caplog.at_level(logging.INFO):
        ours.print_log("hello", logger)
    printed, logged = capsys.readouterr().out, [record.name for record in caplog.records]
    names = {"current": ["fastinit"], "by name": ["by name"]}
    if logger is None:
        assert (printed, logged) == ("hello\n", [])
    elif logger == "silent":
        assert (printed, logged) == ("", [])
    else:
        assert logged == names.get(logger, ["an object"]) and printed == ""

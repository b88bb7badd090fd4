"""What a GPU day measured goes into the project's results and pages, and nothing goes there that no GPU measured."""

from __future__ import annotations

import csv
import json
import shutil

import adopt_gpu_day
import bench_gpu
import gpu_predictions
import pytest
import update_tables
from paths import ROOT

MACHINE = "NVIDIA H100 80GB HBM3, clocks up to 1980 MHz, made up for a test"


def rows_in(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- predictions ------------------------------------------------------------------------------------------------------


def test_the_table_of_predictions_is_up_to_date():
    assert rows_in(gpu_predictions.RESULTS / "gpu_predictions.csv") == gpu_predictions.rows_of(gpu_predictions.RESULTS)


def test_a_loops_time_is_that_of_its_scarcest_resource():
    loops = gpu_predictions.loops(rows_in(gpu_predictions.RESULTS / "gpu_instructions.csv"))
    h100, _, h200 = gpu_predictions.GPUS

    def of(distribution, dtype, gpu=h100):
        loop = loops[distribution, dtype]
        return loop.bound_by(gpu), round(loop.ms(gpu, 1 << 30), 2)

    assert of("uniform", "float32") == ("memory", 1.53)  # 4.29 GB at 2.8 TB/s
    assert of("uniform", "float32", h200) == ("memory", 1.07)
    bound, ms = of("normal", "bfloat16")
    n = loops["normal", "bfloat16"].instructions
    assert bound == "issue" and ms == round((1 << 30) * n / (132 * 1.755e9 * 128) * 1e3, 2)
    assert of("uniform", "float8")[0] == "ALU"
    assert of("constant", "bfloat16")[0] == "memory"


# --- a made-up day ----------------------------------------------------------------------------------------------------


def step(name, state="right", findings=(), table=""):
    findings = [dict(kind="found", text="fine", numbers={}), *findings]
    return dict(step=name, state=state, why="", rc=0, seconds=12.3, table=table, findings=findings, last_words=[])


def rate(backend, ms, clock="1755"):
    numbers = dict(backend=backend, distribution="normal", dtype="bfloat16", elements=str(1 << 30), ms=ms)
    numbers |= {"GB/s": "2000", "of the write ceiling": "70%", "SM clock, MHz": clock}
    return dict(kind="found", text="rate", numbers=numbers)


def ncu_row(**more):
    return dict(kind="found", text="x", numbers=dict(backend="cuda", distribution="normal", dtype="float32", **more))


def bench_row(workload, contender, kernels):
    cells = dict(contender=contender, seconds="0.01")
    cells["in kernels, ms"] = kernels
    return {**bench_gpu.named((workload, "bfloat16", "normal; norms constant"), cells), "machine": MACHINE}


@pytest.fixture
def results(tmp_path):
    """Returns a folder of results with what the predictions and the page's other tables are made of."""
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for name in ("gpu_instructions.csv", "bench_host.csv"):
        shutil.copy(gpu_predictions.RESULTS / name, folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Makes the folder that a day leaves."""

    def make(name, steps, bench=(), is_gpu=True, description=MACHINE):
        path = tmp_path / name
        path.mkdir()
        machine = dict(is_gpu=is_gpu, description=description)
        document = dict(fastinit_gpu_day=1, machine=machine, exit_code=0, steps=steps)
        (path / "results.json").write_text(json.dumps(document))
        if bench:
            bench_gpu.save(path / "bench_gpu.csv", bench)
        return path

    return make


def a_day(folder, name="day"):
    odd = step("odd", "FAILED", [dict(kind="wrong", text="a replay | sees old weights", numbers={})])
    steps = [
        step("rates", findings=[rate("cuda", "1.2"), rate("triton", "1.31")], table="gpu_predictions.csv"),
        step("llama", table="bench_gpu.csv"),
        step("ncu", findings=[ncu_row(ms="1.1", IPC="3.9"), ncu_row(ms="1.2")], table="gpu_ncu.csv"),
        odd,
    ]
    return folder(name, steps, [bench_row("Llama 3 8B, 291 tensors", "cuda", "9.1")])


def test_a_day_is_adopted_with_measured_beside_predicted(folder, results):
    assert adopt_gpu_day.adopt([a_day(folder)], results) == []
    predictions = rows_in(results / "gpu_predictions.csv")
    assert {row["machine"] for row in predictions} == {MACHINE}
    by_key = {(row["what"], row["distribution"], row["dtype"]): row for row in predictions}
    normal = by_key["2^30 elements", "normal", "bfloat16"]
    assert normal["measured, cuda, ms"] == "1.2 (92% of predicted)"  # 1.10 ms at the clock that it had
    assert normal["measured, triton, ms"] == "1.31 (84% of predicted)"
    assert by_key["Llama 3 8B, 291 tensors", "normal", "bfloat16"]["measured, cuda, ms"] == "9.1 (90% of predicted)"
    assert by_key["2^30 elements", "uniform", "float32"]["measured, cuda, ms"] == "not measured"

    steps = {row["step"]: row for row in rows_in(results / "gpu_day.csv")}
    assert steps["odd"]["result"] == "FAILED" and steps["odd"]["found"].startswith("WRONG: a replay \\| sees")
    assert steps["rates"]["found"] == "see gpu_predictions.csv"
    assert [row["IPC"] for row in rows_in(results / "gpu_ncu.csv")] == ["3.9", ""]
    assert len(rows_in(results / "gpu_rates.csv")) == 2


def test_the_pages_show_a_day_or_say_that_there_was_none(folder, results):
    page = (ROOT / "docs" / "gpu.md").read_text()
    gpu_predictions.write(results)
    before = update_tables.updated(page, results.parent.parent)
    assert before.count(update_tables.NOT_MEASURED) == len(update_tables.NEEDS_A_GPU)
    assert "measured on no GPU yet" in before and "% of predicted" not in before
    adopt_gpu_day.adopt([a_day(folder)], results)
    after = update_tables.updated(page, results.parent.parent)
    assert update_tables.NOT_MEASURED not in after and "| 1.2 (92% of predicted) | 1.31 (84% of predicted) |" in after
    assert f"({MACHINE})" in after and "| ncu | right | 12 |" in after
    assert update_tables.updated(after, results.parent.parent) == after


def test_a_later_call_of_the_day_replaces_its_steps_and_adds_others(folder, results):
    first = folder(
        "first",
        [step("odd", "FAILED"), step("shard"), step("llama", table="bench_gpu.csv"), step("pytest", "left out")],
        [bench_row("Llama 3 8B, 291 tensors", "cuda", "9.1"), bench_row("Llama 3 8B, 291 tensors", "triton", "9.9")],
    )
    again = folder(
        "again",
        [step("odd"), step("shard", "left out"), step("experts", table="bench_gpu.csv")],
        [bench_row("mixture of experts, 20,050 tensors", "cuda", "16")],
    )
    left_out = adopt_gpu_day.adopt([first, again], results)
    states = {row["step"]: row["result"] for row in rows_in(results / "gpu_day.csv")}
    assert states == dict(odd="right", shard="right", llama="right", pytest="left out", experts="right")
    assert [row["in kernels, ms"] for row in rows_in(results / "bench_gpu.csv")] == ["9.1", "9.9", "16"]
    assert [line.split(":")[0] for line in left_out] == ["gpu_ncu.csv", "gpu_rates.csv"]


def test_measurements_of_steps_with_failed_checks_are_left_out(folder, results):
    wrong = step("rates", "FAILED", [rate("cuda", "0.1")], "gpu_predictions.csv")
    left_out = adopt_gpu_day.adopt([folder("day", [wrong])], results)
    assert any(line.startswith("gpu_rates.csv") for line in left_out) and not (results / "gpu_rates.csv").exists()


@pytest.mark.parametrize("what", ["no GPU", "two machines", "nothing there", "not ours"])
def test_results_without_exactly_one_gpu_are_refused_before_any_write(folder, results, tmp_path, what):
    good = a_day(folder, "good")
    if what == "no GPU":
        bad, words = folder("bad", [step("rates")], is_gpu=False, description="NO GPU: over cpp"), "made without a GPU"
    elif what == "two machines":
        bad, words = folder("bad", [step("rates")], description="NVIDIA H200"), "different machines: NVIDIA H100.*H200"
    elif what == "nothing there":
        bad, words = tmp_path, "there is no results.json"
    else:
        bad, words = folder("bad", []), "no results of a GPU day"
        (bad / "results.json").write_text("{}")
    with pytest.raises(SystemExit, match=words):
        adopt_gpu_day.adopt([good, bad], results)
    assert sorted(path.name for path in results.iterdir()) == ["bench_host.csv", "gpu_instructions.csv"]


def test_outdated_sentences_are_listed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Fine.\n**No GPU has run this yet**, and so on.\nOn GPUs nothing has been timed yet.\n")
    assert [line.split(":")[1] for line in adopt_gpu_day.untrue([page])] == ["2", "3"]


def test_committed_results_were_measured_on_a_gpu():
    for name in update_tables.NEEDS_A_GPU:
        path = gpu_predictions.RESULTS / name
        assert not path.exists() or all(
            row["machine"].startswith("NVIDIA") and "made up" not in row["machine"] for row in rows_in(path)
        )

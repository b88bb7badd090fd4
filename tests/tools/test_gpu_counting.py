"""How instructions are counted and what follows from them, on small listings: nothing is compiled."""

from __future__ import annotations

import gpu_pipes
import pytest
import sass
from gpu_pipes import ALU, FMA, H100, H200, IMAD, ISSUE, XU


def loop_of(*lines):
    """Returns the storing loop of a kernel; a line is an instruction, or a label that ends with a colon."""
    text = [".text.kernel:"]
    for at, line in enumerate(lines):
        text.append(line if line.endswith(":") else f"        /*{at:04x}*/                   {line} ;")
    (ops,) = sass.parsed("\n".join(text)).values()
    return sass.storing_loop(ops)


def lengths(*lines):
    """Returns the lengths of the shortest trips, by what they store."""
    return {(stored.n_bytes, stored.conversion): len(trip) for stored, trip in loop_of(*lines).trips.items()}


STORE = "STG.E.128 desc[UR4][R2.64], R8"
AGAIN = "BRA `(.L_x_0)"


def test_the_instructions_of_a_trip_are_those_between_the_label_and_the_jump():
    assert lengths("MOV R1, R2", ".L_x_0:", "FADD R1, R1, R2", STORE, "@P0 " + AGAIN, "EXIT") == {(16, ""): 3}


def test_a_kernel_without_a_loop_that_stores_has_none():
    assert loop_of(STORE, "EXIT") is None
    assert loop_of(".L_x_0:", "FADD R1, R1, R2", "@P0 " + AGAIN, STORE, "EXIT") is None


def test_the_innermost_loop_counts():
    lines = [".L_x_1:", "MOV R1, R2", ".L_x_0:", STORE, "@P0 " + AGAIN, "MOV R1, R2", "@P1 BRA `(.L_x_1)", "EXIT"]
    assert lengths(*lines) == {(16, ""): 2}


def test_the_shorter_of_two_paths_counts():
    rare = ["@!P1 BRA `(.L_x_2)", "FADD R1, R1, R2", "FADD R1, R1, R2", ".L_x_2:"]
    assert lengths(".L_x_0:", *rare, STORE, "@P0 " + AGAIN) == {(16, ""): 3}


def test_paths_with_different_stores_are_counted_separately():
    lines = [".L_x_0:", "@P1 BRA `(.L_x_2)", STORE, STORE, "BRA `(.L_x_3)", ".L_x_2:"]
    lines += ["F2FP.BF16.F32.PACK_AB R8, R1, R2", STORE, ".L_x_3:", "@P0 " + AGAIN]
    assert lengths(*lines) == {(32, ""): 5, (16, "BF16"): 4}


def test_a_guarded_store_may_happen_or_not():
    assert lengths(".L_x_0:", "@P1 " + STORE, STORE, "@P0 " + AGAIN) == {(16, ""): 3, (32, ""): 3}


def test_a_store_and_a_jump_with_one_guard_go_together():
    lines = [
        ".L_x_0:",
        "@!P1 " + STORE,
        "@!P1 BRA `(.L_x_3)",
        "FADD R1, R1, R2",
        STORE,
        STORE,
        ".L_x_3:",
        "@P0 " + AGAIN,
    ]
    assert lengths(*lines) == {(16, ""): 3, (32, ""): 6}


def test_a_guard_that_is_written_between_them_is_another():
    lines = [".L_x_0:", "@!P1 " + STORE, "ISETP.GT.AND P1, PT, R1, R2, PT", "@!P1 BRA `(.L_x_3)", STORE, ".L_x_3:"]
    assert lengths(*lines, "@P0 " + AGAIN) == {(0, ""): 4, (16, ""): 4, (32, ""): 5}
    read = [".L_x_0:", "@!P1 " + STORE, "SEL R1, R2, R3, P1", "@!P1 BRA `(.L_x_3)", STORE, ".L_x_3:"]
    assert set(lengths(*read, "@P0 " + AGAIN)) == {(16, "")}


@pytest.mark.parametrize("table", ["0x80, 0x0", "0x80, 0x8"])
def test_copies_of_a_predicate_have_its_value(table):
    copy = f"PLOP3.LUT {{}}, PT, PT, PT, UP0, {table}"
    lines = [".L_x_0:", copy.format("P1"), copy.format("P2"), "@!P1 " + STORE, "@!P2 " + STORE]
    lines += ["BRA.U !UP0, `(.L_x_3)", STORE, ".L_x_3:", "@P0 " + AGAIN]
    assert lengths(*lines) == {(16, ""): 7, (32, ""): 6}
    assert len(lengths(*[line.replace("0x80", "0x40") for line in lines])) > 2


def test_the_width_of_a_store_is_in_its_name():
    assert loop_of(".L_x_0:", STORE, "STG.E.U16 desc[UR4][R2.64], R8", "@P0 " + AGAIN).narrowest_store == 2
    assert loop_of(".L_x_0:", "STG.E desc[UR4][R2.64], R8", STORE, "@P0 " + AGAIN).narrowest_store == 4


# --- pipes ------------------------------------------------------------------------------------------------------------


def test_each_instruction_is_issued_and_executed_by_its_pipe():
    work = gpu_pipes.work(["LOP3.LUT", "IMAD.WIDE.U32", "FFMA", "MUFU.RSQ", "STG.E.128", "UIADD3"], 2)
    assert work == {ISSUE: 3, ALU: 0.5, IMAD: 0.5, FMA: 1, XU: 0.5, gpu_pipes.FP64: 0}


@pytest.mark.parametrize(
    "codes, pipe",
    [
        (["FFMA"] * 10, ISSUE),
        (["LOP3"] * 3 + ["FFMA"] * 3, ISSUE),
        (["LOP3"] * 4 + ["FFMA"] * 3, ALU),
        (["IMAD"] * 4 + ["FFMA"] * 3, IMAD),
        (["MUFU"] * 2 + ["FFMA"] * 13, XU),
        (["DFMA"] * 2 + ["FFMA"], gpu_pipes.FP64),
    ],
)
def test_the_pipe_with_the_most_cycles_binds(codes, pipe):
    assert gpu_pipes.binding_pipe(gpu_pipes.work(codes, 1)) == pipe


def test_instructions_of_no_known_pipe_are_named():
    assert gpu_pipes.unknown(["FFMA", "UIADD3.X", "STG.E.128", "HMMA.16816.F32"]) == {"HMMA"}


def test_the_memory_of_an_h100_takes_39_instructions_of_float32_and_19_of_bfloat16():
    assert [int(gpu_pipes.most(ISSUE, n_bytes, H100)) for n_bytes in (4, 2, 1)] == [39, 19, 9]
    assert [int(gpu_pipes.most(ALU, n_bytes, H100)) for n_bytes in (4, 2, 1)] == [19, 9, 4]


def test_the_share_of_the_memory_is_that_of_the_binding_pipe():
    work = gpu_pipes.work(["LOP3"] * 6 + ["FFMA"] * 4, 1)
    assert gpu_pipes.share_of_memory(work, 1, H100) == pytest.approx(gpu_pipes.most(ALU, 1, H100) / 6)
    assert gpu_pipes.share_of_memory(work, 1, H200) == pytest.approx(gpu_pipes.most(ALU, 1, H200) / 6)
    assert gpu_pipes.share_of_memory(work, 4, H100) > 1

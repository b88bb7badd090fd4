"""Execution of tools/ptx: branches, barriers, warps, undefined registers; and what a kernel says of itself."""

from __future__ import annotations

import gc
import time

import numpy as np
import ptx
import pytest
from ptx_operations import HEADER, N_THREADS, kernel_of, launched

START = "ld.param.u64 %a0, [p0]; mov.u32 %r0, %tid.x; mul.wide.u32 %a1, %r0, 4; add.s64 %a1, %a0, %a1;\n"
STORE = "\nst.global.u32 [%a1], %r1;"
THREADS = np.arange(N_THREADS)


def run(body, n_threads=N_THREADS):
    """Returns what each thread has in %r1 at the end."""
    out = np.zeros(n_threads, np.uint32)
    launched(kernel_of(START + body + STORE), out, n_threads=n_threads)
    return out


# --- branches ---------------------------------------------------------------------------------------------------------


def test_threads_take_their_own_sides_of_a_branch_and_meet_again():
    body = """and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; mov.u32 %r1, 7;
    @%p1 bra EVEN;
    add.u32 %r1, %r1, 100; bra.uni MEET;
    EVEN: add.u32 %r1, %r1, %r0;
    MEET: add.u32 %r1, %r1, 1000;"""
    assert (run(body) == np.where(THREADS % 2 == 0, 1007 + THREADS, 1107)).all()


def test_threads_leave_a_loop_after_their_own_number_of_trips():
    body = """mov.u32 %r1, 0; mov.u32 %r2, %r0;
    LOOP: setp.eq.u32 %p1, %r2, 0; @%p1 bra END;
    add.u32 %r1, %r1, %r2; sub.u32 %r2, %r2, 1; bra LOOP;
    END: add.u32 %r1, %r1, 5;"""
    assert (run(body) == THREADS * (THREADS + 1) // 2 + 5).all()


def test_a_guard_holds_for_its_instruction_only():
    body = "setp.lt.u32 %p1, %r0, 5; mov.u32 %r1, 1; @%p1 add.u32 %r1, %r1, 10; @!%p1 add.u32 %r1, %r1, 20; add.u32 %r1, %r1, 100;"
    assert (run(body) == np.where(THREADS < 5, 111, 121)).all()


def test_a_guard_that_no_thread_passes_skips_its_instruction():
    assert (run("setp.lt.u32 %p1, %r0, 0; mov.u32 %r1, 1; @%p1 trap; @%p1 add.u32 %r1, %r1, 1;") == 1).all()


def test_a_trap_that_is_reached_is_an_error():
    with pytest.raises(ptx.PtxError, match="trap: reached by 3 threads"):
        run("mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 3; @%p1 trap;")


def test_threads_that_returned_do_nothing_more():
    assert (run("mov.u32 %r1, 3; setp.ge.u32 %p1, %r0, 64; @%p1 ret;") == np.where(THREADS < 64, 3, 0)).all()


@pytest.mark.parametrize("pattern", ["setp.lt.u32 %p1, %r0, 70", "and.b32 %r2, %r0, 5; setp.eq.u32 %p1, %r2, 4"])
def test_registers_of_other_threads_stay_as_they_are(pattern):
    body = f"mov.u32 %r1, %r0; {pattern}; @%p1 add.u32 %r1, %r1, 1000; @!%p1 add.u32 %r1, %r1, 2000;"
    chosen = THREADS < 70 if "70" in pattern else THREADS & 5 == 4
    assert (run(body) == THREADS + np.where(chosen, 1000, 2000)).all()


@pytest.mark.parametrize("copy", ["mov.u32 %r2, %r1", "mov.s32 %r2, %r1", "mov.s32 %r3, %r1; mov.u32 %r2, %r3"])
@pytest.mark.parametrize("written", ["%r1", "%r2"])
def test_a_register_keeps_its_values_when_some_threads_write_its_copy(copy, written):
    body = f"""add.u32 %r1, %r0, 5; {copy}; setp.lt.u32 %p1, %r0, 70;
    @%p1 add.u32 {written}, {written}, 300; @%p1 add.u32 {written}, {written}, 700;
    mad.lo.u32 %r1, %r1, 10000, %r2;"""
    more = np.where(THREADS < 70, 1000, 0)
    first, second = (THREADS + 5 + (more if name == written else 0) for name in ("%r1", "%r2"))
    assert (run(body) == first * 10000 + second).all()


def test_blocks_and_threads_are_numbered_in_three_dimensions():
    names = ["%tid.x", "%tid.y", "%tid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z"]
    body = "mov.u32 %r1, 0;" + "".join(f"mov.u32 %r2, {name}; mad.lo.u32 %r1, %r1, 10, %r2;" for name in names)
    body += "mov.u32 %r3, %ntid.x; mov.u32 %r4, %nctaid.y; mad.lo.u32 %r1, %r3, 1000000, %r1;"
    body += "mad.lo.u32 %r1, %r4, 10000000, %r1;"
    flat = "mov.u32 %r3, %ctaid.z; mad.lo.u32 %r3, %r3, 3, 0; mov.u32 %r4, %ctaid.y; add.u32 %r3, %r3, %r4;"
    flat += "mov.u32 %r4, %ctaid.x; mad.lo.u32 %r3, %r3, 2, %r4; mov.u32 %r4, %tid.z; mad.lo.u32 %r3, %r3, 2, %r4;"
    flat += "mov.u32 %r4, %tid.y; mad.lo.u32 %r3, %r3, 2, %r4; mov.u32 %r4, %tid.x; mad.lo.u32 %r3, %r3, 4, %r4;"
    flat += "ld.param.u64 %a0, [p0]; mul.wide.u32 %a1, %r3, 4; add.s64 %a1, %a0, %a1;"
    out = np.zeros((2, 3, 2, 2, 2, 4), np.uint32)
    memory = ptx.Memory()
    memory.add(out)
    kernel_of(body + flat + STORE).launch((2, 3, 2), (4, 2, 2), [out.ctypes.data], memory)
    cz, cy, cx, tz, ty, tx = np.indices(out.shape)
    assert (out == 34000000 + tx * 100000 + ty * 10000 + tz * 1000 + cx * 100 + cy * 10 + cz).all()


def test_chosen_blocks_of_a_grid_run_alone():
    out, memory = np.zeros(40, np.uint32), ptx.Memory(track=True)
    memory.add(out)
    body = "ld.param.u64 %a0, [p0]; mov.u32 %r0, %ctaid.x; mul.wide.u32 %a1, %r0, 4; add.s64 %a1, %a0, %a1; mov.u32 %r1, 9;"
    kernel_of(body + STORE).launch((1 << 20,), (1,), [out.ctypes.data], memory, ctas=np.array([3, 39]))
    assert np.flatnonzero(out).tolist() == [3, 39]


# --- barriers and warps -----------------------------------------------------------------------------------------------


def test_a_barrier_holds_threads_until_all_are_there():
    body = """.shared .align 4 .b8 flag[4]; mov.u32 %r1, 0; setp.ne.u32 %p1, %r0, 0; @%p1 bra WAIT;
    bra LATE;
    WAIT: bar.sync 0; ld.shared.u32 %r1, [flag]; bra END;
    LATE: mov.u32 %r2, 42; st.shared.u32 [flag], %r2; bar.sync 0; mov.u32 %r1, 1;
    END: add.u32 %r1, %r1, 0;"""
    assert (run(body) == np.where(THREADS == 0, 1, 42)).all()


SHUFFLES = {
    "idx.b32 %r1, %r5, 3, 31": lambda lane: np.full_like(lane, 3),
    "idx.b32 %r1, %r5, 3, 0x1c1f": lambda lane: lane // 4 * 4 + 3,
    "up.b32 %r1, %r5, 2, 0": lambda lane: np.where(lane >= 2, lane - 2, lane),
    "down.b32 %r1, %r5, 5, 31": lambda lane: np.where(lane <= 26, lane + 5, lane),
    "bfly.b32 %r1, %r5, 16, 31": lambda lane: lane ^ 16,
    "bfly.b32 %r1, %r5, 9, 15": lambda lane: np.where(lane ^ 9 <= 15, lane ^ 9, lane),
}


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_shuffles_read_other_lanes(shuffle):
    found = run(f"add.u32 %r5, %r0, 500; shfl.sync.{shuffle}, -1;")
    assert (found == THREADS // 32 * 32 + SHUFFLES[shuffle](THREADS % 32) + 500).all()


def test_a_shuffle_reports_whether_the_lane_exists():
    found = run("shfl.sync.down.b32 %r2|%p1, %r0, 5, 31, -1; selp.b32 %r1, 1, 0, %p1;")
    assert (found == (THREADS % 32 <= 26)).all()


def test_a_shuffle_by_a_part_of_a_warp_is_an_error():
    with pytest.raises(ptx.PtxError, match="not all threads are active"):
        run("setp.lt.u32 %p1, %r0, 40; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;")
    half = "setp.lt.u32 %p1, %r0, 64; mov.u32 %r1, 9; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;"
    assert (run(half) == np.where(THREADS < 64, THREADS // 32 * 32, 9)).all()


def test_activemask_names_the_lanes_that_are_there():
    found = run("mov.u32 %r1, 0; setp.lt.u32 %p1, %r0, 34; @%p1 activemask.b32 %r1;")
    assert [found[0], found[33], found[34]] == [0xFFFFFFFF, 3, 0]


# --- registers that were never written --------------------------------------------------------------------------------


def test_the_use_of_a_register_that_was_never_written_is_an_error():
    with pytest.raises(ptx.PtxError, match="read of register %r7 before any write"):
        run("add.u32 %r1, %r7, 1;")
    with pytest.raises(ptx.PtxError, match="read of register %p3 before any write"):
        run("mov.u32 %r1, 0; @%p3 bra END; END: mov.u32 %r1, 1;")


def test_threads_that_never_wrote_a_register_read_a_pattern():
    found = run("setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5;")
    assert (found == np.where(THREADS < 9, 5, 0xDEADBEEF)).all()


PAIR = "mov.u32 %r2, 0f40000000; mov.b64 %d1, {%r2, %r7}; "


def test_half_a_pair_may_be_undefined_as_long_as_nothing_uses_it():
    body = PAIR + "mul.rn.f32x2 %d2, %d1, %d1; add.rn.f32x2 %d3, %d2, %d1; mov.b64 {%r1, %r9}, %d3;"
    assert (run(body).view(np.float32) == 6).all()
    assert (run(PAIR + "mov.b64 {%r1, _}, %d1;").view(np.float32) == 2).all()
    upper = "mov.u32 %r2, 5; mov.b64 %d1, {%r7, %r2}; mov.b64 {_, %r1}, %d1;"
    assert (run(upper) == 5).all()


@pytest.mark.parametrize(
    "use, what",
    [
        ("mov.b64 {%r9, %r1}, %d1; add.u32 %r1, %r1, 1;", "read of register %r1 before any write"),
        ("mov.u32 %r1, 9; mov.b64 {%r9, %r1}, %d1;", "read of register %r1 before any write"),
        ("add.rn.f32x2 %d2, %d1, %d1; mov.b64 {%r9, %r1}, %d2; add.u32 %r1, %r1, 1;", "read of register %r1"),
        ("shr.u64 %d2, %d1, 1; cvt.u32.u64 %r1, %d2;", "register %d1 is used whole, and half of it"),
        ("st.global.b64 [%a0], %d1;", "register %d1 is used whole"),
    ],
)
def test_the_use_of_an_undefined_half_is_an_error(use, what):
    with pytest.raises(ptx.PtxError, match=what):
        run(PAIR + use)


def test_a_half_undefined_register_is_whole_again_when_all_of_it_is_written():
    assert (run(PAIR + "mov.u64 %d1, 3; cvt.u32.u64 %r1, %d1;") == 3).all()


def test_undefined_halves_keep_to_their_threads_registers():
    body = (
        PAIR
        + """mov.u32 %r3, 0f40400000; setp.lt.u32 %p1, %r0, 50;
    @%p1 mov.b64 %d1, {%r3, %r7}; mov.b64 {%r1, _}, %d1;"""
    )
    assert (run(body).view(np.float32) == np.where(THREADS < 50, 3, 2)).all()
    body += "@%p1 mov.u64 %d1, 9; mov.b64 {%r1, _}, %d1;"
    assert (run(body) == np.where(THREADS < 50, 9, 0x40000000)).all()
    with pytest.raises(ptx.PtxError, match="used whole"):
        run(body + "cvt.u32.u64 %r1, %d1;")


# --- what a kernel says of itself -------------------------------------------------------------------------------------


def test_unsupported_instructions_are_listed_with_their_reason():
    kernel = kernel_of("mov.u32 %r1, 1;\nadd.rz.f32 %r1, %r1, %r1; ret;\nfoo.u32 %r1;", 0)
    assert kernel.unsupported() == [
        "line 8: add.rz.f32 %r1, %r1, %r1  [modifier .rz]",
        "line 9: foo.u32 %r1  [opcode]",
    ]


def test_instructions_that_no_thread_reached_are_listed():
    kernel = kernel_of(
        "mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 40;\n@%p1 mov.u32 %r1, 2;\nbra END;\nmov.u32 %r1, 3; END: ret;", 0
    )
    kernel.launch((1,), (32,), [], ptx.Memory())
    assert kernel.unreached() == ["line 8: @%p1 mov.u32 %r1, 2", "line 10: mov.u32 %r1, 3"]
    kernel.launch((1,), (64,), [], ptx.Memory())
    assert kernel.unreached() == ["line 10: mov.u32 %r1, 3"]


def test_products_that_may_be_fused_with_a_sum_are_listed():
    def found(*lines):
        return kernel_of("\n".join(lines), 0).contractable()

    assert found("mul.f32 %r1, %r2, %r3;", "add.f32 %r4, %r5, %r1;") == [(7, 8, "add.f32 %r4, %r5, %r1")]
    assert found("mul.f32 %r1, %r2, %r3;", "sub.f32 %r4, %r1, %r5;")
    assert found("mul.rn.f32 %r1, %r2, %r3;", "add.f32 %r4, %r5, %r1;") == []
    assert found("mul.f32 %r1, %r2, %r3;", "add.rn.f32 %r4, %r5, %r1;") == []
    assert found("mul.f32 %r1, %r2, %r3;", "mov.f32 %r1, %r2;", "add.f32 %r4, %r5, %r1;") == []


def test_a_launch_counts_threads_instructions_and_partings():
    body = "mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, 3; @%p1 bra END; mov.u32 %r1, 2; END: ret;"
    stats = kernel_of(body, 0).launch((2,), (32,), [], ptx.Memory())
    assert (stats.threads, stats.instructions, stats.divergent, stats.approx) == (64, 5, 1, [])


# --- launches and text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directive, block, what",
    [
        ("", (1025,), "a block of 1025 threads"),
        ("", (0,), "a block of 0 threads"),
        (".reqntid 64, 1, 1", (32,), "the kernel is for"),
        (".maxntid 64, 2, 1", (256,), "at most"),
    ],
)
def test_a_block_of_another_size_than_the_kernel_is_for_is_an_error(directive, block, what):
    kernel = ptx.Module(f"{HEADER}.visible .entry k()\n{directive}\n{{ ret; }}").kernel()
    with pytest.raises(ptx.PtxError, match=what):
        kernel.launch((1,), block, [], ptx.Memory())
    kernel.launch((1,), (64,), [], ptx.Memory())


def test_a_launch_with_the_wrong_number_of_arguments_is_an_error():
    with pytest.raises(ptx.PtxError, match="takes 1 parameters, got 2"):
        kernel_of("ret;").launch((1,), (1,), [1, 2], ptx.Memory())


def test_a_name_in_braces_is_another_register():
    body = "mov.u32 %r1, 1; { .reg .b32 t; mov.u32 t, 5; { .reg .b32 t; mov.u32 t, 7; } add.u32 %r1, %r1, t; }"
    assert (run(body) == 6).all()
    with pytest.raises(ptx.PtxError, match="unknown symbol t"):
        run(body + "mov.u32 %r1, t;")


def test_comments_and_directives_are_not_instructions():
    body = '.loc 1 2 3\nmov.u32 %r1, 1; // mov.u32 %r1, 2;\n/* mov.u32\n%r1, 3; */ .pragma "nounroll";\nadd.u32 %r1,\n%r1, 1; add.u32 %r1, %r7, 1;'
    with pytest.raises(ptx.PtxError, match="PTX line 13: add.u32 %r1, %r7, 1: read of register"):
        run(body)


def test_parse_errors_name_the_line():
    with pytest.raises(ptx.PtxError, match="line 8: cannot parse 'mov'"):
        kernel_of("mov.u32 %r1, 1;\nmov")
    with pytest.raises(ptx.PtxError, match="cannot parse the parameter"):
        ptx.Module(".visible .entry k(.param u64) { ret; }")
    with pytest.raises(ptx.PtxError, match="has no end"):
        ptx.Module(".visible .entry k() { ret;")


def test_a_module_may_have_several_kernels():
    module = ptx.Module(HEADER + ".entry one() { ret; }\n.entry two() { trap; }")
    module.kernel("one").launch((1,), (1,), [], ptx.Memory())
    with pytest.raises(ptx.PtxError, match="two, PTX line 5: trap"):
        module.kernel("two").launch((1,), (1,), [], ptx.Memory())


def test_the_time_of_parsing_grows_with_the_text_and_not_with_its_square():
    def seconds(n):
        text = f"{HEADER}.entry k() {{ .reg .b32 %r<9>;\n" + "add.u32 %r1, %r2, %r3;\n" * n + "ret; }"
        gc.disable()  # its share depends on what else there is
        began = time.process_time()
        ptx.Module(text)
        gc.enable()
        return time.process_time() - began

    # Eight times the text: 8 times the time, or 64.
    assert min(seconds(32_000) for _ in range(2)) < 24 * min(seconds(4_000) for _ in range(3))

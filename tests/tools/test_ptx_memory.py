"""Memory of tools/ptx: what a kernel may read and write, and what is counted of it."""

from __future__ import annotations

import numpy as np
import ptx
import pytest
import torch
from ptx_operations import HEADER, N_THREADS, kernel_of, launched

# %a0: the pointer p0; %r0: the number of the thread; %a1: where the thread's word of four bytes is.
WORDS = "ld.param.u64 %a0, [p0]; mov.u32 %r0, %tid.x; mul.wide.u32 %a1, %r0, 4; add.s64 %a1, %a0, %a1;"
SCALAR = WORDS + "st.global.u32 [%a1], %r0;"


def words(n=N_THREADS):
    """Returns n words at an address that allows vectors of any size."""
    array = np.zeros(n + 16, np.uint32)
    skip = -array.ctypes.data % 64 // 4
    return array[skip : skip + n]


def test_each_thread_stores_its_word():
    out = words()
    memory = launched(kernel_of(SCALAR), out)
    assert (out == np.arange(N_THREADS)).all()
    assert (memory.writes(out) == 1).all()


def test_a_tensor_of_torch_is_written_in_place():
    out = torch.zeros(N_THREADS, dtype=torch.int32)
    memory = ptx.Memory(track=True)
    memory.add(out)
    kernel_of(SCALAR).launch((1,), (N_THREADS,), [out.data_ptr()], memory)
    assert torch.equal(out, torch.arange(N_THREADS, dtype=torch.int32))
    assert (memory.writes(out) == 1).all()


@pytest.mark.parametrize("n_words, n_outside", [(N_THREADS - 1, 1), (N_THREADS // 2, N_THREADS // 2), (0, N_THREADS)])
def test_a_store_out_of_bounds_names_its_line(n_words, n_outside):
    memory, out = ptx.Memory(), words()
    memory.add(out[:n_words])
    what = rf"st.global.u32 \[%a1\], %r0: store of 4 bytes outside of .*, at 0x.* \({n_outside} threads\)"
    with pytest.raises(ptx.PtxError, match=f"k, PTX line 8: {what}"):
        kernel_of(SCALAR.replace("st.", "\nst.")).launch((1,), (N_THREADS,), [out.ctypes.data], memory)


def test_a_load_one_byte_beyond_the_end_is_an_error():
    data = np.zeros(7, np.uint8)
    with pytest.raises(ptx.PtxError, match=r"load of 4 bytes outside of every registered buffer, at .* \(1 threads\)"):
        launched(kernel_of(WORDS + "ld.global.u32 %r1, [%a1];"), words(1), n_threads=2)
    launched(kernel_of(WORDS + "ld.global.u8 %h1, [%a0+6];"), data, n_threads=1)
    with pytest.raises(ptx.PtxError, match="outside"):
        launched(kernel_of(WORDS + "ld.global.u8 %h1, [%a0+7];"), data, n_threads=1)
    with pytest.raises(ptx.PtxError, match="outside"):
        launched(kernel_of(WORDS + "ld.global.u32 %r1, [%a0+4];"), data, n_threads=1)
    with pytest.raises(ptx.PtxError, match="outside"):
        launched(kernel_of(WORDS + "ld.global.u8 %h1, [%a0+-1];"), data, n_threads=1)


def test_the_last_address_of_all_is_outside():
    with pytest.raises(ptx.PtxError, match="outside"):
        launched(kernel_of("mov.u64 %a1, -4; ld.global.u32 %r1, [%a1];"), words())


@pytest.mark.parametrize("size, offset", [(2, 1), (4, 2), (8, 4)])
def test_a_misaligned_access_is_an_error(size, offset):
    out, register = words(), {2: "%h1", 4: "%r1", 8: "%d1"}[size]
    launched(kernel_of(f"ld.param.u64 %a0, [p0]; ld.global.b{8 * size} {register}, [%a0];"), out)
    with pytest.raises(ptx.PtxError, match=f"misaligned load of {size} bytes"):
        launched(kernel_of(f"ld.param.u64 %a0, [p0]; ld.global.b{8 * size} {register}, [%a0+{offset}];"), out)


def test_a_vector_is_as_aligned_as_it_is_large():
    vector = "ld.param.u64 %a0, [p0]; mov.u32 %r1, 7; st.global.v4.b32 [%a0+{}], {{%r1, %r1, %r1, %r1}};"
    out = words()
    launched(kernel_of(vector.format(16)), out, n_threads=1)
    assert out[:9].tolist() == [0, 0, 0, 0, 7, 7, 7, 7, 0]
    with pytest.raises(ptx.PtxError, match="misaligned store of 16 bytes"):
        launched(kernel_of(vector.format(8)), out, n_threads=1)


def test_a_vector_is_loaded_in_order():
    out = words()
    out[:] = np.arange(N_THREADS) + 100
    body = WORDS + "ld.global.v2.u32 {%r1, %r2}, [%a0+8]; sub.u32 %r3, %r2, %r1; mad.lo.u32 %r3, %r3, 1000, %r1;"
    launched(kernel_of(body + "st.global.u32 [%a0], %r3;"), out, n_threads=1)
    assert out[0] == 1102


def test_a_narrow_load_is_extended_by_the_sign_of_its_type():
    out = words()
    out[0] = 0x80
    body = (
        "ld.param.u64 %a0, [p0]; ld.global.s8 %r1, [%a0]; ld.global.u8 %r2, [%a0]; st.global.v2.b32 [%a0], {%r1, %r2};"
    )
    launched(kernel_of(body), out, n_threads=1)
    assert out[:2].tolist() == [0xFFFFFF80, 0x80]


def test_bytes_written_twice_are_counted_so():
    out = words()
    memory = launched(kernel_of(SCALAR + "setp.lt.u32 %p1, %r0, 2; @%p1 st.global.u8 [%a1+1], %r0;"), out)
    expected = np.ones(4 * N_THREADS)
    expected[[1, 5]] = 2
    assert (memory.writes(out) == expected).all()


def test_threads_that_write_the_same_byte_are_all_counted():
    out = words()
    memory = launched(kernel_of("ld.param.u64 %a0, [p0]; mov.u32 %r1, 1; st.global.u8 [%a0], %r1;"), out, n_threads=5)
    assert memory.writes(out)[:2].tolist() == [5, 0]


def test_write_counts_saturate():
    out = words()
    memory = launched(kernel_of("ld.param.u64 %a0, [p0]; mov.u32 %r1, 1; st.global.u8 [%a0], %r1;"), out, n_threads=257)
    assert memory.writes(out)[0] == 255


def test_one_instruction_may_use_several_buffers():
    first, second = words(4), words(4)
    body = WORDS + "ld.param.u64 %a3, [p1]; setp.lt.u32 %p1, %r0, 4; add.s64 %a4, %a3, -16; selp.b64 %a3, 0, %a4, %p1;"
    body += "sub.s64 %a4, %a1, %a0; add.s64 %a3, %a3, %a4; selp.b64 %a3, %a1, %a3, %p1; ld.global.u32 %r2, [%a3];"
    body += "add.u32 %r2, %r2, %r0; st.global.u32 [%a3], %r2;"
    memory = launched(kernel_of(body, 2), first, second, n_threads=8)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert (memory.writes(first) == 1).all() and (memory.writes(second) == 1).all()


def test_buffers_may_not_overlap():
    memory = ptx.Memory()
    memory.add(words(8), addr=1 << 20)
    memory.add(words(8), addr=(1 << 20) + 32)
    for address in ((1 << 20) - 4, (1 << 20) + 4, (1 << 20) + 60):
        with pytest.raises(ValueError, match="overlap"):
            memory.add(words(8), addr=address)
    with pytest.raises(ValueError, match="contiguous"):
        memory.add(words(8)[::2])


def test_a_window_of_a_tensor_that_is_too_large_to_hold():
    window, memory, start = words(4), ptx.Memory(track=True), 1 << 44
    memory.reserve(start, 1 << 35)
    memory.add(window, addr=start + (1 << 35))
    kernel = kernel_of(SCALAR)
    kernel.launch((1,), (4,), [start + (1 << 35)], memory)
    assert window.tolist() == [0, 1, 2, 3]
    kernel.launch((1,), (4,), [start], memory)  # dropped
    with pytest.raises(ptx.PtxError, match="load from reserved"):
        kernel_of(WORDS + "ld.global.u32 %r1, [%a1];").launch((1,), (4,), [start], memory)


# --- memory of threads and blocks -------------------------------------------------------------------------------------


SHARED = """.shared .align 4 .b8 buffer[512];
mov.u32 %r5, buffer; shl.b32 %r1, %r0, 2; add.u32 %r5, %r5, %r1; st.shared.u32 [%r5], %r0; bar.sync 0;
mov.u32 %r6, buffer; sub.u32 %r2, 508, %r1; add.u32 %r6, %r6, %r2; ld.shared.u32 %r3, [%r6]; st.global.u32 [%a1], %r3;"""


def test_shared_memory_is_that_of_the_block():
    out = words()
    launched(kernel_of(WORDS + SHARED), out)
    assert (out == np.arange(N_THREADS)[::-1]).all()


def test_shared_memory_has_bounds():
    with pytest.raises(ptx.PtxError, match=r"\.shared access of 4 bytes is out of bounds"):
        launched(kernel_of(WORDS + SHARED.replace("[512]", "[508]")), words())
    with pytest.raises(ptx.PtxError, match=r"\.shared access of 4 bytes is out of bounds or misaligned"):
        launched(kernel_of(WORDS + SHARED.replace("508, %r1", "509, %r1")), words())


def test_dynamic_shared_memory_is_as_large_as_the_launch_says():
    body = WORDS + SHARED.partition(";")[2]
    text = f"{HEADER}.extern .shared .align 16 .b8 buffer[];\n.visible .entry k(.param .u64 p0) {{"
    text += f".reg .b32 %r<9>; .reg .b64 %a<9>; {body} ret; }}"
    kernel, out = ptx.Module(text).kernel(), words()
    launched(kernel, out, shared=512)
    assert out[0] == N_THREADS - 1
    with pytest.raises(ptx.PtxError, match="out of bounds"):
        launched(kernel, out, shared=508)


def test_local_memory_is_that_of_the_thread():
    out = words()
    body = """.local .align 4 .b8 mine[8];
    mov.u64 %a2, mine; cvta.local.u64 %a3, %a2; st.u32 [%a3+4], %r0; ld.local.u32 %r1, [%a2+4]; st.global.u32 [%a1], %r1;"""
    launched(kernel_of(WORDS + body), out)
    assert (out == np.arange(N_THREADS)).all()
    with pytest.raises(ptx.PtxError, match=r"\.local access"):
        launched(kernel_of(WORDS + body.replace("+4", "+8")), out)


def test_generic_addresses_find_shared_and_global_memory():
    out = words()
    body = (
        WORDS
        + """.shared .align 4 .b8 buffer[4];
    mov.u64 %a2, buffer; cvta.shared.u64 %a2, %a2; mov.u32 %r1, 42; st.u32 [%a2], %r1; ld.u32 %r2, [%a2];
    cvta.to.shared.u64 %a3, %a2; ld.shared.u32 %r3, [%a3]; add.u32 %r2, %r2, %r3; st.u32 [%a1], %r2;"""
    )
    launched(kernel_of(body), out)
    assert (out == 84).all()


def test_parameters_have_bounds_and_alignments():
    text = HEADER + ".visible .entry k(.param .u64 p0, .param .align 8 .b8 record[12], .param .u32 last) {"
    text += ".reg .b32 %r<4>; .reg .b64 %a<4>; ld.param.u64 %a0, [p0]; ld.param.u32 %r0, [record+8];"
    text += "ld.param.u32 %r1, [last]; st.global.v2.u32 [%a0], {%r0, %r1}; ret; }"
    out, memory = words(), ptx.Memory()
    memory.add(out)
    record = np.array([1, 2, 3], np.uint32).tobytes()
    ptx.Module(text).kernel().launch((1,), (1,), [out.ctypes.data, record, 4], memory)
    assert out[:2].tolist() == [3, 4]
    beyond = ptx.Module(text.replace("[last]", "[last+4]")).kernel()
    with pytest.raises(ptx.PtxError, match=r"\.param access"):
        beyond.launch((1,), (1,), [out.ctypes.data, record, 4], memory)
    with pytest.raises(ptx.PtxError, match="parameter record of 12 bytes got 8"):
        beyond.launch((1,), (1,), [out.ctypes.data, record[:8], 4], memory)


def test_variables_of_the_module_hold_their_values():
    text = HEADER + ".global .align 4 .b8 table[8] = {1, 2, 3, 4, 0xff};\n.const .f32 one = 0f3F800000;\n"
    text += ".visible .entry k(.param .u64 p0) { .reg .b32 %r<4>; .reg .b64 %a<4>; ld.param.u64 %a0, [p0];"
    text += "mov.u64 %a1, table; ld.global.u32 %r0, [%a1]; ld.global.u32 %r1, [table+4]; ld.const.b32 %r2, [one];"
    text += "st.global.v4.u32 [%a0], {%r0, %r1, %r2, 5}; ret; }"
    out = words()
    launched(ptx.Module(text).kernel(), out, n_threads=1)
    assert out[:4].tolist() == [0x04030201, 0xFF, 0x3F800000, 5]

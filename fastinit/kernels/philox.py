"""Philox-4x32-10, with the operations of csrc/philox.h. Letters are the paper's."""

import triton
import triton.language as tl

_M0, _M1, _W0, _W1 = (tl.constexpr(x) for x in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))

# Without it, LLVM splits some of the products into halves and joins them again.
_PTX_PRODUCT = tl.constexpr("{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$1, $0}, p; }")


@triton.jit
def _product(c, m: tl.constexpr, PTX: tl.constexpr):
    """Returns the upper and lower half of c * m, in one instruction: each half alone would take one of its own."""
    if PTX:
        return tl.inline_asm_elementwise(
            _PTX_PRODUCT, "=r,=r,r,n", [c, m], dtype=(tl.uint32, tl.uint32), is_pure=True, pack=1
        )
    else:
        p = c.to(tl.uint64) * m
        return (p >> 32).to(tl.uint32), p.to(tl.uint32)


@triton.jit
def philox(low, high, seed, PTX: tl.constexpr):
    """Returns the four words of the blocks of given counters, passed as halves; the upper may be a scalar."""
    k0, k1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    # In the first round two words are zero. Until the third round the counter's upper half does not mix with the lower
    # one, so that where it is a scalar, this part is computed once per piece of work.
    h0, l0 = _product(low, _M0, PTX)
    c0, c2, c3 = high ^ k0, h0 ^ k1, l0
    k0 += _W0
    k1 += _W1
    h0, l0 = _product(c0, _M0, PTX)
    h1, l1 = _product(c2, _M1, PTX)
    c0, c1, c2, c3 = h1 ^ k0, l1, (h0 ^ k1) ^ c3, l0
    for _ in tl.static_range(8):
        k0 += _W0
        k1 += _W1
        h0, l0 = _product(c0, _M0, PTX)
        h1, l1 = _product(c2, _M1, PTX)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
    return c0, c1, c2, c3

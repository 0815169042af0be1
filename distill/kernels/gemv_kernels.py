"""Triton kernels of matrix-vector products with what stands around them in a decoder layer: the RMSNorm before, bias,
gated SiLU or residual after. Launched by `gemv.py`.

A program makes OUT_BLOCK outputs of all M rows; the norm's statistics are computed by every program anew, as a row of
hidden states is a few kilobytes that lie in the cache.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(x, like):
    """float32 by way of the type that `like` points to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _inverse_lengths(x, x_row, eps, ROWS: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of each row, [ROWS, 1]."""
    rows = tl.arange(0, ROWS)
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = (rows < M)[:, None] & (columns < WIDTH)[None, :]
        values = tl.load(x + rows[:, None] * x_row + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        squares += tl.sum(values * values, 1)
    return (1.0 / tl.sqrt(squares / WIDTH + eps))[:, None]


@triton.jit
def _inputs(
    x, x_row, norm, lengths, columns, ROWS: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr
):
    """The inputs at these columns in float32, normed where they are to be, [ROWS, columns]."""
    rows = tl.arange(0, ROWS)
    inside = columns < WIDTH
    mask = (rows < M)[:, None] & inside[None, :]
    values = tl.load(x + rows[:, None] * x_row + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        scale = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
        values = _rounded(_rounded(values * lengths, x) * scale[None, :], x)
    return values


@triton.jit
def _product(values, weight, outputs, columns, OUT: tl.constexpr, WIDTH: tl.constexpr):
    """values [ROWS, columns] times the weights of these outputs, [ROWS, outputs]."""
    mask = (outputs < OUT)[:, None] & (columns < WIDTH)[None, :]
    place = outputs.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    weights = tl.load(weight + place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.sum(values[:, None, :] * weights[None, :, :], 2)


@triton.jit
def gemv_kernel(
    x,
    weight,
    bias,
    norm,
    out,
    eps,
    x_row,
    out_row,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ADDS: tl.constexpr,
):
    """out = norm(x) W^T + bias, or out += it."""
    outputs = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    lengths = tl.zeros([ROWS, 1], tl.float32)
    if HAS_NORM:
        lengths = _inverse_lengths(x, x_row, eps, ROWS, M, WIDTH, BLOCK)
    sums = tl.zeros([ROWS, OUT_BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = _inputs(x, x_row, norm, lengths, columns, ROWS, M, WIDTH, HAS_NORM)
        sums += _product(values, weight, outputs, columns, OUT, WIDTH)
    if HAS_BIAS:
        sums += tl.load(bias + outputs, mask=outputs < OUT, other=0.0).to(tl.float32)[None, :]
    rows = tl.arange(0, ROWS)
    mask = (rows < M)[:, None] & (outputs < OUT)[None, :]
    place = out + rows[:, None] * out_row + outputs[None, :]
    if ADDS:
        sums = _rounded(sums, out) + tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gated_gemv_kernel(
    x,
    weight,
    norm,
    out,
    eps,
    x_row,
    OUT: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = silu(norm(x) W_gate^T) * (norm(x) W_up^T); `weight` holds the OUT rows of gate, then those of up."""
    outputs = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    lengths = _inverse_lengths(x, x_row, eps, ROWS, M, WIDTH, BLOCK)
    gate = tl.zeros([ROWS, OUT_BLOCK], tl.float32)
    up = tl.zeros([ROWS, OUT_BLOCK], tl.float32)
    upper = weight + OUT * WIDTH
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = _inputs(x, x_row, norm, lengths, columns, ROWS, M, WIDTH, True)
        gate += _product(values, weight, outputs, columns, OUT, WIDTH)
        up += _product(values, upper, outputs, columns, OUT, WIDTH)
    gate = _rounded(gate, out)
    active = _rounded(gate / (1.0 + tl.exp(-gate)), out)
    rows = tl.arange(0, ROWS)
    mask = (rows < M)[:, None] & (outputs < OUT)[None, :]
    place = out + rows[:, None] * OUT + outputs[None, :]
    tl.store(place, (active * _rounded(up, out)).to(out.dtype.element_ty), mask=mask)

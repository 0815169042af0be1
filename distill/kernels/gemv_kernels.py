"""Triton kernels of matrix-vector products with what stands around them in a decoder layer: the RMSNorm before, bias,
gated SiLU or residual after. Launched by `gemv.py`.

A program makes OUT_BLOCK outputs of all M rows; the norm's statistics are computed by every program anew, as a row of
hidden states is a few kilobytes that lie in the cache.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
def _weights(weight, outputs, columns, OUT: tl.constexpr, WIDTH: tl.constexpr):
    """The weights of these outputs at these columns, [outputs, columns], in their own type."""
    mask = (outputs < OUT)[:, None] & (columns < WIDTH)[None, :]
    place = outputs.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    return tl.load(weight + place, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _products(values, weights):
    """values [ROWS, columns] and weights [outputs, columns] -> [ROWS, outputs, columns], to be summed at the end."""
    return values[:, None, :] * weights.to(tl.float32)[None, :, :]


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
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    ADDS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out = norm(x) W^T + bias, or out += it. EARLY: the first weights are read while the kernel before still runs."""
    outputs = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    columns = tl.arange(0, BLOCK)
    weights = _weights(weight, outputs, columns, OUT, WIDTH)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    lengths = tl.zeros([ROWS, 1], tl.float32)
    if HAS_NORM:
        lengths = _inverse_lengths(x, x_row, eps, ROWS, M, WIDTH, BLOCK)
    sums = _products(_inputs(x, x_row, norm, lengths, columns, ROWS, M, WIDTH, HAS_NORM), weights)
    for step in tl.range(1, STEPS, loop_unroll_factor=UNROLL):
        later = step * BLOCK + columns
        weights = _weights(weight, outputs, later, OUT, WIDTH)
        sums += _products(_inputs(x, x_row, norm, lengths, later, ROWS, M, WIDTH, HAS_NORM), weights)
    total = tl.sum(sums, 2)
    if HAS_BIAS:
        total += tl.load(bias + outputs, mask=outputs < OUT, other=0.0).to(tl.float32)[None, :]
    rows = tl.arange(0, ROWS)
    mask = (rows < M)[:, None] & (outputs < OUT)[None, :]
    place = out + rows[:, None] * out_row + outputs[None, :]
    if ADDS:
        total = _rounded(total, out) + tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, total.to(out.dtype.element_ty), mask=mask)


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
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out = silu(norm(x) W_gate^T) * (norm(x) W_up^T); `weight` holds the OUT rows of gate, then those of up."""
    outputs = tl.program_id(0) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    columns = tl.arange(0, BLOCK)
    upper = weight + OUT * WIDTH
    gate_weights = _weights(weight, outputs, columns, OUT, WIDTH)
    up_weights = _weights(upper, outputs, columns, OUT, WIDTH)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    lengths = tl.zeros([ROWS, 1], tl.float32)
    if HAS_NORM:
        lengths = _inverse_lengths(x, x_row, eps, ROWS, M, WIDTH, BLOCK)
    values = _inputs(x, x_row, norm, lengths, columns, ROWS, M, WIDTH, HAS_NORM)
    gate_sums, up_sums = _products(values, gate_weights), _products(values, up_weights)
    for step in tl.range(1, STEPS, loop_unroll_factor=UNROLL):
        later = step * BLOCK + columns
        gate_weights = _weights(weight, outputs, later, OUT, WIDTH)
        up_weights = _weights(upper, outputs, later, OUT, WIDTH)
        values = _inputs(x, x_row, norm, lengths, later, ROWS, M, WIDTH, HAS_NORM)
        gate_sums += _products(values, gate_weights)
        up_sums += _products(values, up_weights)
    gate, up = _rounded(tl.sum(gate_sums, 2), out), _rounded(tl.sum(up_sums, 2), out)
    active = _rounded(gate / (1.0 + tl.exp(-gate)), out)
    rows = tl.arange(0, ROWS)
    mask = (rows < M)[:, None] & (outputs < OUT)[None, :]
    place = out + rows[:, None] * OUT + outputs[None, :]
    tl.store(place, (active * up).to(out.dtype.element_ty), mask=mask)

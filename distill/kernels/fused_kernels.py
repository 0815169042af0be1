"""Triton kernels of what stands between the matrix products of a decoder layer: one launch each, rounded where
transformers rounds. Launched by `fused.py`."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _rounded(x, like):
    """float32 by way of the type that `like` points to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def rms_norm_kernel(x, weight, out, eps, x_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """A row a program: out = weight * round(x / sqrt(mean(x^2) + eps))."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(x + row * x_row + columns, mask=inside, other=0.0).to(tl.float32)
    normal = _rounded(values / tl.sqrt(tl.sum(values * values, 0) / WIDTH + eps), out)
    scaled = normal * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_kernel(gate, up, out, gate_row, up_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """out = round(silu(gate)) * up."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    a = tl.load(gate + row * gate_row + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + row * up_row + columns, mask=inside, other=0.0).to(tl.float32)
    active = _rounded(a / (1.0 + tl.exp(-a)), out)
    tl.store(out + row * WIDTH + columns, (active * b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turned(near, far, cos, sin, like):
    """near * cos + far * sin, each product rounded as the eager form rounds it."""
    return (_rounded(near * cos, like) + _rounded(far * sin, like)).to(like.dtype.element_ty)


@triton.jit(do_not_specialize=["positions", "slots"])
def rotate_and_store_kernel(
    qkv,
    cos,
    sin,
    positions,
    slots,
    query,
    keys,
    values,
    query_weight,
    key_weight,
    eps,
    qkv_row,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BY_POSITION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A token and HEADS of its heads a program; with n the optional norm, q and k become n(x) cos + half-turned n(x)
    sin, k and v go to the token's slot of the cache."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    columns = tl.arange(0, HALF_PAD)
    inside = columns < HALF
    mask = (heads < QUERY_HEADS + 2 * KV_HEADS)[:, None] & inside[None, :]
    place = qkv + token * qkv_row + heads[:, None] * (2 * HALF) + columns[None, :]
    raw_low, raw_high = tl.load(place, mask=mask, other=0.0), tl.load(place + HALF, mask=mask, other=0.0)
    low, high = raw_low.to(tl.float32), raw_high.to(tl.float32)
    is_query = heads < QUERY_HEADS
    if HAS_NORM:
        mean = (tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF)
        length = tl.sqrt(mean + eps)[:, None]
        q_low = tl.load(query_weight + columns, mask=inside, other=0.0).to(tl.float32)
        q_high = tl.load(query_weight + HALF + columns, mask=inside, other=0.0).to(tl.float32)
        k_low = tl.load(key_weight + columns, mask=inside, other=0.0).to(tl.float32)
        k_high = tl.load(key_weight + HALF + columns, mask=inside, other=0.0).to(tl.float32)
        low_weight = tl.where(is_query[:, None], q_low[None, :], k_low[None, :])
        high_weight = tl.where(is_query[:, None], q_high[None, :], k_high[None, :])
        low = _rounded(_rounded(low / length, query) * low_weight, query)
        high = _rounded(_rounded(high / length, query) * high_weight, query)
    angle = token * 2 * HALF + columns
    if BY_POSITION:
        angle = tl.load(positions + token) * 2 * HALF + columns
    cos_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    new_low, new_high = _turned(low, -high, cos_low, sin_low, query), _turned(high, low, cos_high, sin_high, query)

    place = query + (token * QUERY_HEADS + heads)[:, None] * (2 * HALF) + columns[None, :]
    own = mask & is_query[:, None]
    tl.store(place, new_low, mask=own)
    tl.store(place + HALF, new_high, mask=own)
    slot = tl.load(slots + token)
    is_key = (heads >= QUERY_HEADS) & (heads < QUERY_HEADS + KV_HEADS)
    head = tl.where(is_key, heads - QUERY_HEADS, heads - QUERY_HEADS - KV_HEADS)
    row = ((slot // SIZE) * KV_HEADS + head) * SIZE + slot % SIZE
    offset = row[:, None] * (2 * HALF) + columns[None, :]
    stored = mask & (slot >= 0)
    own = stored & is_key[:, None]
    tl.store(keys + offset, new_low, mask=own)
    tl.store(keys + offset + HALF, new_high, mask=own)
    own = stored & (heads >= QUERY_HEADS + KV_HEADS)[:, None]
    tl.store(values + offset, raw_low, mask=own)
    tl.store(values + offset + HALF, raw_high, mask=own)

"""Triton kernels of what stands between the matrix products of a decoder layer that is trained, forward and backward:
RMSNorm with the residual before it, rotary positions, gated SiLU. Computed in float32, rounded once at the end.
Launched by `layers.py`.
"""

import triton
import triton.language as tl


@triton.jit
def norm_forward_kernel(
    x, delta, weight, summed, out, inverse, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_DELTA: tl.constexpr
):
    """A row a program: s = x + delta, out = weight * s / sqrt(mean(s^2) + eps); the inverse root is kept."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        values += tl.load(delta + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
        stored = values.to(summed.dtype.element_ty)
        tl.store(summed + row * WIDTH + columns, stored, mask=inside)
        values = stored.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, 0) / WIDTH + eps)
    tl.store(inverse + row, scale)
    scaled = values * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_kernel(
    gradient,
    above,
    x,
    weight,
    inverse,
    out,
    delta_out,
    partial,
    rows,
    programs,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ABOVE: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):
    """Every `programs`-th row a program; with n = x / root and g = weight * gradient the row's derivative is
    (g - n mean(g n)) / root, plus what comes past the norm. The weight's derivative is summed by program."""
    first = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    scales = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    place = first.to(tl.int64) * WIDTH + columns
    for row in range(first, rows, programs):
        found = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        root = tl.load(inverse + row)
        normal = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * root
        sums += found * normal
        found *= scales
        result = (found - normal * (tl.sum(found * normal, 0) / WIDTH)) * root
        if HAS_ABOVE:
            result += tl.load(above + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
        if HAS_DELTA:
            tl.store(delta_out + place, result.to(delta_out.dtype.element_ty), mask=inside)
        place += programs * WIDTH
    tl.store(partial + first * WIDTH + columns, sums, mask=inside)


@triton.jit
def rotate_kernel(
    qkv,
    cos,
    sin,
    query,
    key,
    value,
    query_row,
    key_row,
    value_row,
    query_head,
    key_head,
    value_head,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    BACK: tl.constexpr,
):
    """A token a program, with the HEADS (padded) of all three: queries and keys are turned, values copied, from rows of
    `qkv` [T, (H + 2 K) D] to their own places, or with BACK turned the other way round and brought back."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, HALF_PAD)[None, :]
    inside = columns < HALF
    is_query = heads < QUERY_HEADS
    is_key = (heads >= QUERY_HEADS) & (heads < QUERY_HEADS + KV_HEADS)
    is_value = (heads >= QUERY_HEADS + KV_HEADS) & (heads < QUERY_HEADS + 2 * KV_HEADS)
    whole = qkv + token * ((QUERY_HEADS + 2 * KV_HEADS) * 2 * HALF) + heads * (2 * HALF) + columns
    to_query = query + token * query_row + heads * query_head + columns
    to_key = key + token * key_row + (heads - QUERY_HEADS) * key_head + columns
    to_value = value + token * value_row + (heads - QUERY_HEADS - KV_HEADS) * value_head + columns
    for_query, for_key, for_value = inside & is_query, inside & is_key, inside & is_value
    if BACK:
        low = tl.load(to_query, mask=for_query, other=0.0).to(tl.float32)
        low += tl.load(to_key, mask=for_key, other=0.0).to(tl.float32)
        low += tl.load(to_value, mask=for_value, other=0.0).to(tl.float32)
        high = tl.load(to_query + HALF, mask=for_query, other=0.0).to(tl.float32)
        high += tl.load(to_key + HALF, mask=for_key, other=0.0).to(tl.float32)
        high += tl.load(to_value + HALF, mask=for_value, other=0.0).to(tl.float32)
    else:
        everyone = inside & (heads < QUERY_HEADS + 2 * KV_HEADS)
        low = tl.load(whole, mask=everyone, other=0.0).to(tl.float32)
        high = tl.load(whole + HALF, mask=everyone, other=0.0).to(tl.float32)
    angle = token * 2 * HALF + columns
    cos_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        turned_low, turned_high = low * cos_low + high * sin_high, high * cos_high - low * sin_low
    else:
        turned_low, turned_high = low * cos_low - high * sin_low, high * cos_high + low * sin_high
    new_low = tl.where(is_value, low, turned_low).to(qkv.dtype.element_ty)
    new_high = tl.where(is_value, high, turned_high).to(qkv.dtype.element_ty)
    if BACK:
        everyone = inside & (heads < QUERY_HEADS + 2 * KV_HEADS)
        tl.store(whole, new_low, mask=everyone)
        tl.store(whole + HALF, new_high, mask=everyone)
    else:
        tl.store(to_query, new_low, mask=for_query)
        tl.store(to_query + HALF, new_high, mask=for_query)
        tl.store(to_key, new_low, mask=for_key)
        tl.store(to_key + HALF, new_high, mask=for_key)
        tl.store(to_value, new_low, mask=for_value)
        tl.store(to_value + HALF, new_high, mask=for_value)


@triton.jit
def gate_forward_kernel(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out = silu(gate) * up of the two halves of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = gate_up + row * 2 * WIDTH + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward_kernel(gradient, gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """With s = sigmoid(gate): by gate up s (1 + gate (1 - s)), by up gate s."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    offset = row * 2 * WIDTH + columns
    gate = tl.load(gate_up + offset, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + offset + WIDTH, mask=inside, other=0.0).to(tl.float32)
    found = tl.load(gradient + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    by_gate = found * up * share * (1.0 + gate * (1.0 - share))
    tl.store(out + offset, by_gate.to(out.dtype.element_ty), mask=inside)
    tl.store(out + offset + WIDTH, (found * gate * share).to(out.dtype.element_ty), mask=inside)

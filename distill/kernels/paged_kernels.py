"""Triton kernels of paged attention. The query heads of one KV head stand in the rows of one tile, so that each key and
value is loaded once for all of them; softmax is online, in float32. Launched by `paged_attention.py`."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _cache_rows(table, positions, inside, head, KV_HEADS: tl.constexpr, SIZE: tl.constexpr):
    """Row of [N x K x S] of the tokens at these positions of a sequence."""
    blocks = tl.load(table + positions // SIZE, mask=inside, other=0).to(tl.int64)
    return (blocks * KV_HEADS + head) * SIZE + positions % SIZE


@triton.jit
def _load_rows(
    base, scales, rows, row_mask, WIDTH: tl.constexpr, PAD: tl.constexpr, QUANTIZED: tl.constexpr, DTYPE: tl.constexpr
):
    """[rows, PAD] numbers of rows of WIDTH in DTYPE, zero outside, and what each row is to be multiplied with,
    [1, rows] or [1, 1]. Codes of 8 bits are exact in 16."""
    columns = tl.arange(0, PAD)
    mask = row_mask[:, None] & (columns < WIDTH)[None, :]
    numbers = tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)
    if QUANTIZED:
        factor = tl.load(scales + rows, mask=row_mask, other=0.0).to(tl.float32)[None, :]
    else:
        factor = tl.full([1, 1], 1.0, tl.float32)
    return numbers.to(DTYPE), factor


@triton.jit
def _scores(q, k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """[rows, keys] in float32; tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    return scores


@triton.jit
def _online(scores, v, factor, largest, total, sums):
    """Take one tile of keys into the running softmax, its values v times `factor`; rows that have seen nothing yet stay
    at zero."""
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp(scores - shift[:, None])
    shrink = tl.exp(largest - shift)
    sums = sums * shrink[:, None] + tl.dot((weights * factor).to(v.dtype), v, input_precision="ieee")
    return new_largest, total * shrink + tl.sum(weights, 1), sums


@triton.jit
def _merged(
    partial,
    stats,
    place,
    active,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    MOST: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """With m_i, l_i, a_i the largest score, the sum of weights and the weighted values of split i, and m the largest
    m_i: sum exp(m_i - m) a_i / sum exp(m_i - m) l_i, over the `active` splits from `place` on, [GROUP_PAD, VALUE_PAD].
    m is known before the values are read, so that those of AT_ONCE splits are under way together. Other programs wrote
    them, so they are read past the caches that are not shared."""
    members, width, every = tl.arange(0, GROUP_PAD), tl.arange(0, VALUE_PAD), tl.arange(0, MOST)
    inside = (every < active)[:, None] & (members < GROUP)[None, :]
    where = stats + (place + every)[:, None] * (2 * GROUP) + members[None, :]
    their_largest = tl.load(where, mask=inside, other=float("-inf"), cache_modifier=".cg")
    weights = tl.load(where + GROUP, mask=inside, other=0.0, cache_modifier=".cg")
    largest = tl.where(members < GROUP, tl.max(their_largest, 0), 0.0)
    total = tl.sum(tl.exp(their_largest - largest[None, :]) * weights, 0)
    sums = tl.zeros([GROUP_PAD, VALUE_PAD], tl.float32)
    shift = largest[:, None] + sums  # every thread has its own, so that the loop does not exchange any
    there = partial + (place * GROUP + members)[:, None] * VALUE_DIM + width[None, :]
    whole = (members < GROUP)[:, None] & (width < VALUE_DIM)[None, :]
    own, known = stats + place * (2 * GROUP) + members[:, None], (members < GROUP)[:, None]
    for first in range(0, active, AT_ONCE):
        for other in tl.static_range(AT_ONCE):
            split, there_is = first + other, first + other < active
            m = tl.load(own + split * (2 * GROUP), mask=known & there_is, other=float("-inf"), cache_modifier=".cg")
            values = tl.load(there + split * GROUP * VALUE_DIM, mask=whole & there_is, other=0.0, cache_modifier=".cg")
            sums += values * tl.exp(m - shift)
    return sums / tl.where(members < GROUP, total, 1.0)[:, None]


@triton.jit
def _rounded(x, like):
    """float32 by way of the type that `like` points to."""
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _turned(heads, inside, columns, cos, sin, weight, eps, DIM: tl.constexpr, HAS_NORM: tl.constexpr):
    """The heads that `heads` [rows, 1] points to, normed where they are to be, and turned by the angles whose cosines
    and sines `cos` and `sin` point to: [rows, columns] in their type, rounded where transformers rounds."""
    partner = (columns + DIM // 2) % DIM
    mask = inside[:, None] & (columns < DIM)[None, :]
    near = tl.load(heads + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    far = tl.load(heads + partner[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        length = tl.sqrt(tl.sum(near * near, 1) / DIM + eps)[:, None]
        own = tl.load(weight + columns, mask=columns < DIM, other=0.0).to(tl.float32)[None, :]
        other = tl.load(weight + partner, mask=columns < DIM, other=0.0).to(tl.float32)[None, :]
        near = _rounded(_rounded(near / length, heads) * own, heads)
        far = _rounded(_rounded(far / length, heads) * other, heads)
    c = tl.load(cos + columns, mask=columns < DIM, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + columns, mask=columns < DIM, other=0.0).to(tl.float32)[None, :]
    s = tl.where(columns < DIM // 2, -1.0, 1.0)[None, :] * s
    return (_rounded(near * c, heads) + _rounded(far * s, heads)).to(heads.dtype.element_ty)


# nothing is compiled anew for another width of a table, or where an array happens to begin
@triton.jit(do_not_specialize=["tables", "lengths", "arrived", "slots", "table_row", "splits", "least_tiles"])
def decode_kernel(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    tables,
    lengths,
    partial,
    stats,
    arrived,
    out,
    cos,
    sin,
    slots,
    query_weight,
    key_weight,
    eps,
    scale,
    softcap,
    window,
    query_row,
    query_head,
    table_row,
    splits,
    least_tiles,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MOST: tl.constexpr,
    AT_ONCE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
    WIDTH_ON_DEVICE: tl.constexpr,
    TURNS: tl.constexpr,
    BY_POSITION: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One program a sequence, KV head and split. TURNS: `query` are rows of queries, keys and values, as a product
    leaves them; queries and the newest token's key are turned here, and that token goes to the cache as well, from the
    program that has it."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row).to(tl.int32)
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    share = tl.maximum(tl.cdiv(tl.cdiv(length - first, TILE), splits), least_tiles) * TILE
    begin = first + split * share
    if begin >= length:
        return
    end = tl.minimum(begin + share, length)
    table_width = table_row
    if WIDTH_ON_DEVICE:
        table_width = tl.load(table_row).to(tl.int32)
    members, columns = tl.arange(0, ROWS), tl.arange(0, DIM_PAD)
    heads = query + row * query_row + (head * GROUP + members)[:, None] * query_head
    cached = end
    if TURNS:
        angle = (length - 1 if BY_POSITION else row) * DIM
        q = _turned(heads, members < GROUP, columns, cos + angle, sin + angle, query_weight, eps, DIM, HAS_NORM)
        cached = tl.minimum(end, length - 1)
    else:
        mask = (members < GROUP)[:, None] & (columns < DIM)[None, :]
        q = tl.load(heads + columns[None, :], mask=mask, other=0.0)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for start in range(begin, cached, TILE):
        positions = start + tl.arange(0, TILE)
        inside = positions < cached
        rows = _cache_rows(tables + row * table_width, positions, inside, head, KV_HEADS, SIZE)
        k, key_factor = _load_rows(keys, key_scales, rows, inside, DIM, DIM_PAD, QUANTIZED, q.dtype)
        v, value_factor = _load_rows(values, value_scales, rows, inside, VALUE_DIM, VALUE_PAD, QUANTIZED, q.dtype)
        scores = _scores(q, k, scale * key_factor, softcap, HAS_SOFTCAP)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        largest, total, sums = _online(scores, v, value_factor, largest, total, sums)
    width = tl.arange(0, VALUE_PAD)
    if TURNS:  # noqa: SIM102
        if end == length:  # known on the device alone
            one = tl.zeros([1], tl.int32)
            raw = query + row * query_row + (GROUP * KV_HEADS + head + one)[:, None] * DIM
            k = _turned(raw, one == 0, columns, cos + angle, sin + angle, key_weight, eps, DIM, HAS_NORM)
            v = tl.load(raw + KV_HEADS * DIM + width[None, :], mask=(width < DIM)[None, :], other=0.0)
            newest = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
            new_largest = tl.maximum(largest, newest)
            shrink, weight = tl.exp(largest - new_largest), tl.exp(newest - new_largest)
            largest, total = new_largest, total * shrink + weight
            sums = sums * shrink[:, None] + weight.to(v.dtype).to(tl.float32)[:, None] * v.to(tl.float32)
            slot = tl.load(slots + row)
            there = ((slot // SIZE) * KV_HEADS + head) * SIZE + slot % SIZE
            tl.store(keys + there * DIM + columns[None, :], k, mask=(columns < DIM)[None, :] & (slot >= 0))
            tl.store(values + there * DIM + width[None, :], v, mask=(width < DIM)[None, :] & (slot >= 0))
    place = (row * KV_HEADS + head) * splits + split
    places = (place * GROUP + members)[:, None] * VALUE_DIM + width[None, :]
    mask = (members < GROUP)[:, None] & (width < VALUE_DIM)[None, :]
    own = out + (row * KV_HEADS + head) * GROUP * VALUE_DIM
    active = tl.cdiv(length - first, share)
    if active == 1:
        found = (sums / total[:, None]).to(out.dtype.element_ty)
        tl.store(own + members[:, None] * VALUE_DIM + width[None, :], found, mask=mask)
        return
    tl.store(partial + places, sums, mask=mask)
    tl.store(stats + place * 2 * GROUP + members, largest, mask=members < GROUP)
    tl.store(stats + (place * 2 + 1) * GROUP + members, total, mask=members < GROUP)
    tl.debug_barrier()  # the whole program has written before it is counted
    if tl.atomic_add(arrived + row * KV_HEADS + head, 1, sem="acq_rel", scope="gpu") == active - 1:
        tl.debug_barrier()
        tl.store(arrived + row * KV_HEADS + head, 0)  # for the next launch
        merged = _merged(partial, stats, place - split, active, GROUP, GROUP_PAD, VALUE_DIM, VALUE_PAD, MOST, AT_ONCE)
        every = tl.arange(0, GROUP_PAD)
        whole = (every < GROUP)[:, None] & (width < VALUE_DIM)[None, :]
        tl.store(own + every[:, None] * VALUE_DIM + width[None, :], merged.to(out.dtype.element_ty), mask=whole)


@triton.jit(do_not_specialize=["tables", "starts", "lengths", "contexts", "table_row"])
def prefill_kernel(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    tables,
    starts,
    lengths,
    contexts,
    out,
    scale,
    softcap,
    window,
    query_token,
    query_head,
    table_row,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    tile, segment, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + segment).to(tl.int32)
    per_tile: tl.constexpr = ROWS // GROUP
    if tile * per_tile >= length:
        return
    context, start = tl.load(contexts + segment).to(tl.int32), tl.load(starts + segment).to(tl.int32)
    members, columns = tl.arange(0, ROWS), tl.arange(0, DIM_PAD)
    tokens = tile * per_tile + members // GROUP
    valid = (members < per_tile * GROUP) & (tokens < length)
    heads = head * GROUP + members % GROUP
    q = tl.load(
        query + ((start + tokens) * query_token + heads * query_head)[:, None] + columns[None, :],
        mask=valid[:, None] & (columns < DIM)[None, :],
        other=0.0,
    )
    own = context + tokens
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(context + tile * per_tile - window + 1, 0)
    end = context + tl.minimum((tile + 1) * per_tile, length)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for first in range(begin, end, TILE):
        positions = first + tl.arange(0, TILE)
        inside = positions < end
        rows = _cache_rows(tables + segment * table_row, positions, inside, head, KV_HEADS, SIZE)
        k, factor = _load_rows(keys, key_scales, rows, inside, DIM, DIM_PAD, QUANTIZED, q.dtype)
        visible = inside[None, :] & (positions[None, :] <= own[:, None])
        if HAS_WINDOW:
            visible = visible & (positions[None, :] > own[:, None] - window)
        scores = tl.where(visible, _scores(q, k, scale * factor, softcap, HAS_SOFTCAP), float("-inf"))
        v, factor = _load_rows(values, value_scales, rows, inside, VALUE_DIM, VALUE_PAD, QUANTIZED, q.dtype)
        largest, total, sums = _online(scores, v, factor, largest, total, sums)
    width = tl.arange(0, VALUE_PAD)
    tl.store(
        out + ((start + tokens) * KV_HEADS * GROUP + heads)[:, None] * VALUE_DIM + width[None, :],
        (sums / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype.element_ty),
        mask=valid[:, None] & (width < VALUE_DIM)[None, :],
    )

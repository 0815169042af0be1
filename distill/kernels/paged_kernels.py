"""Triton kernels of paged attention. The query heads of one KV head stand in the rows of one tile, so that each key and
value is loaded once for all of them; softmax is online, in float32. Launched by `paged_attention.py`."""

import triton
import triton.language as tl


@triton.jit
def _cache_rows(table, positions, inside, head, KV_HEADS: tl.constexpr, SIZE: tl.constexpr):
    """Row of [N x K x S] of the tokens at these positions of a sequence."""
    blocks = tl.load(table + positions // SIZE, mask=inside, other=0).to(tl.int64)
    return (blocks * KV_HEADS + head) * SIZE + positions % SIZE


@triton.jit
def _load_rows(base, rows, row_mask, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """[rows, PAD] numbers of rows of WIDTH, zero outside."""
    columns = tl.arange(0, PAD)
    mask = row_mask[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _scores(q, k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """[rows, keys] in float32; tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if HAS_SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))
    return scores


@triton.jit
def _online(scores, v, largest, total, sums):
    """Take one tile of keys into the running softmax; rows that have seen nothing yet stay at zero."""
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp(scores - shift[:, None])
    shrink = tl.exp(largest - shift)
    sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new_largest, total * shrink + tl.sum(weights, 1), sums


@triton.jit
def _span(length, window, HAS_WINDOW: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """The first token that is seen, and how many tokens each split takes: whole tiles, so that a short sequence fills
    few splits."""
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    return first, tl.cdiv(tl.cdiv(length - first, TILE), SPLITS) * TILE


@triton.jit
def decode_kernel(
    query,
    keys,
    values,
    tables,
    lengths,
    partial,
    stats,
    out,
    scale,
    softcap,
    window,
    query_row,
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
    SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDTH_ON_DEVICE: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    first, share = _span(length, window, HAS_WINDOW, TILE, SPLITS)
    begin = first + split * share
    if begin >= length:
        return
    end = tl.minimum(begin + share, length)
    table_width = table_row
    if WIDTH_ON_DEVICE:
        table_width = tl.load(table_row)
    members, columns = tl.arange(0, ROWS), tl.arange(0, DIM_PAD)
    q = tl.load(
        query + row * query_row + (head * GROUP + members)[:, None] * query_head + columns[None, :],
        mask=(members < GROUP)[:, None] & (columns < DIM)[None, :],
        other=0.0,
    )
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for start in range(begin, end, TILE):
        positions = start + tl.arange(0, TILE)
        inside = positions < end
        rows = _cache_rows(tables + row * table_width, positions, inside, head, KV_HEADS, SIZE)
        k = _load_rows(keys, rows, inside, DIM, DIM_PAD)
        scores = _scores(q, k, scale, softcap, HAS_SOFTCAP)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        v = _load_rows(values, rows, inside, VALUE_DIM, VALUE_PAD)
        largest, total, sums = _online(scores, v, largest, total, sums)
    place = (row * KV_HEADS + head) * SPLITS + split
    width = tl.arange(0, VALUE_PAD)
    places = (place * GROUP + members)[:, None] * VALUE_DIM + width[None, :]
    mask = (members < GROUP)[:, None] & (width < VALUE_DIM)[None, :]
    if SPLITS == 1:
        tl.store(out + places, (sums / total[:, None]).to(out.dtype.element_ty), mask=mask)
    else:
        tl.store(partial + places, sums, mask=mask)
        tl.store(stats + place * 2 * GROUP + members, largest, mask=members < GROUP)
        tl.store(stats + (place * 2 + 1) * GROUP + members, total, mask=members < GROUP)


@triton.jit
def merge_kernel(
    partial,
    stats,
    lengths,
    out,
    window,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """With m_i, l_i, a_i the largest score, the sum of weights and the weighted values of split i, and m the largest
    m_i: sum exp(m_i - m) a_i / sum exp(m_i - m) l_i. Splits without tokens wrote nothing and are not read."""
    row, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row)
    first, share = _span(length, window, HAS_WINDOW, TILE, SPLITS)
    members, width = tl.arange(0, ROWS), tl.arange(0, VALUE_PAD)
    mask = (members < GROUP)[:, None] & (width < VALUE_DIM)[None, :]
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_PAD], tl.float32)
    for split in range(tl.cdiv(length - first, share)):
        place = (row * KV_HEADS + head) * SPLITS + split
        m = tl.load(stats + place * 2 * GROUP + members, mask=members < GROUP, other=0.0)
        weight = tl.load(stats + (place * 2 + 1) * GROUP + members, mask=members < GROUP, other=1.0)
        a = tl.load(partial + (place * GROUP + members)[:, None] * VALUE_DIM + width[None, :], mask=mask, other=0.0)
        new_largest = tl.maximum(largest, m)
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        before, here = tl.exp(largest - shift), tl.exp(m - shift)
        sums = sums * before[:, None] + a * here[:, None]
        total = total * before + weight * here
        largest = new_largest
    tl.store(
        out + ((row * KV_HEADS + head) * GROUP + members)[:, None] * VALUE_DIM + width[None, :],
        (sums / total[:, None]).to(out.dtype.element_ty),
        mask=mask,
    )


@triton.jit
def prefill_kernel(
    query,
    keys,
    values,
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
):
    tile, segment, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + segment)
    per_tile: tl.constexpr = ROWS // GROUP
    if tile * per_tile >= length:
        return
    context, start = tl.load(contexts + segment), tl.load(starts + segment)
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
        k = _load_rows(keys, rows, inside, DIM, DIM_PAD)
        visible = inside[None, :] & (positions[None, :] <= own[:, None])
        if HAS_WINDOW:
            visible = visible & (positions[None, :] > own[:, None] - window)
        scores = tl.where(visible, _scores(q, k, scale, softcap, HAS_SOFTCAP), float("-inf"))
        v = _load_rows(values, rows, inside, VALUE_DIM, VALUE_PAD)
        largest, total, sums = _online(scores, v, largest, total, sums)
    width = tl.arange(0, VALUE_PAD)
    tl.store(
        out + ((start + tokens) * KV_HEADS * GROUP + heads)[:, None] * VALUE_DIM + width[None, :],
        (sums / tl.where(total == 0.0, 1.0, total)[:, None]).to(out.dtype.element_ty),
        mask=valid[:, None] & (width < VALUE_DIM)[None, :],
    )

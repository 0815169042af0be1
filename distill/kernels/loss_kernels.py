"""Triton kernel of the loss head: one program a token, which reads both models' logits for their statistics and then
once more for loss and gradient. Launched by `loss.py`.

P = softmax(t / T), Q = softmax(z / T), M = share P + (1 - share) Q. KINDs: 0 forward KL, 1 reverse KL, 2 JSD, 3 skew
forward KL, 4 skew reverse KL, 5 total variation. Logarithms are to base 2 inside, for the GPU's exp and log are.

What bounds it are instructions, not memory: hence tiles [LANES, 8] of which a thread holds the 8 (loads of 16 bytes,
maxima and sums that need no other thread), one factor on the logits for scale, temperature and base, and masks in the
row's last tile alone.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

_TINY = tl.constexpr(1.1754943508222875e-38)
_LOWEST = tl.constexpr(-1.0e38)  # below every logit, and finite: the difference of two is a number
_NO_MASS = tl.constexpr(-300.0)  # 2 to it is 0 in float32
_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
_VECTOR = tl.constexpr(8)


@triton.jit
def _logits(raw, scale, softcap, unit, HAS_SOFTCAP: tl.constexpr):
    """`unit` times the logits; tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    if HAS_SOFTCAP:
        capped = 1.0 - 2.0 / (tl.exp(2.0 * (raw.to(tl.float32) * scale) / softcap) + 1.0)
        return capped * (softcap * unit)
    return raw.to(tl.float32) * (scale * unit)


@triton.jit
def _read(
    row,
    columns,
    width,
    scale,
    softcap,
    unit,
    HAS_SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    EVICT: tl.constexpr,
):
    """`unit` times the logits in float32, -inf beyond the row's width."""
    if MASKED:
        inside = columns < width
        raw = tl.load(row + columns, mask=inside, other=0.0, eviction_policy=EVICT)
        return tl.where(inside, _logits(raw, scale, softcap, unit, HAS_SOFTCAP), float("-inf"))
    return _logits(tl.load(row + columns, eviction_policy=EVICT), scale, softcap, unit, HAS_SOFTCAP)


@triton.jit
def _log2(x, FAST: tl.constexpr):
    return libdevice.fast_log2f(x) if FAST else tl.log2(x)


@triton.jit
def _terms(log_q, log_p, share, KIND: tl.constexpr, FAST: tl.constexpr):
    """Two sums that give the divergence, and its derivative by Q up to a factor; for KIND 1 to 5."""
    q, p = tl.exp2(log_q), tl.exp2(log_p)
    if KIND == 1:
        by_q = log_q - log_p
        return q * 0.0, q, by_q
    if KIND == 5:
        by_q = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
        return by_q * (q - p), q, by_q
    log_m = _log2(tl.maximum(share * p + (1.0 - share) * q, _TINY), FAST)
    if KIND == 2:
        return p * (log_p - log_m), q, log_q - log_m
    if KIND == 3:
        return p * (log_p - log_m), q, tl.exp2(log_p - log_m)
    ratio = log_q - log_m
    return q * ratio, q, _LN2 * ratio - (1.0 - share) * tl.exp2(ratio)


@triton.jit
def _grow(top, sum, values, SIZE: tl.constexpr):
    """Running maximum and sum of 2^(value - maximum) of each lane, and what the old sum and the new ones weigh."""
    new = tl.maximum(top, tl.max(values, 1))
    shrink, weights = tl.exp2(top - new), tl.exp2(values - new[:, None])
    return new, sum * shrink + tl.sum(weights, 1), shrink, weights


@triton.jit
def _statistics(
    state,
    z_row,
    t_row,
    begin,
    end,
    width,
    common,
    student,
    teacher,
    inverse_temperature,
    KIND: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    SAME: tl.constexpr,
    MASKED: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    KEEP: tl.constexpr,
    LEAVE: tl.constexpr,
    STUDENT_SOFTCAP: tl.constexpr,
    TEACHER_SOFTCAP: tl.constexpr,
):
    """The state of every lane after the columns from `begin` to `end`."""
    z_top, z_sum, q_top, q_sum, p_top, p_sum, gaps, tops = state
    z_scale, z_softcap = student
    t_scale, t_softcap = teacher
    lanes = tl.arange(0, LANES)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    for start in tl.range(begin, end, LANES * _VECTOR, num_stages=STAGES):
        columns = start + lanes
        z = _read(z_row, columns, width, z_scale, z_softcap, _LOG2E, STUDENT_SOFTCAP, MASKED, KEEP)
        if not SAME:
            z_top, z_sum, _, _ = _grow(z_top, z_sum, z, LANES)
        if HAS_TEACHER:
            unit = inverse_temperature * _LOG2E
            t = _read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE)
            y = z if SAME else z * inverse_temperature
            if MASKED:
                y = tl.where(columns < common, y, float("-inf"))
            q_top, q_sum, q_shrink, q_weights = _grow(q_top, q_sum, y, LANES)
            p_top, p_sum, p_shrink, p_weights = _grow(p_top, p_sum, t, LANES)
            if KIND <= 1:
                gap = t - y if KIND == 0 else y - t
                if MASKED:
                    gap = tl.where(columns < common, gap, 0.0)
                if KIND == 0:
                    gaps = gaps * p_shrink + tl.sum(p_weights * gap, 1)
                else:
                    gaps = gaps * q_shrink + tl.sum(q_weights * gap, 1)
            tops = tl.maximum(tops, tl.max(y + t, 1))
    return z_top, z_sum, q_top, q_sum, p_top, p_sum, gaps, tops


@triton.jit
def _compare(
    state,
    z_row,
    t_row,
    begin,
    end,
    common,
    student,
    teacher,
    inverse_temperature,
    totals,
    share,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    KEEP: tl.constexpr,
    LEAVE: tl.constexpr,
    STUDENT_SOFTCAP: tl.constexpr,
    TEACHER_SOFTCAP: tl.constexpr,
    FAST: tl.constexpr,
):
    """Sums over the columns from `begin` to `end` of `_terms`' first values, and of Q times the third."""
    sums, means = state
    q_total, p_total = totals
    z_scale, z_softcap = student
    t_scale, t_softcap = teacher
    unit = inverse_temperature * _LOG2E
    lanes = tl.arange(0, LANES)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    for start in tl.range(begin, end, LANES * _VECTOR, num_stages=STAGES):
        columns = start + lanes
        log_q = _read(z_row, columns, common, z_scale, z_softcap, unit, STUDENT_SOFTCAP, MASKED, KEEP) - q_total
        log_p = _read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE) - p_total
        if MASKED:
            log_q, log_p = tl.maximum(log_q, _NO_MASS), tl.maximum(log_p, _NO_MASS)
        term, q, by_q = _terms(log_q, log_p, share, KIND, FAST)
        sums += tl.sum(term, 1)
        means += tl.sum(q * by_q, 1)
    return sums, means


@triton.jit
def _gradient(
    z_row,
    t_row,
    begin,
    end,
    width,
    common,
    student,
    teacher,
    inverse_temperature,
    totals,
    z_total,
    mean,
    share,
    slope_weight,
    ce_weight,
    label,
    KIND: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_CE: tl.constexpr,
    MASKED: tl.constexpr,
    LANES: tl.constexpr,
    STAGES: tl.constexpr,
    LEAVE: tl.constexpr,
    STUDENT_SOFTCAP: tl.constexpr,
    TEACHER_SOFTCAP: tl.constexpr,
    FAST: tl.constexpr,
):
    """The derivative in place over the student's columns from `begin` to `end`."""
    q_total, p_total = totals
    z_scale, z_softcap = student
    t_scale, t_softcap = teacher
    lanes = tl.arange(0, LANES)[:, None] * _VECTOR + tl.arange(0, _VECTOR)[None, :]
    for start in tl.range(begin, end, LANES * _VECTOR, num_stages=STAGES):
        columns = start + lanes
        z = _read(z_row, columns, width, z_scale, z_softcap, _LOG2E, STUDENT_SOFTCAP, MASKED, LEAVE)
        slope = tl.zeros([LANES, _VECTOR], tl.float32)
        if HAS_TEACHER:
            unit = inverse_temperature * _LOG2E
            log_p = _read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE) - p_total
            log_q = z * inverse_temperature - q_total
            if MASKED:
                inside = columns < common
                log_q = tl.where(inside, log_q, _NO_MASS)
                log_p = tl.where(inside, log_p, _NO_MASS)
            if KIND == 0:
                slope = (tl.exp2(log_q) - tl.exp2(log_p)) * slope_weight
            else:
                _, q, by_q = _terms(log_q, log_p, share, KIND, FAST)
                slope = q * (by_q - mean) * slope_weight
            if MASKED:
                slope = tl.where(inside, slope, 0.0)
        if HAS_CE:
            slope += ce_weight * (tl.exp2(z - z_total) - tl.where(columns == label, 1.0, 0.0))
        if STUDENT_SOFTCAP:
            share_of_cap = z * (_LN2 / z_softcap)
            slope *= 1.0 - share_of_cap * share_of_cap
        slope = (slope * z_scale).to(z_row.dtype.element_ty)
        if MASKED:
            tl.store(z_row + columns, slope, mask=columns < width)
        else:
            tl.store(z_row + columns, slope)


@triton.jit
def _whole(tops, sums):
    """(maximum, log2 of the sum of 2^value, sum) over the lanes; sums are relative to the maximum."""
    top = tl.max(tops, 0)
    total = tl.sum(sums * tl.exp2(tops - top), 0)
    return top, top + tl.log2(total), total


@triton.jit
def divergence_kernel(
    student,
    teacher,
    labels,
    out,
    student_stride,
    teacher_stride,
    width,
    common,
    tokens,
    student_scale,
    teacher_scale,
    student_softcap,
    teacher_softcap,
    inverse_temperature,
    share,
    slope_weight,
    ce_weight,
    KIND: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_CE: tl.constexpr,
    SAME: tl.constexpr,
    STUDENT_SOFTCAP: tl.constexpr,
    TEACHER_SOFTCAP: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    KEEP: tl.constexpr,
    LEAVE: tl.constexpr,
    FAST: tl.constexpr,
):
    """Gradient in place over `student`; (divergence, cross entropy, agreement, accuracy) into `out` [4, tokens].

    `width` is the student's, `common` the rows that both have. SAME: temperature 1 and no other rows, so that one
    softmax of the student serves both losses. Both agree on the likeliest token iff the largest sum of their logits is
    that of the largest.
    """
    LANES: tl.constexpr = TILE // _VECTOR
    token = tl.program_id(0).to(tl.int64)
    z_row, t_row = student + token * student_stride, teacher + token * teacher_stride
    label = tl.load(labels + token)
    at_label = _logits(tl.load(z_row + label), student_scale, student_softcap, _LOG2E, STUDENT_SOFTCAP)
    ours, theirs = (student_scale, student_softcap), (teacher_scale, teacher_softcap)
    full = (common // TILE) * TILE  # beyond it columns are masked

    lowest, zeros = tl.full([LANES], _LOWEST, tl.float32), tl.zeros([LANES], tl.float32)
    state = (lowest, zeros, lowest, zeros, lowest, zeros, zeros, lowest + lowest)
    for MASKED in tl.static_range(2):
        begin, end = (full, width) if MASKED else (0, full)
        state = _statistics(
            state,
            z_row,
            t_row,
            begin,
            end,
            width,
            common,
            ours,
            theirs,
            inverse_temperature,
            KIND,
            HAS_TEACHER,
            SAME,
            MASKED,
            LANES,
            STAGES,
            KEEP,
            LEAVE,
            STUDENT_SOFTCAP,
            TEACHER_SOFTCAP,
        )
    z_tops, z_sums, q_tops, q_sums, p_tops, p_sums, gaps, tops = state
    divergence, mean, agreement, factor, q_total, p_total = 0.0, 0.0, 0.0, 1.0, 0.0, 0.0
    z_top, z_total = 0.0, 0.0
    if HAS_TEACHER:
        q_top, q_total, q_all = _whole(q_tops, q_sums)
        p_top, p_total, p_all = _whole(p_tops, p_sums)
        agreement = tl.where(tl.max(tops, 0) == q_top + p_top, 1.0, 0.0)
        if KIND == 0:
            divergence = _LN2 * (tl.sum(gaps * tl.exp2(p_tops - p_top), 0) / p_all - p_total + q_total)
        elif KIND == 1:
            mean = tl.sum(gaps * tl.exp2(q_tops - q_top), 0) / q_all - q_total + p_total
            divergence, factor = _LN2 * mean, _LN2
        else:
            sums = (zeros, zeros)
            for MASKED in tl.static_range(2):
                begin, end = (full, common) if MASKED else (0, full)
                sums = _compare(
                    sums,
                    z_row,
                    t_row,
                    begin,
                    end,
                    common,
                    ours,
                    theirs,
                    inverse_temperature,
                    (q_total, p_total),
                    share,
                    KIND,
                    MASKED,
                    LANES,
                    STAGES,
                    KEEP,
                    LEAVE,
                    STUDENT_SOFTCAP,
                    TEACHER_SOFTCAP,
                    FAST,
                )
            divergence, mean = tl.sum(sums[0], 0), tl.sum(sums[1], 0)
            if KIND == 2:
                divergence, factor = _LN2 * (share * divergence + (1.0 - share) * mean), (1.0 - share) * _LN2
            elif KIND == 5:
                divergence, factor = 0.5 * divergence, 0.5
            else:
                divergence = _LN2 * divergence
                factor = share - 1.0 if KIND == 3 else 1.0
        z_top, z_total = q_top, q_total
    if not SAME:
        z_top, z_total, _ = _whole(z_tops, z_sums)
    tl.store(out + token, divergence)
    tl.store(out + tokens + token, (z_total - at_label) * _LN2)
    tl.store(out + 2 * tokens + token, agreement)
    tl.store(out + 3 * tokens + token, tl.where(at_label == z_top, 1.0, 0.0))

    for MASKED in tl.static_range(2):
        begin, end = (full, width) if MASKED else (0, full)
        _gradient(
            z_row,
            t_row,
            begin,
            end,
            width,
            common,
            ours,
            theirs,
            inverse_temperature,
            (q_total, p_total),
            z_total,
            mean,
            share,
            slope_weight * factor,
            ce_weight,
            label,
            KIND,
            HAS_TEACHER,
            HAS_CE,
            MASKED,
            LANES,
            STAGES,
            LEAVE,
            STUDENT_SOFTCAP,
            TEACHER_SOFTCAP,
            FAST,
        )

"""Triton kernel of the loss head: one program a token, which reads both models' logits for their statistics and then
once more for loss and gradient. Launched by `loss.py`; KINDs as in `loss_tiles.py`.

What bounds it are instructions, not memory: hence tiles [LANES, 8] of which a thread holds the 8 (loads of 16 bytes,
maxima and sums that need no other thread), one factor on the logits for scale, temperature and base, and masks in the
row's last tile alone.
"""

import triton
import triton.language as tl

from distill.kernels.loss_tiles import LN2, LOG2E, LOWEST, NO_MASS, VECTOR, grow, logits, read, terms, whole


@triton.jit
def _statistics(
    state,
    row,
    full,
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
    """The state of every lane after the columns before `full`, or if MASKED from there on."""
    z_top, z_sum, q_top, q_sum, p_top, p_sum, gaps, tops = state
    z_row, t_row, width, common, z_scale, z_softcap, t_scale, t_softcap, inverse_temperature = row
    lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    for start in tl.range(full if MASKED else 0, width if MASKED else full, LANES * VECTOR, num_stages=STAGES):
        columns = start + lanes
        z = read(z_row, columns, width, z_scale, z_softcap, LOG2E, STUDENT_SOFTCAP, MASKED, KEEP)
        if not SAME:
            z_top, z_sum, _, _ = grow(z_top, z_sum, z, LANES)
        if HAS_TEACHER:
            unit = inverse_temperature * LOG2E
            t = read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE)
            y = z if SAME else z * inverse_temperature
            if MASKED:
                y = tl.where(columns < common, y, float("-inf"))
            q_top, q_sum, q_shrink, q_weights = grow(q_top, q_sum, y, LANES)
            p_top, p_sum, p_shrink, p_weights = grow(p_top, p_sum, t, LANES)
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
    row,
    full,
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
    """Over the columns before `full`, or from there on if MASKED: sums of `terms`' first value, and of Q by_q."""
    sums, means = state
    q_total, p_total = totals
    z_row, t_row, width, common, z_scale, z_softcap, t_scale, t_softcap, inverse_temperature = row
    unit = inverse_temperature * LOG2E
    lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    for start in tl.range(full if MASKED else 0, width if MASKED else full, LANES * VECTOR, num_stages=STAGES):
        columns = start + lanes
        log_q = read(z_row, columns, common, z_scale, z_softcap, unit, STUDENT_SOFTCAP, MASKED, KEEP) - q_total
        log_p = read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE) - p_total
        if MASKED:
            log_q, log_p = tl.maximum(log_q, NO_MASS), tl.maximum(log_p, NO_MASS)
        term, q, by_q = terms(log_q, log_p, share, KIND, FAST)
        sums += tl.sum(term, 1)
        means += tl.sum(q * by_q, 1)
    return sums, means


@triton.jit
def _gradient(
    row,
    full,
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
    """The derivative in place over the student's columns before `full`, or if MASKED from there on."""
    q_total, p_total = totals
    z_row, t_row, width, common, z_scale, z_softcap, t_scale, t_softcap, inverse_temperature = row
    lanes = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    for start in tl.range(full if MASKED else 0, width if MASKED else full, LANES * VECTOR, num_stages=STAGES):
        columns = start + lanes
        z = read(z_row, columns, width, z_scale, z_softcap, LOG2E, STUDENT_SOFTCAP, MASKED, LEAVE)
        slope = tl.zeros([LANES, VECTOR], tl.float32)
        if HAS_TEACHER:
            unit = inverse_temperature * LOG2E
            log_p = read(t_row, columns, common, t_scale, t_softcap, unit, TEACHER_SOFTCAP, MASKED, LEAVE) - p_total
            log_q = z * inverse_temperature - q_total
            if MASKED:
                inside = columns < common
                log_q = tl.where(inside, log_q, NO_MASS)
                log_p = tl.where(inside, log_p, NO_MASS)
            if KIND == 0:
                slope = (tl.exp2(log_q) - tl.exp2(log_p)) * slope_weight
            else:
                _, q, by_q = terms(log_q, log_p, share, KIND, FAST)
                slope = q * (by_q - mean) * slope_weight
            if MASKED:
                slope = tl.where(inside, slope, 0.0)
        if HAS_CE:
            slope += ce_weight * (tl.exp2(z - z_total) - tl.where(columns == label, 1.0, 0.0))
        if STUDENT_SOFTCAP:
            share_of_cap = z * (LN2 / z_softcap)
            slope *= 1.0 - share_of_cap * share_of_cap
        slope = (slope * z_scale).to(z_row.dtype.element_ty)
        if MASKED:
            tl.store(z_row + columns, slope, mask=columns < width)
        else:
            tl.store(z_row + columns, slope)


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
    LANES: tl.constexpr = TILE // VECTOR
    token = tl.program_id(0).to(tl.int64)
    z_row, t_row = student + token * student_stride, teacher + token * teacher_stride
    label = tl.load(labels + token)
    at_label = logits(tl.load(z_row + label), student_scale, student_softcap, LOG2E, STUDENT_SOFTCAP)
    maps = (student_scale, student_softcap, teacher_scale, teacher_softcap, inverse_temperature)
    row = (z_row, t_row, width, common) + maps
    full = (common // TILE) * TILE  # beyond it columns are masked

    lowest, zeros = tl.full([LANES], LOWEST, tl.float32), tl.zeros([LANES], tl.float32)
    state = (lowest, zeros, lowest, zeros, lowest, zeros, zeros, lowest + lowest)
    for MASKED in tl.static_range(2):
        state = _statistics(
            state,
            row,
            full,
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
        q_top, q_total, q_all = whole(q_tops, q_sums)
        p_top, p_total, p_all = whole(p_tops, p_sums)
        agreement = tl.where(tl.max(tops, 0) == q_top + p_top, 1.0, 0.0)
        if KIND == 0:
            divergence = LN2 * (tl.sum(gaps * tl.exp2(p_tops - p_top), 0) / p_all - p_total + q_total)
        elif KIND == 1:
            mean = tl.sum(gaps * tl.exp2(q_tops - q_top), 0) / q_all - q_total + p_total
            divergence, factor = LN2 * mean, LN2
        else:
            sums = (zeros, zeros)
            for MASKED in tl.static_range(2):
                sums = _compare(
                    sums,
                    row,
                    full,
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
                divergence, factor = LN2 * (share * divergence + (1.0 - share) * mean), (1.0 - share) * LN2
            elif KIND == 5:
                divergence, factor = 0.5 * divergence, 0.5
            else:
                divergence = LN2 * divergence
                factor = share - 1.0 if KIND == 3 else 1.0
        z_top, z_total = q_top, q_total
    if not SAME:
        z_top, z_total, _ = whole(z_tops, z_sums)
    tl.store(out + token, divergence)
    tl.store(out + tokens + token, (z_total - at_label) * LN2)
    tl.store(out + 2 * tokens + token, agreement)
    tl.store(out + 3 * tokens + token, tl.where(at_label == z_top, 1.0, 0.0))

    for MASKED in tl.static_range(2):
        _gradient(
            row,
            full,
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

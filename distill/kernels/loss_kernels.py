"""Triton kernel of the loss head: one program a token, which reads both models' logits for their statistics and then
once more for loss and gradient. Launched by `loss.py`.

P = softmax(t / T), Q = softmax(z / T), M = share P + (1 - share) Q. KINDs: 0 forward KL, 1 reverse KL, 2 JSD, 3 skew
forward KL, 4 skew reverse KL, 5 total variation.
"""

import triton
import triton.language as tl

_TINY = tl.constexpr(1.1754943508222875e-38)
_NO_MASS = tl.constexpr(-200.0)  # exp of it is 0 in float32


@triton.jit
def _logits(raw, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    scaled = raw.to(tl.float32) * scale
    if HAS_SOFTCAP:
        scaled = softcap * (1.0 - 2.0 / (tl.exp(2.0 * scaled / softcap) + 1.0))
    return scaled


@triton.jit
def _read(row, columns, width, scale, softcap, HAS_SOFTCAP: tl.constexpr, EVICT: tl.constexpr):
    """Logits in float32, -inf beyond the row's width."""
    inside = columns < width
    raw = tl.load(row + columns, mask=inside, other=0.0, eviction_policy=EVICT)
    return tl.where(inside, _logits(raw, scale, softcap, HAS_SOFTCAP), float("-inf"))


@triton.jit
def _terms(log_q, log_p, share, KIND: tl.constexpr):
    """What a token adds to the divergence, and the divergence's derivative by Q there; for KIND 1 to 5."""
    q, p = tl.exp(log_q), tl.exp(log_p)
    m = tl.maximum(share * p + (1.0 - share) * q, _TINY)
    if KIND == 1:
        by_q = log_q - log_p
        term = q * by_q
    elif KIND == 2:
        log_m = tl.log(m)
        by_q = (1.0 - share) * (log_q - log_m)
        term = share * p * (log_p - log_m) + q * by_q
    elif KIND == 3:
        by_q = (share - 1.0) * p / m
        term = p * (log_p - tl.log(m))
    elif KIND == 4:
        ratio = log_q - tl.log(m)
        by_q = ratio - (1.0 - share) * q / m
        term = q * ratio
    else:
        by_q = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
        term = by_q * (q - p)
    return term, by_q


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
):
    """Gradient in place over `student`; (divergence, cross entropy, agreement, accuracy) into `out` [4, tokens].

    `width` is the student's, `common` the rows that both have. SAME: temperature 1 and no other rows, so that one
    softmax of the student serves both losses. Sums over the row are kept by lane; maxima are reduced tile by tile.
    """
    token = tl.program_id(0).to(tl.int64)
    z_row, t_row = student + token * student_stride, teacher + token * teacher_stride
    lanes = tl.arange(0, TILE)
    label = tl.load(labels + token)

    found = tl.zeros([TILE], tl.float32)
    z_top, z_sum = float("-inf"), tl.zeros([TILE], tl.float32)  # at temperature 1, over all of the student's rows
    q_top, q_sum, q_gap = float("-inf"), tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    p_top, p_sum, p_gap = float("-inf"), tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for start in tl.range(0, width, TILE, num_stages=STAGES):
        columns = start + lanes
        z = _read(z_row, columns, width, student_scale, student_softcap, STUDENT_SOFTCAP, KEEP)
        found = tl.where(columns == label, z, found)
        if not SAME:
            top = tl.maximum(z_top, tl.max(z, 0))
            z_sum = z_sum * tl.exp(z_top - top) + tl.exp(z - top)
            z_top = top
        if HAS_TEACHER:
            inside = columns < common
            t = (
                _read(t_row, columns, common, teacher_scale, teacher_softcap, TEACHER_SOFTCAP, LEAVE)
                * inverse_temperature
            )
            y = tl.where(inside, z * inverse_temperature, float("-inf"))
            gap = tl.where(inside, y - t, 0.0)
            top = tl.maximum(q_top, tl.max(y, 0))
            shrink, weight = tl.exp(q_top - top), tl.exp(y - top)
            q_sum, q_gap, q_top = q_sum * shrink + weight, q_gap * shrink + weight * gap, top
            top = tl.maximum(p_top, tl.max(t, 0))
            shrink, weight = tl.exp(p_top - top), tl.exp(t - top)
            p_sum, p_gap, p_top = p_sum * shrink + weight, p_gap * shrink - weight * gap, top
    at_label = tl.sum(found, 0)
    divergence, mean, agreement, q_total, p_total = 0.0, 0.0, 0.0, 0.0, 0.0
    if HAS_TEACHER:
        q_all, p_all = tl.sum(q_sum, 0), tl.sum(p_sum, 0)
        q_total, p_total = q_top + tl.log(q_all), p_top + tl.log(p_all)
        if KIND == 0:
            divergence = tl.sum(p_gap, 0) / p_all - p_total + q_total
        elif KIND == 1:
            divergence = tl.sum(q_gap, 0) / q_all - q_total + p_total
            mean = divergence
        else:
            sums, means = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
            for start in tl.range(0, common, TILE, num_stages=STAGES):
                columns = start + lanes
                inside = columns < common
                z = _read(z_row, columns, common, student_scale, student_softcap, STUDENT_SOFTCAP, KEEP)
                t = _read(t_row, columns, common, teacher_scale, teacher_softcap, TEACHER_SOFTCAP, LEAVE)
                log_q = tl.where(inside, z * inverse_temperature - q_total, _NO_MASS)
                log_p = tl.where(inside, t * inverse_temperature - p_total, _NO_MASS)
                term, by_q = _terms(log_q, log_p, share, KIND)
                sums += tl.where(inside, term, 0.0)
                means += tl.where(inside, tl.exp(log_q) * by_q, 0.0)
            divergence, mean = tl.sum(sums, 0), tl.sum(means, 0)
    if SAME:
        z_top, z_total = q_top, q_total
    else:
        z_total = z_top + tl.log(tl.sum(z_sum, 0))

    both = tl.zeros([TILE], tl.float32)
    for start in tl.range(0, width, TILE, num_stages=STAGES):
        columns = start + lanes
        z = _read(z_row, columns, width, student_scale, student_softcap, STUDENT_SOFTCAP, LEAVE)
        slope = tl.zeros([TILE], tl.float32)
        if HAS_TEACHER:
            inside = columns < common
            t = (
                _read(t_row, columns, common, teacher_scale, teacher_softcap, TEACHER_SOFTCAP, LEAVE)
                * inverse_temperature
            )
            y = z * inverse_temperature
            both = tl.where(inside & (y == q_top) & (t == p_top), 1.0, both)
            log_q, log_p = tl.where(inside, y - q_total, _NO_MASS), tl.where(inside, t - p_total, _NO_MASS)
            if KIND == 0:
                slope = tl.exp(log_q) - tl.exp(log_p)
            else:
                _, by_q = _terms(log_q, log_p, share, KIND)
                slope = tl.exp(log_q) * (by_q - mean)
            slope = tl.where(inside, slope, 0.0) * slope_weight
        if HAS_CE:
            slope += ce_weight * (tl.exp(z - z_total) - tl.where(columns == label, 1.0, 0.0))
        if STUDENT_SOFTCAP:
            slope *= 1.0 - (z / student_softcap) * (z / student_softcap)
        slope *= student_scale
        tl.store(z_row + columns, slope.to(student.dtype.element_ty), mask=columns < width)
    if HAS_TEACHER:
        agreement = tl.max(both, 0)
    tl.store(out + token, divergence)
    tl.store(out + tokens + token, z_total - at_label)
    tl.store(out + 2 * tokens + token, agreement)
    tl.store(out + 3 * tokens + token, tl.where(at_label == z_top, 1.0, 0.0))

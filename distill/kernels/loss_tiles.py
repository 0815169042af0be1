"""What the loss head's kernel does with a tile of logits: reading, running statistics, the divergences' terms.

P = softmax(t / T), Q = softmax(z / T), M = share P + (1 - share) Q. KINDs: 0 forward KL, 1 reverse KL, 2 JSD, 3 skew
forward KL, 4 skew reverse KL, 5 total variation. Logarithms are to base 2, for the GPU's exp and log are.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

TINY = tl.constexpr(1.1754943508222875e-38)
LOWEST = tl.constexpr(-1.0e38)  # below every logit, and finite: the difference of two is a number
NO_MASS = tl.constexpr(-300.0)  # 2 to it is 0 in float32
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
VECTOR = tl.constexpr(8)


@triton.jit
def logits(raw, scale, softcap, unit, HAS_SOFTCAP: tl.constexpr):
    """`unit` times the logits; tanh(x) = 1 - 2 / (exp(2 x) + 1)."""
    if HAS_SOFTCAP:
        capped = 1.0 - 2.0 / (tl.exp(2.0 * (raw.to(tl.float32) * scale) / softcap) + 1.0)
        return capped * (softcap * unit)
    return raw.to(tl.float32) * (scale * unit)


@triton.jit
def read(
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
        return tl.where(inside, logits(raw, scale, softcap, unit, HAS_SOFTCAP), float("-inf"))
    return logits(tl.load(row + columns, eviction_policy=EVICT), scale, softcap, unit, HAS_SOFTCAP)


@triton.jit
def log2(x, FAST: tl.constexpr):
    return libdevice.fast_log2f(x) if FAST else tl.log2(x)


@triton.jit
def terms(log_q, log_p, share, KIND: tl.constexpr, FAST: tl.constexpr):
    """Two sums that give the divergence, and its derivative by Q up to a factor; for KIND 1 to 5."""
    q, p = tl.exp2(log_q), tl.exp2(log_p)
    if KIND == 1:
        by_q = log_q - log_p
        return q * 0.0, q, by_q
    if KIND == 5:
        by_q = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
        return by_q * (q - p), q, by_q
    log_m = log2(tl.maximum(share * p + (1.0 - share) * q, TINY), FAST)
    if KIND == 2:
        return p * (log_p - log_m), q, log_q - log_m
    if KIND == 3:
        return p * (log_p - log_m), q, tl.exp2(log_p - log_m)
    ratio = log_q - log_m
    return q * ratio, q, LN2 * ratio - (1.0 - share) * tl.exp2(ratio)


@triton.jit
def grow(top, sum, values, SIZE: tl.constexpr):
    """Running maximum and sum of 2^(value - maximum) of each lane, and what the old sum and the new ones weigh."""
    new = tl.maximum(top, tl.max(values, 1))
    shrink, weights = tl.exp2(top - new), tl.exp2(values - new[:, None])
    return new, sum * shrink + tl.sum(weights, 1), shrink, weights


@triton.jit
def whole(tops, sums):
    """(maximum, log2 of the sum of 2^value, sum) over the lanes; sums are relative to the maximum."""
    top = tl.max(tops, 0)
    total = tl.sum(sums * tl.exp2(tops - top), 0)
    return top, top + tl.log2(total), total

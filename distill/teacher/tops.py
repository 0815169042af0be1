"""Distributions as servers tell them, a few likeliest tokens a position, as entries of the stored form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from distill.teacher.forms import Sparse

_LEAST_TAIL = -40.0
Tops = Mapping[int, float]  # log probabilities by token id; negative ids are tokens that could not be told apart


def sparse_of_tops(
    tops: Sequence[Tops | None], *, k: int, min_probability: float, rows: int, extra: bool = False
) -> Sparse:
    """The k likeliest of each position, among the first `rows` ids; None where nothing is known of it.

    Mass on ids beyond `rows` (a padded vocabulary's) is taken out, as far as it was told. What is not told is the tail,
    and whatever is less likely than a token without an id: nothing in the tail may exceed what is kept.
    `extra`: a position may tell one token more than the k likeliest (the prompt's own), which is left out.
    """
    counts, ids, values, tails = [], [], [], []
    for found in tops:
        told = sorted((found or {}).items(), key=lambda item: -item[1])
        told = told[:k] if extra else told
        beyond = sum(math.exp(value) for token, value in told if token >= rows)
        common = math.log1p(-min(beyond, 1.0 - 1e-9))
        named = itertools.takewhile(lambda pair: pair[0] >= 0, told)
        kept = [(token, value - common) for token, value in named if token < rows][:k]
        kept = [pair for place, pair in enumerate(kept) if place == 0 or math.exp(pair[1]) >= min_probability]
        mass = sum(math.exp(value) for _, value in kept)
        counts.append(len(kept))
        ids += [token for token, _ in kept]
        values += [value for _, value in kept]
        tails.append(max(_LEAST_TAIL, math.log1p(-mass)) if mass < 1.0 else _LEAST_TAIL)
    return Sparse(
        np.array(counts, np.int64),
        np.array(ids, np.int64),
        np.array(values, np.float32),
        log_tail_T=np.array(tails, np.float32),
    )

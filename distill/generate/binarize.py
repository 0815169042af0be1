"""From the scores of several answers to a chosen and a rejected one, by three rules.

`argilla` and `h4` are those of the cards of argilla/ultrafeedback-binarized-preferences and
HuggingFaceH4/ultrafeedback_binarized (which says `overall_score` in one revision and the mean in another).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from distill.recipe.generate import BinarizeRule


def pick(
    rule: BinarizeRule, means: Sequence[Fraction], overall: Sequence[int], rng: random.Random
) -> tuple[int, int] | None:
    """(chosen, rejected) as indices, or None for a tie. `means` are over the aspects, `overall` is of h4 alone.

    argilla: the highest mean against a random one of those strictly lower. max_min: against the lowest. h4: the highest
    overall score against any other one at random, also one as high. The first of equal bests is taken.
    """
    scores: Sequence[Fraction | int] = overall if rule == "h4" else means
    best = max(range(len(scores)), key=scores.__getitem__)
    others = [index for index in range(len(scores)) if index != best]
    if rule == "h4":
        return best, rng.choice(others)
    lower = [index for index in others if scores[index] < scores[best]]
    if not lower:
        return None
    return best, rng.choice(lower) if rule == "argilla" else min(lower, key=scores.__getitem__)

"""UltraFeedback's principles (2310.01377): what an answer's system prompt asks for, so that answers differ in kind.

The four principles and their shares are those of the published code for prompts of UltraChat and ShareGPT
(github.com/OpenBMB/UltraFeedback, src/comparison_data_generation/main.py); the wordings are ours.
"""

from __future__ import annotations

import random

from distill.recipe.generate import Principles

WORDINGS: dict[str, tuple[str, ...]] = {
    "helpfulness": (
        "Give information that is correct, relevant and up to date, in a way that is interesting and that teaches.",
        "Be a source that people can rely on: check what you say, and explain enough that they can act on it.",
        "Answer so that whoever asks learns something and wants to know more. Keep it accurate and friendly.",
        "Make every answer complete and engaging, with the detail that the question deserves.",
    ),
    "truthfulness": (
        "Answer truthfully. Stay with what is known and with what you were given, and invent nothing.",
        "Only say what can be verified. Leave out whatever you would have to guess.",
        "Facts come first: no speculation, no made-up names, numbers or events.",
        "Be faithful to the facts and to the text of the question, even where that makes the answer short.",
    ),
    "honesty": (
        'Be open about how sure you are: confident where you know, and "I think" or "probably" where you do not.',
        "Where you do not know the answer, say so. That is better than an answer that may be wrong.",
        "Balance confidence with modesty, and name the parts of an answer of which you are unsure.",
        "Never hide a doubt. Say what you know, what you suppose and what you do not know.",
    ),
    "verbalized_calibration": (
        "Say at the end how certain you are that your answer is correct, as a percentage. For instance, a confidence "
        "of 80% means that you expect to be right four times out of five. The last line of the answer then is:\n"
        "Confidence: 80%",
    ),
}


def draw_principle(shares: Principles, rng: random.Random) -> tuple[str, str]:
    """A principle by its share, and one of its wordings."""
    weights = {name: float(share) for name, share in shares if share > 0}
    principle = rng.choices(list(weights), list(weights.values()))[0]
    return principle, rng.choice(WORDINGS[principle])


def note_for_critic(principle: str, wording: str) -> str:
    """What a critic is told of the principle; without the example of calibration, as published."""
    return wording.split(" For instance, ")[0] if principle == "verbalized_calibration" else wording

"""Plain text of the task world: worked examples, small code files, notes, without the instruction format.

For pretraining a student base that knows the computations and not the requests. Only values that are not held out.
"""

import random
from collections.abc import Iterator

from distill.tasks.compare import JUDGE_FAMILY, draw_pair
from distill.tasks.families import INSTRUCTION_FAMILIES, SOLVED_FAMILIES
from distill.tasks.phrasing import pick
from distill.tasks.split import draw_in_split

CODE_FAMILIES = SOLVED_FAMILIES[len(INSTRUCTION_FAMILIES) :]
INSTRUCTION_SHARE = 0.5
CODE_SHARE = 0.35  # the rest are notes on two answers
HEADINGS = ("", "", "", "Example. ", "Note: ", "Worked example: ", "From the notebook: ")


def _worked(rng: random.Random) -> str:
    """One to three worked examples, often of one family."""
    family = pick(rng, INSTRUCTION_FAMILIES)
    parts = []
    for _ in range(1 + int(rng.random() * 3)):
        parts.append(pick(rng, HEADINGS) + family.plain(rng, draw_in_split(family, rng, held_out=False)))
        if rng.random() < 0.3:
            family = pick(rng, INSTRUCTION_FAMILIES)
    return "\n\n".join(parts)


def document(rng: random.Random) -> str:
    """A small document."""
    choice = rng.random()
    if choice < INSTRUCTION_SHARE:
        return _worked(rng)
    if choice < INSTRUCTION_SHARE + CODE_SHARE:
        family = pick(rng, CODE_FAMILIES)
        return family.plain(rng, draw_in_split(family, rng, held_out=False))
    return JUDGE_FAMILY.plain(rng, draw_pair(rng, "train"))


def document_stream(seed: int, shard: int = 0, num_shards: int = 1) -> Iterator[str]:
    """Endless documents; shards of one seed are independent streams."""
    rng = random.Random(f"plain {seed} {shard} {num_shards}")
    while True:
        yield document(rng)

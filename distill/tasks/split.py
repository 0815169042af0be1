"""Which values are held out: a hash of the family and the canonical text of the values decides."""

import random
from hashlib import sha256

from distill.tasks.types import Draw, Family

HELD_OUT_SHARE = 8  # one in so many


def is_held_out(scope: str, key: str) -> bool:
    """True for one in eight keys; `scope` is the family's name."""
    return int(sha256((scope + key).encode()).hexdigest()[:8], 16) % HELD_OUT_SHARE == 0


def draw_in_split(family: Family, rng: random.Random, *, held_out: bool) -> Draw:
    """Draw until the values are on the wanted side."""
    while True:
        draw = family.draw(rng)
        if is_held_out(family.name, draw.held_out_key) == held_out:
            return draw

"""The operations on characters."""

import random
from collections.abc import Callable

from distill.tasks.code.ops import (
    Pred,
)
from distill.tasks.code.word_ops import LETTERS
from distill.tasks.phrasing import pick

_VOWELS = "aeiou"


_SETS = tuple(
    """
    xyz abc abcd wxyz rst nrst 123 0123 789 bcd dog cat sun ion ab xy st de fg hi klm opq uvw abx aeo iou 01 23 456
    567 89 135 246 13579 02468 HK MA EIO AEI ABC !? bdf gk lmn art ten red ice ok
    """.split()  # noqa: SIM905
)


CHARS = "aeiou bcdfg HKMA 0123 xyz !? nrst EIO 789 w-l"


def _char(key: str, code: str, test: Callable[..., bool], *wordings: str) -> Pred:
    pool = [c for c in dict.fromkeys(key[-1] + CHARS) if c != '"']
    yes = tuple(c for c in pool if test(c))
    no = tuple(c for c in pool if not test(c))
    return Pred(key, code, test, wordings, yes, no)


def _char_preds() -> tuple[tuple[Pred, ...], ...]:
    classes = (
        _char("vowel", '{x} in "aeiou"', lambda c: c in set(_VOWELS), "are lower-case vowels", "are small vowels"),
        _char(
            "notvowel",
            '{x} not in "aeiou"',
            lambda c: c not in set(_VOWELS),
            "are not lower-case vowels",
            "are anything but small vowels",
        ),
        _char("digit", "{x}.isdigit()", lambda c: "0" <= c <= "9", "are digits", "are decimal digits"),
        _char(
            "notdigit",
            "not {x}.isdigit()",
            lambda c: not "0" <= c <= "9",
            "are not digits",
            "are not decimal digits",
            "are anything but digits",
        ),
        _char(
            "letter",
            "{x}.isalpha()",
            lambda c: "a" <= c.lower() <= "z",
            "are letters",
            "are letters of the alphabet",
        ),
        _char(
            "notletter",
            "not {x}.isalpha()",
            lambda c: not "a" <= c.lower() <= "z",
            "are not letters",
            "are not letters of the alphabet",
            "are anything but letters",
        ),
        _char("upper", "{x}.isupper()", lambda c: "A" <= c <= "Z", "are upper-case letters", "are capital letters"),
        _char(
            "notupper",
            "not {x}.isupper()",
            lambda c: not "A" <= c <= "Z",
            "are not upper-case letters",
            "are not capital letters",
            "are anything but capital letters",
        ),
        _char("lower", "{x}.islower()", lambda c: "a" <= c <= "z", "are lower-case letters", "are small letters"),
        _char(
            "notlower",
            "not {x}.islower()",
            lambda c: not "a" <= c <= "z",
            "are not lower-case letters",
            "are not small letters",
            "are anything but small letters",
        ),
        _char("notspace", '{x} != " "', lambda c: c != " ", "are not spaces"),
    )
    singles = tuple(
        _char(
            f"ne {c}",
            f'{{x}} != "{c}"',
            lambda x, c=c: ord(x) != ord(c),
            f"are not '{c}'",
            f"are different from '{c}'",
            f"differ from '{c}'",
            f"do not equal '{c}'",
            f"are anything but '{c}'",
        )
        for c in LETTERS
    )
    before = tuple(
        _char(
            f"after {c}",
            f'{{x}} > "{c}"',
            lambda x, c=c: ord(x) > ord(c),
            f"come after '{c}' in character order",
            f"are greater than '{c}'",
            f"come later than '{c}' in character order",
            f"lie after '{c}' in character order",
        )
        for c in LETTERS[1:-2]
    )
    within = tuple(
        _char(
            f"in {s}",
            f'{{x}} in "{s}"',
            lambda x, s=s: any(x == c for c in s),
            f"are one of '{s}'",
            f"are among '{s}'",
            f"are in '{s}'",
            f"can be found in '{s}'",
            f"occur in '{s}'",
        )
        for s in _SETS
    )
    without = tuple(
        _char(
            f"not in {s}",
            f'{{x}} not in "{s}"',
            lambda x, s=s: not any(x == c for c in s),
            f"are not one of '{s}'",
            f"are not among '{s}'",
            f"are not in '{s}'",
            f"are anything but one of '{s}'",
            f"do not occur in '{s}'",
        )
        for s in _SETS
    )
    return classes, classes, singles, before, within, without


CHAR_PREDS = _char_preds()


def pick_char_pred(rng: random.Random) -> Pred:
    """A predicate on characters."""
    return pick(rng, pick(rng, CHAR_PREDS))

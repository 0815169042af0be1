"""The predicates on numbers. Constants are bound when the table is built, so that a draw is a choice from a tuple."""

import random
from collections.abc import Callable

from distill.tasks.code.ops import Pred
from distill.tasks.phrasing import pick


def _pred(key: str, code: str, test: Callable[..., bool], *wordings: str) -> Pred:
    # Near zero and near the constants both answers occur, so that the tests feel every boundary.
    constants = [int(word) for word in key.split()[1:]]
    near = [c + d for c in constants for d in (0, 1, -1)] if "rem" not in key and "div" not in key else []
    pool = list(dict.fromkeys(near + [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3, -4, -5] + list(range(10, 64))))
    yes = [x for x in pool if test(x)]
    no = [x for x in pool if not test(x)]
    return Pred(key, code, test, wordings, tuple(yes[:9]), tuple(no[:9]))


def _preds() -> tuple[tuple[Pred, ...], ...]:
    """All predicates, grouped by kind; a draw picks a kind first."""
    return (
        (
            _pred(
                "even",
                "{x} % 2 == 0",
                lambda x: x & 1 == 0,
                "are even",
                "are divisible by 2",
                "are multiples of 2",
                "have no remainder after division by 2",
                "can be halved exactly",
                "leave no remainder when divided by 2",
                "are evenly divisible by 2",
            ),
            _pred(
                "odd",
                "{x} % 2 == 1",
                lambda x: x & 1 == 1,
                "are odd",
                "are not even",
                "are not divisible by 2",
                "have remainder 1 after division by 2",
                "leave a remainder when divided by 2",
                "leave remainder 1 when divided by 2",
                "are anything but even",
            ),
            _pred(
                "positive",
                "{x} > 0",
                lambda x: x >= 1,
                "are positive",
                "are greater than zero",
                "are above zero",
                "are larger than 0",
                "lie above zero",
                "are more than 0",
            ),
            _pred(
                "negative",
                "{x} < 0",
                lambda x: x <= -1,
                "are negative",
                "are less than zero",
                "are below zero",
                "are smaller than 0",
                "lie below zero",
                "are under zero",
            ),
        ),
        tuple(
            _pred(
                f"gt {k}",
                f"{{x}} > {k}",
                lambda x, k=k: not x <= k,
                f"are greater than {k}",
                f"are larger than {k}",
                f"are above {k}",
                f"are bigger than {k}",
                f"exceed {k}",
                f"are more than {k}",
                f"lie above {k}",
                f"are over {k}",
                f"go beyond {k}",
            )
            for k in range(1, 31)
        ),
        tuple(
            _pred(
                f"lt {k}",
                f"{{x}} < {k}",
                lambda x, k=k: not x >= k,
                f"are less than {k}",
                f"are smaller than {k}",
                f"are below {k}",
                f"are under {k}",
                f"come below {k}",
                f"lie below {k}",
                f"fall below {k}",
                f"stay under {k}",
            )
            for k in range(1, 31)
        ),
        tuple(
            _pred(
                f"ge {k}",
                f"{{x}} >= {k}",
                lambda x, k=k: not x < k,
                f"are at least {k}",
                f"are {k} or more",
                f"are greater than or equal to {k}",
                f"are not less than {k}",
                f"are {k} or greater",
                f"are {k} or larger",
                f"are no less than {k}",
                f"are not below {k}",
                f"reach at least {k}",
            )
            for k in range(1, 31)
        ),
        tuple(
            _pred(
                f"le {k}",
                f"{{x}} <= {k}",
                lambda x, k=k: not x > k,
                f"are at most {k}",
                f"are {k} or less",
                f"are less than or equal to {k}",
                f"are not greater than {k}",
                f"are no more than {k}",
                f"are {k} or smaller",
                f"are not above {k}",
                f"do not exceed {k}",
                f"are not more than {k}",
            )
            for k in range(1, 31)
        ),
        tuple(
            _pred(
                f"div {k}",
                f"{{x}} % {k} == 0",
                lambda x, k=k: x // k * k == x,
                f"are divisible by {k}",
                f"are multiples of {k}",
                f"are evenly divisible by {k}",
                f"leave no remainder when divided by {k}",
                f"have no remainder after division by {k}",
                f"can be divided by {k} without remainder",
                f"are exactly divisible by {k}",
                f"have {k} as a divisor",
            )
            for k in range(3, 13)
        ),
        tuple(
            _pred(
                f"notdiv {k}",
                f"{{x}} % {k} != 0",
                lambda x, k=k: x // k * k != x,
                f"are not divisible by {k}",
                f"are not multiples of {k}",
                f"leave a remainder when divided by {k}",
                f"are not evenly divisible by {k}",
                f"have a remainder after division by {k}",
                f"do not have {k} as a divisor",
                f"are anything but multiples of {k}",
            )
            for k in range(3, 13)
        ),
        tuple(
            _pred(
                f"rem {k} {r}",
                f"{{x}} % {k} == {r}",
                lambda x, k=k, r=r: (x - r) // k * k == x - r,
                f"leave remainder {r} when divided by {k}",
                f"have remainder {r} after division by {k}",
                f"give remainder {r} when divided by {k}",
                f"leave a remainder of {r} when divided by {k}",
                f"have {r} as their remainder modulo {k}",
                f"give {r} as remainder after division by {k}",
                f"are equal to {r} modulo {k}",
            )
            for k in range(3, 10)
            for r in range(1, k)
        ),
        tuple(
            _pred(
                f"between {a} {b}",
                f"{a} <= {{x}} <= {b}",
                lambda x, a=a, b=b: x in range(a, b + 1),
                f"are between {a} and {b} inclusive",
                f"lie between {a} and {b}, both included",
                f"are at least {a} and at most {b}",
                f"are in the range from {a} to {b} inclusive",
                f"are no less than {a} and no more than {b}",
                f"fall in the range from {a} to {b}, both included",
                f"are neither below {a} nor above {b}",
            )
            for a in range(0, 13, 2)
            for b in range(a + 3, a + 20, 4)
        ),
        tuple(
            _pred(
                f"ne {k}",
                f"{{x}} != {k}",
                lambda x, k=k: bool(x - k),
                f"are not equal to {k}",
                f"are different from {k}",
                f"are not {k}",
                f"are anything other than {k}",
                f"do not equal {k}",
                f"differ from {k}",
                f"are unequal to {k}",
            )
            for k in range(0, 21)
        ),
    )


PREDS = _preds()


def pick_pred(rng: random.Random) -> Pred:
    """A predicate: its kind first, then its constants."""
    return pick(rng, pick(rng, PREDS))


def pick_range_pred(rng: random.Random) -> Pred:
    """A predicate that says where a number lies."""
    return pick(rng, pick(rng, (*PREDS[1:5], PREDS[8])))


def pick_division_pred(rng: random.Random) -> Pred:
    """A predicate that says how a number divides."""
    return pick(rng, pick(rng, (PREDS[0][:2], *PREDS[5:8])))

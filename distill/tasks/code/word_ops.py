"""The operations on words: predicates and maps."""

import random
from collections.abc import Callable

from distill.tasks.code.ops import (
    Map,
    Pred,
)
from distill.tasks.phrasing import pick

WORDS = tuple(
    """
    apple bird cat dog egg fish green hat ice jam kite lamp moon nest orange pear queen river sun tree umbrella van
    water box yes zoo ant ball cup door eagle frog goat house ink jar king lion milk nut owl pig rain snow tiger uncle
    wolf yard zebra at by go if no on up we a I banana garden yellow window silver market level radar noon Anna Paris
    Rome Oslo Lima Cairo Max Tom Eva Ben
    """.split()  # noqa: SIM905
)


LETTERS = "abcdefghijklmnoprstuwy"


def _word_pred(key: str, code: str, test: Callable[..., bool], *wordings: str) -> Pred:
    kind, constant = key.split()
    made = (
        () if kind.startswith("len") else (f"{constant}an", f"mo{constant}", f"lu{constant}e", f"{constant}i{constant}")
    )
    yes = [w for w in (*made, *WORDS) if test(w)]
    no = [w for w in (*made, *WORDS) if not test(w)]
    if not made:
        k = int(constant)
        yes.sort(key=lambda w: abs(len(w) - k))
        no.sort(key=lambda w: abs(len(w) - k))
    return Pred(key, code, test, wordings, tuple(yes[:14]), tuple(no[:14]))


def _length_preds() -> tuple[tuple[Pred, ...], ...]:
    longer = tuple(
        _word_pred(
            f"len> {k}",
            f"len({{x}}) > {k}",
            lambda w, k=k: bool(w[k:]),
            f"are longer than {k} letters",
            f"have more than {k} letters",
            f"have a length greater than {k}",
            f"have length above {k}",
            f"consist of more than {k} letters",
            f"have over {k} letters",
            f"are over {k} letters long",
        )
        for k in range(1, 7)
    )
    shorter = tuple(
        _word_pred(
            f"len< {k}",
            f"len({{x}}) < {k}",
            lambda w, k=k: not w[k - 1 :],
            f"are shorter than {k} letters",
            f"have fewer than {k} letters",
            f"have a length less than {k}",
            f"have length below {k}",
            f"consist of fewer than {k} letters",
            f"have under {k} letters",
            f"are under {k} letters long",
        )
        for k in range(2, 8)
    )
    exact = tuple(
        _word_pred(
            f"len== {k}",
            f"len({{x}}) == {k}",
            lambda w, k=k: bool(w[k - 1 :]) and not w[k:],
            f"have exactly {k} letters",
            f"are exactly {k} letters long",
            f"have length {k}",
            f"consist of exactly {k} letters",
            f"are {k} letters long",
            f"have a length of {k}",
        )
        for k in range(2, 7)
    )
    at_least = tuple(
        _word_pred(
            f"len>= {k}",
            f"len({{x}}) >= {k}",
            lambda w, k=k: bool(w[k - 1 :]),
            f"have at least {k} letters",
            f"have {k} or more letters",
            f"are at least {k} letters long",
            f"consist of at least {k} letters",
            f"have no fewer than {k} letters",
            f"are not shorter than {k} letters",
        )
        for k in range(2, 7)
    )
    return longer, shorter, exact, at_least


def _letter_preds() -> tuple[tuple[Pred, ...], ...]:
    starts = tuple(
        _word_pred(
            f"starts {c}",
            f'{{x}}.startswith("{c}")',
            lambda w, c=c: w[:1] == c,
            f"start with '{c}'",
            f"begin with '{c}'",
            f"have '{c}' as their first letter",
            f"have '{c}' at the front",
            f"open with '{c}'",
        )
        for c in LETTERS
    )
    ends = tuple(
        _word_pred(
            f"ends {c}",
            f'{{x}}.endswith("{c}")',
            lambda w, c=c: w[-1:] == c,
            f"end with '{c}'",
            f"end in '{c}'",
            f"finish with '{c}'",
            f"have '{c}' as their last letter",
            f"have '{c}' at the end",
            f"close with '{c}'",
        )
        for c in "abdegklmnrtwxy"
    )
    contains = tuple(
        _word_pred(
            f"has {c}",
            f'"{c}" in {{x}}',
            lambda w, c=c: w.find(c) >= 0,
            f"contain '{c}'",
            f"include '{c}'",
            f"contain the letter '{c}'",
            f"have '{c}' in them",
            f"hold the letter '{c}'",
            f"have the letter '{c}' somewhere",
        )
        for c in LETTERS
    )
    lacks = tuple(
        _word_pred(
            f"lacks {c}",
            f'"{c}" not in {{x}}',
            lambda w, c=c: w.find(c) < 0,
            f"do not contain '{c}'",
            f"do not include '{c}'",
            f"lack the letter '{c}'",
            f"have no '{c}' in them",
            f"are without the letter '{c}'",
            f"do not have '{c}' in them",
            f"do not hold '{c}'",
        )
        for c in LETTERS
    )
    return starts, ends, contains, lacks


def _word_maps() -> tuple[tuple[Map, ...], ...]:
    case = (
        Map(
            "upper",
            "{x}.upper()",
            str.upper,
            (
                "in upper case",
                "in capital letters",
                "converted to upper case",
                "turned into capitals",
                "put in capital letters",
                "changed to upper case",
            ),
            (
                "convert it to upper case",
                "put it in capital letters",
                "turn it into capitals",
                "change it to upper case",
                "write it in capital letters",
            ),
        ),
        Map(
            "lower",
            "{x}.lower()",
            str.lower,
            (
                "in lower case",
                "in small letters",
                "converted to lower case",
                "put in small letters",
                "changed to lower case",
            ),
            (
                "convert it to lower case",
                "put it in small letters",
                "change it to lower case",
                "write it in small letters",
            ),
        ),
        Map(
            "capitalize",
            "{x}.capitalize()",
            lambda w: w[:1].upper() + w[1:].lower(),
            ("capitalized", "with a capital first letter"),
            ("capitalize it", "give it a capital first letter"),
        ),
        Map(
            "reverse",
            "{x}[::-1]",
            lambda w: "".join(reversed(w)),
            ("reversed", "spelled backwards", "written backwards", "turned around", "read from the end"),
            ("reverse it", "spell it backwards", "write it backwards", "turn it around"),
        ),
    )
    first = tuple(
        Map(
            f"first {k}",
            f"{{x}}[:{k}]",
            lambda w, k=k: "".join(c for i, c in enumerate(w) if i < k),
            (
                f"cut to its first {k} letters",
                f"shortened to its first {k} letters",
                f"reduced to its first {k} letters",
            ),
            (
                f"keep its first {k} letters",
                f"cut it to its first {k} letters",
                f"shorten it to its first {k} letters",
                f"take its first {k} letters",
            ),
        )
        for k in range(2, 6)
    )
    last = tuple(
        Map(
            f"skip {k}",
            f"{{x}}[{k}:]",
            lambda w, k=k: "".join(c for i, c in enumerate(w) if i >= k),
            (
                f"without its first {k} letters",
                f"stripped of its first {k} letters",
                f"with its first {k} letters removed",
                f"with its first {k} letters dropped",
            ),
            (
                f"drop its first {k} letters",
                f"remove its first {k} letters",
                f"strip it of its first {k} letters",
                f"take its first {k} letters away",
            ),
        )
        for k in range(2, 5)
    )
    repeat = tuple(
        Map(
            f"repeat {k}",
            f"{{x}} * {k}",
            lambda w, k=k: "".join(w for _ in range(k)),
            (f"repeated {k} times", f"written {k} times in a row", f"put {k} times in a row"),
            (f"repeat it {k} times", f"write it {k} times in a row", f"put it {k} times in a row"),
        )
        for k in range(2, 6)
    )
    suffix = tuple(
        Map(
            f"suffix {c}",
            f'{{x}} + "{c}"',
            lambda w, c=c: f"{w}{c}",
            (
                f"with '{c}' added at the end",
                f"followed by '{c}'",
                f"extended by '{c}' at the end",
                f"with '{c}' appended",
            ),
            (f"add '{c}' at its end", f"append '{c}' to it", f"put '{c}' at its end", f"attach '{c}' to its end"),
        )
        for c in ("s", "!", "?", ".", "ing", "ed", "er", "y", "-", "_", "*", "x")
    )
    prefix = tuple(
        Map(
            f"prefix {c}",
            f'"{c}" + {{x}}',
            lambda w, c=c: f"{c}{w}",
            (
                f"with '{c}' added at the front",
                f"preceded by '{c}'",
                f"extended by '{c}' at the front",
                f"with '{c}' put in front",
            ),
            (
                f"add '{c}' at its front",
                f"prepend '{c}' to it",
                f"put '{c}' in front of it",
                f"attach '{c}' to its front",
            ),
        )
        for c in ("re", "un", "#", "@", "my", "-", "_", "*", "a", "the ")
    )
    replace = tuple(
        Map(
            f"replace {a} {b}",
            f'{{x}}.replace("{a}", "{b}")',
            lambda w, a=a, b=b: "".join(b if c == a else c for c in w),
            (
                f"with every '{a}' replaced by '{b}'",
                f"with every '{a}' changed to '{b}'",
                f"with '{b}' in place of every '{a}'",
            ),
            (
                f"replace every '{a}' in it by '{b}'",
                f"change every '{a}' in it to '{b}'",
                f"put '{b}' in place of every '{a}' in it",
            ),
        )
        for a in "aeinortl"
        for b in "ouxz-*"
        if a != b
    )
    return case, case, first, last, repeat, suffix, prefix, replace


WORD_PREDS = (*_length_preds(), *_letter_preds())


WORD_MAPS = _word_maps()


def pick_word_pred(rng: random.Random) -> Pred:
    """A predicate on words: its kind first, then its constants."""
    return pick(rng, pick(rng, WORD_PREDS))


def pick_word_map(rng: random.Random) -> Map:
    """A map on words."""
    return pick(rng, pick(rng, WORD_MAPS))

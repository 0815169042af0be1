"""Plausible mistakes: a wrong version of a solution, for pairs of answers of which exactly one is right."""

import random
import re

# (what is found, what may stand in its place); a mistake is one replacement at one place.
_SWAPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r" % (\d+) == ", (r" % \1 != ", r" // \1 == ")),
    (r" % (\d+) != ", (r" % \1 == ",)),
    (r" > ", (" < ", " >= ", " <= ")),
    (r" < ", (" > ", " <= ", " >= ")),
    (r" >= ", (" > ", " < ", " <= ")),
    (r" <= ", (" < ", " > ", " >= ")),
    (r" != ", (" == ",)),
    (r" == ", (" != ",)),
    (r" \+ ", (" - ", " * ")),
    (r" - ", (" + ", " * ")),
    (r" \* ", (" + ", " ** ")),
    (r" \*\* ", (" * ",)),
    (r" // ", (" * ", " % ")),
    (r" % (\d+)(?! [!=]=)", (r" // \1",)),
    (r"\+= ", ("-= ", "*= ")),
    (r"-= ", ("+= ",)),
    (r"\*= ", ("+= ",)),
    (r"\bsum\(", ("max(", "len(")),
    (r"\bmax\(", ("min(",)),
    (r"\bmin\(", ("max(",)),
    (r"\blen\(set\((.*)\)\)$", (r"len(\1)", r"sum(set(\1))")),
    (r"\ball\(", ("any(",)),
    (r"(?<!not )\bany\(", ("all(", "not any(")),
    (r"\bnot any\(", ("any(",)),
    (r" and ", (" or ",)),
    (r" or ", (" and ",)),
    (r"\.upper\(\)", (".lower()", ".capitalize()")),
    (r"\.lower\(\)", (".upper()",)),
    (r"\.capitalize\(\)", (".upper()", ".lower()")),
    (r"\.startswith\(", (".endswith(",)),
    (r"\.endswith\(", (".startswith(",)),
    (r" not in ", (" in ",)),
    (r"(?<! not)(?<!for \w) in (?=\")", (" not in ",)),
    (r"(\"\w\") in (\w+)(?= |\]|$)", (r"\1 not in \2",)),
    (r", reverse=True", ("",)),
    (r"\bsorted\((\w+)\)", (r"sorted(\1, reverse=True)", r"\1")),
    (r" if x [^\]\n:]*(?=[\]}\)])", ("",)),
    (r" if [vwc]\b[^\]\n:]*(?=[\]}\)])", ("",)),
    (r"\[::-1\]", ("[::2]", "")),
    (r"\[(\d+):\]", (r"[:\1]",)),
    (r"\[:(\d+)\]", (r"[\1:]", r"[-\1:]")),
    (r"\[:-(\d+)\]", (r"[-\1:]", r"[:\1]")),
    (r"\[-(\d+):\]", (r"[:-\1]", r"[:\1]")),
    (r"\{k: v for", ("{v: k for",)),
    (r"\{v: k for", ("{k: v for",)),
    (r"\[k for", ("[v for",)),
    (r"\[i for", ("[x for",)),
    (r"return i$", ("return i + 1",)),
    (r"\.append\(total\)", (".append(x)",)),
    (r"return first, rest", ("return rest, first",)),
    (r"reversed\((\w+)\)", (r"\1",)),
    (r"\babs\((\w+)\)", (r"\1", r"-\1")),
    (r"(?<=return )-(\w)", (r"\1",)),
    (r"\[-(\w) ", (r"[\1 ",)),
    (r"(?<=: )-(\w) ", (r"\1 ",)),
)
_PATTERNS = tuple((re.compile(pattern, re.MULTILINE), replacements) for pattern, replacements in _SWAPS)
_NUMBER = re.compile(r"(?<![\w\"'])\d+(?![\w\"'])")
_SHRINKING = re.compile(r"while (\w+) > \d+:\n +\1 (?://= (?:[2-9]|\d\d)|-= [1-9])")
_STRING = re.compile(r'"([^"\n]*)"')


def _off_by_some(number: str, rng: random.Random) -> str:
    value = int(number)
    return str(
        rng.choice([v for v in (value + 1, value - 1, value + 2, value * 2, value + 10) if v >= 0 and v != value])
    )


def _candidates(source: str, rng: random.Random) -> list[str]:
    """Every mistake that this file knows how to make in the source, numbers and strings once each."""
    head, _, body = source.partition("\n")
    if not body:
        head, body = "", source
    made = []
    for pattern, replacements in _PATTERNS:
        for match in pattern.finditer(body):
            made += [body[: match.start()] + match.expand(new) + body[match.end() :] for new in replacements]
    for match in _NUMBER.finditer(body):
        made.append(body[: match.start()] + _off_by_some(match.group(), rng) + body[match.end() :])
    for match in _STRING.finditer(body):
        text = match.group(1)
        wrong = rng.choice([other for other in (text + "s", text[:-1], "e", "a") if other != text])
        made.append(f'{body[: match.start()]}"{wrong}"{body[match.end() :]}')
    lead = head + "\n" if head else ""
    return list(dict.fromkeys(lead + text for text in made if text != body))


def mutate(answer: str, rng: random.Random) -> str:
    """The solution with one mistake in it; never equal to `answer`, and its loops end where those of `answer` do.

    Most mistakes change what the function returns, not all: only tests can tell.
    """
    candidates = _candidates(answer, rng)
    rng.shuffle(candidates)
    return next((text for text in candidates if _ends(text) and _compiles(text)), answer + "\n    return None")


def _ends(source: str) -> bool:
    """False for a `while` loop that a mistake may have made endless."""
    return "while " not in source or _SHRINKING.search(source) is not None


def _compiles(source: str) -> bool:
    try:
        compile(source, "<mutant>", "exec")
    except (SyntaxError, ValueError):
        return False
    return True

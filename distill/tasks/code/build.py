"""From a drawn composition to a `Draw`, and from a shape to a `Family`: names, parameters, tests and code."""

import builtins
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from keyword import kwlist, softkwlist

from distill.tasks.code.frames import Say, phrasings, plain_text
from distill.tasks.code.number_preds import pick_pred
from distill.tasks.code.ops import Pred, pred_slots
from distill.tasks.lexicon import ADJECTIVES, ALL_NOUNS, VERBS
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw, Family

_VERBS = tuple(
    """
    get make build compute find solve process handle run do work_out prepare produce obtain create derive calc give
    apply eval fetch form check_and_get use take pick read scan treat
    """.split()  # noqa: SIM905
)
_NOUNS = tuple(
    """
    result values items answer data output list numbers things entries part report stats table row batch record series
    set group piece info view chunk sample block pool stock score task case
    """.split()  # noqa: SIM905
)
_ORDER_VERBS = tuple(
    """
    produce pick keep go search look walk collect count return give find first last index sort drop sum take output
    """.split()  # noqa: SIM905
)
_ANY_WORDS = tuple(
    word.lower()
    for word in (
        *ALL_NOUNS,
        *ADJECTIVES,
        *VERBS,
        *_VERBS,
        *_NOUNS,
        *_ORDER_VERBS,
    )
    if word.isalpha() or "_" in word
)
_SHORT = tuple(
    "f g h fn fun func foo bar baz op job act my do go run it p q r u t".split()  # noqa: SIM905
)
_SHORT_ENDS = ("", "", "1", "2", "3", "7", "_a", "_b", "_ab", "_x", "_xy", "_10", "42", "_it")
_DIGITS = ("", "", "", "", "", "1", "2", "_2", "_3", "_7", "9", "_10")
# A function's name may not hide what its body uses: keywords, builtins, parameters and variables.
_TAKEN = frozenset((*kwlist, *softkwlist, *dir(builtins), *["a", "b", "c", "i", "k", "v", "w", "x", "y"])) | frozenset(
    "counts digits groups kept key pairs rest result score steps total turned first".split()  # noqa: SIM905
)
_SUFFIXES = ("", "", "", "", "_of", "_from", "_for", "_2", "_3", "_new", "_all", "_now", "_a", "_b", "_fast")

NUMBER_LISTS = ("nums", "numbers", "values", "items", "xs", "data", "arr", "seq", "lst", "vals", "ints", "sizes")
NUMBER_NOUNS = ("numbers", "numbers", "integers", "values", "elements")
TEXTS = ("text", "s", "string", "line", "phrase", "message", "txt", "label")
WORD_LISTS = ("words", "names", "tokens", "strings", "terms", "labels", "parts", "strs")
WORD_NOUNS = ("words", "strings", "words")
DICTS = ("d", "mapping", "table", "scores", "prices", "counts", "stock", "ages", "points", "marks")
SCALARS = ("n", "num", "value", "number", "m", "amount", "size", "z")


@dataclass(frozen=True)
class Program:
    """One composition: how it is written, what it must do, and what it is said to do."""

    key: str  # canonical text of the operations and their constants
    params: tuple[str, ...]
    body: str  # the lines under the header, without their first indent; <self> stands for the function's name
    run: Callable[..., object]  # independent of `body`; makes the expected values
    inputs: Sequence[tuple[object, ...]]
    slots: dict[str, str] = field(default_factory=dict)


def _usual_name(rng: random.Random) -> str:
    return f"{pick(rng, _VERBS)}_{pick(rng, _NOUNS)}{pick(rng, _SUFFIXES)}"


def _camel(words: Sequence[str]) -> str:
    return words[0] + "".join(word.capitalize() for word in words[1:])


def _name(rng: random.Random, params: Sequence[str]) -> str:
    """A usual name, one of any words, or a short one: names are to be copied, they cannot be guessed."""
    while True:
        choice = rng.random()
        if choice < 0.45:
            name = _usual_name(rng)
        elif choice < 0.53:
            name = pick(rng, _SHORT) + pick(rng, _SHORT_ENDS)
        elif choice < 0.63:
            name = _camel((pick(rng, _VERBS) + "_" + pick(rng, _ANY_WORDS)).split("_")) + pick(rng, _DIGITS)
        else:
            words = [pick(rng, _ANY_WORDS) for _ in range(pick(rng, (1, 2, 2, 2, 3)))]
            name = (_camel(words) if rng.random() < 0.15 else "_".join(words)) + pick(rng, _DIGITS)
        if name not in _TAKEN and name not in params:
            return name


def finish(rng: random.Random, program: Program) -> Draw:
    """Name the function, write it down and compute its tests."""
    name = _name(rng, program.params)
    args = ", ".join(program.params)
    answer = f"def {name}({args}):\n    " + program.body.replace("\n", "\n    ").replace("<self>", name)
    tests = tuple(
        f"assert {name}({', '.join([repr(arg) for arg in inputs])}) == {program.run(*inputs)!r}"
        for inputs in program.inputs
    )
    return Draw(
        slots={"name": name, "args": args, "define": "def", "tab": "    ", **program.slots},
        answer=answer,
        entry_point=name,
        tests=tests,
        held_out_key=program.key,
    )


@dataclass(frozen=True)
class CodeFamily(Family):
    """A family of programs, with the descriptions that its phrasings are made of."""

    say: Say


def family(name: str, say: Say, draw: Callable[[random.Random], Program]) -> CodeFamily:
    """A code family from its descriptions and its program generator."""
    training, held_out = phrasings(say)
    return CodeFamily(
        name=f"code_{name}",
        kind="code",
        phrasings=training,
        held_out_phrasings=held_out,
        draw=lambda rng: finish(rng, draw(rng)),
        plain=lambda rng, drawn: plain_text(say, rng, drawn),
        say=say,
    )


def source_slots(rng: random.Random, param: str, nouns: Sequence[str], kind: str) -> dict[str, str]:
    """`src` (how the parameter is spoken of), `items` and `item` (what is in it)."""
    items = pick(rng, nouns)
    return {"src": said(rng, param, kind), "items": items, "item": items[:-1]}


def number_list(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A parameter that is a list of numbers, and its slots."""
    param = pick(rng, NUMBER_LISTS)
    return param, source_slots(rng, param, NUMBER_NOUNS, "list")


def word_list(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A parameter that is a list of words, and its slots."""
    param = pick(rng, WORD_LISTS)
    return param, source_slots(rng, param, WORD_NOUNS, "list")


def said(rng: random.Random, param: str, kind: str) -> str:
    """How a parameter is spoken of."""
    return pick(rng, (f"`{param}`", f"`{param}`", param, f"the {kind} `{param}`", f"the {kind}", f"the given {kind}"))


def two_of(rng: random.Random, names: Sequence[str]) -> tuple[str, str]:
    """Two different names."""
    first = pick(rng, names)
    second = pick(rng, names)
    while second == first:
        second = pick(rng, names)
    return first, second


def scalar(rng: random.Random) -> tuple[str, dict[str, str]]:
    param = pick(rng, SCALARS)
    return param, {"src": said(rng, param, "number")}


def number_list_and_pred(
    rng: random.Random,
) -> tuple[str, Pred, dict[str, str]]:
    param, slots = number_list(rng)
    pred = pick_pred(rng)
    return param, pred, slots | pred_slots(rng, pred)

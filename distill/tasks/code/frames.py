"""The frames around a description, and how descriptions and frames make a family's phrasings.

A frame holds `<I>` / `<i>` (the description as an order, with a capital or not) or `<n>` (as a noun phrase, after
"returns"). `{name}` and `{args}` are slots, and so are `{define}` (def) and `{tab}` (an indent): the sampler tidies
spaces and capitals, and would spoil them. Alternations `[a|b]` are expanded when a task is sampled; they do not nest.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.tasks.phrasing import expand, pick
from distill.tasks.types import Draw

FRAMES: tuple[str, ...] = (
    '[Complete|Finish|Fill in] [this|the following] function:\n\n{define} {name}({args}):\n{tab}"""<I>."""',
    "[Write|Create|Define] a [Python |]function [called|named] `{name}` that takes `{args}` and "
    "[returns|gives back] <n>.",
    '{define} {name}({args}):\n{tab}"""<I>."""\n\n[Write|Fill in|Implement] the body of this function.',
    "[Write|Define|Implement] `{name}({args})` so that it [returns|gives back] <n>.",
    "[Write|Implement|Create] a function with this name and docstring.\n\nName: {name}\n"
    "[Arguments|Parameters]: {args}\nDocstring: <I>.",
    "[Given|Taking] `{args}`, return <n>. [The function is called|Call the function|Use the name] `{name}`.",
    "Docstring: <I>.\n\n[Write|Implement|Give] the function `{name}({args})`.",
    "The function `{name}({args})` [returns|should return|computes] <n>. [Write it in Python.|Implement it.|Write it.]",
    '"""<I>."""\n\n[Write|Give me|Show me] the Python function `{name}({args})` with this docstring.',
    "How do I write a [Python |]function `{name}({args})` that [returns|computes] <n>?",
    "[Implement|Write|Code] `{name}({args})`: <i>.",
    "[Show me|Give me] a Python function `{name}` with [parameters|arguments] `{args}` [returning|that returns] <n>.",
    "[I need|I want|I would like] a [Python |]function `{name}` taking `{args}`. It should <i>.",
    "Function: {name}\nInput: {args}\nOutput: <n>\n\n[Write the code.|Code it in Python.|Write it in Python.]",
    "Task: <I>.\nFunction name: {name}\n[Parameters|Arguments]: {args}\n[Answer with|Write] Python code.",
    "`{name}({args})` [must|has to] [evaluate to|return] <n>. [Provide|Write] the [definition|code].",
    "# <I>.\n{define} {name}({args}):",
    "In Python, [write|define|implement] `{name}`, which [receives|accepts|takes] `{args}` and returns <n>.",
    "<I>. [Call|Name] the function `{name}`; [let it take|it takes] `{args}`.",
    "[Can you|Could you] [define|write] `{name}({args})`, [returning|whose result is] <n>?",
    "[Please write|Write] Python code for `{name}`. [Its arguments are|It takes] `{args}`. What it must do: <i>.",
    "Signature: {name}({args})\nDescription: <I>.\n[Write the function.|Implement it in Python.]",
    "[Could you|Can you|Please] code `{name}({args})`[ in Python|]? [The job|Its job|The task] is to <i>.",
    "Signature: {name}({args})\nReturns: <n>\n[Write the function.|Implement it in Python.]",
    "A docstring and its header are given; [develop|supply] the whole function.\n\n{define} {name}({args}):\n"
    '{tab}"""<I>."""',
    "Header:\n{define} {name}({args}):\n\nDocstring: <I>.\n\n[Provide|Give] the [full|complete] code.",
    "Here is [what I need|a task]: <i>. [Please program it as|Make it] a Python function with the header "
    "`{name}({args})`.",
    "[Develop|Provide] `{name}({args})`. [Its value|The result|What comes out] [has to|must|should] be <n>.",
    "[My|Our|The] [script|project|program] [needs|lacks|calls] a function `{name}` [accepting|for|with] `{args}`, "
    "[giving|producing] <n>.",
    "Purpose of `{name}({args})`: <i>. [Please program it.|Program it in Python.]",
    "[As an|For my|In an] exercise, [define|program] `{name}({args})`. It [has to|must] <i>.",
    "- function: {name}\n- parameters: {args}\n- purpose: <i>[\n\nWrite it.|\n\nPython code, please.|]",
    "[Specification|Spec]:\n* it takes {args}\n* it returns <n>\n* its name is {name}",
    "Requirements:\n1. The name is {name}.\n2. It takes {args}.\n3. It has to <i>.",
    "- input: {args}\n- output: <n>\n- name: {name}\n\n[Python code:|Write the function.]",
    "[Specification|Requirements] for {name}\n- input: {args}\n- task: <i>",
    "Does: <i>\nTakes: {args}\nName: {name}",
    "- does: <i>\n- arguments: {args}\n- function name: {name}[\n\nGive the code.|]",
    "Body of `{name}({args})` [wanted|needed|missing]: the function has to <i>.",
    "[Wanted|Needed]: a [Python |]function `{name}` of `{args}` whose [value|result|output] is <n>.",
    "The value of `{name}({args})` is <n>. [What is its body?|How does one write it?|What would its code look like?]",
    "What does a Python function `{name}({args})` look like that [returns|gives] <n>?",
    "<I>. That is what `{name}({args})` [does|has to do|is for]. [Write|Program|Show] it.",
    "I have to [write|program|define] a function; it takes `{args}` and [gives|returns|yields] <n>. Its name "
    "[is|has to be] `{name}`.",
    "[Now|Next], [write|code] this: <i>. The parameters are `{args}` and the name is `{name}`.",
    "{define} {name}({args}):\n{tab}# <I>\n\n[Finish this function.|Fill in the body.]",
    "Calling `{name}({args})` [should|has to|must] [give|produce|yield] <n>. Write that function.",
    "Function `{name}`, arguments `{args}`, value: <n>.",
    "How can `{name}({args})` <i>? [Show|Give] me the code.",
    "Goal: <i>.\nHeader: {define} {name}({args}):\n[Provide|Give] the [whole|full] function.",
    "I [am looking for|want|wish for] code to <i>. [It|The function] is [called|named] `{name}` and "
    "[takes|accepts] `{args}`.",
    "We need <n>. [Put|Place] the code for this in a function `{name}` with the [parameters|arguments] `{args}`.",
    "[Below|Here] is a header. [Write|Provide] its body; the function has to <i>.\n\n{define} {name}({args}):",
)
HELD_OUT_FRAMES: tuple[str, ...] = (
    'Here is a header with its docstring. Provide the full function.\n\n{define} {name}({args}):\n{tab}"""<I>."""',
    "Develop a Python function `{name}` accepting `{args}`; the result has to be <n>.",
    "My program needs `{name}({args})`. Purpose: <i>. Please program it in Python.",
    "For an exercise I have to define `{name}({args})`, giving <n>. What does the code look like?",
    "Specification\n- name: {name}\n- takes: {args}\n- does: <i>",
    "Body wanted for `{name}({args})`, a function whose value is <n>.",
)
MADE_ORDER = "[return|compute|give back|find|produce|give|work out|determine|calculate|output|return|produce] "
_HELD_OUT_RETURNS = ("produce ", "return ")
_PLAIN = (
    'def {name}({args}):\n    """<I>."""\n<body>',
    "# <I>.\n<code>",
    "The function {name} takes {args}. It returns <n>.\n\n<code>",
    "<code>\n\n# {name} gives <n>.",
    "{name}: <i>.\n<code>",
    "<code>\n\nExamples:\n<examples>",
    '"""<I>."""\n\n\n<code>',
    "To <i>, one writes\n\n<code>",
    "{name} has to <i>:\n\n<code>",
    "<n>:\n\n<code>",
    "What {name}({args}) does: <i>.\n\n<code>",
    "The value of {name}({args}) is <n>.\n<code>",
)
_ALTERNATION = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")


@dataclass(frozen=True)
class Say:
    """The wordings of a family: noun phrases and orders, for training and held out."""

    nouns: tuple[str, ...]
    orders: tuple[str, ...]
    held_out_nouns: tuple[str, ...]
    held_out_orders: tuple[str, ...]


def capital(text: str) -> str:
    """The text with a capital first letter, in every option when it begins with an alternation."""
    if text.startswith("["):
        inner, _, rest = text[1:].partition("]")
        return "[" + "|".join(option[:1].upper() + option[1:] for option in inner.split("|")) + "]" + rest
    return text[:1].upper() + text[1:]


def _variants(text: str) -> list[str]:
    """Every reading of a text's alternations."""
    match = _ALTERNATION.search(text)
    if match is None:
        return [text]
    head, tail = text[: match.start()], text[match.end() :]
    return [head + option + rest for option in match.group(1).split("|") for rest in _variants(tail)]


def _choice(texts: Sequence[str], verbs: Sequence[str]) -> str:
    """All readings of all texts as one alternation, each reading with the next of the verbs in front."""
    readings = [reading for text in texts for reading in _variants(text)]
    return "[" + "|".join(f"{verbs[i % len(verbs)]}{reading}" for i, reading in enumerate(readings)) + "]"


def _fill(frame: str, noun: str, order: str) -> str:
    return frame.replace("<n>", noun).replace("<i>", order).replace("<I>", capital(order))


def _training(say: Say) -> tuple[str, ...]:
    """Each frame with all nouns, or once with all orders and once with all nouns made orders by a verb.

    So a third of the draws are nouns, a third orders, a third made orders.
    """
    noun, order = _choice(say.nouns, ("",)), _choice(say.orders, ("",))
    made = []
    for frame in FRAMES:
        made.append(_fill(frame, noun, order))
        if "<n>" not in frame:
            made.append(_fill(frame, noun, MADE_ORDER + noun))
    return tuple(made)


def _held_out(say: Say) -> tuple[str, ...]:
    """Each frame with all descriptions as an alternation; orders are mixed with nouns made orders by a verb."""
    nouns = say.held_out_nouns
    noun = _choice(nouns, ("",)) if len(nouns) > 1 or "|" in nouns[0] else nouns[0]
    order = f"{_choice(say.held_out_orders, ('',))[:-1]}|{_choice(nouns, _HELD_OUT_RETURNS)[1:]}"
    return tuple(_fill(frame, noun, order) for frame in HELD_OUT_FRAMES)


def phrasings(say: Say) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training, held-out) phrasings: every frame may meet every description of its side."""
    return _training(say), _held_out(say)


def _filled(text: str, slots: Mapping[str, str], rng: random.Random) -> str:
    return expand(f"={text}", rng)[1:].format_map(slots)  # the sign keeps the first letter from becoming a capital


def plain_text(say: Say, rng: random.Random, draw: Draw) -> str:
    """The drawn function as a small document: code with a comment, a docstring, a description or examples."""
    layout = pick(rng, _PLAIN)
    noun = _filled(pick(rng, say.nouns), draw.slots, rng)
    made = rng.random() < 0.3
    order = (
        f"{_filled(MADE_ORDER, draw.slots, rng)} {noun}" if made else _filled(pick(rng, say.orders), draw.slots, rng)
    )
    text = layout.format_map(draw.slots)
    if "<examples>" in text:
        pairs = [test.removeprefix("assert ").partition(" == ") for test in draw.tests[:3]]
        text = text.replace("<examples>", "\n".join(f">>> {call}\n{value}" for call, _, value in pairs))
    body = draw.answer.partition("\n")[2]
    return _fill(text, noun, order).replace("<code>", draw.answer).replace("<body>", body)

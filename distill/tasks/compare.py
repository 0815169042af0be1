"""The judge's family: one right and one wrong answer to a question, to be graded and compared.

Grades follow one rule: a right answer gets 5; a wrong one gets 2 when it is complete (it has a final `Answer:`, or its
code returns something) and 1 when it is not.
"""

import random

from distill.judge.pairwise import FRAMINGS, HELD_OUT_FRAMINGS, Judgement, reply
from distill.tasks.build import split_answer
from distill.tasks.code_mistakes import wrong_code_answer
from distill.tasks.derail import derailed, near_answer, right_but_unlike
from distill.tasks.families import INSTRUCTION_FAMILIES, SOLVED_FAMILIES
from distill.tasks.mistakes import wrong_instruction_answer
from distill.tasks.phrasing import pick, render_plainly, render_varied
from distill.tasks.split import draw_in_split
from distill.tasks.types import Draw, Family, Kind, Split, Task, make_task

JUDGE = "judge"
RIGHT_GRADE = 5
INSTRUCTION_SHARE = 0.6
CODE_FAMILIES = SOLVED_FAMILIES[len(INSTRUCTION_FAMILIES) :]
DERAILED_SHARE = 0.6  # of wrong answers; the others hold one typical mistake
# Of right answers to instructions: without their steps or after wrong ones, so that what is expected must be solved.
UNLIKE_SHARE = 0.4
_BY_NAME = {family.name: family for family in SOLVED_FAMILIES}


def final_answer(text: str) -> str | None:
    """The text after the last `Answer:`, stripped; None where there is none."""
    return split_answer(text)[1]


def grade(task: Task, text: str, *, ok: bool) -> int:
    """The published rule: 5 right, 2 wrong but complete, 1 wrong and incomplete."""
    if ok:
        return RIGHT_GRADE
    complete = "return" in text if task.kind == "code" else bool(final_answer(text))
    return 2 if complete else 1


def _wrong_answer(task: Task, rng: random.Random) -> str:
    if rng.random() < DERAILED_SHARE:
        stranger = pick(rng, INSTRUCTION_FAMILIES if task.kind == "instruction" else SOLVED_FAMILIES)
        return derailed(task, _BY_NAME[task.family], stranger, rng)
    if task.kind == "code":
        return wrong_code_answer(task.answer, rng)
    return wrong_instruction_answer(task.prompt, task.answer, rng)


def wrong_answer(task: Task, rng: random.Random) -> str:
    """A wrong answer to an instruction or code task: one typical mistake in the reference, or a derailed answer."""
    while True:
        text = _wrong_answer(task, rng)
        same = text == task.answer if task.kind == "code" else final_answer(text) == final_answer(task.answer)
        if not same:
            return text


def right_answer(task: Task, rng: random.Random) -> str:
    """The reference, or for some instructions its final answer alone or after other steps."""
    if task.kind == "code" or rng.random() >= UNLIKE_SHARE:
        return task.answer
    other = near_answer(_BY_NAME[task.family], task.answer, rng, held_out=task.split != "train")
    return right_but_unlike(task.answer, other, rng)


def check(expected: str, text: str, kind: Kind) -> str:
    """An answer held against the expected one: its final answer, or its lines of code up to the first that differs."""
    if kind != "code":
        found = final_answer(text)
        return f" {found or 'none'} {'right' if found == final_answer(expected) else 'wrong'}"
    lines, wanted = text.split("\n"), expected.split("\n")
    shown = [""]
    for i, line in enumerate(lines):
        same = i < len(wanted) and line == wanted[i]
        shown.append(f"{line} {'right' if same else 'wrong'}")
        if not same:
            return "\n".join(shown)
    return "\n".join([*shown, "none wrong"] if len(lines) < len(wanted) else shown)


def _pair(task: Task, right: str, wrong: str, rng: random.Random) -> Draw:
    right_grade, wrong_grade = grade(task, right, ok=True), grade(task, wrong, ok=False)
    expected = right if task.kind == "code" else task.answer
    first, second = (right, wrong) if rng.random() < 0.5 else (wrong, right)
    judgement = (
        Judgement(grade_a=right_grade, grade_b=wrong_grade, better="A")
        if first is right
        else Judgement(grade_a=wrong_grade, grade_b=right_grade, better="B")
    )
    return Draw(
        slots={"question": task.prompt, "answer_a": first, "answer_b": second},
        answer=reply(expected, check(expected, first, task.kind), check(expected, second, task.kind), judgement),
    )


def draw_pair(rng: random.Random, split: Split) -> Draw:
    """A question of the split with one right and one wrong answer."""
    family = pick(rng, INSTRUCTION_FAMILIES if rng.random() < INSTRUCTION_SHARE else CODE_FAMILIES)
    inner = draw_in_split(family, rng, held_out=split != "train")
    templates = family.held_out_phrasings if split == "phrasings" else family.phrasings
    phrasing = int(rng.random() * len(templates))
    if split == "train":
        prompt = render_varied(templates[phrasing], inner.slots, rng, family.kind)
    else:
        prompt = render_plainly(templates[phrasing], inner.slots, rng)
    task = make_task(family.name, family.kind, split, phrasing, prompt, inner)
    return _pair(task, right_answer(task, rng), wrong_answer(task, rng), rng)


def _plain(rng: random.Random, draw: Draw) -> str:
    """A note on two answers, as a reader of them would write it."""
    slots = draw.slots
    better = draw.answer[-1]
    worse = "B" if better == "A" else "A"
    first, second = (slots[f"answer_{side.lower()}"].replace("Answer:", "Result:") for side in (better, worse))
    note = pick(rng, ("does not hold", "is wrong", "has a mistake"))
    good = pick(rng, ("holds", "is right", "has no mistake"))
    if rng.random() < 0.5:
        return f"This {good}:\n{first}\n\nThis {note}:\n{second}"
    return f"This {note}:\n{second}\n\nThe other one {good}:\n{first}"


JUDGE_FAMILY = Family(
    name=JUDGE,
    kind="judge",
    phrasings=FRAMINGS,
    held_out_phrasings=HELD_OUT_FRAMINGS,
    draw=lambda rng: draw_pair(rng, "train"),
    plain=_plain,
)

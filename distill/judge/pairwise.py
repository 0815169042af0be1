"""Graded comparison of two answers: the prompts shown to a judge and the strict reading of its reply.

The judge first writes its own answer after `Expected:` (solving comes before comparing), may hold each answer against
it, then gives a grade from 1 to 5 for each answer and the better one. A reply in any other form is not a judgement.
"""

import re
from dataclasses import dataclass
from typing import Literal

FRAMINGS: tuple[str, ...] = (  # the first is what `render` uses; the others serve as training data
    "Compare two answers to a question.\n\nQuestion: {question}\n\nAnswer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\n"
    'First write "Expected:" and your own answer. Then grade both answers from 1 (bad) to 5 (right) as "Grade A:" and '
    '"Grade B:". End with "Better: A" or "Better: B".',
    "[Here are|These are] two answers to [the same question|one question]. [Which is better?|Which one is right?]\n\n"
    "[Question|Q]: {question}\n\n[Answer A|A]:\n{answer_a}\n\n[Answer B|B]:\n{answer_b}\n\n"
    "[Write|Give] the expected answer, [two grades from 1 to 5|a grade from 1 to 5 for each] and the better one.",
    "{question}\n\n[Two people answered.|Two students answered.|There are two replies.]\n\nAnswer A:\n{answer_a}\n\n"
    "Answer B:\n{answer_b}\n\n[Solve it yourself|Say what is expected], then grade A and B from 1 to 5 and "
    "[say which is "
    "better|name the better one].",
    "[Judge|Grade|Rate] two answers.\nQuestion: {question}\nAnswer A:\n{answer_a}\nAnswer B:\n{answer_b}\n"
    "[Reply with|Write] Expected, Grade A, Grade B and Better.",
    "[You are|Act as|Be] a [fair |strict |]judge. [A question was asked|The question was]: {question}\n\n"
    "[First answer (A)|Answer A]:\n{answer_a}\n\n[Second answer (B)|Answer B]:\n{answer_b}\n\n"
    "[Grade|Rate] [both|each|the two answers] from 1 to 5 and [choose|pick] the better one, after writing what you "
    "expected.",
    "Question: {question}\n\nWhich answer is [better|right|correct], A or B?\n\nA:\n{answer_a}\n\nB:\n{answer_b}\n\n"
    "[Give|Write] the expected answer first, then [both grades|grades for A and B] (1 to 5).",
    "[Two models|Two programs|Two friends] were asked: {question}\n\nModel A [said|wrote|replied]:\n{answer_a}\n\n"
    "Model B [said|wrote|replied]:\n{answer_b}\n\n[Compare the answers|Compare them|Evaluate both] and [grade "
    "each from 1 "
    "to 5|give grades from 1 to 5]. Which [one |]is better?",
    "[Task|Prompt|Request]: {question}\n\n[Candidate A|Solution A|Reply A]:\n{answer_a}\n\n"
    "[Candidate B|Solution B|Reply B]:\n{answer_b}\n\n[Evaluate|Compare|Check] the two [candidates|solutions|replies]: "
    "expected answer, grades, better one.",
    "[Please compare|Compare|Please judge] answer A and answer B.\n\nAnswer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\n"
    "[They answer|Both answer|The question was]: {question}\n\n[Write|Give] what is expected, a grade for each and the "
    "better [one|answer].",
    "[I asked|Somebody asked|A user asked]: {question}\n\n[I got|There were] two answers.\n\n[One|A]:\n{answer_a}\n\n"
    "[Two|B]:\n{answer_b}\n\n[Which should I take?|Which is the better one?|Which one should I trust?] Grade A and B.",
    "[Check|Examine|Read] [these|the] answers to the question and find the mistake.\n\nQuestion: {question}\n\n"
    "Answer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\n[Exactly one|Only one] of them is right. [Which is "
    "better?|Say which "
    "one is better.] [Give grades.|Grade both.]",
    "[As a teacher, grade|You are a teacher. Grade] [two students|two pupils|the work of two students] from 1 "
    "(bad) to 5 "
    "(right).\n\n[The exercise|The question|The task]: {question}\n\nStudent A:\n{answer_a}\n\nStudent "
    "B:\n{answer_b}\n\n"
    "[Who is better?|Which student is better?|Who did better?]",
    "### Question\n{question}\n\n### Answer A\n{answer_a}\n\n### Answer B\n{answer_b}\n\n### "
    "[Judgement|Verdict|Decision]\n"
    "[Expected answer|What is expected], grades from 1 to 5, better answer.",
    "A: [the answer is|the reply is|it says]\n{answer_a}\n\nB: [the answer is|the reply is|it says]\n{answer_b}\n\n"
    "[These reply to|These are answers to|Both reply to]: {question}\n\n[Decide|Determine] which is better and [grade "
    "them|give both a grade].",
    "[Rate|Score] the answers to this [request|question|prompt] [on a scale |]from 1 to 5: {question}\n\n"
    "Answer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\nThen [decide|tell me] which answer is [better|the better one].",
    "[Help me choose|Help me decide] between A and B.\n[The question|What I asked]: {question}\nA:\n{answer_a}\nB:\n"
    "{answer_b}\n[Work out|Find] the expected answer, grade both, [tell me|write] the better one.",
    "Pairwise comparison.\nQuestion: {question}\n---\nAnswer A:\n{answer_a}\n---\nAnswer B:\n{answer_b}\n---\n"
    "[Output|Write]: expected answer, grade A, grade B, better.",
    "[What would you expect as the answer to|How would you answer]: {question}\n\n[Compare that with|Now look at] two "
    "answers.\nAnswer A:\n{answer_a}\nAnswer B:\n{answer_b}\n[Grade them from 1 to 5.|Give grades.] Which is better?",
)
HELD_OUT_FRAMINGS: tuple[str, ...] = (
    "Please grade two replies to a question and tell me the better one.\n\nQuestion: {question}\n\nReply "
    "A:\n{answer_a}\n\n"
    "Reply B:\n{answer_b}\n\nWrite what you expected first.",
    "A user asked: {question}\n\nAnswer A:\n{answer_a}\n\nAnswer B:\n{answer_b}\n\nWho is right? Judge both "
    "from 1 to 5 and "
    "pick the better answer.",
    "Two answers, one question: {question}\n---\nA:\n{answer_a}\n---\nB:\n{answer_b}\n---\nGive the expected "
    "answer, the "
    "grades and which one is better.",
    "Evaluate as a strict teacher.\nTask: {question}\nSolution A:\n{answer_a}\nSolution "
    "B:\n{answer_b}\nCompare the two "
    "solutions, grade each and decide which is better.",
    "Model A wrote:\n{answer_a}\n\nModel B wrote:\n{answer_b}\n\nThe prompt was: {question}\n\nWhich model is "
    "better? Say "
    "what is expected and rate both from 1 to 5.",
)

_REPLY = re.compile(
    r"\AExpected:(?P<expected>.*)\nGrade A: (?P<a>[1-5])\nGrade B: (?P<b>[1-5])\nBetter: (?P<better>[AB])\Z", re.DOTALL
)


@dataclass(frozen=True)
class Judgement:
    """Grades from 1 to 5 and the better answer."""

    grade_a: int
    grade_b: int
    better: Literal["A", "B"]


def render(question: str, answer_a: str, answer_b: str) -> str:
    """The prompt that asks a judge to compare two answers."""
    return FRAMINGS[0].format(question=question, answer_a=answer_a, answer_b=answer_b)


def reply(expected: str, check_a: str, check_b: str, judgement: Judgement) -> str:
    """A judge's reply as `parse` reads it: its own answer, each answer held against it, grades and choice."""
    return (
        f"Expected:\n{expected}\nAnswer A:{check_a}\nAnswer B:{check_b}\n"
        f"Grade A: {judgement.grade_a}\nGrade B: {judgement.grade_b}\nBetter: {judgement.better}"
    )


def parse(text: str) -> Judgement | None:
    """The judgement in a reply; None when its form is broken or its grades contradict its choice."""
    match = _REPLY.match(text.strip())
    if match is None:
        return None
    grade_a, grade_b = int(match["a"]), int(match["b"])
    better: Literal["A", "B"] = "A" if match["better"] == "A" else "B"
    if (grade_a < grade_b) if better == "A" else (grade_b < grade_a):
        return None
    return Judgement(grade_a=grade_a, grade_b=grade_b, better=better)

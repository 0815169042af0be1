"""The teacher as a judge: sampled pairs of answers of which exactly one is right, judged in both orders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from distill.engine.runner import Engine
from distill.engine.types import SamplingParams
from distill.evaluate.statistics import proportion, wilson
from distill.evaluate.verdicts import Grader
from distill.judge.pairwise import parse
from distill.judge.pairwise import render as judge_prompt
from distill.model.chat import render
from distill.records import user_message
from distill.runs import file_digest
from distill.tasks.registry import sample_tasks
from distill.tasks.types import Kind, Split, Task

TEMPERATURE = 1.0
TEACHER_ALONE = 1.5  # of the second answer where there is no student: at 1 the teacher is seldom wrong
ANSWER_TOKENS = 384
JUDGE_TOKENS = 768  # it writes its own answer and repeats code of both
SEED = 777
_CHUNK = 160  # prompts sampled at a time
_CELLS: tuple[tuple[Kind, Split], ...] = (
    ("instruction", "values"),
    ("code", "values"),
    ("instruction", "phrasings"),
    ("code", "phrasings"),
)


@dataclass(frozen=True)
class Pair:
    """A right and a wrong answer to one task; `first_right`: the teacher's (the cooler) sample is the right one."""

    task: Task
    right: str
    wrong: str
    first_right: bool


@dataclass(frozen=True)
class JudgeResult:
    """Agreement over judgements (two a pair); the interval counts pairs, whose two judgements are not independent."""

    first: str
    second: str
    student_weights: str | None
    prompts: int
    pairs: int
    judgements: int
    agreed: int
    agreement: float
    low: float
    high: float
    unreadable: int  # not in the form of a judgement; counted as disagreement
    same_choice: int  # pairs judged alike in both orders
    teacher_right: int  # pairs whose right answer is the first model's
    by_order: dict[str, Any]  # where the right answer stood
    by_kind: dict[str, Any]


def held_out_prompts() -> Iterator[Task]:
    """Held-out instruction and code tasks of both splits, in turn."""
    cells = [sample_tasks(kinds=(kind,), split=split, count=1 << 30, seed=SEED) for kind, split in _CELLS]
    return (task for turn in zip(*cells, strict=True) for task in turn)


def sample_pairs(
    teacher: Engine, student: Engine | None, grader: Grader, *, wanted: int, most: int
) -> tuple[list[Pair], int]:
    """`wanted` pairs with exactly one right answer, or as many as `most` prompts give; and the prompts sampled."""
    tasks, pairs, prompts = held_out_prompts(), list[Pair](), 0
    while len(pairs) < wanted and prompts < most:
        chunk = list(islice(tasks, min(_CHUNK, most - prompts)))
        first = _sample(teacher, chunk, TEMPERATURE, prompts)
        if student is None:
            second = _sample(teacher, chunk, TEACHER_ALONE, prompts + most)
        else:
            second = _sample(student, chunk, TEMPERATURE, prompts + most)
        prompts += len(chunk)
        pairs += one_right(chunk, first, second, grader)
    return pairs[:wanted], prompts


def one_right(tasks: Sequence[Task], first: Sequence[str], second: Sequence[str], grader: Grader) -> list[Pair]:
    """The tasks of which exactly one answer is right."""
    verdicts = zip(grader.grade(tasks, first), grader.grade(tasks, second), strict=True)
    return [
        Pair(task, right=a if one.ok else b, wrong=b if one.ok else a, first_right=one.ok)
        for task, a, b, (one, two) in zip(tasks, first, second, verdicts, strict=True)
        if one.ok != two.ok
    ]


def judge_pairs(judge: Engine, pairs: Sequence[Pair], *, prompts: int, student: Path | None) -> JudgeResult:
    """Every pair greedily judged twice, the right answer once as A and once as B."""
    questions = [
        judge_prompt(pair.task.prompt, *answers)
        for pair in pairs
        for answers in ((pair.right, pair.wrong), (pair.wrong, pair.right))
    ]
    replies = _generate(judge, questions, [SamplingParams(max_tokens=JUDGE_TOKENS)] * len(questions))
    return score(pairs, replies, prompts=prompts, student=student)


def score(pairs: Sequence[Pair], replies: Sequence[str], *, prompts: int, student: Path | None) -> JudgeResult:
    """Two replies a pair, the right answer first A, then B."""
    assert len(replies) == 2 * len(pairs)
    choices = [_choice(text) for text in replies]
    oks = [(choices[2 * i] == "A", choices[2 * i + 1] == "B") for i in range(len(pairs))]
    agreed = sum(map(sum, oks))
    low, high = wilson(agreed // 2, len(pairs))
    kinds = {
        pair.task.kind: [ok for one, ok in zip(pairs, oks, strict=True) if one.task.kind == pair.task.kind]
        for pair in pairs
    }
    return JudgeResult(
        first=f"the teacher at temperature {TEMPERATURE:g}",
        second=describe_second(student),
        student_weights=file_digest(student / "model.safetensors") if student is not None else None,
        prompts=prompts,
        pairs=len(pairs),
        judgements=len(replies),
        agreed=agreed,
        agreement=agreed / len(replies) if replies else 0.0,
        low=low,
        high=high,
        unreadable=choices.count(None),
        same_choice=sum(a == b for a, b in oks),
        teacher_right=sum(pair.first_right for pair in pairs),
        by_order={side: asdict(proportion(sum(ok[i] for ok in oks), len(oks))) for i, side in enumerate("AB")},
        by_kind={kind: asdict(proportion(sum(map(sum, found)), 2 * len(found))) for kind, found in kinds.items()},
    )


def describe_second(student: Path | None) -> str:
    """Who gave the second answers: of a run's checkpoint the recipe and train entry, from the manifest beside it."""
    if student is None:
        return f"the teacher at temperature {TEACHER_ALONE:g}"
    manifest = student.parent / "manifest.json"
    if not manifest.exists():
        return f"the model {student.name} at temperature {TEMPERATURE:g}"
    found = json.loads(manifest.read_text())
    name, entry = found["recipe"]["name"], found["variant"]
    return f"a student distilled by the recipe `{name}` (after `{entry}`) at temperature {TEMPERATURE:g}"


def _choice(text: str) -> Literal["A", "B"] | None:
    judgement = parse(text)
    return judgement.better if judgement is not None else None


def _sample(engine: Engine, tasks: Sequence[Task], temperature: float, seed: int) -> list[str]:
    params = [
        SamplingParams(max_tokens=ANSWER_TOKENS, temperature=temperature, seed=seed + i) for i in range(len(tasks))
    ]
    return _generate(engine, [task.prompt for task in tasks], params)


def _generate(engine: Engine, prompts: Sequence[str], params: Sequence[SamplingParams]) -> list[str]:
    assert engine.tokenizer is not None
    ids = [render(engine.tokenizer, user_message(prompt), add_generation_prompt=True) for prompt in prompts]
    return [completion.text for completion in engine.generate(ids, params)]

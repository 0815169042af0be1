"""Which held-out prompts are shown, and what each variant said."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from distill.report.gather import Gathered


@dataclass(frozen=True)
class Speaker:
    """Who gave an answer: a variant and its role; the reference has the role "reference"."""

    name: str
    role: str


@dataclass(frozen=True)
class Said:
    """One text and all who gave exactly it. `ok` is None for a text that only the reference holds."""

    speakers: tuple[Speaker, ...]
    text: str
    ok: bool | None
    reason: str


@dataclass(frozen=True)
class Sample:
    """A held-out prompt and the different answers to it, the reference first."""

    family: str
    kind: str
    split: str
    prompt: str
    answers: tuple[Said, ...]


_OUTCOMES = {
    (False, True): "the student right where the untrained one was wrong",
    (True, True): "the student right, as before training",
    (False, False): "the student wrong",
    (True, False): "the student wrong where the untrained one was right",
}


def choose_samples(run: Gathered, count: int) -> list[Sample]:
    """`count` prompts that show every kind of outcome in turn, from as many families and kinds as there are."""
    shown = shown_variants(run)
    student = run.student
    if student is None or not run.answers.get(student.name) or count == 0:
        return []
    groups: dict[tuple[bool, bool], list[str]] = {outcome: [] for outcome in _OUTCOMES}
    before = run.answers.get("student-base", {})
    for task, row in run.answers[student.name].items():
        groups[bool(before.get(task, {}).get("ok", False)), bool(row["ok"])].append(task)
    rows = run.answers[student.name]
    picked: list[str] = []
    used: Counter[str] = Counter()
    while len(picked) < count and any(groups.values()):
        for tasks in groups.values():
            if tasks and len(picked) < count:
                task = min(tasks, key=lambda t: (used[rows[t]["kind"]] + 3 * used[rows[t]["family"]], tasks.index(t)))
                tasks.remove(task)
                used.update([rows[task]["kind"], rows[task]["family"]])
                picked.append(task)
    return [_sample(run, task, shown) for task in picked]


def outcome_shares(run: Gathered) -> str:
    """How often each kind of outcome happened, so that the choice of samples misleads nobody."""
    student = run.student
    rows = run.answers.get(student.name, {}) if student is not None else {}
    before = run.answers.get("student-base", {})
    if not rows or not before:
        return ""
    seen = Counter((bool(before.get(task, {}).get("ok", False)), bool(row["ok"])) for task, row in rows.items())
    parts = [f"{words} {100 * seen[outcome] / len(rows):.0f}%" for outcome, words in _OUTCOMES.items()]
    return "; ".join(parts)


def shown_variants(run: Gathered) -> list[str]:
    """Teacher, untrained student, final student, and the smallest quantized one: what fits side by side."""
    student = run.student
    quantized = [v for v in run.variants if v.role == "quantized" and run.answers.get(v.name)]
    smallest = min(quantized, key=lambda v: v.weight_bytes or float("inf"), default=None)
    wanted = ["teacher", "student-base", student.name if student else None, smallest.name if smallest else None]
    return [name for name in wanted if name is not None and run.answers.get(name)]


def _sample(run: Gathered, task: str, shown: list[str]) -> Sample:
    rows: dict[str, dict[str, Any]] = {name: run.answers[name][task] for name in shown if task in run.answers[name]}
    first = next(iter(rows.values()))
    groups: dict[str, list[Speaker]] = {first["reference"].strip(): [Speaker("reference", "reference")]}
    verdicts: dict[str, tuple[bool, str]] = {}
    for name, row in rows.items():
        variant = run.variant(name)
        assert variant is not None
        text = row["text"].strip()
        groups.setdefault(text, []).append(Speaker(name, variant.role))
        verdicts[text] = bool(row["ok"]), row["reason"]
    answers = []
    for text, speakers in groups.items():
        ok, reason = verdicts.get(text, (None, ""))
        answers.append(Said(tuple(speakers), text, ok, reason))
    return Sample(first["family"], first["kind"], first["split"], first["prompt"], tuple(answers))

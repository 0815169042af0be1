"""Answers through the engine, verdicts on them, and the counts made of both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from distill.evaluate import verdicts
from distill.evaluate.accuracy import Answer, accuracy_metrics, answer_all, answer_rows
from distill.evaluate.questions import held_out_tasks
from distill.evaluate.verdicts import Grader
from distill.model.chat import render
from distill.recipe.schema import Evaluate, Serve
from distill.records import user_message
from distill.sandbox.types import SandboxVerdict
from distill.tasks.types import Task, Verdict
from distill.text.code import extract_code
from tests.evaluate.tiny import make_model, make_tokenizer

TASKS = held_out_tasks(Evaluate(rows=8, kinds=("instruction", "code", "judge"), splits=("values",)))


def test_answers_are_the_models_own_greedy_ones() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed=4)
    heard: list[int] = []
    answers = answer_all(model, tokenizer, TASKS[:3], settings=Serve(kv_gib=0.01), max_tokens=6, progress=heard.append)
    assert heard[-1] == 3
    for task, answer in zip(TASKS, answers, strict=False):
        ids = torch.tensor([render(tokenizer, user_message(task.prompt), add_generation_prompt=True)])
        alone = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer.text == tokenizer.decode(alone, skip_special_tokens=True)
        assert answer.tokens == len(alone)


def test_reference_answers_pass_and_others_do_not() -> None:
    grader = Grader("none")
    right = grader.grade(TASKS, [task.answer for task in TASKS])
    assert all(verdict.ok for verdict in right), [v.reason for v in right]
    wrong = grader.grade(TASKS, ["Answer: certainly not"] * len(TASKS))
    assert not any(verdict.ok for verdict in wrong)


def test_equal_programs_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_many(jobs: list[verdicts.Job], **_: object) -> list[SandboxVerdict]:
        ran.extend(job.code for job in jobs)
        return [SandboxVerdict(True, 1, 1, "passed", 0.0) for _ in jobs]

    monkeypatch.setattr(verdicts, "run_many", run_many)
    code = [task for task in TASKS if task.kind == "code"][:2]
    grader = Grader("bubblewrap")
    for texts in (["a = 1", "b = 2"], ["a = 1", "b = 3"]):
        assert [v.ok for v in grader.grade(code, texts)] == [True, True]
    assert ran == ["a = 1", "b = 2", "b = 3"]


def test_program_of_an_answer() -> None:
    text = "Here:\n```python\nimport re\n```\nand\n```python\ndef f(x):\n    return x\n```\nDone."
    assert extract_code(text, "f") == "def f(x):\n    return x\n"
    assert extract_code(text, "g") == "import re\n"
    assert extract_code("def f(x): return x", "f") == "def f(x): return x"
    assert extract_code("```\ndef f(x): return", "f") == "def f(x): return"  # cut off before the fence ends


def _task(index: int, kind: str, split: str, family: str) -> Task:
    return replace(TASKS[0], id=f"{index:016x}", kind=kind, split=split, family=family)  # type: ignore[arg-type]


def test_accuracy_by_group() -> None:
    tasks = [
        _task(0, "instruction", "values", "add"),
        _task(1, "instruction", "phrasings", "add"),
        _task(2, "code", "values", "code_map"),
        _task(3, "code", "values", "code_map"),
    ]
    answers = [Answer("x", 5, "stop")] * 3 + [Answer("y", 7, "length")]
    verdict = [Verdict(True, "exact match"), Verdict(False, "no"), Verdict(True, "passed"), Verdict(True, "passed")]
    found = accuracy_metrics(answer_rows(tasks, answers, verdict))
    assert (found["accuracy"]["correct"], found["accuracy"]["count"]) == (3, 4)
    assert {k: v["value"] for k, v in found["by_kind"].items()} == {"instruction": 0.5, "code": 1.0}
    assert {k: v["count"] for k, v in found["by_split"].items()} == {"values": 3, "phrasings": 1}
    assert set(found["by_kind_split"]) == {"instruction/values", "instruction/phrasings", "code/values"}
    assert found["by_family"]["code_map"]["correct"] == 2
    assert (found["truncated"], found["answer_tokens"]) == (1, 22)

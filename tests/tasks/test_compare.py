"""Judge tasks: wrong answers are wrong, orders are balanced, values stay on their side."""

import random
import signal
from collections import Counter
from dataclasses import replace

import pytest

from distill.judge.pairwise import FRAMINGS, HELD_OUT_FRAMINGS, parse
from distill.tasks.compare import check, grade, right_answer, wrong_answer
from distill.tasks.derail import derailed_code, derailed_instruction, near_answer
from distill.tasks.families import SOLVED_FAMILIES
from distill.tasks.plain_text import document
from distill.tasks.registry import FAMILIES, draw_task, sample_tasks, verify
from distill.tasks.types import Family, Task


@pytest.mark.parametrize("family", SOLVED_FAMILIES, ids=[family.name for family in SOLVED_FAMILIES])
def test_wrong_answers_are_wrong(family: Family) -> None:
    rng = random.Random(0)
    failed = 0
    for _ in range(30):
        task = draw_task(family, "train", rng)
        wrong = wrong_answer(task, rng)
        assert wrong != task.answer
        if family.kind == "instruction":
            assert not verify(task, wrong).ok
        else:
            failed += not passes(task, wrong)
    if family.kind == "code":
        assert failed >= 21, (family.name, failed)


def passes(task: Task, code: str) -> bool:
    """Run our own mutated reference, which is trusted code, against its tests."""
    scope: dict[str, object] = {}

    def stop(*_: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # a mutated loop may never end
    try:
        exec(code, scope)
        for test in task.tests:
            exec(test, scope)
    except (Exception, RecursionError):
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    return True


def test_wrong_code_fails_its_tests_nearly_always() -> None:
    rng = random.Random(1)
    tasks = list(sample_tasks(kinds=("code",), split="train", count=690, seed=0))
    failed = sum(not passes(task, wrong_answer(task, rng)) for task in tasks)
    assert failed / len(tasks) > 0.95


def test_mistakes_are_carried_into_the_steps() -> None:
    rng = random.Random(0)
    task = draw_task(FAMILIES["add"], "train", rng)
    task = replace(task, answer="8 + 6 = 14, write 4 carry 1\n7 + 5 + 1 = 13, write 13\nAnswer: 134", prompt="78 + 56")
    seen = {wrong_answer(task, rng) for _ in range(500)}
    assert "8 + 6 = 15, write 5 carry 1\n7 + 5 + 1 = 13, write 13\nAnswer: 135" in seen
    assert "8 + 6 = 14, write 4 carry 1\n7 + 5 + 1 = 13, write 13\nAnswer: 135" in seen
    assert any("Answer:" not in text for text in seen)


def test_grades_follow_the_rule() -> None:
    task = next(sample_tasks(families=("add",), split="train", count=1, seed=0))
    assert grade(task, task.answer, ok=True) == 5
    assert grade(task, "1 + 1 = 3\nAnswer: 3", ok=False) == 2
    assert grade(task, "1 + 1 =", ok=False) == 1


def test_orders_are_balanced_and_answers_parse() -> None:
    tasks = list(sample_tasks(kinds=("judge",), split="train", count=600, seed=0))
    better = Counter()
    for task in tasks:
        judgement = parse(task.answer)
        assert judgement is not None
        better[judgement.better] += 1
        assert {judgement.grade_a, judgement.grade_b} in ({5, 1}, {5, 2})
        assert (judgement.grade_a == 5) == (judgement.better == "A")
    assert abs(better["A"] - 300) < 60


def test_framings() -> None:
    assert len(FRAMINGS) >= 15 and len(HELD_OUT_FRAMINGS) >= 5
    for framing in (*FRAMINGS, *HELD_OUT_FRAMINGS):
        for slot in ("{question}", "{answer_a}", "{answer_b}"):
            assert framing.count(slot) == 1


def test_documents_are_plain_text() -> None:
    rng = random.Random(0)
    texts = [document(rng) for _ in range(500)]
    assert all(text.strip() and "Answer:" not in text and "{" not in text.split("def ")[0][:1] for text in texts)
    assert len(set(texts)) > 490
    assert sum("def " in text for text in texts) > 100


def test_check_holds_an_answer_against_the_expected_one() -> None:
    expected = "5 + 3 = 8, write 8\nAnswer: 8"
    assert check(expected, "Answer: 8", "instruction") == " 8 right"
    assert check(expected, "5 + 3 = 9\nAnswer: 9", "instruction") == " 9 wrong"
    assert check(expected, "no idea", "instruction") == " none wrong"
    code = "def f(x):\n    y = x\n    return y"
    assert check(code, code, "code") == "\ndef f(x): right\n    y = x right\n    return y right"
    assert check(code, "def f(x):\n    y = 1\n    return y", "code") == "\ndef f(x): right\n    y = 1 wrong"
    assert check(code, "def f(x):\n    y = x", "code") == "\ndef f(x): right\n    y = x right\nnone wrong"


def test_right_answers_need_not_show_how() -> None:
    rng = random.Random(0)
    task = draw_task(FAMILIES["add"], "train", rng)
    seen = {right_answer(task, rng) for _ in range(400)}
    assert all(verify(task, text).ok for text in seen)
    bare, steps = final_line(task.answer), {text.rpartition("Answer:")[0] for text in seen}
    assert bare in seen and task.answer in seen and len(steps) > 10


def final_line(text: str) -> str:
    return text.rpartition("\n")[2]


def test_derailed_answers_show_what_a_model_gets_wrong() -> None:
    rng = random.Random(0)
    uppercase = Task("0", "uppercase", "instruction", "train", 0, "", "m-e-a-d-o-w -> M-E-A-D-O-W\nAnswer: MEADOW")
    seen = {derailed_instruction(uppercase.answer, "c-u-p -> C-U-P\nAnswer: CUP", rng) for _ in range(2000)}
    assert "c-u-p -> C-U-P\nAnswer: CUP" in seen
    assert "m-e-a-d-o-w -> M-E-A-D-O-W\nAnswer: CUP" in seen
    assert "Answer: CUP" not in seen
    code, other = "def get_cup(xs):\n    return sum(xs)", "def old(data):\n    return max(data)"
    seen = {derailed_code(code, other, rng) for _ in range(2000)}
    assert "def get_cup(xs):\n    return max(xs)" in seen
    assert "def get(xs):\n    return sum(xs)" in seen
    assert any(text.startswith("def get_cu") and text.endswith("return sum(xs)") for text in seen)


def test_wrong_answers_stay_on_their_side_of_the_split() -> None:
    family, rng = FAMILIES["code_where_chars"], random.Random(0)
    answers = [near_answer(family, "c.isdigit() not", rng, held_out=False) for _ in range(300)]
    assert any("c.isdigit()" in text for text in answers)
    assert not any("not c.isdigit()" in text for text in answers)
    assert any("not c.isdigit()" in near_answer(family, "not", rng, held_out=True) for _ in range(100))

"""Each kind of job on a scripted teacher: which rows come out, and why the others do not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest

from distill.generate.preference import judged_pairs
from distill.judge.pairwise import Judgement
from distill.tasks.registry import sample_tasks
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, Respond, completion, error

TASKS = {"source": "tasks", "kinds": ["instruction"], "families": ["add", "reverse_word"], "count": 12, "seed": 3}
ANSWERS = {
    task.prompt: task
    for task in sample_tasks(kinds=("instruction",), families=("add", "reverse_word"), split="train", count=12, seed=3)
}


def question(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def reasons(project: Project, job: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in project.rejected(job):
        found[row["reason"]] = found.get(row["reason"], 0) + 1
    return found


def test_instruction_rows_and_their_provenance(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["a?", "b?"]), "system": "Be brief."}
    with MockTeacher(lambda body, n: completion(question(body).upper())) as mock:
        recipe = project.recipe(mock.base_url, job, price={"input": 1.0, "output": 2.0})
        printed = project.run(recipe)
        rows = project.data("inst")
        assert [row["messages"] for row in rows] == [
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": text.upper()},
            ]
            for text in ("a?", "b?")
        ]
        row = rows[0]
        assert (row["teacher"], row["method"], row["verdict"]) == ("mock", "instruction:all", "unchecked")
        assert (row["prompt_tokens"], row["completion_tokens"]) == (10, 5)
        assert row["cost_usd"] == pytest.approx(20e-6)
        assert len(row["request_hash"]) == 64 and row["created_at"] > 1.7e9
        metrics = project.manifest("inst")["metrics"]
        assert (metrics["prompts"], metrics["rows"], metrics["requests_sent"], metrics["from_ledger"]) == (2, 2, 2, 0)
        assert metrics["cost_usd"] == pytest.approx(40e-6)
        assert "2 rows of 2 prompts" in printed
        assert "done before" in project.run(recipe)


def test_bad_answers_are_dropped_with_their_reasons(project: Project) -> None:
    replies: dict[str, Reply] = {
        "good": completion("fine"),
        "long": completion("never end", finish_reason="length"),
        "none": completion(None),
        "blank": completion(" \n"),
        "no": completion(None, refusal="I will not"),
        "filtered": completion("half", finish_reason="content_filter"),
    }
    texts = [*replies, "GOOD ", " ", "good"]
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(texts), "samples": 2}
    with MockTeacher(lambda body, n: replies[question(body)]) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["messages"][-1]["content"] for row in project.data("inst")] == ["fine"]
    assert reasons(project, "inst") == {
        "duplicate_answer": 1,
        "truncated": 2,
        "empty": 4,
        "refused": 4,
        "duplicate_prompt": 2,
        "empty_prompt": 1,
    }


@pytest.mark.parametrize("policy", ["drop", "keep", "retry"])
def test_unusable_answers_follow_the_policy_and_are_never_paid_twice(policy: str, project: Project) -> None:
    """`cured` is an answer at its second try; the others never are. A second making asks nothing."""
    bad = {
        "cured": completion("half", finish_reason="length"),
        "long": completion("half of it", finish_reason="length"),
        "no": completion(None, refusal="I will not"),
        "blank": completion(" "),
    }
    asked: Counter[str] = Counter()

    def respond(body: Body, number: int) -> Reply:
        text = question(body)
        asked[text] += 1
        return completion("fine") if text == "good" or (text == "cured" and asked[text] == 2) else bad[text]

    unusable = {"truncated": policy, "refused": policy, "empty": policy}
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(["good", *bad]), "unusable": unusable}
    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job)
        project.run(recipe)
        first = project.manifest("inst")
        (project.path / "runs/test/generate-inst/manifest.json").unlink()
        project.run(recipe)
        assert project.manifest("inst")["outputs"] == first["outputs"]
    answers = [row["messages"][-1]["content"] for row in project.data("inst")]
    dropped = {"truncated": 2, "refused": 1, "empty": 1}
    if policy == "drop":
        assert answers == ["fine"] and first["metrics"]["dropped"] == dropped and sum(asked.values()) == 5
    elif policy == "keep":
        assert answers == ["fine", "half", "half of it", "I will not", " "] and not first["metrics"]["dropped"]
        assert first["metrics"]["counts"] == {"truncated_kept": 2, "refused_kept": 1, "empty_kept": 1}
    else:
        assert answers == ["fine", "fine"]
        assert asked == {"good": 1, "cured": 2, "long": 3, "no": 3, "blank": 3}
        retried = {"truncated_retried": 3, "refused_retried": 2, "empty_retried": 2}
        assert first["metrics"]["dropped"] == {**dropped, "truncated": 1, **retried}
        assert first["metrics"]["answers"] == 12  # all of them were paid for


def test_verified_keeps_right_answers_only(project: Project) -> None:
    """Sample 0 of `add` is right, sample 1 wrong; `reverse_word` is always wrong."""
    asked: dict[str, int] = {}

    def respond(body: Body, number: int) -> Reply:
        task = ANSWERS[question(body)]
        asked[task.id] = asked.get(task.id, 0) + 1
        right = task.family == "add" and asked[task.id] == 1
        return completion(task.answer if right else f"Answer: wrong {asked[task.id]}")

    common = {"kind": "instruction", "prompts": TASKS, "samples": 2}
    jobs = [{"name": "verified", "keep": "verified", **common}, {"name": "all", **common}]
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, *jobs))
        assert len(mock.requests) == 24  # the second job finds everything in the ledger
    rows = project.data("verified")
    assert [(row["family"], row["verdict"]) for row in rows] == [("add", "right")] * 6
    assert all(ANSWERS[row["messages"][0]["content"]].id == row["seed_row"] for row in rows)
    assert reasons(project, "verified") == {"wrong": 18}
    assert sorted(row["verdict"] for row in project.data("all")) == ["right"] * 6 + ["wrong"] * 18
    assert project.manifest("all")["metrics"]["requests_sent"] == 0


def test_preference_by_verifier(project: Project) -> None:
    job = {"name": "pref", "kind": "preference", "prompts": TASKS, "samples": 4, "rank": "verifier"}
    answers: dict[str, int] = {}

    def respond(body: Body, number: int) -> Reply:
        text = question(body)
        answers[text] = answers.get(text, 0) + 1
        task, nth = ANSWERS[text], answers[text]
        group = list(ANSWERS).index(text) % 3
        right = group == 0 or (group == 2 and nth == 2)
        return completion(f"Try {nth}.\n{task.answer}" if right else f"Answer: no {nth}")

    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    rows = project.data("pref")
    assert len(rows) == 4 and reasons(project, "pref") == {"all_right": 4, "all_wrong": 4}
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert row["chosen"][0]["content"].startswith("Try 2.")
        assert row["rejected"][0]["content"] == "Answer: no 1"
        assert (row["chosen_score"], row["rejected_score"]) == (1.0, 0.0)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (40, 20)  # of all four samples


@pytest.fixture
def judging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's form has its own tests: here a question is `a|b` and a judgement is one letter."""

    def parse(text: str) -> Judgement | None:
        return Judgement(5, 1, "A") if text == "A" else Judgement(1, 5, "B") if text == "B" else None

    monkeypatch.setattr("distill.generate.preference.render", lambda question, a, b: f"{a}|{b}")
    monkeypatch.setattr("distill.generate.preference.parse", parse)


def judge_by(better: Callable[[str, str], str]) -> Respond:
    """A teacher that answers `s1`, `s2` ... and judges two answers by `better`."""
    drawn = 0

    def respond(body: Body, number: int) -> Reply:
        nonlocal drawn
        first, bar, second = question(body).partition("|")
        if not bar:
            drawn += 1
            return completion(f"s{drawn}")
        assert body["temperature"] == 0
        return completion(better(first, second))

    return respond


def test_preference_by_judge_takes_best_and_worst(project: Project, judging: None) -> None:
    job = {"name": "pref", "kind": "preference", "prompts": project.prompts(["q"]), "samples": 4}
    with MockTeacher(judge_by(lambda a, b: "A" if a > b else "B")) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
        assert len(mock.requests) == 4 + 2 * 6
    (row,) = project.data("pref")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("s4", "s1")
    assert (row["chosen_score"], row["rejected_score"]) == (1.0, -1.0)
    counts = project.manifest("pref")["metrics"]["counts"]
    assert counts["pairs_judged"] == 6 and "judge_flips" not in counts


@pytest.mark.parametrize(("choice", "count"), [("A", "judge_flips"), ("both are lovely", "judge_unreadable")])
def test_a_judge_that_flips_or_rambles_decides_nothing(
    choice: str, count: str, project: Project, judging: None
) -> None:
    """On the first prompt's answers s1 to s3 it misbehaves, on the second's it is sane."""
    job = {"name": "pref", "kind": "preference", "prompts": project.prompts(["q", "r"]), "samples": 3}
    sane = {"s4", "s5", "s6"}
    with MockTeacher(judge_by(lambda a, b: choice if a not in sane else "A" if a > b else "B")) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    assert [row["chosen"][0]["content"] for row in project.data("pref")] == ["s6"]
    assert reasons(project, "pref") == {"no_consistent_preference": 1}
    assert project.manifest("pref")["metrics"]["counts"][count] == 3


def test_who_meets_whom() -> None:
    assert judged_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert len(judged_pairs(4)) == 6
    assert judged_pairs(6) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]


CODE_ROWS = [
    {"prompt": "double", "entry_point": "f", "tests": ["assert f(2) == 4"], "id": "d"},
    {"prompt": "wrong", "entry_point": "f", "tests": ["assert f(2) == 5"]},
    {"prompt": "other", "entry_point": "g", "tests": ["assert g(2) == 4"]},
    {"prompt": "untested"},
]
FENCED = "Use this:\n```python\nx = 1\n```\nor\n```python\ndef f(n):\n    return 2 * n\n```\nDone."


def test_code_is_kept_when_its_tests_pass(project: Project, sandbox: list[int]) -> None:
    job = {"name": "code", "kind": "code", "prompts": project.prompts(CODE_ROWS)}
    with MockTeacher(lambda body, n: completion(FENCED)) as mock:
        project.run(project.recipe(mock.base_url, job))
        assert len(mock.requests) == 3  # nothing is asked that could not be judged
    (row,) = project.data("code")
    assert row["messages"][-1]["content"] == FENCED
    assert (row["entry_point"], row["tests"], row["verdict"]) == ("f", ["assert f(2) == 4"], "passed")
    assert row["seed_row"] == "d"
    assert reasons(project, "code") == {"tests_failed": 2, "no_tests": 1}
    assert sum(sandbox) == 3


def test_code_in_the_real_sandbox(project: Project) -> None:
    """The task families' own answers pass, an empty one does not; `none` so that the test needs no bubblewrap."""
    section = {"source": "tasks", "kinds": ["code"], "count": 12, "seed": 1}
    tasks = {task.prompt: task for task in sample_tasks(kinds=("code",), split="train", count=12, seed=1)}
    wrong = next(iter(tasks))

    def respond(body: Body, number: int) -> Reply:
        task = tasks[question(body)]
        return completion(f"def {task.entry_point}(*args): pass" if task.prompt == wrong else task.answer)

    job = {"name": "code", "kind": "code", "prompts": section, "isolation": "none"}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert len(project.data("code")) == 11
    assert all(row["verdict"] == "passed" and row["tests"] and row["family"] for row in project.data("code"))
    assert [row["prompt"][0]["content"] for row in project.rejected("code")] == [wrong]


def test_without_a_sandbox_nothing_is_asked(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job = {"name": "code", "kind": "code", "prompts": project.prompts(CODE_ROWS)}
    with MockTeacher() as mock:
        assert "bubblewrap" in str(project.run_badly(project.recipe(mock.base_url, job)))
        assert not mock.requests


def test_code_kept_unrun(project: Project, sandbox: list[int]) -> None:
    job = {"name": "code", "kind": "code", "prompts": project.prompts(CODE_ROWS), "verdict": "none"}
    with MockTeacher(lambda body, n: completion(FENCED)) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["verdict"] for row in project.data("code")] == ["unrun"] * 4 and not sandbox


def test_code_that_teaches(project: Project, sandbox: list[int]) -> None:
    opinions = {"f1": "Yes.", "f2": "no", "f3": "Yes and no", "f4": " **yes**"}

    def respond(body: Body, number: int) -> Reply:
        text = question(body)
        if text in opinions:
            return completion(f"def {text}(): return 1")
        name = re.search(r"def (\w+)", text)
        assert name is not None and "educational value" in text
        return completion(opinions[name[1]])

    rows = [{"prompt": name, "entry_point": name, "tests": [f"assert {name}() == 1"]} for name in opinions]
    job = {"name": "code", "kind": "code", "prompts": project.prompts(rows), "educational": True}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["entry_point"] for row in project.data("code")] == ["f1", "f4"]
    assert project.data("code")[0]["prompt_tokens"] == 20  # the question about it is paid for too
    assert reasons(project, "code") == {"not_educational": 1, "educational_unclear": 1}


def test_failed_rows_are_recorded_and_the_exit_code_says_partial(project: Project) -> None:
    """Nine of a hundred prompts are refused for good: 91 rows, one try for each bad one, and it stays that way."""
    texts = [f"{'bad' if i % 11 == 5 else 'good'} {i}" for i in range(100)]
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts(texts)}

    def respond(body: Body, number: int) -> Reply:
        return error(400, "too long") if question(body).startswith("bad") else completion("x")

    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job)
        failure = project.run_badly(recipe)
        assert failure.exit_code == 3 and "9 requests failed (100 prompts)" in str(failure)
        assert len(mock.requests) == 100 and len(project.data("inst")) == 91
        assert {row["detail"].rsplit(": ", 1)[-1] for row in project.rejected("inst")} == {"too long"}
        assert "done before" in project.run(recipe)


def test_failures_that_may_pass_are_asked_again(project: Project) -> None:
    job = {"name": "inst", "kind": "instruction", "prompts": project.prompts([f"q{i}" for i in range(30)])}
    sick = True

    def respond(body: Body, number: int) -> Reply:
        return error(500, "oops") if sick and question(body) == "q7" else completion(question(body))

    with MockTeacher(respond) as mock:
        recipe = project.recipe(mock.base_url, job, max_attempts=1)
        assert project.run_badly(recipe).exit_code == 3
        assert len(project.data("inst")) == 29
        sick = False
        project.run(recipe)
        assert [row["messages"][1]["content"] for row in project.data("inst")] == [f"q{i}" for i in range(30)]
        assert len(mock.requests) == 31

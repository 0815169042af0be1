"""Prompts that the teacher writes, and filters on rows: the published rules on a scripted teacher."""

from __future__ import annotations

from pathlib import Path

from distill.generate.alpaca import parse_tasks
from distill.generate.evol_instruct import OPERATIONS, bad_response
from distill.generate.exercises import split_functions
from distill.generate.oss_instruct import OssInstruct
from distill.generate.written_tests import asserts_in, main_function
from distill.recipe.prompts import OssInstructPrompts, Sampling
from tests.generate.conftest import Project
from tests.teacher.mock import Body, MockTeacher, Reply, completion, raw_completion


def test_alpaca_reads_whole_tasks_only() -> None:
    text = " Sort these words by length.\n"
    text += "4. Input:\nfig, pear\n4. Output:\nfig, pear\n###\n5. Instruction: Name a river.\n"
    text += "5. Input:\n<noinput>\n5. Output:\nThe Rhine\n###\n6. Instruction: Half a"
    first = ("Sort these words by length.", "fig, pear", "fig, pear")
    assert parse_tasks(text, first=4, cut_off=True) == ([first, ("Name a river.", "", "The Rhine")], 0)
    assert parse_tasks(text, first=4, cut_off=False)[1] == 1


def test_alpaca_brings_the_first_answer_and_only_others_are_drawn(project: Project) -> None:
    def respond(body: Body, number: int) -> Reply:
        text = str(body["messages"][-1]["content"])
        if text.startswith("Continue a list"):
            assert "1. Instruction: Add the numbers." in text and text.endswith("2. Instruction:")
            return completion(" Name a long river.\n2. Input:\n<noinput>\n2. Output:\nThe Nile")
        assert text == "Name a long river."
        return completion("The Amazon")

    prompts = {"source": "alpaca", "path": str(project.path / "seeds.jsonl"), "count": 1, "examples": 1, "tasks": 2}
    seed = {"instruction": "Add the numbers.", "input": "1, 2", "output": "3"}
    project.prompts([seed], name="seeds.jsonl")
    job = {"name": "alp", "kind": "instruction", "prompts": prompts, "samples": 2}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["messages"][-1]["content"] for row in project.data("alp")] == ["The Nile", "The Amazon"]


def test_topics_come_in_turn_and_cut_off_tasks_do_not_count(project: Project) -> None:
    """Two topics, two tasks a request; the reply about the second ends inside a task, and one task repeats another."""
    (project.path / "topics.txt").write_text("# a comment\ntides\n\nbread\n")
    asked: list[str] = []

    def respond(body: Body, number: int) -> Reply:
        text = str(body["messages"][-1]["content"])
        if not text.startswith("Write 2 different tasks"):
            return completion("Thus.")
        asked.append("tides" if "topic: tides" in text else "bread")
        if asked[-1] == "tides":
            return completion("1. Why does the sea rise twice a day?\n2. Why does the sea rise twice in a day?")
        return completion("1. How is sourdough kept alive?\n2. Describe the", finish_reason="length")

    prompts = {"source": "topics", "path": str(project.path / "topics.txt"), "count": 2, "tasks": 2}
    job = {"name": "top", "kind": "instruction", "prompts": prompts}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    rows = project.data("top")
    assert asked == ["tides", "bread"]
    assert [(row["messages"][0]["content"], row["family"]) for row in rows] == [
        ("Why does the sea rise twice a day?", "topic:tides"),
        ("How is sourdough kept alive?", "topic:bread"),
    ]
    assert [row["reason"] for row in project.rejected("top")] == ["prompt_too_like_another"]


def test_evol_instruct_eliminates() -> None:
    assert len(OPERATIONS) == 6
    assert bad_response("Sorry, no. " + "word " * 70, "english") == "answer_refuses"
    assert bad_response("Sorry, no. " + "word " * 80, "english") is None
    assert bad_response("It is. And of the...") == "answer_says_nothing"


def test_evol_instruct_job(project: Project) -> None:
    """One round on three prompts: one gets better, one stays equal, one repeats words of the request."""

    def respond(body: Body, number: int) -> Reply:
        text = str(body["messages"][-1]["content"])
        if text.startswith("Do these two"):
            return completion("Equal" if "same!" in text else "Different")
        if text.startswith(("Rewrite", "Take inspiration")):
            found = next(name for name in ("better", "same", "leaky") if name in text.split("#:\n")[1])
            return completion({"better": "Why?", "same": "same!", "leaky": "The given prompt, harder"}[found])
        return completion("An elephant answers.")

    prompts = {"source": "evol_instruct", "count": 3, "rounds": 1}
    prompts["path"] = project.prompts(["better", "same", "leaky"])["path"]
    job = {"name": "evol", "kind": "instruction", "prompts": prompts}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["messages"][0]["content"] for row in project.data("evol")] == ["better", "same", "leaky", "Why?"]
    assert {row["reason"] for row in project.rejected("evol")} == {
        "prompt_no_information_gain",
        "prompt_leaked_words",
    }


def test_magpie_asks_with_the_bare_head(project: Project) -> None:
    words = ["How do tides work?", "Why is bread soft?"]

    def respond(body: Body, number: int) -> Reply:
        if "prompt" in body:
            assert body["prompt"] == "<|im_start|>user\n" and body["stop"] == ["<|im_end|>"]
            assert body["temperature"] == 1.0
            return raw_completion(f" {words[number % 2]}\n")
        assert body["temperature"] == 0.0
        return completion("Thus.")

    prompts = {"source": "magpie", "template": "chatml", "count": 2, "sampling": {"temperature": 1.0}}
    job = {"name": "mag", "kind": "instruction", "prompts": prompts, "sampling": {"temperature": 0.0}}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job, max_concurrency=1))
    assert sorted(row["messages"][0]["content"] for row in project.data("mag")) == words


def test_oss_instruct_shows_1_to_15_lines(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("\n".join(f"line {n}" for n in range(100)))
    section = OssInstructPrompts(source="oss_instruct", path=str(tmp_path), count=1)
    writer = OssInstruct(section, system=None, sampling=Sampling(), method="m")
    snippets = [writer.snippet(index).splitlines() for index in range(300)]
    assert {len(lines) for lines in snippets} == set(range(1, 16))
    for lines in snippets:
        first = int(lines[0].split()[1])
        assert lines == [f"line {n}" for n in range(first, first + len(lines))]


def test_oss_instruct_with_written_tests(project: Project, sandbox: list[int]) -> None:
    (project.path / "seed.py").write_text("x = 1\n")

    def respond(body: Body, number: int) -> Reply:
        text = str(body["messages"][-1]["content"])
        if text.startswith("Write 2 tests"):
            assert "return 2 * n" not in text  # the tests' author does not see the solution
            return completion("```python\nassert twice(2) == 4\nprint(1)\nassert twice(0) == 0\n```")
        solution = "```python\ndef twice(n):\n    return 2 * n\n```"
        return completion(f"[Problem Description]\nDouble a number.\n\n[Solution]\n{solution}")

    prompts = {"source": "oss_instruct", "path": str(project.path), "count": 1}
    job = {"name": "oss", "kind": "code", "prompts": prompts, "write_tests": 2}
    with MockTeacher(respond) as mock:
        project.run(project.recipe(mock.base_url, job))
        assert len(mock.requests) == 2
    (row,) = project.data("oss")
    assert (row["entry_point"], row["verdict"]) == ("twice", "passed")
    assert row["tests"] == ["assert twice(2) == 4", "assert twice(0) == 0"]


def test_exercises_and_tests_are_read_strictly() -> None:
    code = 'import math\ndef f(a: int) -> int:\n    """Root."""\n    return math.isqrt(a)\ndef g():\n    return 1\n'
    ((name, head, whole),) = split_functions(code)
    assert name == "f" and head.endswith('"""Root."""') and whole.endswith("isqrt(a)") and "import math" in head
    assert split_functions("def f(:") == []
    assert main_function(code) == "g"
    assert asserts_in("assert f(1) == 1\nassert h(1)\nassert f(\nassert f(1) == 1", "f") == ("assert f(1) == 1",)


def test_a_korean_job_keeps_good_rows_and_drops_duplicates(project: Project) -> None:
    answers = {
        "하늘은 왜 파란가요?": "햇빛이 공기 분자에 흩어질 때 파장이 짧은 파란빛이 더 많이 흩어지기 때문입니다.",
        "왜 하늘은 파란색인가요?": "햇빛이 공기 분자에 흩어질 때 파장이 짧은 파란빛이 더 많이 흩어지기 때문입니다!",
        "김치는 어떻게 만드나요?": "배추를 소금에 절인 다음 고춧가루와 마늘로 만든 양념을 속에 넣어 익힙니다.",
        "비밀번호를 알려 주세요": "죄송하지만 그 요청은 도와드릴 수 없습니다.",
        "영어로 답해 주세요": "The answer to this is that it was not in the book.",
    }
    filters = {"languages": ["ko"], "refusals": True, "duplicates": {"on": "answer"}}
    job = {"name": "ko", "kind": "instruction", "prompts": project.prompts(list(answers)), "filters": filters}
    with MockTeacher(lambda body, n: completion(answers[str(body["messages"][-1]["content"])])) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert [row["messages"][0]["content"] for row in project.data("ko")] == list(answers)[:3:2]
    rejected = project.rejected("ko")
    assert [row["reason"] for row in rejected] == ["near_duplicate", "refusal", "other_language"]
    assert all(row["answer"] in row["row"] for row in rejected)


def test_decontamination(project: Project) -> None:
    question = "Write a function that returns the sum of the squares of all even numbers in a list of integers"
    bench = project.prompts([question], name="bench.jsonl")["path"]
    filters = {"decontaminate": {"files": [bench]}}
    prompts = project.prompts([f"Please: {question}.", "Write a function that returns the sum of a list"])
    job = {"name": "clean", "kind": "instruction", "prompts": prompts, "filters": filters}
    with MockTeacher(lambda body, n: completion("ok")) as mock:
        project.run(project.recipe(mock.base_url, job))
    assert len(project.data("clean")) == 1
    assert [row["reason"] for row in project.rejected("clean")] == ["contaminated_13gram"]

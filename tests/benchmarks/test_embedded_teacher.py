"""The benchmark's counting by hand, and the shipped model cards against the results that they quote."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import judge_pairs as judging
from benchmarks.common import at_least, envelope, write_json
from benchmarks.embedded_teacher import by_family, load_engine, main, measure, rows_of
from benchmarks.judge_pairs import Pair, held_out_prompts, one_right, score
from benchmarks.model_card import measured, replace_between, shown_examples
from distill.errors import DataError
from distill.evaluate.accuracy import accuracy_metrics
from distill.evaluate.verdicts import Grader
from distill.judge.pairwise import Judgement, reply
from distill.runs import file_digest
from distill.tasks.registry import sample_tasks
from distill.tasks.types import Task

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/embedded-teacher_cpu_2026-11-25.json"


def _task(number: int = 1, kind: Any = "instruction") -> Task:
    return Task(f"{number:016x}", "add", kind, "values", 0, f"What is {number} + 1?", f"Answer: {number + 1}")


def _row(family: str, kind: str, split: str, ok: bool) -> dict[str, Any]:
    return {"family": family, "kind": kind, "split": split, "ok": ok, "finish": "stop", "tokens": 3}


def _rows(right_values: int) -> list[dict[str, Any]]:
    """Of each family 20 tasks a split, all right but `add`'s on values."""
    families = (("add", "instruction"), ("code_map", "code"), ("judge", "judge"))
    return [
        _row(family, kind, split, not (family == "add" and split == "values" and i >= right_values))
        for family, kind in families
        for split in ("values", "phrasings")
        for i in range(20)
    ]


def _choice(better: Any) -> str:
    grades = {"A": (5, 2), "B": (2, 5)}[better]
    return reply("Answer: 2", " 2 right", " 3 wrong", Judgement(*grades, better=better))


@pytest.mark.parametrize(("right", "family_ok"), [(16, True), (15, False)])
def test_bars_and_the_weakest_family(right: int, family_ok: bool) -> None:
    rows = _rows(right)
    found = {row.name: row for row in rows_of(accuracy_metrics(rows), by_family(rows), None)}
    assert found["instruction/values"].value == right / 20
    assert found["instruction/values"].ok is False
    assert found["instruction/phrasings"].ok is True
    assert found["code/values"].value == 1.0
    weakest = found[f"weakest family on values: add ({right} of 20)"]
    assert (weakest.value, weakest.bar, weakest.ok) == (right / 20, 0.80, family_ok)


def test_a_family_with_few_tasks_has_no_verdict() -> None:
    rows = _rows(0)[::10]  # two a family and split
    found = rows_of(accuracy_metrics(rows), by_family(rows), None)
    assert [row.ok for row in found if row.name.startswith("weakest")] == [None]


def test_a_pair_has_exactly_one_right_answer() -> None:
    tasks = [_task(number) for number in range(1, 5)]
    right = [task.answer for task in tasks]
    pairs = one_right(
        tasks, [right[0], right[1], "Answer: 0", "no"], [right[0], "Answer: 9", right[2], "no"], _grader()
    )
    assert [(pair.task.id, pair.right, pair.wrong, pair.first_right) for pair in pairs] == [
        (tasks[1].id, right[1], "Answer: 9", True),
        (tasks[2].id, right[2], "Answer: 0", False),
    ]


def test_agreement_counts_both_orders_and_unreadable_replies() -> None:
    pairs = [Pair(_task(i), "Answer: 2", "Answer: 3", first_right=i < 2) for i in range(3)]
    # right, right | always A: right, wrong | unreadable, right
    replies = [_choice("A"), _choice("B"), _choice("A"), _choice("A"), "Better: A", _choice("B")]
    found = score(pairs, replies, prompts=10, student=None)
    assert (found.agreed, found.judgements, found.agreement) == (4, 6, 4 / 6)
    assert (found.unreadable, found.same_choice, found.teacher_right) == (1, 1, 2)
    assert found.by_order["A"]["correct"] == 2 and found.by_order["B"]["correct"] == 2
    assert found.low < 2 / 3 < found.high


def test_prompts_for_pairs_are_held_out_and_mixed() -> None:
    prompts = held_out_prompts()
    first = [next(prompts) for _ in range(8)]
    assert [(task.kind, task.split) for task in first[:4]] == list(judging._CELLS)
    assert all(task.split != "train" for task in first)


def test_who_gave_the_second_answer(tmp_path: Path) -> None:
    model = tmp_path / "train-kd" / "model"
    model.mkdir(parents=True)
    assert str(tmp_path) not in judging.describe_second(model)
    (model.parent / "manifest.json").write_text(json.dumps({"recipe": {"name": "demo"}, "variant": "kd"}))
    assert "recipe `demo` (after `kd`)" in judging.describe_second(model)
    assert judging.describe_second(None) == "the teacher at temperature 1.5"


def test_the_envelope_has_every_key(tmp_path: Path) -> None:
    result = envelope(what="w", command="c", rows=[at_least("n", 0.8, 0.85)], details={})
    write_json(tmp_path / "deep" / "r.json", result)
    read = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert {"hardware", "versions", "commit", "rows"} <= set(read)
    row = {
        "name": "n",
        "value": 0.8,
        "unit": "share",
        "peer": None,
        "ratio": None,
        "floor": None,
        "bar": 0.85,
        "ok": False,
    }
    assert read["rows"] == [row]


def test_markers_are_replaced_and_required() -> None:
    text = "a\n<!-- m:begin -->\nold\n<!-- m:end -->\nb"
    assert replace_between(text, "m", r"new \1", Path("c")) == "a\n<!-- m:begin -->\nnew \\1\n<!-- m:end -->\nb"
    with pytest.raises(DataError, match="markers"):
        replace_between("no markers", "m", "new", Path("c"))


def test_a_missing_model_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 1
    assert "no model folder" in capsys.readouterr().out


def test_the_shipped_teacher_solves_held_out_tasks() -> None:
    tasks = list(sample_tasks(families=("keep_even", "topic", "hours_to_minutes"), split="values", count=9, seed=1))
    rows = measure(load_engine(ROOT / "data/teacher"), _grader(), tasks)
    assert sum(row["ok"] for row in rows) >= 8


def test_the_cards_quote_the_committed_result_of_the_committed_weights() -> None:
    result = json.loads(RESULT.read_text())
    card = (ROOT / "data/teacher/README.md").read_text()
    assert measured(result) in card and shown_examples(result) in card
    assert result["details"]["weights"] == file_digest(ROOT / "data/teacher/model.safetensors")
    for name in ("teacher", "student-base"):
        kind = "embedded-teacher" if name == "teacher" else name
        training = json.loads((ROOT / f"benchmarks/results/{kind}-training_h100_2026-11-25.json").read_text())
        text = (ROOT / "data" / name / "README.md").read_text()
        assert training["weights"] == file_digest(ROOT / "data" / name / "model.safetensors")
        assert f"{training['metrics']['seconds']:.0f} s" in text.replace("\n", " ")
        assert len(text.split("measured:begin -->")[1].split("<!-- measured:end")[0].strip()) > 100


def _grader() -> Grader:
    return Grader("bubblewrap")

"""What the comparison of depth cuts rests on: which tokens count, whose layers a student has, what a rule keeps."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.student_depth import Remembered, choices, kl_after, spearman, student_of, summary
from benchmarks.student_init import heal
from benchmarks.student_init_text import answers
from distill.model.structure import without
from tests.model import tiny


def test_labels_are_what_follows_the_assistant_to_the_end() -> None:
    ask, end = 7, 9
    ids = torch.tensor([[4, 9, 1, 5, 7, 3, 2, 9, 1, 5], [7, 3, 7, 9, 9, 7, 7, 4, 4, 4]])
    assert answers(ask, end)(ids).tolist() == [
        [-100, -100, -100, -100, 3, 2, 9, -100, -100],
        [3, 7, 9, -100, -100, 7, 4, 4, 4],
    ]


@pytest.mark.parametrize("layers", [(0, 2, 4), (1, 3), (4,)])
def test_a_student_is_the_teacher_without_the_other_layers(layers: tuple[int, ...]) -> None:
    teacher = tiny.model(layers=5)
    student = student_of(teacher, layers)
    with without(teacher, set(range(5)) - set(layers)):
        torch.testing.assert_close(tiny.logits(student), tiny.logits(teacher), rtol=0, atol=0)
    student.model.embed_tokens.weight.data.zero_()
    assert teacher.model.embed_tokens.weight.any() and len(teacher.model.layers) == 5


def test_rules_keep_as_many_layers_as_asked_and_the_ends_where_they_say_so() -> None:
    teacher = tiny.model(layers=5)
    for keep in (1, 2, 3):
        found = choices(teacher, keep, tiny.batches())
        assert all(len(set(layers)) == keep and list(layers) == sorted(layers) for layers in found.values())
        assert keep == 1 or all((layers[0], layers[-1]) == (0, 4) for name, layers in found.items() if "stay" in name)
    assert found["the first ones"] == (0, 1, 2)


def test_hidden_states_are_computed_once_a_batch() -> None:
    asked = []

    class Teacher:
        def base_model(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
            asked.append(input_ids.tolist())
            return SimpleNamespace(last_hidden_state=input_ids * 2)

    remembered = Remembered(Teacher())
    first, second = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
    for ids in (first, second, first.clone()):
        out = remembered.base_model(input_ids=ids, use_cache=False)
        assert out.last_hidden_state.tolist() == (ids * 2).tolist()
    assert asked == [[[1, 2]], [[3, 4]]]


def test_a_batch_without_an_answer_changes_nothing() -> None:
    teacher, student = tiny.model(layers=3), tiny.model(layers=2)
    before = tiny.logits(student)
    options = argparse.Namespace(steps=1, rows=2)
    labels = answers(assistant=1, end=2)
    heal(student, teacher, tiny.IDS, options, rate=1e-2, seed=0, labels=labels)
    torch.testing.assert_close(tiny.logits(student), before, rtol=0, atol=0)


def test_a_rule_is_held_against_the_best_set_that_was_healed() -> None:
    runs: list[dict[str, Any]] = [
        {"layers": [0, 2], "before": {"kl": 1.0}, "after": {"9": [{"kl": 0.5}, {"kl": 0.7}]}},
        {"layers": [0, 1], "before": {"kl": 2.0}, "after": {"9": [{"kl": 0.3}, {"kl": 0.5}]}},
    ]
    assert kl_after(runs[0], 9) == pytest.approx(0.6)
    before, after = summary(2, {"a": (0, 2), "not healed": (1, 2)}, runs, [9])
    assert (before.value, before.ratio) == (1.0, None)
    assert after.value == pytest.approx(0.6) and after.peer == pytest.approx(0.4) and after.ratio == pytest.approx(1.5)


def test_rank_correlation() -> None:
    assert spearman([1.0, 5.0, 9.0], [2.0, 3.0, 4.0]) == pytest.approx(1)
    assert spearman([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]) == pytest.approx(1 - 6 * 4 / (4 * 15))

"""Sampling: splits, determinism, balance, uniqueness, speed; verdicts."""

import itertools
import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from distill.errors import DistillError
from distill.tasks import registry
from distill.tasks.phrasing import expand
from distill.tasks.registry import FAMILIES, family_names, sample_tasks, training_stream, verify
from distill.tasks.split import draw_in_split, is_held_out
from distill.tasks.types import Split

SPLITS: tuple[Split, ...] = ("train", "values", "phrasings")


def test_is_held_out_is_the_published_rule() -> None:
    from hashlib import sha256

    for key in ("1+2", "lemon", ""):
        assert is_held_out("add", key) == (int(sha256(f"add{key}".encode()).hexdigest()[:8], 16) % 8 == 0)
    share = sum(is_held_out("add", str(i)) for i in range(8000)) / 8000
    assert 0.11 < share < 0.14


def test_same_seed_same_tasks_and_other_seed_others() -> None:
    first = list(sample_tasks(split="values", count=300, seed=1))
    assert first == list(sample_tasks(split="values", count=300, seed=1))
    assert {task.id for task in first}.isdisjoint(task.id for task in sample_tasks(split="values", count=50, seed=2))


def test_balanced_and_unique() -> None:
    count = 5 * len(FAMILIES)
    for split in SPLITS:
        tasks = list(sample_tasks(split=split, count=count, seed=3))
        assert set(Counter(task.family for task in tasks).values()) == {5}
        assert len({task.prompt for task in tasks}) == count
        assert all(len(task.id) == 16 and task.split == split for task in tasks)


def test_kinds_and_families_are_respected() -> None:
    tasks = list(sample_tasks(kinds=("code",), split="train", count=100, seed=0))
    assert {task.kind for task in tasks} == {"code"} and all(task.tests and task.entry_point for task in tasks)
    tasks = list(sample_tasks(families=("add", "topic"), split="train", count=10, seed=0))
    assert [task.family for task in tasks] == ["add", "topic"] * 5
    with pytest.raises(DistillError, match="unknown task families: nothing"):
        next(sample_tasks(families=("nothing",), split="train", count=1, seed=0))


def test_splits_are_disjoint() -> None:
    by_split = {
        split: list(sample_tasks(kinds=("instruction", "code"), split=split, count=3000, seed=5)) for split in SPLITS
    }
    prompts = {split: {task.prompt for task in tasks} for split, tasks in by_split.items()}
    for left, right in itertools.combinations(SPLITS, 2):
        assert prompts[left].isdisjoint(prompts[right])


def test_draws_fall_on_the_wanted_side() -> None:
    rng = random.Random(0)
    for family in FAMILIES.values():
        if family.kind == "judge":
            continue
        for held_out in (True, False):
            draw = draw_in_split(family, rng, held_out=held_out)
            assert is_held_out(family.name, draw.held_out_key) == held_out


def test_held_out_templates_are_not_training_templates() -> None:
    rng = random.Random(0)
    for family in FAMILIES.values():
        assert len(family.phrasings) >= 15 and len(family.held_out_phrasings) >= 4, family.name
        held_out = {expand(template, rng).lower() for template in family.held_out_phrasings for _ in range(20)}
        training = {expand(template, rng).lower() for template in family.phrasings for _ in range(50)}
        assert held_out.isdisjoint(training)


def test_references_verify_and_changed_answers_fail() -> None:
    for split in SPLITS:
        for task in sample_tasks(kinds=("instruction", "judge"), split=split, count=400, seed=7):
            assert verify(task, task.answer).ok, task
            if task.kind == "instruction":
                assert not verify(task, task.answer + "x").ok
                assert verify(task, task.answer.replace("Answer:", "So:")).reason == "no line `Answer:`"
                assert verify(task, "I think: " + task.answer + " \n").ok


def test_code_is_not_verified_here() -> None:
    task = next(sample_tasks(kinds=("code",), split="train", count=1, seed=0))
    with pytest.raises(DistillError, match="sandbox"):
        verify(task, task.answer)


def test_judge_verdicts() -> None:
    task = next(sample_tasks(kinds=("judge",), split="train", count=1, seed=0))
    other = {"A": "B", "B": "A"}[task.answer[-1]]
    swapped = task.answer.replace("Grade A", "Grade C").replace("Grade B", "Grade A").replace("Grade C", "Grade B")
    lines = swapped.split("\n")
    lines[-3], lines[-2] = lines[-2], lines[-3]
    assert not verify(task, "\n".join([*lines[:-1], f"Better: {other}"])).ok
    assert verify(task, "Better: A").reason == "not in the form of a judgement"
    assert verify(replace(task, prompt="?"), task.answer).ok


def test_training_stream_shards() -> None:
    def take(shard: int) -> list[str]:
        return [task.id for task in itertools.islice(training_stream(1, shard, 2), 200)]

    assert take(0) == take(0)
    assert set(take(0)).isdisjoint(take(1)) or len(set(take(0)) & set(take(1))) < 3
    kinds = Counter(task.kind for task in itertools.islice(training_stream(2), 4000))
    for kind, share in registry.KIND_SHARES.items():
        assert abs(kinds[kind] / 4000 - share) < 0.04
    assert all(task.split == "train" for task in itertools.islice(training_stream(3), 100))
    with pytest.raises(DistillError, match="shard 2 of 2"):
        next(training_stream(1, 2, 2))


def test_weights_name_families() -> None:
    assert set(registry.TRAINING_WEIGHTS) <= set(family_names())


def test_used_up_families_drop_out() -> None:
    small = list(sample_tasks(families=("add",), split="values", count=40, seed=0))
    assert len(small) == len({task.id for task in small}) == 40


def test_speed() -> None:
    stream = training_stream(0)
    next(stream)
    start = time.perf_counter()
    for _ in itertools.islice(stream, 2000):
        pass
    assert (time.perf_counter() - start) / 2000 < 1e-3  # usually below 0.1 ms

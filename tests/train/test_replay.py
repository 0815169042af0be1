"""The replay buffer: bounded, drawn from as documented, the same for any number of processes, whole in checkpoints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from distill.engine.runner import Engine
from distill.errors import DistillError
from distill.recipe.load import load_recipe
from distill.recipe.train import OnPolicyEntry, Replay, Rollout
from distill.runs import Run
from distill.train.batches import collator
from distill.train.checkpoints import newest_whole, problem_of
from distill.train.processes import Processes
from distill.train.replay import OwnRow, ReplayBuffer
from distill.train.rollouts import COUNTS, Rollouts
from tests.train import tiny
from tests.train.test_rollouts import answered, batches_of, shake, student, train, world  # noqa: F401

STEPS = 4000


def entry_of(*, batch_size: int = 4, micro_batch_size: int = 2, seed: int = 0, **replay: Any) -> OnPolicyEntry:
    return OnPolicyEntry(
        name="o",
        objective="on_policy",
        data=("x.parquet",),
        max_length=256,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        seed=seed,
        rollout=Rollout(max_new_tokens=9, replay=Replay(**replay)),
    )


def buffer_of(entry: OnPolicyEntry, *, rank: int = 0, size: int = 1, steps: int = STEPS) -> ReplayBuffer:
    assert entry.rollout.replay is not None and entry.replay_problem() is None
    return ReplayBuffer(entry, entry.rollout.replay, steps=steps, processes=Processes(rank, size))


def row(name: int, step: int = 0) -> OwnRow:
    """Of a length of its own, so that rows put together wrongly would show."""
    return OwnRow(np.arange(name, 2 * name + 3, dtype=np.int32), 2, name, step)


def fill(buffer: ReplayBuffer, numbers: int, steps: int, *, rank: int = 0, size: int = 1) -> None:
    """Rows named 100 x step + 10 x place + index, two a micro-batch."""
    for step in range(steps):
        for number in range(numbers):
            place = number * size + rank
            buffer.put(number, [row(100 * step + 10 * place + index, step) for index in range(2)])


def names_in(buffer: ReplayBuffer, number: int, count: int) -> list[int]:
    return sorted(kept.name for kept in buffer.draw(number, count, 0))


def test_it_is_bounded_and_the_oldest_leave() -> None:
    """7 rows in two places: 3 each. Of steps 0, 1, 2 with two rows each the newer of step 1 and both of step 2 stay."""
    buffer = buffer_of(entry_of(rows=7))
    fill(buffer, numbers=2, steps=3)
    assert names_in(buffer, 0, 3) == [101, 200, 201]
    assert names_in(buffer, 1, 3) == [111, 210, 211]
    with pytest.raises(ValueError, match="larger than population"):
        buffer.draw(0, 4, 0)


@pytest.mark.parametrize("schedule", ["constant", "rising"])
def test_replayed_is_the_asked_share_of_steps_from_the_first_answers_on(schedule: str) -> None:
    """constant: 0.3 everywhere; rising: 0.3 t / T, a mean of 0.0375 in the first quarter and 0.2625 in the last."""
    entry = entry_of(rows=8, share=0.3, schedule=schedule)
    buffer, again = buffer_of(entry), buffer_of(entry)
    assert not any(buffer.is_due(step) for step in range(STEPS))
    fill(buffer, numbers=2, steps=1)
    fill(again, numbers=2, steps=5)
    due = [buffer.is_due(step) for step in range(STEPS)]
    assert due == [again.is_due(step) for step in range(STEPS)]
    quarter = STEPS // 4
    wanted = (0.3, 0.3) if schedule == "constant" else (0.0375, 0.2625)
    for share, part in zip(wanted, (due[:quarter], due[-quarter:]), strict=True):
        assert sum(part) / quarter == pytest.approx(share, abs=4 * (share * (1 - share) / quarter) ** 0.5)
    other = buffer_of(entry_of(rows=8, share=0.3, schedule=schedule, seed=1))
    fill(other, numbers=2, steps=1)
    assert due != [other.is_due(step) for step in range(STEPS)]


def test_with_a_rising_share_of_1_the_last_step_is_replayed() -> None:
    buffer = buffer_of(entry_of(rows=8, share=1.0, schedule="rising"), steps=7)
    fill(buffer, numbers=2, steps=1)
    assert buffer.is_due(6)


def test_every_kept_answer_is_as_likely_and_none_comes_twice_in_a_step() -> None:
    """2 of 5 are drawn in each of 4,000 steps: 1,600 of each are expected, with a deviation of 31."""
    buffer = buffer_of(entry_of(rows=10))
    fill(buffer, numbers=2, steps=3)
    counts: Counter[int] = Counter()
    for step in range(STEPS):
        drawn = [kept.name for kept in buffer.draw(0, 2, step)]
        assert len(set(drawn)) == 2
        counts.update(drawn)
    assert sorted(counts) == [1, 100, 101, 200, 201]
    assert all(abs(count - 1600) < 4 * 31 for count in counts.values())
    first, second = ([[kept.name % 10 for kept in buffer.draw(n, 2, step)] for step in range(50)] for n in (0, 1))
    assert first != second  # a place draws for itself


@pytest.mark.parametrize("size", [2, 4])
def test_processes_draw_what_one_process_draws(tmp_path: Path, size: int) -> None:
    """Also when what some wrote is read by others, in whichever number."""
    entry = entry_of(batch_size=8, rows=20)
    alone = buffer_of(entry)
    fill(alone, numbers=4, steps=4)
    several = [buffer_of(entry, rank=rank, size=size) for rank in range(size)]
    for folder in ("one", "several"):
        (tmp_path / folder).mkdir()
    alone.save(tmp_path / "one")
    for rank, buffer in enumerate(several):
        fill(buffer, numbers=4 // size, steps=4, rank=rank, size=size)
        buffer.save(tmp_path / "several")
    read = [buffer_of(entry, rank=rank, size=size) for rank in range(size)]
    joined = buffer_of(entry)
    fill(joined, numbers=4, steps=1)  # what was there before is forgotten
    joined.load(tmp_path / "several")
    for buffer in read:
        buffer.load(tmp_path / "one")
    for place in range(4):
        expected = alone.draw(place, 2, 17)
        others = [buffers[place % size].draw(place // size, 2, 17) for buffers in (several, read)]
        for found in (joined.draw(place, 2, 17), *others):
            for ours, theirs in zip(found, expected, strict=True):
                assert np.array_equal(ours.ids, theirs.ids) and ours.ids.dtype == np.int32
                assert (ours.start, ours.name, ours.step) == (theirs.start, theirs.name, theirs.step)


def test_an_empty_buffer_is_saved_and_read(tmp_path: Path) -> None:
    buffer = buffer_of(entry_of(rows=8, share=0.99))
    buffer.save(tmp_path)
    buffer.load(tmp_path)
    assert not any(buffer.is_due(step) for step in range(50))


def test_what_is_kept_is_tokens_of_4_bytes(tmp_path: Path) -> None:
    buffer = buffer_of(entry_of(rows=8))
    fill(buffer, numbers=2, steps=2)
    buffer.save(tmp_path)
    tensors = load_file(tmp_path / "replay-0.safetensors")
    assert tensors["ids"].dtype == np.int32 and len(tensors["ids"]) == tensors["lengths"].sum()
    buffer.load(tmp_path)
    assert all(kept.ids.base is None for kept in buffer.draw(0, 4, 0))  # none holds the file's whole array


def test_a_replayed_step_has_earlier_answers_and_generates_nothing(
    world: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distill.model.load import load_tokenizer

    entry = entry_of(batch_size=6, micro_batch_size=3, rows=12, share=0.5)
    model, batches = student(world), batches_of(world)
    buffer = buffer_of(entry)
    made_by = Rollouts(model, load_tokenizer(world / "teacher"), entry, rows=6, collate=collator(0), replay=buffer)
    answers: dict[int, list[list[tuple[list[int], list[int]]]]] = {}
    calls = Counter[int]()
    original = Engine.generate
    step = 0

    def watching(self: Engine, *arguments: Any, **rest: Any) -> Any:
        calls[step] += 1
        return original(self, *arguments, **rest)

    monkeypatch.setattr(Engine, "generate", watching)
    replayed = []
    for step in range(8):
        wanted = made_by.is_replayed(step)
        made = made_by(batches, step)
        assert calls[step] == (0 if wanted else 1)
        counts = dict(zip(COUNTS, made_by.take_counts().tolist(), strict=True))
        pairs = [answered([[batch]]) for batch in made]  # of each micro-batch (prompt, answer)
        assert counts["own_steps"] == 1 and counts["replayed_steps"] == wanted
        if wanted:
            replayed.append(step)
            ages = 0
            for number, micro in enumerate(pairs):
                assert len({json.dumps(pair) for pair in micro}) == 3  # none twice
                for pair in micro:
                    ages += step - max(past for past, rows in answers.items() if pair in rows[number])
            assert counts["replayed_ages"] == ages > 0 and counts["replayed_rows"] == 6
            assert counts["answers"] == counts["answer_tokens"] == counts["ended"] == 0
        else:
            answers[step] = pairs
            assert counts["answers"] == 6 and counts["replayed_rows"] == 0
        assert counts["trained_tokens"] == sum(int((batch["labels"] != -100).sum()) for batch in made)
        shake(model)
    assert replayed and len(answers) > 1


def test_training_replays_logs_it_and_seals_the_buffer(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    rollout = {"max_new_tokens": 8, "replay": {"rows": 16, "share": 0.5}}
    settings = {"objective": "on_policy", "max_steps": 8, "save_steps": 8, "micro_batch_size": 2, "rollout": rollout}
    recipe = tiny.recipe(world, settings, name="replayed")
    folder = Run(recipe).stage("train", "on_policy").path
    with tiny.stopped_after(5, monkeypatch), pytest.raises(SystemExit):
        train(recipe)
    found = newest_whole(folder / "checkpoints")
    assert found.path is not None and found.step == 5
    file = found.path / "replay-0.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert problem_of(found.path) == "replay-0.safetensors is damaged"
    file.write_bytes(whole)
    lines = train(recipe)
    assert [line["replayed"] for line in lines][0] == 0.0 and {line["replayed"] for line in lines} == {0.0, 1.0}
    for line in lines:
        assert ("replay_age" in line) == (line["replayed"] == 1.0) == ("answer_tokens" not in line)
        assert line["on_policy"] == 1.0 and (line["replayed"] == 0.0 or line["replay_age"] >= 1.0)


def test_an_unfinite_loss_of_replayed_rows_names_no_rows_of_the_dataset(
    world: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = ReplayBuffer.draw

    def spoil(self: ReplayBuffer, *arguments: Any) -> list[OwnRow]:
        model.model.norm.weight.data.fill_(float("nan"))
        return original(self, *arguments)

    from distill.train import entry as entries

    kept_load = entries.load_model

    def load(*arguments: Any, **rest: Any) -> Any:
        nonlocal model
        model = kept_load(*arguments, **rest)
        return model

    model: Any = None
    monkeypatch.setattr(entries, "load_model", load)
    monkeypatch.setattr(ReplayBuffer, "draw", spoil)
    rollout = {"max_new_tokens": 4, "replay": {"rows": 16, "share": 0.9}}
    with pytest.raises(DistillError, match=r"loss nan in step 2, from answers of earlier steps \(rollout.replay\)"):
        train(tiny.recipe(world, {"objective": "on_policy", "max_steps": 4, "rollout": rollout}, name="spoilt"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("rollout: {replay: {rows: 31}}", "rows: a step takes 32 answers (batch_size): keep as many at least"),
        ("rollout: {replay: {rows: 0}}", "rows: should be greater than or equal to 1"),
        ("rollout: {replay: {share: 0}}", "share: should be greater than 0"),
        ("rollout: {replay: {share: 1.5}}", "share: should be less than or equal to 1"),
        ("rollout: {replay: {share: 1}}", "share: only the first answers would ever be trained on"),
        ("lmbda: 0, rollout: {replay: {}}", "share: with lmbda 0 no step is the student's own"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, settings: str, problem: str) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\nteacher: {kind: embedded, model: m}\nstudent: {model: m}\n"
        f"train: [{{name: o, objective: on_policy, data: [a.parquet], {settings}}}]\n"
    )
    with pytest.raises(DistillError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert f"train.0.rollout.replay.{problem}" in str(caught.value) and "r.yaml:4:" in str(caught.value)


def test_a_rising_share_of_1_is_distillms_and_taken() -> None:
    assert entry_of(rows=4, share=1.0, schedule="rising").replay_problem() is None

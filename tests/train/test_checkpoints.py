"""Only whole checkpoints are resumed from; the others are named with what is wrong. Kills inside saves lose nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.checkpoint_kills import chains, make_world
from distill.train.checkpoints import KEPT, SEAL, newest_whole, problem_of, remove_after, seal, write_checkpoint

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_0.pth",
    "rng_state_1.pth",
    "trainer_state.json",
)


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        (folder / name).write_bytes(random.Random(number).randbytes(200))


def make(folder: Path, step: int) -> Path:
    return write_checkpoint(folder, step, lambda partial: fill(partial / f"checkpoint-{step}"), processes=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_whole_checkpoint_wins_and_the_oldest_go(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-last").mkdir()
    found = newest_whole(tmp_path)
    assert found.step == 100 and found.path == tmp_path / "checkpoint-100" and found.skipped == ()
    assert found.processes == 2 and KEPT == 2
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-last"]
    assert newest_whole(tmp_path / "nothing").path is None


@pytest.mark.parametrize("name", FILES)
def test_a_torn_cut_or_flipped_file_is_caught_by_name(tmp_path: Path, name: str) -> None:
    checkpoint = make(tmp_path, 1)
    path = checkpoint / name
    whole = path.read_bytes()
    assert problem_of(checkpoint) is None
    for bit in range(0, 8 * len(whole), 37):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert problem_of(checkpoint) == f"{name} is damaged"
    for length in (0, 100, 199):
        path.write_bytes(whole[:length])
        assert problem_of(checkpoint) == f"{name} has {length} of 200 bytes"
    path.unlink()
    assert problem_of(checkpoint) == f"{name} is missing"
    path.write_bytes(whole)
    assert problem_of(checkpoint) is None


def test_a_damaged_seal_is_told_from_damaged_files(tmp_path: Path) -> None:
    """Every single flipped bit of the seal blames the seal (or is no change: JSON has spaces)."""
    checkpoint = make(tmp_path, 1)
    whole = (checkpoint / SEAL).read_bytes()
    record = json.loads(whole)
    for bit in range(0, 8 * len(whole), 11):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (checkpoint / SEAL).write_bytes(flipped)
        problem = problem_of(checkpoint)
        assert problem == f"{SEAL} is damaged" or (problem is None and json.loads(flipped) == record)
    for text in ("", "{", "[]", "null", "{}", '{"sha256": 3}'):
        (checkpoint / SEAL).write_text(text)
        assert problem_of(checkpoint) == f"{SEAL} is damaged"


def test_what_is_passed_over_is_named_the_newest_first(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        fill(tmp_path / f"checkpoint-{step}")
        seal(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-3" / SEAL).unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    fill(tmp_path / ".partial-checkpoint-4" / "checkpoint-4")
    (tmp_path / ".removed-checkpoint-0").mkdir()
    found = newest_whole(tmp_path)
    assert found.step == 1
    assert found.skipped == (
        "checkpoint-4: it was cut off while being written",
        "checkpoint-3: it was cut off while being written",
        "checkpoint-2: optimizer.pt is missing",
    )
    remove_after(tmp_path, found.step)
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    make(tmp_path, 1)

    def fail(partial: Path) -> None:
        fill(partial / "checkpoint-2")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, 2, fail)
    assert newest_whole(tmp_path).step == 1
    make(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_ten_kills_inside_saves_lose_nothing(tmp_path: Path) -> None:
    """`benchmarks.checkpoint_kills` does 100."""
    make_world(tmp_path)
    made = list(chains(tmp_path, 10, each=7))
    kills = [kill for chain in made for kill in chain.kills]
    assert len(kills) == 10 and {kill.processes for kill in kills} == {1, 2}
    assert [kill.failure for kill in kills] == [""] * 10
    assert [chain.failure for chain in made] == [""] * len(made)

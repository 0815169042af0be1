"""Only whole checkpoints are resumed from; the others are named with what is wrong."""

from __future__ import annotations

from pathlib import Path

from distill.train.checkpoints import SEAL, newest_whole, remove_after, seal


def make(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(200)))
    (checkpoint / "trainer_state.json").write_text("{}")
    seal(checkpoint)
    return checkpoint


def test_newest_whole_checkpoint_wins(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-last").mkdir()
    found = newest_whole(tmp_path)
    assert found.step == 100 and found.path == tmp_path / "checkpoint-100" and found.skipped == ()
    assert newest_whole(tmp_path / "nothing").path is None


def test_torn_checkpoints_are_skipped_by_name(tmp_path: Path) -> None:
    for step in range(1, 7):
        make(tmp_path, step)
    (tmp_path / "checkpoint-6" / SEAL).unlink()
    (tmp_path / "checkpoint-5" / "model.safetensors").unlink()
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    flipped = tmp_path / "checkpoint-3" / "model.safetensors"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x00")
    (tmp_path / "checkpoint-2" / SEAL).write_text("{")
    found = newest_whole(tmp_path)
    assert found.step == 1
    assert found.skipped == (
        "checkpoint-6: it was cut off while being written",
        "checkpoint-5: model.safetensors is missing",
        "checkpoint-4: model.safetensors has 199 of 200 bytes",
        "checkpoint-3: model.safetensors is damaged",
        "checkpoint-2: seal.json is damaged",
    )
    remove_after(tmp_path, found.step)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]

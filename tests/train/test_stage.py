"""The train stage in one process: every objective, LoRA, resume, stopping, tracking."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from distill.errors import CheckpointError, DataError, DistillError
from distill.model.load import load_model, load_tokenizer
from distill.recipe.schema import Recipe
from distill.runs import Run, write_atomically
from distill.track import read_metrics
from distill.train import stage
from distill.train.callbacks import Watch
from tests.train import tiny


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    return tmp_path


def train(recipe: Recipe, entry: str | None = None) -> str:
    out = io.StringIO()
    stage.run(recipe, Run(recipe), console=Console(file=out, width=200), entry=entry)
    return out.getvalue()


def metrics(recipe: Recipe, name: str) -> list[dict[str, Any]]:
    return read_metrics(Run(recipe).stage("train", name).path / "metrics.jsonl")


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def test_sft_kd_dpo_in_sequence(world: Path, recwarn: pytest.WarningsRecorder) -> None:
    recipe = tiny.recipe(
        world,
        {"objective": "sft", "max_steps": 60},
        {"objective": "kd", "max_steps": 60, "temperature": 2.0, "ce_weight": 0.1},
        {"objective": "dpo", "max_steps": 20, "learning_rate": 1e-3},
    )
    out = train(recipe)
    run = Run(recipe)
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["student-base", "sft", "kd", "dpo"]
    sft, kd, dpo = (metrics(recipe, name) for name in ("sft", "kd", "dpo"))
    assert sft[-1]["loss"] < 0.7 * sft[0]["loss"] and sft[-1]["accuracy"] > sft[0]["accuracy"]
    assert kd[-1]["divergence"] < 0.7 * kd[0]["divergence"]
    assert dpo[-1]["reward_margin"] > 0.1 and dpo[0]["reward_margin"] == 0.0
    # The loss is what its formula says: (1 - w) T^2 divergence + w cross entropy.
    for line in kd:
        expected = 0.9 * 4.0 * line["divergence"] + 0.1 * line["cross_entropy"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    manifest = run.stage("train", "kd").require()
    assert manifest.metrics["world_size"] == 1 and manifest.metrics["steps"] == 60
    assert manifest.metrics["tokens"] == kd[-1]["tokens"] and "teacher" in manifest.inputs
    assert not (run.stage("train", "kd").path / "checkpoints").exists()
    student = load_model(run.checkpoint("dpo"), device="cpu")
    assert student.config.num_hidden_layers == 1 and student.config.num_key_value_heads == 1
    assert load_tokenizer(run.checkpoint("dpo")).chat_template is not None
    assert not [w for w in recwarn if "torch.jit" not in str(w.message)], [str(w.message) for w in recwarn]
    again = train(recipe)
    assert again.splitlines() == [f"{name}: done before" for name in ("student-base", "sft", "kd", "dpo")]


def test_kd_of_the_teacher_itself_starts_at_zero(world: Path) -> None:
    """A student equal to its teacher has no divergence and no gradient: wrong shifts or positions would show."""
    recipe = tiny.recipe(
        world, {"objective": "kd", "max_steps": 2}, student={"model": str(world / "teacher"), "dtype": "float32"}
    )
    train(recipe)
    assert metrics(recipe, "kd")[0]["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert metrics(recipe, "kd")[0]["agreement"] == 1.0


@pytest.mark.parametrize("merge", [True, False])
def test_lora_leaves_a_plain_folder_or_an_adapter(world: Path, merge: bool) -> None:
    lora = {"rank": 4, "alpha": 8.0, "merge": merge}
    recipe = tiny.recipe(world, {"objective": "kd", "max_steps": 20, "lora": lora})
    train(recipe)
    model = Run(recipe).checkpoint("kd")
    assert (model / "adapter_config.json").exists() != merge
    assert (model / "model.safetensors").exists() == merge
    assert (model / "tokenizer.json").exists() and not (model / "training_args.bin").exists()
    manifest = Run(recipe).stage("train", "kd").require()
    assert manifest.metrics["trained_parameters"] < manifest.metrics["parameters"]
    if merge:
        assert not manifest.notes
        base = load_model(Run(recipe).checkpoint("student"), device="cpu").state_dict()
        merged = load_model(model, device="cpu").state_dict()
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        assert changed and all("_proj" in name for name in changed)
    else:
        assert "adapter" in manifest.notes[0]


def test_interrupted_and_resumed_equals_uninterrupted(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in step 4 writes a checkpoint and leaves with 143; the rerun ends with the same weights and curve."""
    objective = "dpo"
    entry = {"objective": objective, "max_steps": 7}
    whole = tiny.recipe(world, entry, name="whole")
    train(whole)
    broken = tiny.recipe(world, entry, name="broken")
    step_end = Watch.on_step_end

    def interrupt(self: Watch, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, control, **rest)

    monkeypatch.setattr(Watch, "on_step_end", interrupt)
    with pytest.raises(SystemExit) as left:
        train(broken)
    assert left.value.code == 143
    monkeypatch.undo()
    checkpoints = Run(broken).stage("train", objective).path / "checkpoints"
    torn = checkpoints / "checkpoint-6"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    out = train(broken)
    assert f"{objective}: skipped checkpoint-6: it was cut off while being written" in out
    assert f"{objective}: going on from step 4" in out
    assert without_times(metrics(broken, objective)) == without_times(metrics(whole, objective))
    ours, expected = (load_model(Run(r).checkpoint(objective), device="cpu").state_dict() for r in (broken, whole))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_killed_before_the_manifest_trains_nothing_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints go when the manifest is there, and are no output."""
    recipe = tiny.recipe(world, {"objective": "sft"})
    folder = Run(recipe).stage("train", "sft")

    def die(path: Path, text: str) -> None:
        if path.name == "manifest.json" and path.parent == folder.path:
            raise MemoryError
        write_atomically(path, text)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("distill.runs.write_atomically", die)
        train(recipe)
    assert (folder.path / "model/model.safetensors").exists()
    assert "going on from step 6" in train(recipe)
    assert not (folder.path / "checkpoints").exists()
    assert not [name for name in folder.require().outputs if "checkpoint" in name]


def test_killed_after_the_last_step_only_exports(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(world, {"objective": "sft", "save_steps": 3})

    def die(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("distill.train.entry.save_student", die)
        train(recipe)
    assert "going on from step 6" in train(recipe)
    assert Run(recipe).stage("train", "sft").require().metrics["steps"] == 6
    assert len(metrics(recipe, "sft")) == 6


def test_a_loss_that_is_no_number_stops(world: Path) -> None:
    recipe = tiny.recipe(world, {"objective": "sft", "learning_rate": 1e38, "warmup_ratio": 0.0, "max_grad_norm": 1e38})
    with pytest.raises(DistillError, match=r"sft: loss .*nan.* -> lower learning_rate"):
        train(recipe)
    assert Run(recipe).stage("train", "sft").manifest() is None


def test_packing_trains(world: Path) -> None:
    recipe = tiny.recipe(
        world, {"objective": "sft", "packing": True, "max_length": 48, "batch_size": 4, "max_steps": 40}
    )
    train(recipe)
    curve = metrics(recipe, "sft")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert Run(recipe).stage("train", "sft").require().metrics["rows"] < 40


def test_wandb_offline_needs_no_account_and_keeps_no_secret(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-3141592653")
    monkeypatch.setenv("WANDB_API_KEY", "canary" * 8)
    recipe = tiny.recipe(world, {"objective": "sft", "max_steps": 2}, track={"wandb": "offline"})
    train(recipe)
    runs = list((Run(recipe).path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1 and b"cross_entropy" in runs[0].read_bytes()
    for path in Run(recipe).path.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), path


def test_mistakes_are_named(world: Path) -> None:
    with pytest.raises(DistillError, match="no train entry 'kdd' -> one of sft"):
        train(tiny.recipe(world, {"objective": "sft"}), entry="kdd")
    with pytest.raises(DataError, match="no dataset at gone.parquet"):
        train(tiny.recipe(world, {"objective": "sft", "data": ["gone.parquet"]}))
    other = world / "other"
    tiny.save_model(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="different tokenizers: 2 of .* objective sft"):
        train(tiny.recipe(world, {"objective": "kd"}, teacher={"kind": "embedded", "model": str(other)}, name="t"))

"""DeepSpeed's ZeRO-3 on two CPU processes (`tests/train/zero3.py`): weights in two shares, losses of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill.errors import DistillError
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from distill.train.checkpoints import Found, problem_of
from distill.train.zero3 import configure, require_resumable, require_trainable
from tests.train import forks, tiny

ROOT = Path(__file__).parents[2]
STOP_AT = 2
LIKE: dict[str, Any] = {"micro_batch_size": 2, "init": "student", "max_steps": 4}
UNTIED: tuple[dict[str, Any], ...] = (
    {**LIKE, "objective": "sft", "max_grad_norm": 0.5},
    {**LIKE, "objective": "kd"},
    {**LIKE, "objective": "kd", "name": "shares", "signal": {"kind": "live", "shard": True}},
    {**LIKE, "objective": "kd", "name": "top_k", "signal": {"kind": "top_k", "k": 20}},
    {**LIKE, "objective": "kd", "name": "hidden", "signal": {"kind": "hidden"}},
    {**LIKE, "objective": "kd", "name": "aligned", "alignment": {}},
    {**LIKE, "objective": "kd", "name": "recomputed", "gradient_checkpointing": True},
    {**LIKE, "objective": "kd", "name": "bf16", "mixed_precision": "bf16"},
    {**LIKE, "objective": "sft", "name": "packed", "packing": True, "max_length": 128},
    {**LIKE, "objective": "sft", "name": "lora", "lora": {"rank": 4}},
    {**LIKE, "objective": "dpo"},
    {**LIKE, "objective": "simpo"},
)
TIED: tuple[dict[str, Any], ...] = ({**LIKE, "objective": "sft"}, {**LIKE, "objective": "kd"})
NAMES = [("untied", e.get("name", e["objective"])) for e in UNTIED] + [("tied", e["objective"]) for e in TIED]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="in the extra `deepspeed`, which `make test-slow` installs",
)


def launch(folder: Path, *recipes: Recipe, stop_at: int = 0) -> subprocess.CompletedProcess[str]:
    """The recipes, one after the other, in two processes under the launch configuration that users get."""
    command = [sys.executable, "-m", "distill.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "recipes/accelerate/deepspeed_zero3.yaml"), "-m", "tests.train.zero3"]
    for recipe in recipes:
        path = folder / f"{recipe.name}.json"
        path.write_text(json.dumps(recipe.model_dump(mode="json")))
        command.append(str(path))
    python_path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path, "STOP_AT": str(stop_at)}
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, check=False, timeout=600
    )


def recipe(folder: Path, tying: str, entries: Sequence[dict[str, Any]], name: str) -> Recipe:
    teacher = str(folder / tying)
    student = {"model": teacher, "layers": 1, "kv_heads": 1, "dtype": "float32"}
    teacher_section = {"kind": "embedded", "model": teacher}
    return tiny.recipe(folder, *entries, name=f"{tying}-{name}", teacher=teacher_section, student=student)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `<tying>-one` by one process and `<tying>-two` by two, all done."""
    folder = tmp_path_factory.mktemp("zero3")
    tiny.save_data(folder)
    made: dict[str, list[Recipe]] = {"one": [], "two": []}
    for tying, entries in (("untied", UNTIED), ("tied", TIED)):
        tiny.save_model(folder / tying, tied=tying == "tied")
        for name, recipes in made.items():
            whole = [entry for entry in entries if name == "two" or entry.get("name") != "shares"]
            recipes.append(recipe(folder, tying, whole, name))
    for alone in made["one"]:
        job = forks.start(forks.train, alone, log=folder / f"{alone.name}.log")
        assert job.wait() == [0], job.text()
    done = launch(folder, *made["two"])
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return folder


def folder_of(world: Path, run: str, entry: str) -> Path:
    return world / "runs" / run / f"train-{entry}"


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize(("tying", "name"), NAMES)
def test_losses_and_students_are_those_of_one_process(world: Path, tying: str, name: str) -> None:
    """`shares` is kd with the teacher in shares, too."""
    seen = json.loads((world / f"{tying}-two.seen").read_text())[name]
    assert seen["processes"] == 2 and seen["parameters"] > 10 and seen["whole"] == []
    folders = [folder_of(world, f"{tying}-one", "kd" if name == "shares" else name)]
    folders.append(folder_of(world, f"{tying}-two", name))
    curves = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    assert len(curves[0]) == len(curves[1]) == 4
    rel = 1e-3 if name == "bf16" else 1e-5  # products of 8 bits
    for alone, shared in zip(*curves, strict=True):
        assert alone["loss"] == pytest.approx(shared["loss"], rel=rel)
        assert alone["grad_norm"] == pytest.approx(shared["grad_norm"], rel=10 * rel)
        assert alone["tokens"] == shared["tokens"] and alone["learning_rate"] == shared["learning_rate"]
    assert len({point["loss"] for point in curves[0]}) == 4
    weights = [load_file(folder / "model/model.safetensors") for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    tolerance = 1e-3 if name == "bf16" else 1e-4  # a step of Adam's is 3e-3, whatever its gradient
    for key, alone in weights[0].items():
        torch.testing.assert_close(weights[1][key], alone, rtol=0, atol=tolerance, msg=key)
    AutoModelForCausalLM.from_pretrained(folders[1] / "model")


@pytest.mark.slow
@needs_deepspeed
def test_a_stopped_run_goes_on_bitwise(world: Path) -> None:
    stopped = recipe(world, "untied", [{**LIKE, "objective": "kd"}], "stopped")
    done = launch(world, stopped, stop_at=STOP_AT)
    assert done.returncode == 143, done.stdout + done.stderr[-5000:]
    assert f"kd: stopped at step {STOP_AT} of 4, checkpoint written; to go on: " in done.stdout
    checkpoint = folder_of(world, stopped.name, "kd") / f"checkpoints/checkpoint-{STOP_AT}"
    assert problem_of(checkpoint) is None
    again = launch(world, stopped)
    assert again.returncode == 0, again.stdout + again.stderr[-5000:]
    assert f"kd: going on from step {STOP_AT}\n" in again.stdout
    folders = [folder_of(world, run, "kd") for run in ("untied-two", stopped.name)]
    whole, resumed = (load_file(folder / "model/model.safetensors") for folder in folders)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [[line["loss"] for line in read_metrics(folder / "metrics.jsonl")] for folder in folders]
    assert losses[0] == losses[1]
    assert not checkpoint.exists() and Run(stopped).stage("train", "kd").require()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"objective": "on_policy"}, "to let it answer"),
        ({"objective": "kd", "matching": {"layers": [{"student": 1, "teacher": 2}]}}, "to write them into checkpoints"),
    ],
)
def test_what_needs_whole_weights_is_refused(tmp_path: Path, entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(DistillError, match=problem):
        require_trainable(tiny.recipe(tmp_path, entry).train[0])  # type: ignore[arg-type]
    require_trainable(tiny.recipe(tmp_path, {"objective": "kd"}).train[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("by_deepspeed", [True, False])
def test_a_checkpoint_that_would_lose_the_optimizer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_deepspeed: bool
) -> None:
    """transformers passes over an optimizer that it does not find."""
    shares, whole = (Found(tmp_path / name / "checkpoint-4", 4, 2, ()) for name in ("shares", "whole"))
    for found in (shares, whole):
        assert found.path is not None
        (found.path / "global_step4" if found is shares else found.path).mkdir(parents=True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(by_deepspeed).lower())
    fitting, other = (shares, whole) if by_deepspeed else (whole, shares)
    require_resumable(fitting, 2)
    require_resumable(Found(None, 0, 1, ()), 2)
    with pytest.raises(DistillError, match="was written (under|without) DeepSpeed -> launch as it was"):
        require_resumable(other, 2)
    if by_deepspeed:
        with pytest.raises(DistillError, match="shares of 2 processes, and these are 4"):
            require_resumable(fitting, 4)
    else:
        require_resumable(fitting, 4)


def test_a_launch_configuration_that_would_fail_late_is_refused_at_once() -> None:
    with pytest.raises(DistillError, match="zero_stage 2 is not supported"):
        configure(DeepSpeedPlugin(zero_stage=2))
    with pytest.raises(DistillError, match="would not gather"):
        configure(DeepSpeedPlugin(zero_stage=3, zero3_save_16bit_model=False))


def test_bfloat16_is_autocast_and_not_deepspeeds_own() -> None:
    plugin = DeepSpeedPlugin(zero_stage=3, zero3_save_16bit_model=True)
    plugin.set_mixed_precision("bf16")
    assert plugin.deepspeed_config["bf16"]["enabled"]
    configure(plugin)
    assert "bf16" not in plugin.deepspeed_config
    assert plugin.deepspeed_config["torch_autocast"]["dtype"] == "bfloat16"


def test_gradients_have_a_stream_of_their_own_only_where_the_configuration_says_so() -> None:
    for asked, expected in ((None, False), (True, True)):
        plugin = DeepSpeedPlugin(zero_stage=3, zero3_save_16bit_model=True)
        if asked is not None:
            plugin.deepspeed_config["zero_optimization"]["overlap_comm"] = asked
        configure(plugin)
        assert plugin.deepspeed_config["zero_optimization"]["overlap_comm"] is expected

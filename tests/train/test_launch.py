"""The same recipe alone and under `accelerate launch` on two CPU processes: world sizes as asked, equal losses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.track import read_metrics
from distill.train.checkpoints import newest_whole
from tests.train import forks, tiny

ROOT = Path(__file__).parents[2]
ENTRIES: tuple[dict[str, Any], ...] = (
    # 4 micro-batches of 2 rows a step: accumulated by one process, shared by two.
    {"objective": "sft", "micro_batch_size": 2},
    {"objective": "kd", "micro_batch_size": 2},
    {"objective": "kd", "micro_batch_size": 2, "name": "aligned", "alignment": {}},
    {"objective": "on_policy", "micro_batch_size": 2, "lmbda": 0.5, "rollout": {"max_new_tokens": 8}},
    {
        **{"objective": "on_policy", "name": "replay", "micro_batch_size": 2},
        "rollout": {"max_new_tokens": 8, "replay": {"rows": 12, "share": 0.6}},
    },
    {"objective": "dpo", "micro_batch_size": 2},
    {"objective": "simpo", "micro_batch_size": 2},
)


def launch(
    recipe: Recipe, folder: Path, processes: int, *overrides: str, launcher: str = "accelerate.commands.launch"
) -> subprocess.Popen[str]:
    path = folder / f"{recipe.name}.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", launcher]
    command += ["--config_file", str(ROOT / "accelerate_config.yaml"), "--num_processes", str(processes)]
    # A port of its own lets tests run beside each other.
    command += ["--main_process_port", "0", "-m", "distill", "train", str(path), *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("ACCELERATE_USE_CPU", None)
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Recipe, str, str]]:
    """One process without a launcher, and two with: number of processes -> (recipe, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("launch")
    tiny.save_model(folder / "teacher")
    tiny.save_data(folder)
    recipes = {count: tiny.recipe(folder, *ENTRIES, name=f"on-{count}") for count in (1, 2)}
    launched = launch(recipes[2], folder, 2)
    alone = forks.start(forks.train, recipes[1], log=folder / "log")
    assert alone.wait() == [0], alone.text()
    out, err = launched.communicate(timeout=240)
    assert launched.returncode == 0, err
    return {1: (recipes[1], alone.text(), ""), 2: (recipes[2], out, err)}


@pytest.mark.parametrize("name", ["sft", "kd", "aligned", "on_policy", "replay", "dpo", "simpo"])
def test_losses_do_not_depend_on_the_number_of_processes(
    finished: dict[int, tuple[Recipe, str, str]], name: str
) -> None:
    curves = []
    for count, (recipe, _, _) in finished.items():
        folder = Run(recipe).stage("train", name)
        assert folder.require().metrics["world_size"] == count
        curves.append(read_metrics(folder.path / "metrics.jsonl"))
    assert len(curves[0]) == len(curves[1]) == 6
    for alone, shared in zip(*curves, strict=True):
        assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-5)
        assert alone["grad_norm"] == pytest.approx(shared["grad_norm"], rel=1e-4)
        assert alone["tokens"] == shared["tokens"]
    assert len({point["loss"] for point in curves[0]}) == 6


def test_one_process_speaks_and_nobody_warns(finished: dict[int, tuple[Recipe, str, str]]) -> None:
    for _, out, err in finished.values():
        names = [line.split(":")[0] for line in out.splitlines() if "tokens compared" not in line]
        assert names == ["student-base", *(entry.get("name", entry["objective"]) for entry in ENTRIES)]
        assert out.count("aligned: 100.0% of the student's tokens compared") == 1
        assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("distill.launch", signal.SIGTERM, 143),
        ("distill.launch", signal.SIGINT, 130),
        ("accelerate.commands.launch", signal.SIGTERM, 1),
        ("accelerate.commands.launch", signal.SIGINT, 1),
    ],
)
def test_a_signal_to_the_launcher_saves_and_the_printed_command_goes_on(
    tmp_path: Path, launcher: str, number: int, code: int
) -> None:
    tiny.save_model(tmp_path / "teacher")
    tiny.save_data(tmp_path)
    recipe = tiny.recipe(tmp_path, {"objective": "sft", "max_steps": 300, "save_steps": 1000})
    folder = Run(recipe).stage("train", "sft").path
    process = launch(recipe, tmp_path, 2, launcher=launcher)
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    while process.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code and out.count("checkpoint written; to go on: ") == 1, err
    step = newest_whole(folder / "checkpoints").step
    assert f"sft: stopped at step {step} of 300" in out and 3 <= step < 300
    command = shlex.split(out.split("to go on: ")[1].splitlines()[0])
    assert launcher in command and "2" in command
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    again = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=240)
    assert again.returncode == 0 and f"sft: going on from step {step}\n" in again.stdout, again.stderr
    assert len(read_metrics(folder / "metrics.jsonl")) == 300


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.errors import DistillError
    from distill.train.arguments import accumulation

    tiny.save_data(tmp_path)
    entry = tiny.recipe(tmp_path, {"objective": "sft", "batch_size": 8, "micro_batch_size": 4}).train[0]
    assert entry.objective == "sft" and accumulation(entry, 2) == 1
    with pytest.raises(DistillError, match="batch_size 8 is no multiple of micro_batch_size 4 x 3 processes"):
        accumulation(entry, 3)

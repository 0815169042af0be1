"""The stage over a run folder with one variant."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.serve import stage
from tests.engine.models import byte_tokenizer, chat_model


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tokenizer = byte_tokenizer()
    weights = tmp_path / "weights"
    chat_model(tokenizer).save_pretrained(weights)
    tokenizer.save_pretrained(weights)
    return Recipe.model_validate(
        {
            "name": "tiny",
            "output_dir": str(tmp_path / "runs"),
            "teacher": {"kind": "embedded", "model": str(weights)},
            "serve": {"max_batch": 16, "kv_gib": 0.01, "block_size": 8, "dtype": "float32"},
        }
    )


def test_manifest_has_the_measurements(recipe: Recipe) -> None:
    run = Run(recipe)
    stage.run(recipe, run, console=Console(quiet=True))
    manifest = run.stage("serve", "teacher").require()
    metrics = manifest.metrics
    assert metrics["kv_bytes_per_token"] == 2 * 4 * 2 * 2 * 8  # K and V, fp32, 2 layers, 2 KV heads of size 8
    weights = Path(recipe.teacher_weights() or "") / "model.safetensors"
    assert metrics["weight_bytes"] == weights.stat().st_size
    assert set(metrics["by_batch"]) == {"1", "16"}
    assert metrics["decode_tokens_per_second"] == metrics["by_batch"]["16"]["decode_tokens_per_second"]
    assert all(speed > 0 for by in metrics["by_batch"].values() for speed in by.values())
    assert metrics["by_batch"]["16"]["decode_tokens_per_second"] > metrics["by_batch"]["1"]["decode_tokens_per_second"]
    before = manifest.started_at
    stage.run(recipe, run, console=Console(quiet=True))
    assert run.stage("serve", "teacher").require().started_at == before  # skipped

"""The quantize stage: one folder a quantize entry, each a model that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from distill.errors import DistillError
from distill.recipe.quantize import Int8, Nf4, Qat, Quantizer
from distill.recipe.schema import Recipe
from distill.recipe.train import LmEntry
from distill.runs import Run, StageFolder, digest_of, path_digest


def run(recipe: Recipe, run: Run, *, console: Console) -> None:
    """Make every quantized variant of the recipe that is not there yet."""
    if not recipe.quantize:
        raise DistillError("the recipe has nothing to quantize", remedy="add a 'quantize' section")
    for entry in recipe.quantize:
        folder = run.stage("quantize", entry.name)
        source, data = _source(recipe, run, entry), _calibration_path(recipe, run, entry)
        inputs = {"entry": digest_of(entry.model_dump(mode="json")), "model": path_digest(source)}
        if data is not None:
            inputs["calibration"] = path_digest(data)
        if folder.is_done(inputs):
            console.print(f"{folder.name}: done before")
            continue
        from distill.quiet import quiet

        with quiet():  # bitsandbytes speaks while it is imported
            from distill.quantize.checkpoint import quantize_checkpoint

        folder.begin(inputs)
        metrics = quantize_checkpoint(entry, source, folder.path / "model", data=data, console=console)
        _finish(folder, recipe, inputs, metrics, console)


def _source(recipe: Recipe, run: Run, entry: Quantizer) -> Path:
    """Model folder of the train entry to quantize, which must be finished."""
    name = entry.of or recipe.train[-1].name
    run.stage("train", name).require()
    return run.checkpoint(name)


def _calibration_path(recipe: Recipe, run: Run, entry: Quantizer) -> Path | None:
    """Dataset of the calibration rows; without one named, the first that the quantized entry was trained on."""
    if isinstance(entry, Nf4 | Int8 | Qat):
        return None
    if entry.calibration.data is not None:
        return run.dataset(entry.calibration.data)
    name = entry.of or recipe.train[-1].name
    trained = next(train for train in recipe.train if train.name == name)
    if isinstance(trained, LmEntry):
        raise DistillError(
            f"quantize entry '{entry.name}' has no calibration data: '{name}' was trained on generated text",
            remedy="set calibration.data to a generate job or a .parquet path",
        )
    return run.dataset(trained.data[0])


def _finish(
    folder: StageFolder, recipe: Recipe, inputs: dict[str, str], metrics: dict[str, Any], console: Console
) -> None:
    folder.finish(recipe, inputs, metrics=metrics)
    before, after = metrics["weight_bytes_before"], metrics["weight_bytes"]
    error = (
        f"output error {metrics['output_error']:.2%} (plain rounding {metrics['rtn_output_error']:.2%})"
        if "output_error" in metrics
        else f"weight error {metrics['weight_error']:.2%}"
    )
    console.print(
        f"{folder.name}: {before / 2**20:.2f} -> {after / 2**20:.2f} MiB, "
        f"{metrics['bits_per_weight']:.2f} bits a weight, {error}, {metrics['quantize_seconds']:.1f} s"
    )

"""The quantize stage: one folder a quantize entry, each a model that transformers loads."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import DataError, DistillError
from distill.model.chat import render
from distill.model.load import load_model, load_tokenizer, require_chat_template
from distill.quantize.bnb import dequantized_weights, load_int8, load_nf4
from distill.quantize.calibrate import Batch, pad_batches
from distill.quantize.export import quantized_bits_per_weight, save_packed, weight_bytes
from distill.quantize.sequential import Gptq, Nearest, WeightSettings, quantize_model
from distill.quiet import quiet
from distill.recipe.quantize import Awq, Calibration, Int8, Nf4, Quantizer
from distill.recipe.quantize import Gptq as GptqEntry
from distill.recipe.schema import Recipe
from distill.recipe.train import LmEntry
from distill.records import Message, read_parquet
from distill.runs import Run, StageFolder, digest_of, path_digest

Metrics = dict[str, Any]


def run(recipe: Recipe, run: Run, *, console: Console) -> None:
    """Make every quantized variant of the recipe that is not there yet."""
    for entry in recipe.quantize:
        folder = run.stage("quantize", entry.name)
        source, data = _source(recipe, run, entry), _calibration_path(recipe, run, entry)
        inputs = {"entry": digest_of(entry.model_dump(mode="json")), "model": path_digest(source)}
        if data is not None:
            inputs["calibration"] = path_digest(data)
        if folder.is_done(inputs):
            console.print(f"{folder.name}: done before")
            continue
        folder.begin(inputs)
        metrics = quantize_checkpoint(entry, source, folder.path / "model", data=data, console=console)
        _finish(folder, recipe, inputs, metrics, console)


def quantize_checkpoint(
    entry: Quantizer, source: Path, target: Path, *, data: Path | None, console: Console
) -> Metrics:
    """Quantize the checkpoint `source` into the folder `target`; `data` holds the calibration rows of GPTQ and AWQ."""
    started = time.monotonic()
    tokenizer = load_tokenizer(source)
    shutil.rmtree(target, ignore_errors=True)
    try:
        if isinstance(entry, Nf4 | Int8):
            metrics = _bitsandbytes(entry, source, target)
        else:
            assert data is not None
            batches = calibration_batches(tokenizer, source, data, entry.calibration)
            metrics = _calibrated(entry, source, target, batches, console)
        tokenizer.save_pretrained(target)
    except (OSError, SafetensorError) as error:
        raise DistillError(f"{target} cannot be written: {error}", remedy="free disk space and run again") from error
    return {
        "method": entry.method,
        "weight_bytes_before": weight_bytes(source),
        "weight_bytes": weight_bytes(target),
        "bits_per_weight": quantized_bits_per_weight(source, target),
        "quantize_seconds": time.monotonic() - started,
        **metrics,
    }


def _source(recipe: Recipe, run: Run, entry: Quantizer) -> Path:
    """Model folder of the train entry to quantize, which must be finished."""
    name = entry.of or recipe.train[-1].name
    run.stage("train", name).require()
    return run.checkpoint(name)


def _calibration_path(recipe: Recipe, run: Run, entry: Quantizer) -> Path | None:
    """Dataset of the calibration rows; without one named, the first that the quantized entry was trained on."""
    if isinstance(entry, Nf4 | Int8):
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


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, source: Path, data: Path, calibration: Calibration
) -> list[Batch]:
    """Rows spread evenly over a dataset as token batches, rendered by the model's own chat template."""
    require_chat_template(tokenizer, source)
    everything = read_parquet(data)
    if not everything:
        raise DataError(f"{data} has no rows to calibrate on", remedy="name another dataset as calibration.data")
    rows = everything[:: max(1, len(everything) // calibration.rows)][: calibration.rows]
    token_rows = [render(tokenizer, _messages(row, data), add_generation_prompt=False) for row in rows]
    return pad_batches(token_rows, max_length=calibration.max_length)


def _messages(row: dict[str, Any], data: Path) -> list[Message]:
    """The chat of an instruction or code row, or the chosen one of a preference row."""
    if "messages" in row:
        messages: list[Message] = row["messages"]
    elif "prompt" in row and "chosen" in row:
        messages = [*row["prompt"], *row["chosen"]]
    else:
        raise DataError(f"{data} has neither messages nor prompt and chosen; it has {', '.join(row)}")
    return messages


def _bitsandbytes(entry: Nf4 | Int8, source: Path, target: Path) -> Metrics:
    if isinstance(entry, Nf4):
        model = load_nf4(source, double_quant=entry.double_quant, device=_device())
    else:
        model = load_int8(source, outlier_threshold=entry.outlier_threshold, device=_device())
    with quiet():
        model.save_pretrained(target)
    errors = _weight_errors(source, dequantized_weights(model))
    linears = [{"name": name, "weight_error": error} for name, error in errors.items()]
    return {"weight_error": statistics.fmean(errors.values()), "linears": linears}


def _weight_errors(source: Path, rounded: dict[str, Tensor]) -> dict[str, float]:
    """||W - Q|| / ||W|| of each quantized weight against the checkpoint it came from."""
    errors: dict[str, float] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 - no mapping, it only has keys()
                if key in rounded:
                    original, weight = handle.get_tensor(key).float(), rounded[key].float().cpu()
                    errors[key.removesuffix(".weight")] = float((original - weight).norm() / original.norm())
    if not errors:
        raise DistillError(f"bitsandbytes quantized nothing in {source}", remedy="use method gptq or awq")
    return errors


def _calibrated(entry: GptqEntry | Awq, source: Path, target: Path, batches: list[Batch], console: Console) -> Metrics:
    model: PreTrainedModel = load_model(source, device="auto")
    with console.status(f"quantize-{entry.name}") as status:
        quantized = quantize_model(
            model,
            batches,
            settings_of(entry),
            progress=lambda done, total: status.update(f"quantize-{entry.name}: layer {done} of {total}"),
        )
    act_order = isinstance(entry, GptqEntry) and entry.act_order
    save_packed(model, quantized.linears, target, act_order=act_order)
    return {
        "output_error": statistics.fmean(report.output_error for report in quantized.reports),
        "rtn_output_error": statistics.fmean(report.rtn_output_error for report in quantized.reports),
        "calibration_tokens": sum(int(batch.mask.sum()) for batch in batches),
        "linears": [asdict(report) for report in quantized.reports],
    }


def settings_of(entry: GptqEntry | Awq) -> WeightSettings:
    """What a recipe's entry asks of `quantize_model`."""
    if isinstance(entry, GptqEntry):
        rounding = Gptq(damping=entry.damping, act_order=entry.act_order)
        return WeightSettings(rounding, entry.bits, entry.group_size, entry.symmetric)
    return WeightSettings(Nearest(clip=True), entry.bits, entry.group_size, entry.symmetric, scaling_points=entry.grid)


def _finish(folder: StageFolder, recipe: Recipe, inputs: dict[str, str], metrics: Metrics, console: Console) -> None:
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

"""One checkpoint into another, quantized: by bitsandbytes, or from calibration rows by GPTQ and AWQ."""

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
from transformers import PreTrainedModel

from distill.errors import DistillError
from distill.model.calibration import Batch, calibration_batches
from distill.model.fake_quant import read_grid
from distill.model.load import load_model, load_tokenizer
from distill.quantize.export import quantized_bits_per_weight, save_packed, weight_bytes
from distill.quantize.sequential import Gptq, Nearest, WeightSettings, quantize_model
from distill.quiet import quiet
from distill.recipe.quantize import Awq, Int8, Nf4, Qat, Quantizer
from distill.recipe.quantize import Gptq as GptqEntry

Metrics = dict[str, Any]


def quantize_checkpoint(
    entry: Quantizer, source: Path, target: Path, *, data: Path | None, console: Console
) -> Metrics:
    """Quantize the checkpoint `source` into the folder `target`; `data` holds the calibration rows of GPTQ and AWQ."""
    started = time.monotonic()
    tokenizer = load_tokenizer(source)
    shutil.rmtree(target, ignore_errors=True)
    try:
        if isinstance(entry, Qat):
            metrics = _trained(source, target)
        elif isinstance(entry, Nf4 | Int8):
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


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _trained(source: Path, target: Path) -> Metrics:
    """What fake quantization trained: the weights are those of the grid already, and only their form changes."""
    linears = read_grid(source)
    model: PreTrainedModel = load_model(source, dtype="stored", device="cpu")
    errors = {}
    for name, linear in linears.items():
        weight, rounded = model.get_parameter(f"{name}.weight").detach().float(), linear.weight().float()
        errors[name] = float((weight - rounded).norm() / weight.norm())
    save_packed(model, linears, target)
    found = [{"name": name, "weight_error": error} for name, error in errors.items()]
    return {"weight_error": statistics.fmean(errors.values()), "linears": found}


def _bitsandbytes(entry: Nf4 | Int8, source: Path, target: Path) -> Metrics:
    # here, for GPTQ and AWQ need no bitsandbytes and its import takes a second
    from distill.quantize.bnb import dequantized_weights, load_int8, load_nf4

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
    model: PreTrainedModel = load_model(source, dtype="stored")
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

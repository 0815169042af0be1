"""A student made from a larger model: fewer layers, then fewer heads, neurons and channels, and fewer KV heads.

What is cut is in cuts.py and pooling.py, what it is chosen by in depth.py, importance.py and selection.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError, DistillError
from distill.model.alignment import measure_heads
from distill.model.calibration import Batch
from distill.model.cuts import prune_layers
from distill.model.depth import choose_layers, evenly_spaced
from distill.model.importance import Progress, measure, silent
from distill.model.load import load_model, load_tokenizer, require_chat_template, stored_dtype
from distill.model.pooling import pool_kv_heads
from distill.model.selection import Report
from distill.model.structure import structure_of, without
from distill.model.width import Sizes, cut_width, require_fitting, sizes_of
from distill.recipe.prune import Prune
from distill.recipe.teacher import Student

IMPORTANCE = "importance.json"

ReadBatches = Callable[[PreTrainedTokenizerBase], Sequence[Batch]]
"""Calibration rows in the tokens of a tokenizer; called only where something is measured."""


@dataclass(frozen=True)
class Made:
    """What a student is, beside the model it was made from; `layers` are those of the model that stayed."""

    after: Sizes
    before: Sizes
    layers: tuple[int, ...]
    report: Report

    def as_metrics(self) -> dict[str, Any]:
        """For the stage's manifest."""
        before = {f"{name}_before": value for name, value in vars(self.before).items()}
        return {**vars(self.after), "layers": list(self.layers), **before}

    def summary(self) -> str:
        """One line."""
        after, before = self.after, self.before
        named = (
            (after.layers, before.layers, "layers"),
            (after.heads, before.heads, "heads"),
            (after.intermediate_size, before.intermediate_size, "neurons"),
            (after.hidden_size, before.hidden_size, "channels"),
            (after.kv_heads, before.kv_heads, "KV heads"),
        )
        cuts = [f"{now} of {then} {what}" for now, then, what in named if now != then]
        if not cuts:
            return f"{after.parameters:,} parameters, as they were"
        share = f"KV cache {after.kv_bytes_per_token / before.kv_bytes_per_token:.1%}"
        return f"{after.parameters:,} of {before.parameters:,} parameters, {', '.join(cuts)}, {share}"


def make_student(
    student: Student, out: Path, *, read_batches: ReadBatches | None = None, progress: Progress = silent
) -> Made:
    """Write the model `student.model`, cut down to what the section asks, to the folder `out`.

    Weights are stored in `student.dtype` ("auto": as they were), with tokenizer and chat template (the Jinja file
    `student.chat_template`, else the tokenizer's own). What was measured goes to importance.json beside `out`.
    Raises CheckpointError for a model that does not load or cannot be cut so, DistillError for numbers that do not fit.
    """
    assert student.model is not None
    trust = student.trust_remote_code
    tokenizer = load_tokenizer(student.model, trust_remote_code=trust)
    if student.chat_template is not None:
        tokenizer.chat_template = _read_template(Path(student.chat_template))
    require_chat_template(tokenizer, student.model)
    batches: Sequence[Batch] = ()
    if student.measures:
        if read_batches is None:
            raise DistillError("there are no rows to measure the model on", remedy="set student.prune.calibration.data")
        batches = read_batches(tokenizer)
        model = load_model(student.model, dtype="auto", trust_remote_code=trust)
    else:
        model = load_model(student.model, dtype="stored", device="cpu", trust_remote_code=trust)
    wanted = None if student.dtype == "auto" else student.dtype
    dtype = stored_dtype(student.model, trust) if wanted is None else getattr(torch, wanted)
    made = cut_down(model, student, batches, out, dtype=dtype, progress=progress)
    tokenizer.save_pretrained(str(out))
    if student.measures:
        (out.parent / IMPORTANCE).write_text(json.dumps(made.report.as_json(), indent=1) + "\n", encoding="utf-8")
    return made


def cut_down(
    model: PreTrainedModel,
    student: Student,
    batches: Sequence[Batch],
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
) -> Made:
    """Write `model`, cut down, to the folder `out`, in `dtype` (None: its own) and without a tokenizer.

    First layers go; then heads, neurons and channels by what the model of the other layers does with `batches`, and KV
    heads are pooled. The model is used up.
    """
    before = sizes_of(model)
    require_fitting(student, before, str(model.config.model_type))
    prune, report = student.prune or Prune(layers_by="spacing"), Report()
    if student.measures:
        masks = [batch.mask for batch in batches]
        report.add("calibration", rows=sum(map(len, masks)), tokens=sum(int(mask.sum()) for mask in masks))
    wanted = student.layers or before.layers
    if wanted == before.layers or prune.layers_by == "spacing":
        keep = evenly_spaced(before.layers, wanted)
    else:
        keep = choose_layers(model, wanted, prune, batches, report, progress)
    importance = structure = moments = None
    if student.measures_width:
        structure = structure_of(model)
        with without(model, set(range(before.layers)) - set(keep)):
            importance = measure(model, batches, prune.width_by, progress)
            if student.kv_heads not in (None, before.kv_heads) and prune.kv_pooling == "aligned":
                moments = measure_heads(model, batches, student.kv_heads, progress)
    if model.dtype != (dtype or model.dtype) or model.device.type != "cpu":
        model.to(device="cpu", dtype=dtype or model.dtype)  # type: ignore[call-arg]
    state, config = prune_layers(model.state_dict(), keep), model.config
    if importance is not None and structure is not None:
        state = cut_width(state, config, student, importance, structure, keep, report, moments)
    elif student.kv_heads not in (None, before.kv_heads):
        state = pool_kv_heads(state, kv_heads_before=before.kv_heads, kv_heads=student.kv_heads)
        config.num_key_value_heads = student.kv_heads
    _set_layers(config, keep)
    unique = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    after = sizes_of(model, sum(unique.values()))
    model.save_pretrained(str(out), state_dict=state)
    return Made(after, before, tuple(keep), report)


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"no chat template at {path}: {error}", remedy="mend student.chat_template") from None


def _set_layers(config: PreTrainedConfig, keep: Sequence[int]) -> None:
    """Also per-layer lists, such as which layers slide their attention window."""
    config.num_hidden_layers = len(keep)
    types = config.to_dict().get("layer_types")
    if types is not None:
        config.layer_types = [types[index] for index in keep]

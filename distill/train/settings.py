"""What an entry of sft, kd or on_policy asks of its trainer, in the objectives' own types."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from distill.errors import DistillError
from distill.model.linears import grids_of
from distill.model.scales import Grid
from distill.objectives.divergences import CROSS_ENTROPY, Objective
from distill.objectives.head import Form
from distill.objectives.matching import Matching
from distill.recipe.signals import LiveSignal
from distill.recipe.train import EntryCommon, KdEntry, OnPolicyEntry, SftEntry
from distill.train.arguments import uses_bfloat16
from distill.train.graphs import GraphedDecoder, capturable
from distill.train.live import LiveTeacher
from distill.train.signals import Signal

if TYPE_CHECKING:
    from distill.train.fused import FusedLayers  # Triton is not installed everywhere


def matching_of(
    entry: SftEntry | KdEntry | OnPolicyEntry, student: PreTrainedModel, teacher: Signal | None
) -> Matching | None:
    """The entry's hidden-state matching, which has the teacher tell the layers' states. Raises DistillError for layers
    that are not there."""
    if not isinstance(entry, KdEntry) or entry.matching is None:
        return None
    assert isinstance(teacher, LiveTeacher), "the recipe refuses other signals"
    configs = [model.config.get_text_config() for model in (student, teacher.model)]
    pairs = tuple((pair.student, pair.teacher) for pair in entry.matching.layers)
    for pair in pairs:
        for side, layer, config in zip(("student", "teacher"), pair, configs, strict=True):
            if not 0 <= layer <= config.num_hidden_layers:
                raise DistillError(
                    f"{entry.name}: matching names layer {layer} of the {side}, which has {config.num_hidden_layers}",
                    remedy="number layers from 1; 0 is the embeddings",
                )
    teacher.layers = tuple(theirs for _, theirs in pairs)
    return Matching(
        pairs,
        student=configs[0].hidden_size,
        teacher=configs[1].hidden_size,
        measure=entry.matching.measure,
        weight=entry.matching.weight,
        seed=entry.seed,
    )


def grids_for(entry: EntryCommon, student: PreTrainedModel) -> dict[str, Grid]:
    """The grid of each linear that is rounded while the entry trains; none without `quantize`."""
    if not isinstance(entry, KdEntry) or entry.quantize is None:
        return {}
    asked = entry.quantize
    return grids_of(student, bits=asked.bits, group_size=asked.group_size, symmetric=asked.symmetric)


def objective_of(entry: SftEntry | KdEntry | OnPolicyEntry) -> Objective:
    """sft is the loss head with cross entropy alone."""
    if isinstance(entry, SftEntry):
        return CROSS_ENTROPY
    ce_weight = entry.ce_weight if isinstance(entry, KdEntry) else 0.0
    return Objective(entry.divergence, entry.beta, entry.temperature, ce_weight, entry.skew)


def form_of(entry: SftEntry | KdEntry | OnPolicyEntry, device: torch.device) -> Form:
    """What computes the loss. Raises where a kernel is asked for that cannot run here."""
    if entry.kernel == "torch":
        return "torch"
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return "triton"
    if entry.kernel == "auto":
        return "torch"
    raise DistillError(
        f"{entry.name}: kernel triton needs a CUDA GPU and the package triton", remedy="leave `kernel` out"
    )


def decoder_of(
    entry: SftEntry | KdEntry | OnPolicyEntry,
    student: PreTrainedModel,
    teacher: Signal | None,
    *,
    device: torch.device,
    processes: int,
) -> GraphedDecoder | None:
    """The student's decoder as CUDA graphs, where it can be captured; a live teacher is given its own.

    Not for packed rows, which need a mask, nor under a launcher. A student trained by adapters, with recomputed
    activations or with more than its last hidden states keeps its own passes.
    """
    packed = not isinstance(entry, OnPolicyEntry) and entry.packing
    if not entry.cuda_graphs or device.type != "cuda" or packed or processes > 1:
        return None
    pool = torch.cuda.graph_pool_handle()
    if isinstance(teacher, LiveTeacher) and _stays(entry) and capturable(teacher.model):
        teacher.decoder = GraphedDecoder(teacher.model, pool, _fused(teacher.model, teacher.model.dtype))
    plain = not isinstance(entry, KdEntry) or (entry.matching is None and entry.quantize is None)
    own = entry.lora is None and not entry.gradient_checkpointing
    if not (own and plain and capturable(student)):
        return None
    return GraphedDecoder(student, pool, _fused(student, torch.bfloat16 if uses_bfloat16(entry) else student.dtype))


def _fused(model: PreTrainedModel, dtype: torch.dtype) -> FusedLayers | None:
    """The fused layers of a model that computes in `dtype`; attention in float32 is not worth it."""
    if importlib.util.find_spec("triton") is None or dtype not in (torch.bfloat16, torch.float16):
        return None
    from distill.train.fused import FusedLayers

    layers = FusedLayers(model)
    return layers if len(layers) else None


def _stays(entry: SftEntry | KdEntry | OnPolicyEntry) -> bool:
    """Whether the teacher's weights are whole, plain and in the GPU's memory all the time."""
    if isinstance(entry, SftEntry) or not isinstance(entry.signal, LiveSignal):
        return False
    return entry.signal.precision != "nf4" and not entry.signal.moves

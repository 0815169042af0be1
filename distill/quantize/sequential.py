"""Quantize a model layer by layer, each on the inputs that the quantized layers before it produce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.model.linears import common_group_size, decoder_layers, linears_of
from distill.model.scales import (
    Grid,
    QuantizedLinear,
    dequantize,
    group_size_for,
    output_error,
    round_to_nearest,
)
from distill.quantize.awq import rescale, search_scales
from distill.quantize.calibrate import (
    Batch,
    Extras,
    InputGroup,
    InputStatistics,
    LayerInputs,
    advance,
    capture,
    input_groups,
    input_statistics,
)
from distill.quantize.fold import Heads, Producer, divide, find_producer
from distill.quantize.gptq import gptq


@dataclass(frozen=True)
class LinearReport:
    """How well one linear was quantized: ||WX - QX|| / ||WX||, and the same for plain rounding without calibration."""

    name: str
    bits: int
    group_size: int
    output_error: float
    rtn_output_error: float


class Rounding(Protocol):
    """Weight (O, I) and Gram matrix (I, I) in, codes, scales and zero points out."""

    def __call__(
        self, weight: Tensor, gram: Tensor, grid: Grid, *, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Gptq:
    """GPTQ as a rounding."""

    damping: float = 0.01
    act_order: bool = False

    def __call__(
        self, weight: Tensor, gram: Tensor, grid: Grid, *, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return gptq(weight, gram, grid, dtype=dtype, damping=self.damping, act_order=self.act_order)


@dataclass(frozen=True)
class Nearest:
    """Round to nearest; with `clip`, the range of each group that keeps the outputs best (the second half of AWQ)."""

    clip: bool = False

    def __call__(
        self, weight: Tensor, gram: Tensor, grid: Grid, *, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return round_to_nearest(weight, grid, dtype=dtype, gram=gram, clip=self.clip)


@dataclass(frozen=True)
class WeightSettings:
    """What to make of a model's weights. `scaling_points` > 0 adds AWQ's search for channel scales before rounding."""

    rounding: Rounding
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scaling_points: int = 0


@dataclass(frozen=True)
class QuantizedModel:
    """The quantized linears by full name, and a report on each, in the order of the model."""

    linears: dict[str, QuantizedLinear]
    reports: tuple[LinearReport, ...]


Structure = tuple[object, ...]


@torch.no_grad()
def quantize_model(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    settings: WeightSettings,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizedModel:
    """Quantize every linear of every decoder layer; the model keeps the rounded weights, and norms take up the scales.

    Embeddings and the LM head stay as they are. `progress(done, total)` is called after each layer.
    """
    model.eval()
    prefix, layers = decoder_layers(model)
    if not settings.symmetric:
        settings = replace(settings, group_size=common_group_size(layers, settings.group_size))
    inputs, extras = capture(model, layers, batches)
    heads = Heads.of(model)
    producers: dict[Structure, Producer | None] = {}
    linears: dict[str, QuantizedLinear] = {}
    reports: list[LinearReport] = []
    for index, layer in enumerate(layers):
        worker = _LayerQuantizer(layer, inputs, extras[index], settings, heads, producers)
        worker.run()
        for name, quantized in worker.done.items():
            linears[f"{prefix}.{index}.{name}"] = quantized
        reports += [replace(report, name=f"{prefix}.{index}.{report.name}") for report in worker.reports]
        if index + 1 < len(layers):
            advance(layer, inputs, extras[index])
        if progress is not None:
            progress(index + 1, len(layers))
    return QuantizedModel(linears, tuple(reports))


class _LayerQuantizer:
    """The work on one decoder layer: its groups of linears in the order in which they run."""

    def __init__(
        self,
        layer: nn.Module,
        inputs: LayerInputs,
        extras: Extras,
        settings: WeightSettings,
        heads: Heads,
        producers: dict[Structure, Producer | None],
    ) -> None:
        self.layer = layer
        self.inputs = inputs
        self.extras = extras
        self.settings = settings
        self.heads = heads
        self.producers = producers
        self.linears = linears_of(layer)
        self.done: dict[str, QuantizedLinear] = {}
        self.reports: list[LinearReport] = []

    def run(self) -> None:
        for group in input_groups(self.layer, self.inputs, self.extras):
            statistics = input_statistics(self.layer, self.linears[group.linears[0]], self.inputs, self.extras)
            self._quantize(group, statistics)

    def _quantize(self, group: InputGroup, statistics: InputStatistics) -> None:
        """All linears of a group at once: their rows are independent, and their Gram matrix is the same."""
        modules = [self.linears[name] for name in group.linears]
        dtype = modules[0].weight.dtype
        group_size = group_size_for(modules[0].in_features, self.settings.group_size)
        grid = Grid(self.settings.bits, group_size, self.settings.symmetric)
        weight, gram = torch.cat([module.weight.float() for module in modules]), statistics.gram
        plain = dequantize(*round_to_nearest(weight, grid, dtype=dtype))
        rows = [module.out_features for module in modules]
        plain_errors = [output_error(*pair, gram) for pair in zip(weight.split(rows), plain.split(rows), strict=True)]
        producer = self._producer(group) if self.settings.scaling_points else None
        if producer is not None:
            divisors = self._scale_inputs(producer, weight, statistics, grid, dtype)
            weight, gram = weight * divisors, rescale(gram, divisors)
        codes, scales, zeros = self.settings.rounding(weight, gram, grid, dtype=dtype)
        start = 0
        for name, module, plain_error in zip(group.linears, modules, plain_errors, strict=True):
            part = slice(start, start + module.out_features)
            start += module.out_features
            quantized = QuantizedLinear(
                codes[part], scales[part].to(dtype), None if zeros is None else zeros[part], grid
            )
            module.weight.copy_(quantized.weight())
            self.done[name] = quantized
            error = output_error(weight[part], module.weight.float(), gram)
            self.reports.append(LinearReport(name, grid.bits, grid.group_size, error, plain_error))

    def _producer(self, group: InputGroup) -> Producer | None:
        """Looked for once for all layers built alike."""
        shapes = tuple((name, module.in_features, module.out_features) for name, module in self.linears.items())
        key: Structure = (type(self.layer), shapes, group)
        if key not in self.producers:
            self.producers[key] = find_producer(
                self.layer, group, list(self.done), self.inputs, self.extras, self.heads
            )
        return self.producers[key]

    def _scale_inputs(
        self, producer: Producer, weight: Tensor, statistics: InputStatistics, grid: Grid, dtype: torch.dtype
    ) -> Tensor:
        """Search the channel scales, divide the producer's outputs by them, and return the divisors (I,)."""
        importance = producer.spread(producer.tie(statistics.mean_abs))
        scales, _, _ = search_scales(
            weight, statistics.gram, importance, grid, dtype=dtype, points=self.settings.scaling_points
        )
        by_row = producer.tie(scales)
        module = self.layer.get_submodule(producer.name)
        divisors = divide(module, producer, by_row)
        if producer.name in self.done:
            self._rescale_done(producer, by_row)
        return producer.spread(divisors)

    def _rescale_done(self, producer: Producer, divisors: Tensor) -> None:
        """A producer that is quantized keeps its codes: dividing a row by a number divides the row's scales."""
        quantized = self.done[producer.name]
        scales = quantized.scales.clone()
        rows = slice(producer.start, producer.stop)
        scales[rows] = (scales[rows].float() / divisors[:, None]).to(scales.dtype)
        self.done[producer.name] = replace(quantized, scales=scales)
        self.linears[producer.name].weight.copy_(self.done[producer.name].weight())

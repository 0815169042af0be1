"""Where a layer's input channels come from, so that a scale on them can be folded into the operation before.

Whether a fold keeps the layer's function is not looked up by architecture: it is tried with powers of two, exact in any
floating-point format, and the layer's outputs are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distill.model.linears import linears_of
from distill.quantize.calibrate import Extras, InputGroup, LayerInputs, run_layer

_TOLERANCE = 0.02


@dataclass(frozen=True)
class Producer:
    """The operation that writes a group's input channels.

    A norm multiplies by its weight, an offset norm by 1 + weight (Gemma); of a linear, rows `start`..`stop` write them.
    With grouped-query attention each KV head of `head_size` channels is read `repeats` times by the output projection.
    """

    name: str
    kind: Literal["norm", "offset_norm", "linear"]
    start: int
    stop: int
    repeats: int = 1
    head_size: int = 1

    def tie(self, channels: Tensor) -> Tensor:
        """(I,) -> (I / repeats,): the mean over the input channels that one producer channel feeds."""
        return channels.view(-1, self.repeats, self.head_size).mean(1).flatten()

    def spread(self, channels: Tensor) -> Tensor:
        """(I / repeats,) -> (I,): every producer channel's value for each input channel it feeds."""
        return channels.view(-1, 1, self.head_size).expand(-1, self.repeats, -1).flatten()


@torch.no_grad()
def divide(module: nn.Module, producer: Producer, scales: Tensor) -> Tensor:
    """Divide the producer's output channels by `scales` in place; returns what they were really divided by.

    A norm's weight is rounded to its own dtype, so the consumer must be multiplied by the divisor that came of it.
    """
    weight = module.get_parameter("weight")
    rows = slice(producer.start, producer.stop)
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    effective = scales
    if producer.kind == "linear":
        weight[rows] = (weight[rows].float() / scales[:, None]).to(weight.dtype)
    else:
        offset = 1.0 if producer.kind == "offset_norm" else 0.0
        old = weight.float() + offset
        weight.copy_(old / scales - offset)
        new = weight.float() + offset
        effective = torch.where((new != 0) & (old != 0), old / new, scales)
    if bias is not None:
        bias[rows] = (bias[rows].float() / effective).to(bias.dtype)
    return effective


@dataclass(frozen=True)
class Heads:
    """Size of an attention head, and how many query heads read each KV head."""

    size: int
    queries_per_kv: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Heads:
        """The heads that a model's config describes."""
        config = model.config.get_text_config(decoder=True).to_dict()
        queries = int(config["num_attention_heads"])
        size = config.get("head_dim") or config["hidden_size"] // queries
        return cls(int(size), queries // int(config.get("num_key_value_heads") or queries))


def find_producer(
    layer: nn.Module, group: InputGroup, earlier: Sequence[str], inputs: LayerInputs, extras: Extras, heads: Heads
) -> Producer | None:
    """The producer of a group's inputs, its norm or one of the linears that ran `earlier`; None if no fold is exact."""
    linears = linears_of(layer)
    width = linears[group.linears[0]].in_features
    candidates: list[Producer] = []
    if group.norm is not None:
        candidates = [Producer(group.norm, "norm", 0, width), Producer(group.norm, "offset_norm", 0, width)]
    else:
        for name in reversed(earlier):
            candidates += _row_ranges(name, linears[name].out_features, width, heads)
    return next((producer for producer in candidates if _keeps_function(layer, group, producer, inputs, extras)), None)


def _row_ranges(name: str, rows: int, width: int, heads: Heads) -> list[Producer]:
    """Rows of a linear that may write `width` channels: all or the last of a fused one, also as shared KV heads."""
    found = []
    for repeats in dict.fromkeys((1, heads.queries_per_kv)):
        written = width // repeats
        if written <= rows and width % (repeats * heads.size) == 0:
            found.append(Producer(name, "linear", rows - written, rows, repeats, heads.size))
        elif written <= rows and repeats == 1:
            found.append(Producer(name, "linear", rows - written, rows))
    return found


@torch.no_grad()
def _keeps_function(
    layer: nn.Module, group: InputGroup, producer: Producer, inputs: LayerInputs, extras: Extras
) -> bool:
    module = layer.get_submodule(producer.name)
    consumers = [linears_of(layer)[name] for name in group.linears]
    before, layer_before = _outputs(layer, consumers, inputs, extras)
    touched = [*module.parameters(recurse=False), *(linear.weight for linear in consumers)]
    saved = [parameter.clone() for parameter in touched]
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(0, 2, (producer.stop - producer.start,), generator=generator) * 2 - 1
    scales = torch.exp2(powers.float()).to(consumers[0].weight.device)
    try:
        divide(module, producer, scales)
        for linear in consumers:
            linear.weight.mul_(producer.spread(scales).to(linear.weight.dtype))
        after, layer_after = _outputs(layer, consumers, inputs, extras)
    finally:
        for parameter, value in zip(touched, saved, strict=True):
            parameter.copy_(value)
    update = (layer_before - inputs.hidden[-1].float()).norm()
    same_outputs = all((a - b).norm() <= _TOLERANCE * b.norm() for a, b in zip(after, before, strict=True))
    return bool(same_outputs and (layer_after - layer_before).norm() <= _TOLERANCE * update)


def _outputs(
    layer: nn.Module, linears: Sequence[nn.Linear], inputs: LayerInputs, extras: Extras
) -> tuple[list[Tensor], Tensor]:
    """Outputs of some linears and of the layer on the last (shortest) batch, in float32."""
    found: list[Tensor] = []
    handles = [linear.register_forward_hook(lambda _, args, out: found.append(out.float())) for linear in linears]
    try:
        whole = run_layer(layer, inputs.hidden[-1], extras[-1])
    finally:
        for handle in handles:
            handle.remove()
    return found, whole.float()

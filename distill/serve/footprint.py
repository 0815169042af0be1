"""What a forward pass has to read and to multiply: the numbers that a roofline needs, from the model as loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from distill.kernels.w4a16 import PackedLinear


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights that a step reads once; weights that each token, and each row of logits, is multiplied with.
    Every expert of a mixture counts as read and used; the FLOP of attention itself are left out."""

    step_weight_bytes: int
    token_weights: int
    head_weights: int
    dtype: str
    device: str


def footprint(model: PreTrainedModel) -> Footprint:
    """A table of input embeddings is not read but looked up, unless it is the LM head as well."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(table, nn.Embedding), f"input embeddings of type {type(table).__name__}"
    tied = isinstance(head, nn.Linear) and head.weight is table.weight
    token_weights = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | PackedLinear):  # packed ones keep their shape as attributes
            token_weights += module.in_features * module.out_features if module is not head else 0
        elif not isinstance(module, nn.Embedding):  # stacked experts, convolutions in GPT-2's style
            token_weights += sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
    footprint_bytes = model.get_memory_footprint()
    assert isinstance(footprint_bytes, int)
    return Footprint(
        step_weight_bytes=footprint_bytes - (0 if tied else table.weight.nbytes),
        token_weights=token_weights,
        head_weights=table.weight.numel(),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
    )

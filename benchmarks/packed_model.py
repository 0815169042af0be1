"""A model of any shape with random 4-bit linears, made where it will run: what a benchmark of speed needs, no files."""

from __future__ import annotations

import torch
import transformers as hf
from accelerate import init_empty_weights
from torch import nn

from distill.kernels.w4a16 import PackedLinear


def random_packed_model(
    config: hf.PretrainedConfig,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    group_size: int = 128,
    seed: int = 0,
) -> hf.PreTrainedModel:
    """The causal language model of `config` on `device`, every linear but the LM head a `PackedLinear` on a symmetric
    grid. Weights are of the size of a fresh model's, so that activations stay finite; it says nothing sensible and
    never ends an answer by itself."""
    torch.manual_seed(seed)
    with init_empty_weights(include_buffers=False):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert isinstance(model, hf.PreTrainedModel)
    head = model.get_output_embeddings()
    for stem, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not head:
            parent, _, name = stem.rpartition(".")
            setattr(model.get_submodule(parent), name, _random_linear(linear, device, dtype, group_size))
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            setattr(owner, name, nn.Parameter(_random(name, parameter.shape, device, dtype), requires_grad=False))
        for name, buffer in list(owner.named_buffers(recurse=False)):
            owner._buffers[name] = buffer.to(device)
    model.tie_weights()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model.eval()


def _random_linear(linear: nn.Linear, device: torch.device | str, dtype: torch.dtype, group_size: int) -> PackedLinear:
    """Codes spread over -8..7 with a deviation of 4.6, scaled to 0.02."""
    out, width = linear.out_features, linear.in_features
    codes = torch.randint(-8, 8, (out, width), dtype=torch.int8, device=device)
    scales = torch.full((out, width // group_size), 0.02 / 4.6, dtype=dtype, device=device)
    bias = None if linear.bias is None else torch.zeros(out, dtype=dtype, device=device)
    return PackedLinear(codes, scales, bias=bias)


def _random(name: str, shape: torch.Size, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name == "bias" else 1.0, dtype=dtype, device=device)  # norms
    return torch.randn(shape, dtype=dtype, device=device) * 0.02

"""What of a bitsandbytes model is not quantized, in another number format; transformers leaves it as stored."""

from __future__ import annotations

import bitsandbytes
import torch
from transformers import PreTrainedModel


def keep_exact(model: PreTrainedModel) -> None:
    """Let NF4 linears compute in the format they are told. On CPUs with AVX-512 BF16 bitsandbytes takes bfloat16
    whatever it is told, and fails on layers of fewer than 64 inputs."""
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu &= module.compute_dtype == torch.bfloat16 and module.in_features >= 64


def recast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Turn all but the packed weights to `dtype`, in place, and let the NF4 linears compute in it.

    LLM.int8() linears take and give `dtype`; between them bitsandbytes computes in integers and float16, as published.
    """
    for module in model.modules():
        packed = isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not (packed and name == "weight"):
                parameter.data = parameter.data.to(dtype)
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = dtype
            weight = module.weight
            if isinstance(weight, bitsandbytes.nn.Params4bit) and weight.quant_state is not None:
                weight.quant_state.dtype = dtype
    model.config.dtype = dtype
    keep_exact(model)

"""What a configuration leaves to the engine, and what it takes from the model."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.types import EngineConfig
from distill.errors import EngineError

_PREFILL_TOKENS = 512
_GPU_PREFILL_TOKENS = 8192


def resolved(config: EngineConfig, device: torch.device, *, is_alone: bool) -> EngineConfig:
    """The configuration with every choice made. An engine that is not alone (it has a draft, or leads other processes)
    computes and reads step by step."""
    on_gpu = device.type == "cuda"
    attention = config.attention
    if attention == "auto":
        # before Ada and Hopper no instruction reads fp8
        readable = config.kv_dtype != "fp8" or (on_gpu and torch.cuda.get_device_capability(device) >= (8, 9))
        able = on_gpu and config.use_kv_cache and readable
        attention = "triton" if able and find_spec("triton") is not None else "torch"
    elif attention == "triton" and find_spec("triton") is None:
        raise EngineError("Triton is not installed", remedy="use the engine's attention 'torch', or install triton")
    wants_overlap = on_gpu if config.overlap is None else config.overlap
    return replace(
        config,
        attention=attention,
        cuda_graphs=config.cuda_graphs and attention == "triton" and is_alone,
        overlap=wants_overlap and config.use_kv_cache and is_alone,
        prefill_tokens=config.prefill_tokens or (_GPU_PREFILL_TOKENS if on_gpu else _PREFILL_TOKENS),
    )


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every token that ends an answer: the generation config's list and the tokenizer's own."""
    found: set[int] = set()
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if isinstance(configured, int):
        found.add(configured)
    elif configured is not None:
        found.update(int(t) for t in configured)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return frozenset(found)

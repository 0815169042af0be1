"""Models of real shapes with random weights, made on the GPU, and what the GPU's memory can do."""

from __future__ import annotations

import time

import torch
import transformers as hf

from benchmarks.packed_model import random_packed_model

H100_BYTES_PER_SECOND = 3.35e12
PACKED = "-w4a16"
_PEAKS = {"H200": 4.8e12, "H100": H100_BYTES_PER_SECOND}

MODELS: dict[str, dict[str, object]] = {
    "qwen2.5-0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def make_model(name: str, dtype: torch.dtype = torch.bfloat16) -> hf.PreTrainedModel:
    """Random weights, which never end a text; `-w4a16`: packed ones of 4 bits but for the head."""
    base = name.removesuffix(PACKED)
    shape = {"max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    config = hf.Qwen2Config(**MODELS[base], **shape, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    if base != name:
        return random_packed_model(config, "cuda", dtype=dtype)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model.to("cuda").eval()


def peak_speed() -> float:
    """Bytes per second of the GPU's memory by its data sheet; by a copy where the GPU is not known."""
    name = torch.cuda.get_device_name()
    return next((speed for known, speed in _PEAKS.items() if known in name), 0.0) or copy_speed()


def copy_speed() -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - started))
    return best

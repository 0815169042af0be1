"""Tiny random models of every structure that can be cut, and ragged rows to measure them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from distill.model.calibration import Batch, pad_batches

VOCABULARY = 64
KINDS = ("llama", "mistral", "qwen2", "qwen3")
IDS = torch.arange(5, 41).reshape(2, 18)


def model(kind: str = "llama", *, layers: int = 3, heads: int = 4, kv_heads: int = 4, tied: bool = True) -> Any:
    """Width 32, heads of 6 channels (not 32 / heads), 20 neurons; Llama with every bias, Qwen2 and Qwen3 as they are.

    Weights are large enough that every part shows in the logits.
    """
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 6, "tie_word_embeddings": tied,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = {
        "llama": lambda: LlamaConfig(**sizes, attention_bias=True, mlp_bias=True),
        "mistral": lambda: MistralConfig(**sizes, sliding_window=8),
        "qwen2": lambda: Qwen2Config(**sizes, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "qwen3": lambda: Qwen3Config(**sizes),
    }[kind]()
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    assert isinstance(made, PreTrainedModel)
    return made


def batches(rows: int = 7) -> list[Batch]:
    """Rows of 3 to 15 tokens in several padded batches."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 16, (rows,), generator=generator).tolist()
    ids = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return pad_batches(ids, max_length=64, tokens=40)


def unpadded(made: list[Batch]) -> list[torch.Tensor]:
    """Every row alone, (1, T), without its padding."""
    return [
        ids[mask].unsqueeze(0)
        for batch in made
        for ids, mask in zip(batch.input_ids, batch.mask, strict=True)
    ]  # fmt: skip


def logits(model_or_folder: Any) -> torch.Tensor:
    """Of `IDS`; a folder is loaded by transformers alone."""
    loaded = model_or_folder
    if isinstance(loaded, Path):
        loaded = AutoModelForCausalLM.from_pretrained(loaded, dtype=torch.float32)
    with torch.no_grad():
        out = loaded.eval()(IDS).logits
    assert isinstance(out, torch.Tensor)
    return out


def own_rows(made: Any, rows: int = 6) -> list[Batch]:
    """Rows that the model itself wrote, greedily: without a layer that does something it foresees them worse."""
    prompts = torch.arange(5, 5 + rows).unsqueeze(1)
    ids = made.generate(prompts, max_new_tokens=16, do_sample=False, eos_token_id=None)
    return pad_batches(ids.tolist(), max_length=64)

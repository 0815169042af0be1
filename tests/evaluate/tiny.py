"""Tiny models with a shared tokenizer, made in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.model.tokenizer import train_tokenizer
from distill.tasks.registry import sample_tasks


def make_tokenizer() -> PreTrainedTokenizerFast:
    tasks = sample_tasks(kinds=("instruction", "code"), split="train", count=300, seed=0)
    return train_tokenizer((f"{t.prompt}\n{t.answer}" for t in tasks), vocab_size=600, max_positions=512)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, layers: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

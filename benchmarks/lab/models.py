"""The lab's models: Llamas with random weights, their perplexity on held-out rows, and texts that a teacher samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.lab.text import chat
from distill.model.load import load_model, load_tokenizer
from distill.records import INSTRUCTION, write_parquet
from distill.train.batches import collator, read_sequences

_CHUNK = 2048  # tokens whose logits exist at once


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int


def make_random(shape: Shape, tokenizer: PreTrainedTokenizerBase, out: Path, seed: int) -> int:
    """Random weights and the tokenizer in a folder; the number of parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def perplexity(folder: Path, rows: Path, max_length: int, tokenizer: Path) -> dict[str, float]:
    """Mean nats a token over the rows' trained tokens in float32, and its exponential."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(folder, dtype="float32")
    found = read_sequences(load_tokenizer(tokenizer), [rows], max_length)
    columns = (found.input_ids, found.labels, found.segments, found.row_ids)
    names = ("input_ids", "labels", "seq_lengths", "row_ids")
    examples: list[dict[str, Any]] = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    total, tokens, head = 0.0, 0, model.get_output_embeddings()
    for begin in range(0, len(examples), 32):
        batch = {name: values.to(device) for name, values in collator(0)(examples[begin : begin + 32]).items()}
        inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            total += float(F.cross_entropy(head(hidden[part]).float(), labels[part], reduction="sum"))
        tokens += int((labels >= 0).sum())
    return {"nats": total / tokens, "perplexity": math.exp(total / tokens), "tokens": tokens}


@torch.no_grad()
def sample(teacher: Path, prompts: Path | None, out: Path, *, rows: int, tokens: int, batch: int, seed: int) -> None:
    """Rows that the teacher writes at temperature 1, after the first eighth of each of `prompts`' rows or after BOS."""
    model, tokenizer = load_model(teacher), load_tokenizer(teacher)
    begins = [[tokenizer.bos_token_id]] * rows
    if prompts is not None:
        found = read_sequences(tokenizer, [prompts], tokens)
        begins = [ids[: tokens // 8] for ids in found.input_ids[:: max(1, len(found.input_ids) // rows)][:rows]]
    torch.manual_seed(seed)
    written = []
    for start in range(0, len(begins), batch):
        asked = torch.tensor(begins[start : start + batch], device=model.device)
        said = model.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            do_sample=True,
            top_k=0,
            max_length=tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        for row in said.tolist():
            width = asked.shape[1]
            answer = _until_end(row[width:], tokenizer)
            if answer:
                question = tokenizer.decode(row[:width], skip_special_tokens=True)
                written.append(chat(question, tokenizer.decode(answer)))
    write_parquet(out, written, INSTRUCTION)


def _until_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    special = set(tokenizer.all_special_ids)
    return ids[: next((place for place, token in enumerate(ids) if token in special), len(ids))]

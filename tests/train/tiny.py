"""A tiny world for the training tests: tokenizer, teacher, datasets and recipes, all made on the spot."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.model.tokenizer import train_tokenizer
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, PREFERENCE, write_parquet
from distill.train.batches import Sequences, collator
from distill.train.callbacks import Watch

if TYPE_CHECKING:
    import pytest

WORDS = (
    *("red", "blue", "green", "round", "flat", "tall", "small", "count", "sort", "reverse"),
    *("the", "a", "of", "and", "with", "to", "first", "last"),
)


def tokenizer() -> PreTrainedTokenizerFast:
    text = [" ".join(random.Random(i).choices(WORDS, k=20)) for i in range(200)]
    return train_tokenizer(text, vocab_size=330, max_positions=256)


def save_model(
    folder: Path,
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    width: int = 32,
    seed: int = 0,
    tied: bool = True,
    tokens: PreTrainedTokenizerFast | None = None,
) -> None:
    """A Llama with random weights, its tokenizer (this world's own, unless another is given) and chat template."""
    tokens = tokens or tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)


def save_data(folder: Path, rows: int = 40) -> None:
    """`chats.parquet` (reverse two words) and `pairs.parquet` (right order against wrong), ragged lengths."""
    rng = random.Random(0)
    chats: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for _ in range(rows):
        words = rng.choices(WORDS, k=rng.randint(2, 12))
        prompt = [{"role": "user", "content": "reverse " + " ".join(words)}]
        right = [{"role": "assistant", "content": " ".join(reversed(words))}]
        wrong = [{"role": "assistant", "content": " ".join(words[: len(words) // 2]) + " of of"}]
        chats.append({"messages": [*prompt, *right]})
        pairs.append({"prompt": prompt, "chosen": right, "rejected": wrong})
    write_parquet(folder / "chats.parquet", chats, INSTRUCTION)
    write_parquet(folder / "pairs.parquet", pairs, PREFERENCE)


def recipe(folder: Path, *entries: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe over the tiny world in `folder`; entries get small settings where they name none."""
    common = {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3, "max_steps": 6, "logging_steps": 1}
    made = []
    for entry in entries:
        data = ["pairs.parquet" if entry["objective"] in ("dpo", "simpo", "kto") else "chats.parquet"]
        made.append({**common, "name": entry["objective"], "data": [str(folder / name) for name in data], **entry})
    document = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "teacher": {"kind": "embedded", "model": str(folder / "teacher")},
        "student": {"model": str(folder / "teacher"), "layers": 1, "kv_heads": 1, "dtype": "float32"},
        "train": made,
        **sections,
    }
    return Recipe.model_validate_json(json.dumps(document))


def batch_of(rows: Sequences, numbers: Iterable[int], pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """Some rows as the trainer's collator puts them together: what a model's forward takes."""
    collate = collator(pad_token_id)
    examples = [
        {
            "input_ids": rows.input_ids[row],
            "labels": rows.labels[row],
            "seq_lengths": rows.segments[row],
            "row_ids": [row],
        }
        for row in numbers
    ]
    batch = collate(examples)
    return {name: batch[name] for name in ("input_ids", "labels", "position_ids")}


@contextmanager
def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process gets SIGTERM at the end of that step."""
    original = Watch.on_step_end

    def stopping(self: Watch, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, args, state, control, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", stopping)
        yield

"""Calibration rows: part of a dataset as padded token batches, for whatever is measured on a model before it is cut
or rounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distill.errors import DataError, DistillError
from distill.model.chat import render
from distill.model.load import require_chat_template
from distill.recipe.quantize import Calibration
from distill.records import Message, read_parquet

_TOKENS_PER_BATCH = 4096
_LETTERS_PER_TOKEN = 8  # more than any tokenizer's mean, so that a window of text fills a row


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: input_ids (B, T) and mask (B, T), True on real tokens."""

    input_ids: Tensor
    mask: Tensor


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, source: str | Path, data: Path, calibration: Calibration
) -> list[Batch]:
    """Rows spread evenly over a Parquet file as token batches: chats, rendered by the template of the model at
    `source`, or the column `text`, of which long rows give several windows.

    Raises DataError for a file without rows of either kind, CheckpointError for chats and no chat template.
    """
    everything = read_parquet(data)
    if not everything:
        raise DataError(f"{data} has no rows to calibrate on", remedy="name another dataset as calibration.data")
    rows = everything[:: max(1, len(everything) // calibration.rows)][: calibration.rows]
    if "text" in rows[0]:
        texts = [row["text"] for row in rows]
        ids: list[list[int]] = [
            tokenizer(window)["input_ids"] for window in _windows(texts, calibration.rows, calibration.max_length)
        ]
    else:
        require_chat_template(tokenizer, source)
        ids = [render(tokenizer, _messages(row, data), add_generation_prompt=False) for row in rows]
    return pad_batches(ids, max_length=calibration.max_length)


def pad_batches(rows: Sequence[Sequence[int]], *, max_length: int, tokens: int = _TOKENS_PER_BATCH) -> list[Batch]:
    """Token rows, cut to `max_length`, as batches of rows of similar length and about `tokens` tokens.

    Padding is on the right, where causal attention keeps it from every real token; no attention mask is needed.
    """
    cut = sorted((list(row[:max_length]) for row in rows if len(row) > 0), key=len)
    if not cut:
        raise DistillError("no calibration rows with any token", remedy="point calibration.data at a dataset with rows")
    batches: list[Batch] = []
    while cut:
        count = max(1, min(len(cut), tokens // len(cut[-1])))
        chunk, cut = cut[-count:], cut[:-count]
        width = len(chunk[-1])
        ids = torch.tensor([row + [0] * (width - len(row)) for row in chunk])
        lengths = torch.tensor([len(row) for row in chunk])
        batches.append(Batch(ids, torch.arange(width) < lengths[:, None]))
    return batches


def _windows(texts: Sequence[str], rows: int, max_length: int) -> Iterator[str]:
    """About `rows` pieces of `max_length` tokens or a little more, spread evenly over the texts and inside each."""
    size = max_length * _LETTERS_PER_TOKEN
    for index, text in enumerate(texts):
        share = rows * (index + 1) // len(texts) - rows * index // len(texts)
        pieces = max(1, min(share, len(text) // size))
        for piece in range(pieces):
            begin = (len(text) - size) * piece // max(1, pieces - 1) if pieces > 1 else 0
            yield text[begin : begin + size]


def _messages(row: dict[str, Any], data: Path) -> list[Message]:
    """The chat of an instruction or code row, or the chosen one of a preference row."""
    if "messages" in row:
        messages: list[Message] = row["messages"]
    elif "prompt" in row and "chosen" in row:
        messages = [*row["prompt"], *row["chosen"]]
    else:
        raise DataError(f"{data} has neither messages, nor prompt and chosen, nor text; it has {', '.join(row)}")
    return messages

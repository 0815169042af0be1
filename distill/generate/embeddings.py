"""Texts as vectors: the mean of a local model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.model.load import check_weights, load_model, load_tokenizer

_BATCH = 16


def require_model(path: str) -> None:
    """Raise CheckpointError where there is no model at `path`: better before the teacher is paid than after."""
    if Path(path).is_dir():
        check_weights(Path(path))
    load_tokenizer(path)


class Embedder:
    """A model of which only the hidden states are used."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    @classmethod
    def load(cls, path: str, *, max_tokens: int) -> Embedder:
        """The checkpoint at `path`, on the GPU where there is one. Raises CheckpointError."""
        return cls(load_model(path, device="auto"), load_tokenizer(path), max_tokens=max_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row a text, over its first `max_tokens` tokens; padding does not count."""
        rows = [self._batch(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return np.concatenate(rows)

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        # An empty text has no token to take the mean of.
        encoded = self._tokenizer(
            [text or " " for text in texts],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._model.device)
        hidden = self._model.base_model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], use_cache=False
        ).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return mean.float().cpu().numpy()

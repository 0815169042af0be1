"""Packed batches of the text that `distill.tasks` writes. Batch `i` depends on the seed and `i` alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from distill.model.tokenizer import BOS, END, ROLES
from distill.tasks.plain_text import document
from distill.tasks.registry import training_stream

Corpus = Literal["chats", "plain"]
IGNORED = -100
_BATCH_TEXTS = 256


def texts(corpus: Corpus, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (context, target) pairs: the loss is on the target. Plain documents have no context."""
    if corpus == "chats":
        for task in training_stream(seed=seed, shard=0, num_shards=1):
            yield task.prompt, task.answer
    rng = random.Random(seed)
    while True:
        yield "", document(rng)


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """Text to train a tokenizer on: `count` samples of each corpus, so that teacher and student share a vocabulary."""
    chats, plain = texts("chats", seed), texts("plain", seed)
    for _ in range(count):
        yield "\n".join(next(chats))
        yield next(plain)[1]


class PackedCorpus(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Map-style dataset of batches: token ids and labels, each [rows, row_tokens], documents one after another."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        corpus: Corpus,
        seed: int,
        steps: range,
        rows: int,
        row_tokens: int,
    ) -> None:
        self._backend_json = tokenizer.backend_tokenizer.to_str()
        vocabulary = tokenizer.get_vocab()
        self._bos, self._end = vocabulary[BOS], vocabulary[END]
        self._user, self._assistant = vocabulary[ROLES["user"]], vocabulary[ROLES["assistant"]]
        self._corpus: Corpus = corpus
        self._seed, self._steps = seed, steps
        self._rows, self._row_tokens = rows, row_tokens

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        need = self._rows * self._row_tokens + 1
        ids = np.empty(need, dtype=np.int64)
        labels = np.empty(need, dtype=np.int64)
        filled = 0
        for document_ids, context in self._documents(self._steps[index]):
            take = min(len(document_ids), need - filled)
            ids[filled : filled + take] = document_ids[:take]
            labels[filled : filled + take] = document_ids[:take]
            labels[filled : filled + min(context, take)] = IGNORED
            filled += take
            if filled == need:
                break
        shape = (self._rows, self._row_tokens)
        return torch.from_numpy(ids[:-1].reshape(shape)), torch.from_numpy(labels[1:].reshape(shape))

    def _documents(self, step: int) -> Iterator[tuple[list[int], int]]:
        """(ids, how many of them are context) of each document of a step."""
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_str(self._backend_json)
        stream = texts(self._corpus, _step_seed(self._seed, step))
        while True:
            pairs = [next(stream) for _ in range(_BATCH_TEXTS)]
            contexts = encoder.encode_batch([context for context, _ in pairs], add_special_tokens=False)
            targets = encoder.encode_batch([target for _, target in pairs], add_special_tokens=False)
            for context, target in zip(contexts, targets, strict=True):
                head = [self._bos]
                if self._corpus == "chats":
                    head = [self._bos, self._user, *context.ids, self._end, self._assistant]
                yield [*head, *target.ids, self._end], len(head)


def loader(dataset: PackedCorpus, *, workers: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in order, written by worker processes ahead of their use."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _step_seed(seed: int, step: int) -> int:
    return (seed + 1) * 1_000_003 + step

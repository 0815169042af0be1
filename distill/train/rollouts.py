"""On-policy rows: the student answers its prompts itself, in the engine, which runs the weights that are trained."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.runner import Engine
from distill.engine.types import Completion, EngineConfig, SamplingParams
from distill.model.chat import IGNORED
from distill.recipe.train import OnPolicyEntry
from distill.train.copies import Copy
from distill.train.replay import OwnRow, ReplayBuffer

Batch = dict[str, Tensor]
Collate = Callable[[list[dict[str, Any]]], Batch]
_PREFILL_TOKENS = 2048  # of a step on a CPU
COUNTS = (
    *("steps", "own_steps", "tokens", "trained_tokens", "answers", "answer_tokens", "ended"),
    *("replayed_steps", "replayed_rows", "replayed_ages"),
)


class Rollouts:
    """Turns the batches of an optimizer step into on-policy ones, for a share `lmbda` of the steps.

    As in GKD (2306.13649, algorithm 1): with probability `lmbda` all rows of a step get the student's answers in place
    of the dataset's. Which steps these are depends on the seed and the step alone, and so is the same in all processes;
    an answer's noise depends on the seed, the step, and the row. The engine computes with `model`, whose parameters the
    optimizer changes in place; on a GPU in bfloat16, without LoRA, with a copy in that precision, refreshed before each
    use, whose weights it can join and fuse. What it cached of older weights is dropped before each use. With LoRA
    `model` is the base, into which the adapter's layers are put.

    With `replay` some of these steps take answers of earlier ones instead, and the engine does nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        entry: OnPolicyEntry,
        *,
        rows: int,
        collate: Collate,
        bfloat16: bool = False,
        replay: ReplayBuffer | None = None,
    ) -> None:
        """`rows`: how many a step of this process has; `bfloat16`: whether the training's passes run in it."""
        self._model, self._tokenizer, self._entry = model, tokenizer, entry
        self._rows, self._collate, self._bfloat16 = rows, collate, bfloat16
        self.replay = replay
        self._engine: Engine | None = None
        self._copy: Copy | None = None
        self._counts = torch.zeros(len(COUNTS), dtype=torch.float64)

    def is_own(self, step: int) -> bool:
        """Whether the student's answers are trained on after `step` optimizer steps."""
        return random.Random(f"lmbda/{self._entry.seed}/{step}").random() < self._entry.lmbda

    def is_replayed(self, step: int) -> bool:
        """Whether the step that follows `step` others takes answers of earlier ones; to be asked before it is made."""
        return self.replay is not None and self.is_own(step) and self.replay.is_due(step)

    def __call__(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        """The micro-batches of the step that follows `step` others, as they were or with the student's answers.

        `batches` as the collator makes them, not packed. A replayed step has other prompts than theirs.
        """
        own, replayed = self.is_own(step), self.is_replayed(step)
        if replayed:
            made = self._replayed(batches, step)
        elif own:
            made = self._answered(batches, step)
        else:
            made = list(batches)
        self._count({"steps": 1, "own_steps": own, "replayed_steps": replayed})
        for batch in made:
            trained = int((batch["labels"] != IGNORED).sum())
            self._count({"tokens": trained + _num_before(batch), "trained_tokens": trained})
        return made

    def take_counts(self) -> Tensor:
        """What happened since the last call, [COUNTS]."""
        counts, self._counts = self._counts, torch.zeros_like(self._counts)
        return counts

    def _count(self, counts: Mapping[str, float]) -> None:
        for name, value in counts.items():
            self._counts[COUNTS.index(name)] += value

    def _answered(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        names = [row for batch in batches for row in batch["row_ids"][:, 0].tolist()]
        prompts = [prompt for batch in batches for prompt in prompts_of(batch)]
        answers = self._generate(prompts, [answer_seed(self._entry.seed, step, name) for name in names])
        rows = iter(_own_row(*parts, step) for parts in zip(prompts, answers, names, strict=True))
        made = []
        for number, batch in enumerate(batches):
            own = list(islice(rows, len(batch["input_ids"])))
            if self.replay is not None:
                self.replay.put(number, own)
            made.append(self._batch(own, batch["input_ids"].device))
        self._count(
            {
                "answers": len(answers),
                "answer_tokens": sum(len(answer.token_ids) for answer in answers),
                "ended": sum(answer.finish_reason == "stop" for answer in answers),
            }
        )
        return made

    def _replayed(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        assert self.replay is not None
        made = []
        for number, batch in enumerate(batches):
            rows = self.replay.draw(number, len(batch["input_ids"]), step)
            self._count({"replayed_rows": len(rows), "replayed_ages": sum(step - row.step for row in rows)})
            made.append(self._batch(rows, batch["input_ids"].device))
        return made

    def _batch(self, rows: Sequence[OwnRow], device: torch.device) -> Batch:
        """Rows as the collator puts them together: trained on is the whole answer, its end where it came to one."""
        examples = []
        for row in rows:
            labels = row.ids.copy()
            labels[: row.start] = IGNORED
            examples.append(
                {"input_ids": row.ids, "labels": labels, "seq_lengths": [len(row.ids)], "row_ids": [row.name]}
            )
        return {key: values.to(device) for key, values in self._collate(examples).items()}

    def _generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Completion]:
        """The student's answers; its modules are in eval mode meanwhile, so that nothing drops out."""
        settings = self._entry.rollout
        params = [
            SamplingParams(
                max_tokens=min(settings.max_new_tokens, self._entry.max_length - len(prompt)),
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=seed,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        with nullcontext() if self._is_copied() else self._answering():
            if self._engine is None:
                self._copy = Copy(self._model) if self._is_copied() else None
                model = self._model if self._copy is None else self._copy.model
                self._engine = Engine(model, self._tokenizer, self._config())
            if self._copy is not None:
                self._copy.refresh()
            self._engine.weights_changed()
            return self._engine.generate(prompts, params)

    def _is_copied(self) -> bool:
        """Whether the engine has weights of its own."""
        plain = self._entry.lora is None and self._entry.rollout.attention != "torch"
        return plain and self._bfloat16 and self._model.device.type == "cuda"

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The model as it answers: nothing drops out, and matmuls are in the training's precision.

        The model's own forward, not the one that accelerate wraps into autocast: that keeps the weights which it cast
        for the next use, and CUDA graphs, recorded once, would read those for ever.
        """
        model, training = self._model, self._model.training
        wrapped = model.forward
        model.forward = types.MethodType(type(model).forward, model)  # type: ignore[method-assign]
        model.eval()
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False):
                yield
        finally:
            model.forward = wrapped  # type: ignore[method-assign]
            model.train(training)

    def _config(self) -> EngineConfig:
        """Trained weights are left where the optimizer knows them: the fused layers would put them together."""
        settings = self._entry.rollout
        return EngineConfig(
            max_batch=self._rows,
            prefill_tokens=_PREFILL_TOKENS if self._model.device.type == "cpu" else 0,
            kv_bytes=int(settings.kv_gib * 2**30),
            max_model_len=self._entry.max_length,
            attention=settings.attention,
            fused=self._copy is not None,
        )


def answer_seed(seed: int, step: int, row: int) -> int:
    """Seed of a row's answer in a step, 64 bits: whatever else is in the batch, and in whichever process."""
    return int.from_bytes(blake2b(f"answer/{seed}/{step}/{row}".encode(), digest_size=8).digest())


def prompts_of(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """Of each row the tokens before its last trained turn, through the generation prompt."""
    found = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        start = max(place for place, label in enumerate(labels) if label != IGNORED)
        while labels[start - 1] != IGNORED:
            start -= 1
        found.append(ids[:start])
    return found


def _own_row(prompt: list[int], answer: Completion, name: int, step: int) -> OwnRow:
    return OwnRow(np.array([*prompt, *answer.token_ids], dtype=np.int32), len(prompt), name, step)


def _num_before(batch: Mapping[str, Tensor]) -> int:
    """Tokens up to each row's last trained one that are not trained; padding comes after."""
    labels = batch["labels"]
    places = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    ends = torch.where(labels != IGNORED, places, 0).amax(-1)
    return int(ends.sum()) - int((labels != IGNORED).sum())

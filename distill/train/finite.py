"""A loss or gradient that is no number stops training before the optimizer takes it into the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.errors import DistillError

REMEDY = "lower learning_rate or max_grad_norm, or set mixed_precision: no; earlier checkpoints are kept"
_SHOWN = 32


@dataclass
class FiniteCheck(TrainerCallback):  # type: ignore[misc]
    """Sees the loss of every micro-batch and the gradients' norm; looks at them once a step, in all processes, before
    the optimizer, with a single wait for the device. DeepSpeed's optimizer is faster: there they are looked at before
    anything is written.

    `order` is the rows in the order of training; `places` says which rows of which of the `files` each is (several
    where rows are packed). Micro-batch j of process r in step s is number s * per_step + j * processes + r, as
    accelerate deals them. `replayed`: the step's rows are not those of the order but answers of earlier steps.
    """

    label: str
    order: Sequence[int]
    places: Sequence[Sequence[tuple[int, int]]]
    files: Sequence[str]
    losses: list[Tensor] = field(default_factory=list)
    norm: Tensor | float | None = None
    replayed: bool = False

    def see(self, loss: Tensor) -> None:
        """Note a micro-batch's loss, without waiting for its value."""
        self.losses.append(loss.detach())

    def see_norm(self, norm: Tensor | float | None) -> None:
        """Note the norm of the step's gradients over all processes, which is no number where one of them is none; None
        where the launcher's engine does not tell it (DeepSpeed)."""
        self.norm = 0.0 if norm is None else norm

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.losses.clear()
        self.norm = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.norm is not None, "the trainer clips gradients before every step"
        losses = torch.stack([loss.float().reshape(()) for loss in self.losses])
        values, norm = _everyones(losses, _plain(self.norm, losses), args)
        bad = [number for number, value in enumerate(values) if not math.isfinite(value)]
        if not bad and math.isfinite(norm):
            return
        step = state.global_step
        weights = f"the weights are those of step {step}" if args.deepspeed_plugin is None else "it is in the weights"
        if bad:
            what, batches = f"loss {values[bad[0]]}", bad
        else:
            what, batches = f"gradients of norm {norm} and a finite loss", list(range(len(values)))
        if self.replayed:
            rows = "answers of earlier steps (rollout.replay)"
        else:
            rows = self._rows(step * len(values), batches, args.per_device_train_batch_size)
        raise DistillError(f"{self.label}: {what} in step {step + 1}, from {rows}; {weights}", remedy=REMEDY)

    def _rows(self, first: int, batches: Sequence[int], micro_batch_size: int) -> str:
        """The rows of micro-batches, as `rows 4, 17 of chats.parquet (counted from 0)`."""
        found: dict[int, list[int]] = {}
        for batch in batches:
            begin = (first + batch) * micro_batch_size
            for row in self.order[begin : begin + micro_batch_size]:
                for file, number in self.places[row]:
                    found.setdefault(file, []).append(number)
        parts = []
        for file, numbers in found.items():
            more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
            parts.append(f"rows {', '.join(map(str, numbers[:_SHOWN]))}{more} of {self.files[file]}")
        return f"{', '.join(parts)} (counted from 0)"


def _everyones(losses: Tensor, norm: Tensor, args: TrainingArguments) -> tuple[list[float], float]:
    """The losses of all processes in the order of their micro-batches, and the gradients' norm."""
    if args.world_size == 1:
        *values, last = torch.cat([losses, norm]).tolist()
        return values, last
    gathered = [torch.empty_like(losses) for _ in range(args.world_size)]
    torch.distributed.all_gather(gathered, losses)
    *values, last = torch.cat([torch.stack(gathered, dim=1).flatten(), norm]).tolist()
    return values, last


def _plain(norm: Tensor | float, like: Tensor) -> Tensor:
    """A norm as a tensor [1] beside the losses."""
    whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.as_tensor(whole, dtype=like.dtype, device=like.device).reshape(1)

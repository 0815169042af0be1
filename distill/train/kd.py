"""Knowledge distillation from a teacher's distributions, on TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from distill.errors import DistillError
from distill.objectives.divergences import Objective
from distill.objectives.head import Form
from distill.objectives.matching import Matching
from distill.train.finite import FiniteCheck
from distill.train.forward import Decoder, LossOutput, attach_loss_head
from distill.train.reading import SIGNAL
from distill.train.rollouts import COUNTS, Rollouts
from distill.train.saving import PROJECTIONS, GuardedTrainer
from distill.train.signals import Signal


class KDTrainer(GuardedTrainer, SFTTrainer):
    """Trains on `objective` through the loss head; `signal` is None iff the objective is cross entropy alone.

    With `rollouts` the rows of a step are what these make of them: on-policy distillation. `decoder` takes the place of
    the student's own.

    The loss of a step is the sum over its scored tokens, on all processes and in all micro-batches, divided by their
    number; DDP averages gradients over processes, so each process multiplies by their count.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        args: SFTConfig,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        finite: FiniteCheck,
        peft_config: PeftConfig | None,
        objective: Objective,
        signal: Signal | None,
        chunk_tokens: int | None = None,
        form: Form = "torch",
        rollouts: Rollouts | None = None,
        matching: Matching | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        assert (signal is None) == (objective.ce_weight == 1.0)
        super().__init__(
            model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[finite, *callbacks],
            peft_config=peft_config,
        )
        if matching is not None:
            matching.to(self.args.device)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            decoder = None  # which gather weights while the model's own passes run
        self.decoder = decoder
        attach_loss_head(model, objective, chunk_tokens, form, matching, decoder)
        # Makes the Trainer count the scored tokens of a whole step, and leave their division to compute_loss.
        self.model_accepts_loss_kwargs = True
        self.signal = signal
        self.finite = finite
        self._matching = matching
        self._sums = torch.zeros(6, dtype=torch.float64, device=self.args.device)
        self._rollouts = rollouts
        if rollouts is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise DistillError(
                "on_policy needs the student's weights whole in every process, to let it answer",
                remedy="launch with DDP, or on one process",
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of an optimizer step, and their scored tokens over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._rollouts is None or not batches:
            return batches, items
        step = self.state.global_step
        self.finite.replayed = self._rollouts.is_replayed(step)
        batches = self._rollouts(batches, step)
        return batches, self._get_num_items_in_batch(batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum over this micro-batch's scored tokens / scored tokens of the step, times the number of processes."""
        assert not return_outputs and num_items_in_batch is not None
        row_ids, coming = inputs.pop("row_ids"), inputs.pop(SIGNAL, None)
        with torch.autocast(self.args.device.type, enabled=False):
            if coming is not None:
                signal = coming.arrive()
            else:
                signal = self.signal({**inputs, "row_ids": row_ids}) if self.signal is not None else None
        output: LossOutput = model(**inputs, with_loss_head=True, teacher=signal)
        assert output.loss is not None and output.metrics is not None
        self._sums += output.metrics
        items = torch.as_tensor(num_items_in_batch, device=output.loss.device).clamp(min=1)
        return output.loss / items * self.accelerator.num_processes

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The projections of hidden-state matching stand beside the model in checkpoints, not in it."""
        super()._save(output_dir, state_dict)
        if self._matching is not None and output_dir is not None:
            weights = {name: weight.cpu().contiguous() for name, weight in self._matching.weights().items()}
            save_file(weights, Path(output_dir) / PROJECTIONS)

    def write_own(self, checkpoint: Path) -> None:
        """The answers that this process keeps."""
        if self._rollouts is not None and self._rollouts.replay is not None:
            self._rollouts.replay.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._matching is not None:
            self._matching.load(load_file(Path(resume_from_checkpoint) / PROJECTIONS))
        if self._rollouts is not None and self._rollouts.replay is not None:
            self._rollouts.replay.load(Path(resume_from_checkpoint))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds means over the tokens scored since the last log, over all processes."""
        sums = self.accelerator.reduce(self._sums.float()).tolist()
        self._sums.zero_()
        weight = sums[4]
        if weight > 0:
            names = ("divergence", "cross_entropy", "agreement", "accuracy", "", "matching")
            means = {name: total / weight for name, total in zip(names, sums, strict=True) if name}
            if self._matching is None:
                del means["matching"]
            if self.signal is None:
                del means["divergence"], means["agreement"]
            logs.update(means)
        if self._rollouts is not None:
            logs.update(self._rollout_means(self._rollouts))
        super().log(logs, start_time)

    def _rollout_means(self, rollouts: Rollouts) -> dict[str, float]:
        """Means over the answers since the last log, and the tokens since the first step, which nobody knew before."""
        taken = self.accelerator.reduce(rollouts.take_counts().to(self.args.device)).tolist()
        counts = dict(zip(COUNTS, taken, strict=True))
        before = next((line for line in reversed(self.state.log_history) if "tokens" in line), {})
        found = {name: before.get(name, 0) + counts[name] for name in ("tokens", "trained_tokens")}
        if counts["steps"]:
            found["on_policy"] = counts["own_steps"] / counts["steps"]
        if counts["answers"]:
            found["answer_tokens"] = counts["answer_tokens"] / counts["answers"]
            found["ended"] = counts["ended"] / counts["answers"]
        if counts["steps"] and rollouts.replay is not None:
            found["replayed"] = counts["replayed_steps"] / counts["steps"]
        if counts["replayed_rows"]:
            found["replay_age"] = counts["replayed_ages"] / counts["replayed_rows"]
        return found

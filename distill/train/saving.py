"""What every trainer of ours does around a step: looks at the loss, and makes checkpoints whole or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer

from distill.train.checkpoints import write_checkpoint
from distill.train.finite import FiniteCheck
from distill.train.zero3 import configure

PROJECTIONS = "projections.safetensors"  # of hidden-state matching, in a checkpoint


class GuardedTrainer(Trainer):
    """To be named before the trainer it guards: `class KDTrainer(GuardedTrainer, SFTTrainer)`."""

    finite: FiniteCheck

    def create_accelerator_and_postprocess(self) -> None:
        """The launcher's engine, as our entries want it."""
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            configure(self.accelerator.state.deepspeed_plugin)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch, whose loss is looked at before the optimizer step."""
        with _without_plans():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.finite.see(loss)
        return loss

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        """The dataset as it is: rows are tokenised already, all with the same template."""
        return dataset

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | float | None:
        """The norm before clipping; it is looked at before the optimizer step."""
        norm: Tensor | float | None = super()._clip_grad_norm(model)
        self.finite.see_norm(norm)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        write = functools.partial(super()._save_checkpoint, model, trial)

        def with_own() -> None:
            write()
            self.write_own(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

        save_checkpoint(self, with_own)

    def write_own(self, checkpoint: Path) -> None:
        """What each process adds to a checkpoint, of which the folder is there: nothing, unless a trainer has it."""

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Nothing: a checkpoint to resume from needs no card, and TRL's would import every tracker there is."""


@contextmanager
def _without_plans() -> Iterator[None]:
    """Attention by other kernels than cuDNN's, which makes a plan for every shape that it has not seen: micro-batches
    have lengths of their own (pytorch/pytorch#155958)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def save_checkpoint(trainer: Trainer, write: Callable[[], None]) -> None:
    """Call the trainer's writing of `<output_dir>/checkpoint-<step>` with another output_dir, then put it in place."""
    folder = Path(str(trainer.args.output_dir))

    def into(partial: Path) -> None:
        trainer.args.output_dir = str(partial)
        try:
            write()
        finally:
            trainer.args.output_dir = str(folder)

    write_checkpoint(
        folder,
        trainer.state.global_step,
        into,
        processes=trainer.args.world_size,
        is_first=trainer.is_world_process_zero(),
        wait=trainer.accelerator.wait_for_everyone,
    )

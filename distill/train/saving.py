"""The trainer's own checkpoint, made whole or not at all by `checkpoints.write_checkpoint`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import Trainer

from distill.train.checkpoints import write_checkpoint


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

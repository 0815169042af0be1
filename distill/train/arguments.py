"""A train entry's fields as the trainer's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.model.precision import has_fast_bfloat16
from distill.recipe.train import EntryCommon


def accumulation(entry: EntryCommon, processes: int) -> int:
    """Micro-batches of a process in one optimizer step. Raises DistillError where they do not come out even."""
    per_round = entry.micro_batch_size * processes
    if entry.batch_size % per_round:
        raise DistillError(
            f"train entry '{entry.name}': batch_size {entry.batch_size} is no multiple of micro_batch_size "
            f"{entry.micro_batch_size} x {processes} processes",
            remedy=f"set batch_size to a multiple of {per_round}, or lower micro_batch_size",
        )
    return entry.batch_size // per_round


def uses_bfloat16(entry: EntryCommon) -> bool:
    """Whether the entry's passes run in bfloat16 here; "auto" leaves that to the hardware."""
    if entry.mixed_precision == "auto":
        return has_fast_bfloat16("cuda" if torch.cuda.is_available() else "cpu")
    return entry.mixed_precision == "bf16"


def common_arguments(entry: EntryCommon, *, steps: int, processes: int, checkpoints: Path) -> dict[str, Any]:
    """Keywords that the configurations of all of TRL's trainers share."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": entry.micro_batch_size,
        "gradient_accumulation_steps": accumulation(entry, processes),
        "max_steps": steps,
        "learning_rate": entry.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if entry.schedule == "constant" else entry.schedule,
        "warmup_steps": round(entry.warmup_ratio * steps),
        "weight_decay": entry.weight_decay,
        "max_grad_norm": entry.max_grad_norm,
        "bf16": uses_bfloat16(entry),
        "gradient_checkpointing": entry.gradient_checkpointing,
        "logging_steps": entry.logging_steps,
        "logging_first_step": True,
        # The trainer would replace a NaN loss by the mean of the others.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": entry.save_steps,
        "seed": entry.seed,
        "data_seed": entry.seed,
        # The rows are in their order already (`batches.row_order`).
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": cuda,
        "accelerator_config": {"non_blocking": cuda},  # batches come from pinned memory without a wait
        "use_cpu": not cuda,
        "max_length": None,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "ddp_find_unused_parameters": False,
        "average_tokens_across_devices": True,
    }

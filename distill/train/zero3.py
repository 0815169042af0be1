"""DeepSpeed's ZeRO-3: which entries and checkpoints it cannot take, and in which precision it trains the others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from distill.errors import DistillError
from distill.recipe.train import EntryCommon, KdEntry, OnPolicyEntry
from distill.train.checkpoints import Found

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin

_STAGE = 3


def is_launched() -> bool:
    """Whether the launcher's configuration asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def require_trainable(entry: EntryCommon) -> None:
    """Refuse an entry that needs weights whole where ZeRO-3 has them in pieces. Raises DistillError."""
    problem = None
    if isinstance(entry, OnPolicyEntry):
        problem = "on_policy needs the student's weights whole in every process, to let it answer"
    elif isinstance(entry, KdEntry) and entry.matching is not None:
        problem = "matching needs its projections whole, to write them into checkpoints"
    if problem is not None:
        raise DistillError(
            f"{entry.name}: {problem}; DeepSpeed keeps weights in pieces", remedy="launch with DDP, or on one process"
        )


def require_resumable(found: Found, processes: int) -> None:
    """Refuse a checkpoint that these processes cannot go on from: of shares and whole ones neither loads as the other,
    and the optimizer would start anew without a word. Raises DistillError."""
    if found.path is None:
        return
    in_shares = any(found.path.glob("global_step*"))
    if in_shares != is_launched():
        problem = f"was written {'under' if in_shares else 'without'} DeepSpeed"
    elif in_shares and found.processes != processes:
        problem = f"has the shares of {found.processes} processes, and these are {processes}"
    else:
        return
    raise DistillError(
        f"{found.path} {problem}",
        remedy=f"launch as it was launched, or remove {found.path.parent} to start the entry again",
    )


def configure(plugin: DeepSpeedPlugin) -> None:
    """Check a launcher's configuration, and set the precision that entries have everywhere else: weights, gradients
    and sums in float32, products in bfloat16 by autocast. Raises DistillError.

    DeepSpeed's `bf16`, which it replaces, rounds the weights before the first step and reduces gradients in 16 bits.
    Gradients are not reduced on a stream of their own unless the configuration says so: DeepSpeed's own tracker knows
    of races there (deepspeedai/DeepSpeed#5545).
    """
    config = plugin.deepspeed_config
    if plugin.zero_stage != _STAGE:
        raise DistillError(
            f"DeepSpeed with zero_stage {plugin.zero_stage} is not supported, only with {_STAGE}",
            remedy="launch by recipes/accelerate/deepspeed_zero3.yaml, or by ddp.yaml, where weights stay whole",
        )
    if not config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise DistillError(
            "DeepSpeed would not gather the student's weights to write them",
            remedy="set zero3_save_16bit_model: true in the launch configuration",
        )
    config["zero_optimization"].setdefault("overlap_comm", False)
    if config.pop("bf16", {}).get("enabled"):
        # No module whose weights and gradients travel in 16 bits: losses are those of DDP.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}

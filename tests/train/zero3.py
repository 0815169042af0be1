"""DeepSpeed's ZeRO-3 on a CPU, which accelerate offers for accelerators alone: what a test's process changes first.

Under `python -m distill.launch --config_file recipes/accelerate/deepspeed_zero3.yaml -m tests.train.zero3 RECIPE...`.
The engine, its partitions and its collectives (over gloo) are DeepSpeed's own; nothing of distill is replaced but the
trainer's argument `use_cpu`, with which accelerate would start DDP.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def allow_cpu() -> None:
    """Have accelerate connect the processes over gloo and then hand them to DeepSpeed, as it does with NCCL."""
    import deepspeed.comm  # noqa: F401  # puts its module `torch` beside torch's
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    # It compiles an all-reduce through shared memory when it starts, which takes minutes here.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState(cpu=False)
    training_args.is_torch_bf16_gpu_available = lambda: True  # asked for what is no CPU, in its words

    from distill.train import entry

    arguments = entry.common_arguments
    entry.common_arguments = lambda *given, **named: {**arguments(*given, **named), "use_cpu": False}


def keep_nothing_whole() -> None:
    """DeepSpeed keeps parameters of under 100,000 numbers whole beside their shares, in tests all of them: not here."""
    from accelerate.utils import DeepSpeedPlugin

    make = DeepSpeedPlugin.__post_init__

    def made(self: DeepSpeedPlugin) -> None:
        make(self)
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    DeepSpeedPlugin.__post_init__ = made


def is_cut(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has given this process a share of a parameter, and not all of it."""
    return hasattr(parameter, "ds_tensor") and parameter.ds_tensor.numel() < parameter.ds_numel


def main() -> None:
    """Train recipes, and write what the first process saw of shares; `STOP_AT` ends it by SIGTERM after that step."""
    allow_cpu()
    keep_nothing_whole()
    from rich.console import Console

    from distill.recipe.schema import Recipe
    from distill.runs import Run
    from distill.train import stage
    from distill.train.callbacks import Watch

    stop_at, seen = int(os.environ.get("STOP_AT", "0")), {}
    begin, end = Watch.on_step_begin, Watch.on_step_end

    def look(self: Watch, args: Any, state: Any, control: Any, model: torch.nn.Module, **rest: Any) -> None:
        parameters = dict(model.named_parameters())
        seen[self.label] = {
            "processes": torch.distributed.get_world_size(),
            "parameters": len(parameters),
            "whole": [name for name, p in parameters.items() if p.numel() or not is_cut(p)],
        }
        begin(self, args, state, control, model=model, **rest)

    def stop(self: Watch, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == stop_at and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, args, state, control, **rest)

    Watch.on_step_begin, Watch.on_step_end = look, stop  # type: ignore[method-assign]
    for path in map(Path, sys.argv[1:]):
        seen.clear()
        recipe = Recipe.model_validate_json(path.read_text())
        stage.run(recipe, Run(recipe), console=Console(file=sys.stdout, width=200))
        if os.environ["RANK"] == "0":
            path.with_suffix(".seen").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()

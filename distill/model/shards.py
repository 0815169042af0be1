"""How transformers is to cut a model into shares for several processes, and what it cannot cut."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.distributed import DistributedConfig

from distill.errors import CheckpointError

_REMEDY = "serve it by one process, or with vLLM"


def sharding(
    path: str | Path, num_shards: int, quantized: str | None, device: str, trust_remote_code: bool
) -> DistributedConfig:
    """What from_pretrained is to be told. Raises CheckpointError for a model that cannot be served in shares."""
    if quantized:
        raise CheckpointError(f"{path} is quantized ({quantized}) and cannot be cut into shares", remedy=_REMEDY)
    if device == "cpu" and torch.cuda.is_available():
        raise CheckpointError("transformers puts shares on the GPUs of this machine", remedy="leave --device out")
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} has no configuration that can be read: {error}", remedy=_REMEDY) from None
    check_shares(config, num_shards)
    return DistributedConfig(tp_size=num_shards)


def check_shares(config: PretrainedConfig, num_shards: int) -> None:
    """Raise CheckpointError unless there is a plan and every process gets whole heads."""
    name = str(config.model_type)
    if not config.base_model_tp_plan:
        raise CheckpointError(f"transformers has no tensor-parallel plan for {name}", remedy=_REMEDY)
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    for count, what in ((heads, "attention heads"), (kv_heads, "KV heads")):
        if count % num_shards:
            raise CheckpointError(
                f"{num_shards} processes cannot share {count} {what} of {name} evenly",
                remedy="start as many processes as divide them",
            )

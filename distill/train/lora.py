"""LoRA through peft: the adapter's configuration, and what is left in the model folder at the end."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType
from transformers import PreTrainedModel

from distill.recipe.train import Lora


def adapter_config(lora: Lora) -> LoraConfig:
    """peft's configuration. The LM head has no adapter: "all-linear" leaves it out, and recipes refuse its name."""
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
    )


def merge_adapter(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with the adapter's product added to its weights, as a plain model."""
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()  # type: ignore[operator]
    assert isinstance(merged, PreTrainedModel)
    return merged

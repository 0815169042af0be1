"""TRL's trainers that compare the student with a reference (dpo, kto), on rows that are tokenised already."""

from __future__ import annotations

from collections.abc import Callable

from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from distill.train.finite import FiniteCheck
from distill.train.saving import GuardedTrainer


class PreferenceTrainer(GuardedTrainer, DPOTrainer):
    """Direct preference optimization, on pairs."""


class AnswerTrainer(GuardedTrainer, KTOTrainer):
    """Kahneman-Tversky optimization, on single answers."""


def comparing_trainer(
    args: DPOConfig | KTOConfig,
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    rows: Dataset,
    *,
    processing_class: PreTrainedTokenizerBase,
    callbacks: list[TrainerCallback],
    finite: FiniteCheck,
    peft_config: PeftConfig | None,
) -> PreferenceTrainer | AnswerTrainer:
    """The trainer of a configuration. `reference` is None with LoRA, whose base is the reference.

    Nothing drops out: policy and reference are compared, and with LoRA they are one model, in train mode.
    """
    kind: Callable[..., PreferenceTrainer | AnswerTrainer] = PreferenceTrainer
    collator: Callable[..., object] = DataCollatorForPreference
    if isinstance(args, KTOConfig):
        kind, collator = AnswerTrainer, DataCollatorForUnpairedPreference
    trainer = kind(
        model,
        ref_model=reference,
        args=args,
        data_collator=collator(pad_token_id=processing_class.pad_token_id),
        train_dataset=rows,
        processing_class=processing_class,
        callbacks=[finite, *callbacks],
        peft_config=peft_config,
    )
    trainer.finite = finite
    without_dropout(model, reference)
    return trainer


def without_dropout(*models: nn.Module | None) -> None:
    """Also what TRL leaves: attention's probabilities are numbers in the modules of transformers, not `nn.Dropout`s."""
    for model in models:
        for module in model.modules() if model is not None else ():
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

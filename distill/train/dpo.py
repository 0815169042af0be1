"""Direct preference optimization, on TRL's DPOTrainer."""

from __future__ import annotations

import functools
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from distill.train.finite import FiniteCheck
from distill.train.saving import save_checkpoint


class PreferenceTrainer(DPOTrainer):
    """DPOTrainer on pairs that are tokenised already; `ref_model` is None with LoRA, whose base is the reference.

    Nothing drops out: policy and reference are compared, and with LoRA they are one model, in train mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        ref_model: PreTrainedModel | None,
        args: DPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        finite: FiniteCheck,
        peft_config: PeftConfig | None,
    ) -> None:
        assert processing_class.pad_token_id is not None
        super().__init__(
            model,
            ref_model=ref_model,
            args=args,
            data_collator=DataCollatorForPreference(pad_token_id=processing_class.pad_token_id),
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[finite, *callbacks],
            peft_config=peft_config,
        )
        self.finite = finite
        for policy_or_reference in (model, ref_model):
            if policy_or_reference is not None:
                _without_dropout(policy_or_reference)

    def _prepare_dataset(  # type: ignore[override]
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: DPOConfig, dataset_name: str
    ) -> Dataset:
        """The dataset as it is: `model.chat.encode_preference` made it, with the same template as sft and kd."""
        return dataset

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch, whose loss is looked at before the optimizer step."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.finite.see(loss)
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        save_checkpoint(self, functools.partial(super()._save_checkpoint, model, trial))

    def create_model_card(  # type: ignore[override]
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Nothing, as in KDTrainer."""


def _without_dropout(model: nn.Module) -> None:
    """Also what TRL leaves: attention's probabilities are numbers in the modules of transformers, not `nn.Dropout`s."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)

"""Direct preference optimization, on TRL's DPOTrainer."""

from __future__ import annotations

from datasets import Dataset
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from distill.train.finite import FiniteCheck
from distill.train.saving import GuardedTrainer


class PreferenceTrainer(GuardedTrainer, DPOTrainer):
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
        without_dropout(model, ref_model)

    def _prepare_dataset(  # type: ignore[override]
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: DPOConfig, dataset_name: str
    ) -> Dataset:
        """The dataset as it is: `model.chat.encode_preference` made it, with the same template as sft and kd."""
        return dataset


def without_dropout(*models: nn.Module | None) -> None:
    """Also what TRL leaves: attention's probabilities are numbers in the modules of transformers, not `nn.Dropout`s."""
    for model in models:
        for module in model.modules() if model is not None else ():
            for name, value in list(vars(module).items()):
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

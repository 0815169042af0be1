"""Kahneman-Tversky optimization, on TRL's KTOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from distill.train.dpo import without_dropout
from distill.train.finite import FiniteCheck
from distill.train.saving import GuardedTrainer
from distill.train.unpaired import Answer


class AnswerTrainer(GuardedTrainer, KTOTrainer):
    """KTOTrainer on answers that are tokenised already; `ref_model` is None with LoRA, whose base is the reference."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        ref_model: PreTrainedModel | None,
        args: KTOConfig,
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
            data_collator=DataCollatorForUnpairedPreference(pad_token_id=processing_class.pad_token_id),
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[finite, *callbacks],
            peft_config=peft_config,
        )
        self.finite = finite
        without_dropout(model, ref_model)

    def _prepare_dataset(  # type: ignore[override]
        self, dataset: Dataset, processing_class: PreTrainedTokenizerBase, args: KTOConfig, dataset_name: str
    ) -> Dataset:
        """The dataset as it is: `columns_of` made it."""
        return dataset


def columns_of(answers: Sequence[Answer], *, micro_batch_size: int, max_length: int) -> dict[str, list[Any]]:
    """KTOTrainer's columns of answers in the order of training.

    Its estimate of KL(policy, reference) wants answers to other prompts: in each micro-batch every prompt gets the
    answer of the row before it, the first one that of the last, cut where the two together exceed `max_length`.
    """
    mismatched: list[list[int]] = []
    for begin in range(0, len(answers), micro_batch_size):
        group = answers[begin : begin + micro_batch_size]
        for place, answer in enumerate(group):
            room = max(0, max_length - len(answer.prompt_ids))
            mismatched.append(group[place - 1].answer_ids[:room])
    return {
        "prompt_ids": [answer.prompt_ids for answer in answers],
        "completion_ids": [answer.answer_ids for answer in answers],
        "KL_completion_ids": mismatched,
        "label": [answer.desirable for answer in answers],
    }

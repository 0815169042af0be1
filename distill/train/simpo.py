"""Simple preference optimization, on TRL's CPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.utils import DPODataCollatorWithPadding

from distill.model.chat import IGNORED, Preference
from distill.train.compared import without_dropout
from distill.train.finite import FiniteCheck
from distill.train.saving import GuardedTrainer

Columns = dict[str, list[int]]


class Rows(Dataset[Columns]):
    """Tokenised pairs in the order of training, as CPOTrainer's collator reads them."""

    def __init__(self, pairs: Sequence[Preference]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Columns:
        pair = self._pairs[index]
        columns: Columns = {}
        for side, answer in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            columns[f"{side}_input_ids"] = [*pair.prompt_ids, *answer]
            columns[f"{side}_attention_mask"] = [1] * (len(pair.prompt_ids) + len(answer))
            columns[f"{side}_labels"] = [IGNORED] * len(pair.prompt_ids) + list(answer)
        return columns

    def map(self, *_: Any, **__: Any) -> Rows:
        """These rows: CPOTrainer applies templates and tokenises, which is done."""
        return self


class SimpoTrainer(GuardedTrainer, CPOTrainer):
    """CPOTrainer with SimPO's loss alone, on pairs that are tokenised already."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        args: CPOConfig,
        train_dataset: Rows,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
        finite: FiniteCheck,
        peft_config: PeftConfig | None,
    ) -> None:
        assert args.loss_type == "simpo" and args.cpo_alpha == 0.0
        super().__init__(
            model,
            args=args,
            data_collator=DPODataCollatorWithPadding(pad_token_id=processing_class.pad_token_id),
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=[finite, *callbacks],
            peft_config=peft_config,
        )
        self.finite = finite
        without_dropout(model)

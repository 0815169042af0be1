"""The trainers of dpo, simpo and kto, from an entry and its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import DPOConfig, KTOConfig
from trl.experimental.cpo import CPOConfig

from distill.recipe.train import DpoEntry, KtoEntry, PairsEntry, SimpoEntry
from distill.train.batches import Pairs
from distill.train.compared import comparing_trainer
from distill.train.finite import FiniteCheck
from distill.train.simpo import Rows, SimpoTrainer
from distill.train.unpaired import Answers, columns_of


def preference_trainer(
    entry: PairsEntry,
    model: PreTrainedModel,
    load_reference: Callable[[], PreTrainedModel],
    rows: Pairs | Answers,
    order: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    arguments: dict[str, Any],
    *,
    callbacks: list[TrainerCallback],
    finite: FiniteCheck,
    peft_config: PeftConfig | None,
) -> Trainer:
    """The entry's trainer over the rows in their `order`. The reference is loaded where it is no adapter's base."""
    common: dict[str, Any] = {
        "processing_class": tokenizer,
        "callbacks": callbacks,
        "finite": finite,
        "peft_config": peft_config,
    }
    if isinstance(entry, SimpoEntry):
        assert isinstance(rows, Pairs)
        settings: dict[str, Any] = {
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
            "beta": entry.beta,
            "simpo_gamma": entry.gamma,
        }
        simpo_arguments = {**arguments, "max_length": entry.max_length, "remove_unused_columns": False}
        prepared = Rows([rows.pairs[row] for row in order])
        return SimpoTrainer(model, args=CPOConfig(**simpo_arguments, **settings), train_dataset=prepared, **common)
    reference = load_reference() if entry.lora is None else None
    if isinstance(entry, KtoEntry):
        assert isinstance(rows, Answers)
        answers = [rows.answers[row] for row in order]
        columns = columns_of(answers, micro_batch_size=entry.micro_batch_size, max_length=entry.max_length)
        kto = KTOConfig(**arguments, **_kto_loss(entry))
        return comparing_trainer(kto, model, reference, Dataset.from_dict(columns), **common)
    assert isinstance(rows, Pairs)
    pairs = [rows.pairs[row] for row in order]
    columns = {name: [getattr(pair, name) for pair in pairs] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    dpo = DPOConfig(**arguments, **_dpo_loss(entry))
    return comparing_trainer(dpo, model, reference, Dataset.from_dict(columns), **common)


def _dpo_loss(entry: DpoEntry) -> dict[str, Any]:
    return {"beta": entry.beta, "loss_type": [entry.loss_type], "remove_unused_columns": True}


def _kto_loss(entry: KtoEntry) -> dict[str, Any]:
    return {
        "beta": entry.beta,
        "loss_type": "kto",
        "desirable_weight": entry.desirable_weight,
        "undesirable_weight": entry.undesirable_weight,
        "remove_unused_columns": True,
    }

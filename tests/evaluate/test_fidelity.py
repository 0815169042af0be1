"""Perplexity, agreement and KL against direct computation over full logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from distill.errors import CheckpointError
from distill.evaluate import fidelity
from distill.evaluate.fidelity import (
    ReferenceRow,
    RowFidelity,
    fidelity_metrics,
    measure,
    reference_rows,
    teacher_signal,
    why_not_comparable,
)
from distill.evaluate.questions import held_out_tasks
from distill.objectives.divergences import IGNORED
from distill.recipe.schema import Evaluate
from tests.evaluate.tiny import make_model, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[ReferenceRow]:
    return reference_rows(tokenizer, held_out_tasks(Evaluate(rows=12)), max_length=512)


@pytest.fixture(scope="module")
def teacher(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return make_model(tokenizer, seed=1, layers=2)


@pytest.fixture(scope="module")
def student(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return make_model(tokenizer, seed=2)


def _direct(model: LlamaForCausalLM, row: ReferenceRow) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities at the scored positions, one row alone, and their targets."""
    targets = torch.tensor(row.targets)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    return logits[targets != IGNORED].log_softmax(-1), targets[targets != IGNORED]


def test_only_the_answer_is_scored(tokenizer: PreTrainedTokenizerFast, rows: list[ReferenceRow]) -> None:
    task = held_out_tasks(Evaluate(rows=12))[0]
    scored = [target for target in rows[0].targets if target != IGNORED]
    assert tokenizer.decode(scored, skip_special_tokens=True).strip() == task.answer
    assert scored[-1] == tokenizer.eos_token_id
    for position, target in enumerate(rows[0].targets):
        assert target in (IGNORED, rows[0].ids[position + 1] if position + 1 < len(rows[0].ids) else IGNORED)


@pytest.mark.parametrize("logits_bytes", [1, 4 * 600 * 300, 1 << 30])
def test_measures_equal_the_direct_ones_however_rows_are_batched(
    rows: list[ReferenceRow],
    teacher: LlamaForCausalLM,
    student: LlamaForCausalLM,
    logits_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fidelity, "_LOGITS_BYTES", logits_bytes)
    monkeypatch.setattr(fidelity, "_CHUNK_TOKENS", 7)
    found = measure(student, rows, teacher_signal(teacher, rows))
    for row, one in zip(rows, found, strict=True):
        ours, targets = _direct(student, row)
        theirs, _ = _direct(teacher, row)
        assert one.tokens == len(targets) == row.scored
        assert one.nll == pytest.approx(float(F.nll_loss(ours, targets, reduction="sum")), rel=1e-4)
        assert one.kl == pytest.approx(float((theirs.exp() * (theirs - ours)).sum()), rel=1e-3)
        assert one.agreed == int((ours.argmax(-1) == theirs.argmax(-1)).sum())


def test_teacher_against_itself(rows: list[ReferenceRow], teacher: LlamaForCausalLM) -> None:
    found = fidelity_metrics(measure(teacher, rows, teacher_signal(teacher, rows)))
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["agreement"] == 1.0


def test_without_a_teacher_there_is_perplexity_alone(rows: list[ReferenceRow], student: LlamaForCausalLM) -> None:
    found = fidelity_metrics(measure(student, rows, None))
    assert found["kl"] is None and found["agreement"] is None
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))


def test_a_padded_vocabulary_is_compared_over_the_common_rows(
    rows: list[ReferenceRow], teacher: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    padded = make_model(tokenizer, seed=1, layers=2)
    padded.resize_token_embeddings(len(tokenizer) + 40, mean_resizing=False)
    found = fidelity_metrics(measure(padded, rows, teacher_signal(teacher, rows)))
    assert found["kl"] == pytest.approx(0.0, abs=1e-5) and found["agreement"] == 1.0


def test_softcapped_logits_are_rebuilt(rows: list[ReferenceRow]) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=700,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        final_logit_softcapping=5.0,
        initializer_range=0.5,
    )
    model = Gemma2ForCausalLM(config).eval()
    found = measure(model, rows, teacher_signal(model, rows))
    assert fidelity_metrics(found)["kl"] == pytest.approx(0.0, abs=1e-5)


def test_logits_that_cannot_be_rebuilt_are_refused(
    rows: list[ReferenceRow], teacher: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "_scale", lambda config: 2.0)
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        teacher_signal(teacher, rows)


def test_different_tokens_are_named_as_the_reason(rows: list[ReferenceRow]) -> None:
    assert why_not_comparable(rows, rows) is None
    other = [ReferenceRow(row.task_id, (1, *row.ids), (IGNORED, *row.targets)) for row in rows]
    assert "tokenise" in (why_not_comparable(rows, other) or "")
    assert why_not_comparable(rows, rows[:-1]) is not None


def test_metrics_by_hand() -> None:
    found = fidelity_metrics([RowFidelity("a", 2, 1.0, 0.2, 1), RowFidelity("b", 3, 4.0, 0.3, 3)])
    assert found["nll"] == 1.0 and found["perplexity"] == pytest.approx(math.e)
    assert found["kl"] == pytest.approx(0.1) and found["agreement"] == pytest.approx(0.8)
    assert (found["fidelity_rows"], found["fidelity_tokens"]) == (2, 5)

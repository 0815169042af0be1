"""How near a model is to its teacher, teacher-forced on reference answers: perplexity, top-1 agreement and KL.

Legend: N scored tokens, V vocabulary rows, H hidden width. The teacher's share is computed once: its last hidden states
(N x H) and its LM head rebuild its logits chunk by chunk, exactly, where N x V log-probabilities would fill a disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError
from distill.evaluate.statistics import ratio_of_sums
from distill.model.chat import encode_completion
from distill.objectives.divergences import IGNORED, common_vocabulary, forward_kl
from distill.records import Message, user_message
from distill.tasks.types import Task

FIDELITY = pa.schema(
    [
        pa.field("task_id", pa.string()),
        pa.field("tokens", pa.int64()),
        pa.field("nll", pa.float64()),
        pa.field("kl", pa.float64()),
        pa.field("agreed", pa.int64()),
    ]
)
_LOGITS_BYTES = 256 << 20  # fp32 logits of one forward pass
_CHUNK_TOKENS = 1024  # scored tokens whose distributions exist at once


@dataclass(frozen=True)
class ReferenceRow:
    """Prompt and reference answer: token ids, and for each position the next token where it is scored, or -100."""

    task_id: str
    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def scored(self) -> int:
        return sum(target != IGNORED for target in self.targets)


@dataclass(frozen=True)
class RowFidelity:
    """Sums over the scored tokens of a row; `kl` (nats, teacher || student), `agreed` are None without a teacher."""

    task_id: str
    tokens: int
    nll: float
    kl: float | None
    agreed: int | None


@dataclass(frozen=True)
class TeacherSignal:
    """What rebuilds the teacher's logits: hidden states [n, H] of each row's scored positions, and the LM head."""

    hidden: tuple[Tensor, ...]
    head: nn.Module
    scale: float
    softcap: float | None

    def logits(self, row: int, positions: slice) -> Tensor:
        """fp32 logits of some scored positions of a row, [n, V]."""
        raw: Tensor = self.head(self.hidden[row][positions]).float() * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)


def reference_rows(tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], *, max_length: int) -> list[ReferenceRow]:
    """Tokenise prompt and reference answer with the model's chat template; only the answer is scored."""
    rows = []
    for task in tasks:
        answer: Message = {"role": "assistant", "content": task.answer}
        ids, labels = encode_completion(tokenizer, [*user_message(task.prompt), answer], max_length)
        targets = (*labels[1:], IGNORED)
        rows.append(ReferenceRow(task.id, tuple(ids), targets))
    return [row for row in rows if row.scored]


def why_not_comparable(teacher: Sequence[ReferenceRow], student: Sequence[ReferenceRow]) -> str | None:
    """Why the two models' token distributions cannot be compared on these rows, or None where they can."""
    if any(a.ids != b.ids or a.targets != b.targets for a, b in zip(teacher, student, strict=False)):
        return "teacher and student tokenise the reference answers differently"
    return None if len(teacher) == len(student) else "teacher and student can read different rows"


@torch.inference_mode()
def teacher_signal(model: PreTrainedModel, rows: Sequence[ReferenceRow]) -> TeacherSignal:
    """The teacher's hidden states before its LM head, checked to give back the model's own logits."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    config = model.config.get_text_config().to_dict()
    caught: list[Tensor] = []
    hidden: dict[int, Tensor] = {}
    own = torch.empty(0)
    handle = head.register_forward_pre_hook(lambda _module, inputs: caught.append(inputs[0]))
    try:
        for indices, logits in _forward(model, rows):
            states = caught.pop()
            for place, index in enumerate(indices):
                positions = _positions(rows[index], states.device)
                hidden[index] = states[place][positions]
                if index == 0:
                    own = logits[place][positions].float()
    finally:
        handle.remove()
    signal = TeacherSignal(
        hidden=tuple(hidden[index] for index in range(len(rows))),
        head=head,
        scale=_scale(config),
        softcap=config.get("final_logit_softcapping"),
    )
    _check_rebuilt(signal.logits(0, slice(None)), own, str(config.get("model_type")))
    return signal


@torch.inference_mode()
def measure(model: PreTrainedModel, rows: Sequence[ReferenceRow], teacher: TeacherSignal | None) -> list[RowFidelity]:
    """Negative log-likelihood of each row's answer, and its divergence from the teacher, in the order of the rows."""
    found: dict[int, RowFidelity] = {}
    for indices, logits in _forward(model, rows):
        for place, index in enumerate(indices):
            row = rows[index]
            positions = _positions(row, logits.device)
            targets = torch.tensor(row.targets, device=logits.device)[positions]
            found[index] = _row(row, logits[place], positions, targets, teacher, index)
    return [found[index] for index in range(len(rows))]


def fidelity_metrics(rows: Sequence[RowFidelity]) -> dict[str, Any]:
    """Perplexity, KL and agreement per token over all rows, with standard errors over rows; None where not measured."""
    tokens = [float(row.tokens) for row in rows]
    nll = ratio_of_sums([row.nll for row in rows], tokens)
    metrics: dict[str, Any] = {
        "fidelity_rows": len(rows),
        "fidelity_tokens": sum(row.tokens for row in rows),
        "nll": nll.value,
        "nll_se": nll.standard_error,
        "perplexity": math.exp(min(nll.value, 700.0)),
        "kl": None,
        "kl_se": None,
        "agreement": None,
        "agreement_se": None,
    }
    kls = [row.kl for row in rows if row.kl is not None]
    agreed = [float(row.agreed) for row in rows if row.agreed is not None]
    if rows and len(kls) == len(agreed) == len(rows):
        kl, agreement = ratio_of_sums(kls, tokens), ratio_of_sums(agreed, tokens)
        metrics |= {"kl": kl.value, "kl_se": kl.standard_error}
        metrics |= {"agreement": agreement.value, "agreement_se": agreement.standard_error}
    return metrics


def _row(
    row: ReferenceRow, logits_TV: Tensor, positions: Tensor, targets: Tensor, teacher: TeacherSignal | None, index: int
) -> RowFidelity:
    nll, kl, agreed = 0.0, 0.0, 0
    for begin in range(0, len(positions), _CHUNK_TOKENS):
        chunk = slice(begin, begin + _CHUNK_TOKENS)
        student = logits_TV[positions[chunk]].float()
        nll += float(F.cross_entropy(student, targets[chunk], reduction="sum"))
        if teacher is not None:
            ours, theirs = common_vocabulary(student, teacher.logits(index, chunk).to(logits_TV.device))
            kl += float(forward_kl(ours, theirs).sum())
            agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    known = teacher is not None
    return RowFidelity(row.task_id, len(positions), nll, kl if known else None, agreed if known else None)


def _forward(model: PreTrainedModel, rows: Sequence[ReferenceRow]) -> Iterator[tuple[list[int], Tensor]]:
    """Logits [B, T, V] of batches of rows of like length, padded on the right; a batch's logits stay within bounds."""
    device: torch.device = model.device
    budget = max(1, _LOGITS_BYTES // (4 * int(model.config.get_text_config().vocab_size)))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    while order:
        batch = [order.pop()]  # the longest left decides the width
        width = len(rows[batch[0]].ids)
        while order and (len(batch) + 1) * width <= budget:
            batch.append(order.pop())
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for place, index in enumerate(batch):
            length = len(rows[index].ids)
            ids[place, :length] = torch.tensor(rows[index].ids)
            mask[place, :length] = 1
        yield batch, model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits


def _positions(row: ReferenceRow, device: torch.device) -> Tensor:
    scored = [index for index, target in enumerate(row.targets) if target != IGNORED]
    return torch.tensor(scored, device=device)


def _scale(config: dict[str, object]) -> float:
    """Factor between the LM head's output and the logits: Cohere multiplies, Granite divides."""
    factor, divisor = config.get("logit_scale"), config.get("logits_scaling")
    assert factor is None or isinstance(factor, int | float)
    assert divisor is None or isinstance(divisor, int | float)
    return float(factor or 1.0) / float(divisor or 1.0)


def _check_rebuilt(rebuilt: Tensor, own: Tensor, kind: str) -> None:
    error = float((rebuilt - own).norm() / own.norm().clamp_min(1e-9))
    if not error < 1e-2:
        raise CheckpointError(
            f"the teacher's logits cannot be rebuilt from its hidden states (architecture {kind}, error {error:.2g})",
            remedy="use a teacher whose logits are a linear map of its last hidden states, or evaluate without weights",
        )

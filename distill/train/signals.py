"""Teacher signals: one function of a batch, wherever the teacher lives. Here: live, frozen, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError
from distill.model.load import DtypeName, load_model, load_tokenizer
from distill.train.forward import TeacherSignal, head_of


class Signal(Protocol):
    """What an objective sees of a teacher."""

    def __call__(self, batch: Mapping[str, Tensor]) -> TeacherSignal: ...


class LiveTeacher:
    """A frozen teacher in eval mode; its hidden states are made anew for each batch, without gradients."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self._head = head_of(model)

    @classmethod
    def load(cls, path: str, *, device: torch.device, trust_remote_code: bool) -> LiveTeacher:
        """The teacher at `path` on `device`, in the dtype that suits both. Raises CheckpointError."""
        dtype: DtypeName = "auto" if device.type == "cpu" else "stored"
        model = load_model(path, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
        torch.nn.Module.to(model, device)
        return cls(model)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> TeacherSignal:
        assert not self.model.training, "a teacher in train mode would drop activations out"
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return TeacherSignal(hidden, self._head)


def require_same_tokens(student: PreTrainedTokenizerBase, teacher_path: str, *, trust_remote_code: bool) -> None:
    """Refuse a teacher whose token ids mean something else: its distributions would teach nonsense in silence."""
    teacher = load_tokenizer(teacher_path, trust_remote_code=trust_remote_code)
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted((token for token, index in ours.items() if theirs.get(token) != index), key=ours.__getitem__)
    if differing:
        example = differing[0]
        raise CheckpointError(
            f"student and teacher {teacher_path} have different tokenizers: {len(differing)} of {len(ours)} tokens "
            f"differ, first {example!r} ({ours[example]} against {theirs.get(example, 'none')})",
            remedy="use objective sft, which needs only the teacher's text, or a student of the teacher's family",
        )

"""Teacher signals: one function of a batch, wherever the teacher lives: in this process, or in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.errors import CheckpointError, DataError
from distill.model.load import load_tokenizer, require_chat_template
from distill.objectives.aligned import AlignedTargets
from distill.objectives.head import Head
from distill.objectives.sparse import SparseTargets
from distill.recipe.signals import LiveSignal
from distill.recipe.train import KdEntry, OnPolicyEntry
from distill.runs import digest_of
from distill.teacher.stored import About, Fingerprint, Reader, Record, require_match
from distill.train.aligned import open_aligned
from distill.train.batches import NO_ROW, Sequences
from distill.train.forward import RoutedSignal, TeacherSignal
from distill.train.live import LiveTeacher, require_same_tokens
from distill.train.packed_signals import Packed, lay
from distill.train.several import several_teachers

HEAD = "head.safetensors"


class Signal(Protocol):
    """What an objective sees of a teacher."""

    def __call__(
        self, batch: Mapping[str, Tensor]
    ) -> TeacherSignal | RoutedSignal | SparseTargets | AlignedTargets: ...


@dataclass(frozen=True)
class Place:
    """Where a recipe's teacher is: its weights, its identity as a stored signal names it, and the folder of these.

    `several`: weights of the teachers that the entry names instead, by name.
    """

    weights: str | None
    identity: str
    stored: Path | None
    trust_remote_code: bool
    several: Mapping[str, str] = field(default_factory=dict)


def open_signal(
    entry: KdEntry | OnPolicyEntry,
    place: Place,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequences,
    data: Sequence[Path],
    device: torch.device,
) -> Signal:
    """The entry's signal for `rows`, which were read from `data`. Raises DataError or CheckpointError for one that does
    not fit student, teacher or rows."""
    if isinstance(entry.signal, LiveSignal):
        if entry.teachers is not None:
            loaded = {name: _live(entry.signal, path, tokenizer, place, device) for name, path in place.several.items()}
            teachers = [loaded[name] for name in entry.teachers.names]
            return several_teachers(entry.teachers, teachers, rows, data, entry.temperature)
        assert place.weights is not None, "the recipe refuses a live signal without teacher weights"
        if entry.alignment is None:
            return _live(entry.signal, place.weights, tokenizer, place, device)
        teacher = _live(entry.signal, place.weights, None, place, device)
        theirs = load_tokenizer(place.weights, trust_remote_code=place.trust_remote_code)
        require_chat_template(theirs, place.weights)
        return open_aligned(entry.alignment, teacher, theirs, student, tokenizer, rows, data)
    assert place.stored is not None, "signals are written before training"
    reader = Reader(place.stored)
    vocabulary = reader.about.fingerprint.vocabulary
    if reader.about.form != "hidden":  # which the head reads for any vocabulary
        vocabulary = min(vocabulary, int(student.get_output_embeddings().weight.shape[0]))
    expected = fingerprint(tokenizer, vocabulary=vocabulary, teacher=place.identity)
    require_match(reader, expected, entry.temperature)
    missing = reader.missing([name for names in rows.row_ids for name in names])
    if missing:
        raise DataError(
            f"{place.stored} has no signals of {len(missing)} of the rows",
            remedy="write them for this dataset, chat template and max_length",
        )
    return StoredTeacher(reader, device, tail_draws=entry.divergence == "forward_kl")


def _live(
    signal: LiveSignal, weights: str, tokenizer: PreTrainedTokenizerBase | None, place: Place, device: torch.device
) -> LiveTeacher:
    """A live teacher, of the student's tokenizer where that is given."""
    if tokenizer is not None:
        require_same_tokens(tokenizer, weights, trust_remote_code=place.trust_remote_code)
    return LiveTeacher.load(
        weights,
        device=device,
        trust_remote_code=place.trust_remote_code,
        precision=signal.precision,
        offload=signal.offload,
        shard=signal.shard,
    )


def fingerprint(tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, teacher: str) -> Fingerprint:
    """What signals hold for, as this student's tokenizer says."""
    return Fingerprint(
        vocabulary=vocabulary,
        tokenizer=digest_of(tokenizer.get_vocab()),
        chat_template=digest_of(tokenizer.chat_template),
        teacher=teacher,
    )


class StoredTeacher:
    """A teacher that was written down: its rows are found by the batch's row ids, its head is loaded once.

    `tail_draws`: whether ids drawn from the tail of a top k are taken, where there are any; only forward KL can.
    """

    def __init__(self, reader: Reader, device: torch.device, *, tail_draws: bool = False) -> None:
        self._reader, self._tail_draws = reader, tail_draws
        self._device = device
        self._head = read_head(reader.folder, device) if reader.about.form == "hidden" else None

    def __call__(self, batch: Mapping[str, Tensor]) -> TeacherSignal | SparseTargets:
        return self.bring(self.read({name: batch[name].cpu() for name in ("row_ids", "labels")}))

    def read(self, batch: Mapping[str, Tensor]) -> Packed | SparseTargets | Tensor:
        """On the CPU: what was written of the batch's scored tokens, or hidden states [B, S, K]. Raises DataError.

        Distributions are unpacked where they are used: for a GPU they stay as they were written.
        """
        records = [self._reader.read(row) for row in batch["row_ids"].flatten().tolist() if row != NO_ROW]
        labels = batch["labels"]
        scored = torch.zeros_like(labels, dtype=torch.bool)
        scored[:, :-1] = labels[:, 1:] >= 0
        assert sum(record.tokens for record in records) == int(scored.sum()), "signals of other tokens"
        about = self._reader.about
        on_gpu = self._device.type == "cuda"
        if self._head is None:
            packed = lay(records, about, tail_draws=self._tail_draws)
            return packed.map(Tensor.pin_memory) if on_gpu else packed.targets()
        states = torch.cat([hidden_states(record, about) for record in records])
        hidden = states.new_zeros((*labels.shape, about.width))
        hidden[scored] = states
        return hidden.pin_memory() if on_gpu else hidden

    def bring(self, read: Packed | SparseTargets | Tensor) -> TeacherSignal | SparseTargets:
        """To the device, without waiting for it."""
        if isinstance(read, SparseTargets):
            return read
        if isinstance(read, Tensor):
            assert self._head is not None
            return TeacherSignal(read.to(self._device, non_blocking=True), self._head)
        return read.map(lambda values: values.to(self._device, non_blocking=True)).targets()


def hidden_states(record: Record, about: About) -> Tensor:
    """A row's last hidden states [T, K], as they were."""
    dtype: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[about.dtype]
    return torch.frombuffer(bytearray(record.packed), dtype=dtype).view(record.tokens, about.width)


def write_head(folder: Path, head: Head) -> None:
    """The teacher's head beside its hidden states; the file is whole or absent."""
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    softcap = "" if head.softcap is None else repr(head.softcap)
    temporary = folder / f".{HEAD}.tmp"
    save_file(tensors, temporary, metadata={"scale": repr(head.scale), "softcap": softcap})
    temporary.replace(folder / HEAD)


def read_head(folder: Path, device: torch.device) -> Head:
    """Raises CheckpointError."""
    try:
        with safe_open(folder / HEAD, "pt") as handle:
            numbers = handle.metadata()
        tensors = load_file(folder / HEAD, device=str(device))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / HEAD} does not load: {error}", remedy=f"remove {folder} and write the signals again"
        ) from None
    softcap = float(numbers["softcap"]) if numbers["softcap"] else None
    return Head(tensors["weight"], tensors.get("bias"), float(numbers["scale"]), softcap)

"""The trainers that `train_step` compares: ours and TRL's, on the same models, rows, optimizer and precision."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DistillationConfig, DistillationTrainer, SFTConfig
from trl.experimental.gkd import GKDConfig, GKDTrainer

from distill.model.chat import IGNORED
from distill.recipe.signals import HiddenSignal, SampledSignal, TopKSignal, WrittenSignal
from distill.recipe.train import KdEntry, OnPolicyEntry, Replay, Rollout, SftEntry
from distill.teacher.stored import About, Fingerprint, Reader, Writer
from distill.train.arguments import common_arguments
from distill.train.batches import Sequences, collator, numbered, row_order
from distill.train.finite import FiniteCheck
from distill.train.kd import KDTrainer
from distill.train.live import LiveTeacher
from distill.train.processes import Processes
from distill.train.reading import read_ahead
from distill.train.recording import record_rows, rows_to_write
from distill.train.replay import ReplayBuffer
from distill.train.rollouts import Rollouts
from distill.train.settings import decoder_of, form_of, objective_of
from distill.train.signals import StoredTeacher, write_head

PAD, EOS = 0, 1


@dataclass(frozen=True)
class Row:
    """A prompt and its answer, as token ids."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * len(self.prompt) + self.answer


@dataclass(frozen=True)
class Setting:
    """What all trainers share."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    rows: Sequence[Row]
    steps: int
    batch: int
    micro_batch: int
    max_new_tokens: int
    bfloat16: bool
    triton: bool  # our kernels, where the GPU has them
    cuda_graphs: bool = False  # ours: passes replayed
    replay: bool = False  # ours: half of the steps take answers of earlier ones


Way = Callable[[Setting], Trainer]


class Clock(TrainerCallback):  # type: ignore[misc]
    """When training began and each step ended; every time is told as it comes."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self.ends: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._tell(time.perf_counter())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self._tell(self.ends[-1])


class Timed:
    """A function whose calls' seconds are added up: on a GPU those between its first and its last kernel."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._spans: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def __call__(self, *arguments: Any) -> Any:
        begin = _now()
        found = self._function(*arguments)
        self._spans.append((begin, _now()))
        return found

    def seconds(self) -> float:
        """Of all calls, which have ended on the device."""
        return sum(
            begin.elapsed_time(end) / 1000 if isinstance(begin, torch.cuda.Event) else end - begin
            for begin, end in self._spans
        )


def _now() -> float | torch.cuda.Event:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def timed_parts(trainer: Trainer) -> dict[str, Timed]:
    """Ours: what the teacher's pass takes (without its head, which the loss reads), and what making the rows takes."""
    if not isinstance(trainer, KDTrainer) or trainer.signal is None:
        return {}
    parts = {"rows": Timed(trainer.get_batch_samples), "teacher": Timed(trainer.signal)}
    trainer.get_batch_samples = parts["rows"]  # type: ignore[method-assign]
    trainer.signal = parts["teacher"]
    return parts


def in_order(setting: Setting, trainer: Trainer) -> list[Row]:
    """The rows as the trainer takes them: ours in its own order, TRL's one after the other."""
    if isinstance(trainer, KDTrainer):
        return [setting.rows[place] for place in _order(setting)]
    return list(setting.rows)


def tokenizer() -> PreTrainedTokenizerFast:
    """Trainers ask for one; the rows are token ids already."""
    words = WordLevel({"<pad>": PAD, "<eos>": EOS, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def ours_sft(setting: Setting) -> Trainer:
    """sft: the rows' answers, by cross entropy."""
    return _ours(setting, SftEntry(objective="sft", **_entry(setting)), None)


def ours_off_policy(setting: Setting) -> Trainer:
    """kd, forward KL."""
    entry = KdEntry(objective="kd", divergence="forward_kl", **_entry(setting))
    return _ours(setting, entry, None)


def ours_stored_hidden(setting: Setting) -> Trainer:
    """kd, forward KL, from stored hidden states."""
    return _stored(setting, HiddenSignal(kind="hidden"))


def ours_stored_top_k(setting: Setting) -> Trainer:
    """kd, forward KL, from a stored top k: 64 entries and 16 draws a token, as random weights are sure of nothing."""
    return _stored(setting, TopKSignal(kind="top_k", min_probability=0.0))


def ours_stored_samples(setting: Setting) -> Trainer:
    """kd, forward KL, from stored ids."""
    return _stored(setting, SampledSignal(kind="sampled"))


def _stored(setting: Setting, signal: WrittenSignal) -> Trainer:
    """The teacher writes its signals, and leaves the GPU, before the trainer is made."""
    teacher, rows, folder = LiveTeacher(setting.teacher), _rows(setting), _folder()
    rows_V, width = teacher.head.weight.shape
    holds = Fingerprint(rows_V, "", "", "")
    if isinstance(signal, HiddenSignal):
        about = About("hidden", holds, width=width, dtype=str(setting.teacher.dtype).removeprefix("torch."))
    elif isinstance(signal, SampledSignal):
        about = About("sampled", holds, draws=signal.draws)
    else:
        about = About("top_k", holds, draws=signal.num_tail_draws, step_nats=signal.step_nats)
    writer, device = Writer(folder, about), setting.student.device
    write_head(folder, teacher.head)
    todo = rows_to_write(rows, writer)
    record_rows(todo, teacher, writer, about, signal, device=device, progress=lambda _: None)
    setting.teacher.cpu()
    entry = KdEntry(objective="kd", divergence="forward_kl", signal=signal, **_entry(setting))
    return _ours(setting, entry, None, StoredTeacher(Reader(folder), device, tail_draws=True))


def ours_on_policy(setting: Setting) -> Trainer:
    """on_policy, reverse KL, every step the student's own answers."""
    kept = Replay(rows=4 * setting.batch) if setting.replay else None
    rollout = Rollout(max_new_tokens=setting.max_new_tokens, replay=kept)
    entry = OnPolicyEntry(objective="on_policy", divergence="reverse_kl", rollout=rollout, **_entry(setting))
    rollouts = Rollouts(
        setting.student,
        tokenizer(),
        entry,
        rows=setting.batch,
        collate=collator(PAD),
        bfloat16=setting.bfloat16,
        replay=None if kept is None else ReplayBuffer(entry, kept, steps=setting.steps, processes=Processes(0, 1)),
    )
    return _ours(setting, entry, rollouts)


def _entry(setting: Setting) -> dict[str, Any]:
    return {
        "name": "ours",
        "data": ("rows.parquet",),
        "batch_size": setting.batch,
        "micro_batch_size": setting.micro_batch,
        "mixed_precision": "bf16" if setting.bfloat16 else "no",
        "kernel": "triton" if setting.triton else "torch",
        "cuda_graphs": setting.cuda_graphs,
        "max_length": 1024,
        "save_steps": 10**6,
    }


def _rows(setting: Setting) -> Sequences:
    ids, labels = [row.ids for row in setting.rows], [row.labels for row in setting.rows]
    numbers = range(len(ids))
    names, places = [[number] for number in numbers], [[(0, number)] for number in numbers]
    return Sequences(ids, labels, [[len(row)] for row in ids], names, places, len(ids), 0, 0)


def _ours(
    setting: Setting,
    entry: SftEntry | KdEntry | OnPolicyEntry,
    rollouts: Rollouts | None,
    stored: StoredTeacher | None = None,
) -> Trainer:
    rows, order = _rows(setting), _order(setting)
    dataset, collate = numbered(rows, order, collator(PAD))
    if stored is not None:
        collate = read_ahead(collate, stored)
    arguments = common_arguments(entry, steps=setting.steps, processes=1, checkpoints=_folder())
    teacher = None if isinstance(entry, SftEntry) or stored is not None else LiveTeacher(setting.teacher)
    device = setting.student.device
    return KDTrainer(
        setting.student,
        args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False),
        data_collator=collate,
        train_dataset=dataset,
        processing_class=tokenizer(),
        callbacks=[],
        finite=FiniteCheck("ours", order, rows.places, ["rows"]),
        peft_config=None,
        objective=objective_of(entry),
        signal=stored or teacher,
        form=form_of(entry, device),
        rollouts=rollouts,
        decoder=decoder_of(entry, setting.student, teacher, device=device, processes=1),
    )


def _order(setting: Setting) -> list[int]:
    lengths = [len(row.ids) for row in setting.rows]
    sizes = {"batch_size": setting.batch, "micro_batch_size": setting.micro_batch}
    return row_order(lengths, **sizes, steps=setting.steps, seed=0)


def gkd_off_policy(setting: Setting) -> Trainer:
    """TRL's GKDTrainer on the rows' answers, forward KL."""
    return _gkd(setting, lmbda=0.0, beta=0.0)


def gkd_on_policy(setting: Setting) -> Trainer:
    """TRL's GKDTrainer on the student's own answers, reverse KL: transformers' generate for each micro-batch."""
    return _gkd(setting, lmbda=1.0, beta=1.0)


def _gkd(setting: Setting, *, lmbda: float, beta: float) -> Trainer:
    own = {"lmbda": lmbda, "beta": beta, "temperature": 1.0, "max_new_tokens": setting.max_new_tokens}
    return GKDTrainer(
        setting.student,
        setting.teacher,
        args=GKDConfig(**_peer_arguments(setting), **own, max_length=1024),
        data_collator=padded,
        train_dataset=Dataset.from_dict(
            {"prompt": [row.prompt for row in setting.rows], "answer": [row.answer for row in setting.rows]}
        ),
        processing_class=tokenizer(),
    )


def distillation_on_policy(setting: Setting) -> Trainer:
    """TRL's DistillationTrainer, reverse KL: transformers' generate once a step, and its chunked loss."""
    return _IdsTrainer(
        setting.student,
        setting.teacher,
        args=DistillationConfig(
            **_peer_arguments(setting),
            beta=1.0,
            max_completion_length=setting.max_new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            shuffle_dataset=False,
        ),
        # the prompts of each step are those of ours
        train_dataset=Dataset.from_dict({"prompt": [setting.rows[place].prompt for place in _order(setting)]}),
        processing_class=tokenizer(),
    )


class _IdsTrainer(DistillationTrainer):  # type: ignore[misc]
    """Its prompts are token ids already."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}


def _peer_arguments(setting: Setting) -> dict[str, Any]:
    return {
        "output_dir": str(_folder()),
        "per_device_train_batch_size": setting.micro_batch,
        "gradient_accumulation_steps": setting.batch // setting.micro_batch,
        "max_steps": setting.steps,
        "learning_rate": 2e-5,
        "bf16": setting.bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "train_sampling_strategy": "sequential",
    }


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """What GKDTrainer's own collator makes of chats: rows padded on the right, prompts on the left."""
    ids = [row["prompt"] + row["answer"] for row in rows]
    width, prompt_width = max(map(len, ids)), max(len(row["prompt"]) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), width), PAD),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
        "labels": torch.full((len(rows), width), IGNORED),
        "prompts": torch.full((len(rows), prompt_width), PAD),
        "prompt_attention_mask": torch.zeros(len(rows), prompt_width, dtype=torch.long),
    }
    for place, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        start = len(row["prompt"])
        batch["input_ids"][place, : len(tokens)] = torch.tensor(tokens)
        batch["attention_mask"][place, : len(tokens)] = 1
        batch["labels"][place, start : len(tokens)] = torch.tensor(row["answer"])
        batch["prompts"][place, prompt_width - start :] = torch.tensor(row["prompt"])
        batch["prompt_attention_mask"][place, prompt_width - start :] = 1
    return batch


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="train-step-"))

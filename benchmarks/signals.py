"""Stored teacher signals: bytes a token, what each form loses of divergence and gradient, and what reading costs.

    python -m benchmarks.signals [--quick] [--json PATH]

Two kinds of data: the embedded teacher with the student base on rows of `distill.tasks` (errors against the whole
distribution, reading beside a training step), and power laws over V = 151,936 (bytes at equal error beside DistillKit).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import signals_sizes as sizes
from benchmarks.common import Row, envelope, write_json
from distill.model.load import load_model, load_tokenizer
from distill.objectives.divergences import DivergenceName, Objective
from distill.objectives.head import Head, head_loss
from distill.objectives.sparse import SparseTargets
from distill.objectives.sparse_head import sparse_head_loss
from distill.quiet import quiet
from distill.recipe.signals import HiddenSignal, SampledSignal, TopKSignal, WrittenSignal
from distill.records import INSTRUCTION, write_parquet
from distill.tasks.registry import sample_tasks
from distill.teacher.stored import About, Reader, Writer
from distill.train.batches import Sequences, collator, read_sequences
from distill.train.forward import TeacherSignal, attach_loss_head, head_of
from distill.train.live import LiveTeacher
from distill.train.recording import record_rows, rows_to_write
from distill.train.signals import StoredTeacher, fingerprint, write_head

TEACHER, STUDENT = "data/teacher", "data/student-base"
QWEN_ROWS = 151_936
SHARE_BAR, SAMPLED_BAR, OVERHEAD_BAR = 0.6, 40.0, 0.03
# Exponents of the power laws: as of answers (about 1 nat a token), as of running text (about 2), and wide ones only.
PROFILES = {"answers": (1.3, 5.0), "text": (1.2, 3.0), "flat": (1.1, 1.6)}
CPU = torch.device("cpu")
FORMS: dict[str, WrittenSignal] = {
    "top k": TopKSignal(kind="top_k"),
    "top k, no draws": TopKSignal(kind="top_k", tail_draws=0),
    "top k, k 16 at 0.001, no draws": TopKSignal(kind="top_k", k=16, min_probability=1e-3, tail_draws=0),
    "top k, k 255 at 0": TopKSignal(kind="top_k", k=255, min_probability=0.0, tail_draws=0),
    "top k, k 16 at 0.001": TopKSignal(kind="top_k", k=16, min_probability=1e-3),
    "sampled": SampledSignal(kind="sampled"),
    "hidden": HiddenSignal(kind="hidden"),
}
DIVERGENCES: tuple[DivergenceName, ...] = ("forward_kl", "reverse_kl")


@dataclass(frozen=True)
class Scene:
    """Teacher, student and rows, and one batch of them."""

    teacher: LiveTeacher
    rows: Sequences
    batch: dict[str, Tensor]
    hidden: Tensor  # the student's, of the batch's tokens [N, H]
    student: Head
    labels: Tensor  # shifted, [N]


def scene(folder: Path, count: int) -> Scene:
    """Rows of held-in tasks, answered rightly."""
    tasks = sample_tasks(kinds=("instruction", "code"), split="train", count=count, seed=0)
    messages = [
        {"messages": [{"role": "user", "content": t.prompt}, {"role": "assistant", "content": t.answer}]} for t in tasks
    ]
    write_parquet(folder / "rows.parquet", messages, INSTRUCTION)
    rows = read_sequences(load_tokenizer(TEACHER), [folder / "rows.parquet"], 512)
    teacher = LiveTeacher.load(TEACHER, device=CPU, trust_remote_code=False)
    batch = collator(0)(examples(rows))
    student = load_model(STUDENT, dtype="float32", device="cpu")
    labels = torch.full_like(batch["labels"], -100)
    labels[:, :-1] = batch["labels"][:, 1:]
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        hidden = student.base_model(**inputs, use_cache=False).last_hidden_state
    return Scene(teacher, rows, batch, hidden.flatten(0, 1).float(), head_of(student), labels.flatten())


def examples(rows: Sequences) -> list[dict[str, Any]]:
    """As the trainer gives them to the collator."""
    columns = zip(rows.input_ids, rows.labels, rows.segments, rows.row_ids, strict=True)
    names = ("input_ids", "labels", "seq_lengths", "row_ids")
    return [dict(zip(names, values, strict=True)) for values in columns]


def write(scene: Scene, folder: Path, settings: WrittenSignal) -> Reader:
    """The rows' signals in a folder."""
    head = scene.teacher.head
    holds = fingerprint(load_tokenizer(TEACHER), vocabulary=head.weight.shape[0], teacher="embedded")
    dtype = str(scene.teacher.model.dtype).removeprefix("torch.")
    if isinstance(settings, TopKSignal):
        about = About("top_k", holds, step_nats=settings.step_nats, draws=settings.num_tail_draws)
    elif isinstance(settings, SampledSignal):
        about = About("sampled", holds, draws=settings.draws)
    else:
        about = About("hidden", holds, width=head.weight.shape[1], dtype=dtype)
    writer = Writer(folder, about)
    write_head(folder, head)
    todo = rows_to_write(scene.rows, writer)
    record_rows(todo, scene.teacher, writer, about, settings, device=CPU, progress=lambda _: None)
    return Reader(folder)


def loss_and_gradient(
    scene: Scene, signal: TeacherSignal | SparseTargets, divergence: DivergenceName
) -> tuple[float, Tensor]:
    """Mean divergence over the batch's tokens, and the gradient of the student's head."""
    weight = scene.student.weight.detach().float().requires_grad_()
    head, objective = Head(weight, None, scene.student.scale, scene.student.softcap), Objective(divergence)
    if isinstance(signal, SparseTargets):
        sums = sparse_head_loss(scene.hidden, head, signal, scene.labels, objective)
    else:
        teacher = signal.hidden.flatten(0, 1).float()
        sums = head_loss(scene.hidden, head, teacher, signal.head, scene.labels, objective)
    (gradient,) = torch.autograd.grad(sums.loss, weight)
    return float(sums.divergence / sums.weight), gradient


def errors(scene: Scene, folder: Path) -> list[Row]:
    """Each form against the live teacher on the same batch."""
    rows = []
    live = {name: loss_and_gradient(scene, scene.teacher(scene.batch), name) for name in DIVERGENCES}
    for number, (name, settings) in enumerate(FORMS.items()):
        reader = write(scene, folder / str(number), settings)
        signal = StoredTeacher(reader, CPU, tail_draws=True)(scene.batch)
        size = reader.size_bytes / reader.tokens
        sampled = settings.kind == "sampled"
        drawn = sampled or reader.about.draws > 0  # of forward KL alone
        bar = SAMPLED_BAR if sampled else None
        rows.append(Row(f"{name}: size", size, "bytes/token", bar=bar, ok=size <= bar if bar is not None else None))
        for divergence in DIVERGENCES[: 1 if drawn else 2]:
            value, gradient = loss_and_gradient(scene, signal, divergence)
            expected, full = live[divergence]
            error = float((gradient - full).norm() / full.norm())
            rows.append(Row(f"{name}: {divergence}, error of the mean", abs(value / expected - 1), "share"))
            rows.append(Row(f"{name}: {divergence}, error of the head's gradient", error, "share"))
    return rows


def overhead(scene: Scene, folder: Path, steps: int) -> list[Row]:
    """Seconds to read a micro-batch's signals over those of its forward and backward pass."""
    found = []
    parts = [examples(scene.rows)[begin : begin + 8] for begin in range(0, 8 * steps, 8)]
    batches = [collator(0)(part) for part in parts if part]
    for number, (name, settings) in enumerate(FORMS.items()):
        student = load_model(STUDENT, dtype="float32", device="cpu")
        attach_loss_head(student, Objective(), 1024)
        signal = StoredTeacher(Reader(folder / str(number)), CPU, tail_draws=True)
        reading, training = [], []
        for batch in batches:
            start = time.perf_counter()
            teacher = signal(batch)
            read = time.perf_counter()
            plain = {key: value for key, value in batch.items() if key != "row_ids"}
            student(**plain, with_loss_head=True, teacher=teacher).loss.backward()
            reading.append(read - start)
            training.append(time.perf_counter() - read)
        share = statistics.median(reading) / statistics.median(training)
        text = f"{name}: reading beside forward and backward"
        found.append(Row(text, share, "share", bar=OVERHEAD_BAR, ok=share < OVERHEAD_BAR))
        assert settings.kind == signal_kind(folder / str(number))
    return found


def signal_kind(folder: Path) -> str:
    """What a folder holds."""
    return Reader(folder).about.form


def at_equal_error(count: int) -> list[Row]:
    """The smallest top k of ours that loses no more than each of the peer's settings, at V = 151,936."""
    rows = []
    for profile, exponents in PROFILES.items():
        tokens = sizes.Tokens.of(sizes.synthetic(count, QWEN_ROWS, exponents), FORMS["sampled"].draws)  # type: ignore[union-attr]
        entropy = float(tokens.entropy_N.mean())
        rows.append(Row(f"V={QWEN_ROWS}, {profile}: mean entropy", entropy, "nats"))
        every = sizes.our_sizes(tokens)
        for peer in sizes.PEERS:
            theirs, error = peer.bytes_per_token(QWEN_ROWS), sizes.peer_error(tokens, peer)
            ours, floor = sizes.smallest_at(every, error), sizes.least_bytes(tokens, error)
            name = f"V={QWEN_ROWS}, {profile}: top k at the error of {peer.name}"
            rows.append(Row(f"{name}: that error", error, "nats", peer=error))
            if ours is None:
                rows.append(Row(name, float("inf"), "bytes/token", peer=theirs, bar=SHARE_BAR * theirs, ok=False))
                continue
            value, bar = ours.bytes_per_token, SHARE_BAR * theirs
            ok = value <= bar
            rows.append(Row(name, value, "bytes/token", peer=theirs, ratio=value / theirs, floor=floor, bar=bar, ok=ok))
            rows.append(Row(f"{name}: our error", ours.error, "nats", peer=error, ratio=ours.error / error))
            rows.append(Row(f"{name}: entries kept", ours.entries, "a token", peer=peer.k))
            rows.append(Row(f"{name}: step", ours.step_nats, "nats"))
        size = tokens.sampled_bytes
        text = f"V={QWEN_ROWS}, {profile}: sampled, size"
        rows.append(Row(text, size, "bytes/token", bar=SAMPLED_BAR, ok=size <= SAMPLED_BAR))
    return rows


def table(rows: Sequence[Row]) -> str:
    """As text."""
    lines = []
    for row in rows:
        beside = f"  peer {row.peer:.4g}" if row.peer is not None else ""
        ratio = f"  ratio {row.ratio:.2f}" if row.ratio is not None else ""
        ratio += f"  floor {row.floor:.4g}" if row.floor is not None else ""
        bar = "" if row.bar is None else f"  bar {row.bar:.4g}: {'met' if row.ok else 'MISSED'}"
        lines.append(f"{row.name:78} {row.value:10.4g} {row.unit}{beside}{ratio}{bar}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = scene(folder, 48 if options.quick else 256)
        rows = errors(made, folder) + overhead(made, folder, 5 if options.quick else 24)
        rows += at_equal_error(128 if options.quick else 1024)
    print(table(rows))
    if options.json is not None:
        command = "python -m benchmarks.signals" + (" --quick" if options.quick else "")
        write_json(options.json, envelope(what="signals", command=command, rows=rows, details={"teacher": TEACHER}))


if __name__ == "__main__":
    main()

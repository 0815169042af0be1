"""One train entry from its inputs to a model folder: rows, trainer, resume, train, export."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig

from distill.model.fake_quant import attach_fake_quantization
from distill.model.load import DtypeName, load_model, load_tokenizer, require_chat_template
from distill.model.scales import Grid
from distill.quiet import quiet
from distill.recipe.train import DpoEntry, KdEntry, KtoEntry, OnPolicyEntry, PairsEntry, SftEntry, SimpoEntry
from distill.runs import StageFolder
from distill.track import Tracker
from distill.train.aligned import AlignedTeacher
from distill.train.arguments import common_arguments, uses_bfloat16
from distill.train.batches import (
    Pairs,
    Sequences,
    collator,
    num_steps,
    numbered,
    pack,
    read_pairs,
    read_sequences,
    row_order,
)
from distill.train.callbacks import Stop, TokenCount, Watch
from distill.train.checkpoints import CHECKPOINTS, Found, newest_whole, remove_after
from distill.train.export import save_student, stored_dtype
from distill.train.finite import FiniteCheck
from distill.train.kd import KDTrainer
from distill.train.lora import adapter_config
from distill.train.preference import preference_trainer
from distill.train.processes import Processes
from distill.train.reading import read_ahead
from distill.train.replay import ReplayBuffer
from distill.train.rollouts import Rollouts
from distill.train.settings import decoder_of, form_of, grids_for, matching_of, objective_of
from distill.train.signals import Place, StoredTeacher, open_signal
from distill.train.unpaired import Answers, read_answers
from distill.train.zero3 import is_launched, require_resumable, require_trainable

ChatEntry = SftEntry | KdEntry | OnPolicyEntry | PairsEntry
Rows = Sequences | Pairs | Answers
MODEL = "model"


@dataclass(frozen=True)
class Source:
    """What an entry starts from."""

    init: Path
    data: Sequence[Path]
    place: Place | None
    dtype: DtypeName
    trust_remote_code: bool


def train_entry(
    entry: ChatEntry,
    source: Source,
    folder: StageFolder,
    *,
    processes: Processes,
    tracker: Tracker | None,
    console: Console,
) -> dict[str, Any]:
    """Train and write `<folder>/model`; the metrics for the manifest. Called by all processes.

    On Ctrl-C or SIGTERM it writes a checkpoint and ends by KeyboardInterrupt or SystemExit(143).
    """
    if is_launched():
        require_trainable(entry)
    with quiet():
        tokenizer = load_tokenizer(source.init, trust_remote_code=source.trust_remote_code)
        require_chat_template(tokenizer, source.init)
        rows = _read(entry, tokenizer, source.data)
        lengths, trained = rows.lengths, rows.trained
        steps = num_steps(len(lengths), batch_size=entry.batch_size, epochs=entry.epochs, max_steps=entry.max_steps)
        order = row_order(
            lengths,
            batch_size=entry.batch_size,
            micro_batch_size=entry.micro_batch_size,
            steps=steps,
            seed=entry.seed,
        )
        stop = Stop()
        count = TokenCount.of(order, lengths, trained, batch_size=entry.batch_size)
        watch = Watch(count, stop, tracker, console if processes.is_first else None, entry.name)
        finite = FiniteCheck(entry.name, order, rows.places, [str(path) for path in source.data])
        checkpoints = folder.path / CHECKPOINTS
        trainer, grids = _trainer(entry, source, tokenizer, rows, order, steps, checkpoints, processes, watch, finite)
        aligned = _aligned_facts(trainer)
        if aligned and processes.is_first:
            console.print(
                f"{entry.name}: {aligned['compared_tokens']:.1%} of the student's tokens compared with the teacher's, "
                f"{aligned['paired_tokens']:.1%} one to one; {aligned['shared_vocabulary']:.1%} of its tokens shared"
            )
        found = _resume(checkpoints, processes, tracker, console, entry.name)
        try:
            with stop.listening():
                trainer.train(resume_from_checkpoint=str(found.path) if found.path else None)
        finally:
            watch.close()
        if stop.signal is not None and trainer.state.global_step < steps:
            where = f"{entry.name}: stopped at step {trainer.state.global_step} of {steps}"
            _leave(stop.signal, where, processes, console)
        save_student(
            trainer,
            tokenizer,
            init=source.init,
            out=folder.path / MODEL,
            dtype=source.dtype,
            lora=entry.lora,
            trust_remote_code=source.trust_remote_code,
            grids=grids,
        )
    return _metrics(entry, rows, watch, steps, processes, trainer) | aligned


def _aligned_facts(trainer: Trainer) -> dict[str, float]:
    """What a teacher of another tokenizer and the student have in common; empty for any other teacher."""
    signal_of = trainer.signal if isinstance(trainer, KDTrainer) else None
    return signal_of.facts if isinstance(signal_of, AlignedTeacher) else {}


def _read(entry: ChatEntry, tokenizer: PreTrainedTokenizerBase, data: Sequence[Path]) -> Rows:
    if isinstance(entry, KtoEntry):
        return read_answers(tokenizer, data, entry.max_length)
    if isinstance(entry, DpoEntry | SimpoEntry):
        return read_pairs(tokenizer, data, entry.max_length)
    rows = read_sequences(tokenizer, data, entry.max_length)
    packing = not isinstance(entry, OnPolicyEntry) and entry.packing
    return pack(rows, entry.max_length, entry.seed) if packing else rows


def _trainer(
    entry: ChatEntry,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    order: list[int],
    steps: int,
    checkpoints: Path,
    processes: Processes,
    watch: Watch,
    finite: FiniteCheck,
) -> tuple[Trainer, dict[str, Grid]]:
    """The entry's trainer, and the grids that the student's weights are rounded to while it trains."""
    # LoRA's frozen base may stay as it is stored; weights that are trained are float32, for bfloat16 loses updates.
    dtype: DtypeName = "stored" if entry.lora is not None and uses_bfloat16(entry) else "float32"
    model = load_model(source.init, dtype=dtype, device="cpu", trust_remote_code=source.trust_remote_code)
    grids = grids_for(entry, model)
    arguments = common_arguments(entry, steps=steps, processes=processes.size, checkpoints=checkpoints)
    peft_config = adapter_config(entry.lora) if entry.lora is not None else None
    if not isinstance(entry, SftEntry | KdEntry | OnPolicyEntry):
        assert not isinstance(rows, Sequences)
        trainer = preference_trainer(
            entry,
            model,
            lambda: load_model(source.init, dtype=dtype, device="cpu", trust_remote_code=source.trust_remote_code),
            rows,
            order,
            tokenizer,
            arguments,
            callbacks=[watch],
            finite=finite,
            peft_config=peft_config,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer, grids
    assert isinstance(rows, Sequences)
    attach_fake_quantization(model, grids, stored_dtype(model, source.dtype))
    # The collator picks the columns: the trainer would drop the row ids, by which stored signals find their rows.
    prepared = {"skip_prepare_dataset": True}
    config = SFTConfig(**arguments, dataset_kwargs=prepared, remove_unused_columns=False)
    objective = objective_of(entry)
    signal_of = None
    if not isinstance(entry, SftEntry) and objective.ce_weight < 1.0:
        assert source.place is not None, "kd and on_policy have a teacher"
        signal_of = open_signal(entry, source.place, model, tokenizer, rows, source.data, config.device)
    assert tokenizer.pad_token_id is not None
    collate = collator(tokenizer.pad_token_id)
    dataset, pick = numbered(rows, order, collate)
    if isinstance(signal_of, StoredTeacher):
        pick = read_ahead(pick, signal_of)
    rollouts = None
    if isinstance(entry, OnPolicyEntry):
        own_rows, bfloat16 = entry.batch_size // processes.size, uses_bfloat16(entry)
        kept = entry.rollout.replay
        replay = None if kept is None else ReplayBuffer(entry, kept, steps=steps, processes=processes)
        rollouts = Rollouts(model, tokenizer, entry, rows=own_rows, collate=collate, bfloat16=bfloat16, replay=replay)
    trainer = KDTrainer(
        model,
        args=config,
        data_collator=pick,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[watch],
        finite=finite,
        peft_config=peft_config,
        objective=objective,
        signal=signal_of,
        chunk_tokens=entry.chunk_tokens,
        form=form_of(entry, config.device),
        rollouts=rollouts,
        matching=matching_of(entry, model, signal_of),
        decoder=decoder_of(entry, model, signal_of, device=config.device, processes=processes.size),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, grids


def _resume(checkpoints: Path, processes: Processes, tracker: Tracker | None, console: Console, name: str) -> Found:
    """The checkpoint to go on from, the same in every process; the first one clears what is torn."""
    found = processes.first_says(lambda: newest_whole(checkpoints))
    require_resumable(found, processes.size)
    if processes.is_first:
        for reason in found.skipped:
            console.print(f"{name}: skipped {reason}")
        if found.path is not None:
            same = found.processes == processes.size
            note = "" if same else f", which {found.processes} processes wrote: not bitwise"
            console.print(f"{name}: going on from step {found.step}{note}")
        remove_after(checkpoints, found.step)
        if tracker is not None:
            tracker.rewind(found.step)
    processes.wait()
    return found


def _leave(number: int, where: str, processes: Processes, console: Console) -> None:
    """Say how to go on, and end as the signal asked."""
    if processes.is_first:
        console.print(Text(f"{where}, checkpoint written; to go on: {processes.command}"), soft_wrap=True)
    processes.wait()  # a launcher ends the others when one has ended
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _metrics(
    entry: ChatEntry, rows: Rows, watch: Watch, steps: int, processes: Processes, trainer: Trainer
) -> dict[str, Any]:
    """For the manifest. Final values are means over the logs of the last tenth of the steps."""
    late = [point for point in watch.history if point["step"] > 0.9 * steps] or watch.history[-1:]
    names = sorted({name for point in late for name in point} - {"step", "learning_rate"})
    final = {f"final_{name}": sum(p[name] for p in late) / len(late) for name in names if all(name in p for p in late)}
    model = trainer.model
    assert model is not None
    return {
        "objective": entry.objective,
        "steps": steps,
        "rows": len(rows.lengths),
        "rows_read": rows.num_read,
        "rows_dropped": rows.num_dropped,
        "rows_truncated": rows.num_truncated,
        "epochs": steps * entry.batch_size / len(rows.lengths),
        **watch.totals(steps),
        "train_seconds": watch.seconds,
        "tokens_per_second": watch.tokens_per_second,
        "resumed_at": watch.first_step,
        "world_size": processes.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        **final,
    }

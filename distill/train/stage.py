"""The train stage: the student before any training, then every entry in its order, all in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.errors import DataError, DistillError
from distill.recipe.schema import Recipe, Student
from distill.recipe.signals import StoredSignal
from distill.recipe.train import Entry, KdEntry, LmEntry, OnPolicyEntry, PairsEntry, SftEntry
from distill.runs import Run, StageFolder, digest_of, path_digest
from distill.track import Tracker
from distill.train.checkpoints import CHECKPOINTS, LM_CHECKPOINT
from distill.train.processes import Processes
from distill.train.student_base import STUDENT_BASE, make_student_base

BaseUrl = Callable[[], str | None]


def run(
    recipe: Recipe, run: Run, *, console: Console, entry: str | None = None, base_url: BaseUrl = lambda: None
) -> None:
    """Train what is not done yet; `entry` names the only one to train. Every process of a launcher calls this.

    `base_url` gives a served teacher's, for signals that are asked of it.
    """
    processes = Processes.from_environment()
    if recipe.student is None or not recipe.train:
        raise DistillError("the recipe has no student to train", remedy="add the sections 'student' and 'train'")
    names = [item.name for item in recipe.train]
    if entry is not None and entry not in names:
        raise DistillError(f"no train entry '{entry}'", remedy=f"one of {', '.join(names)}")
    make_student_base(recipe, recipe.student, run, processes, console)
    for item in recipe.train:
        if entry in (None, item.name):
            _train(recipe, recipe.student, run, item, processes, console, base_url)


def write_signals(
    recipe: Recipe, run: Run, *, console: Console, entry: str | None = None, base_url: BaseUrl = lambda: None
) -> None:
    """Write the stored signals of kd entries, without training; what is written is not written again."""
    from distill.quiet import quiet

    if recipe.student is None:
        raise DistillError("the recipe has no student to train", remedy="add the sections 'student' and 'train'")
    with quiet():
        from distill.train.signal_stage import place_of, require_kd

        names = require_kd(recipe, entry)
        make_student_base(recipe, recipe.student, run, Processes(0, 1), console)
        for item in recipe.train:
            if item.name in names and isinstance(item, KdEntry):
                init = _init(recipe, run, item)
                assert init is not None, "the recipe refuses chats on random weights"
                inputs = _inputs(recipe, recipe.student, run, item)
                place_of(recipe, run, item, init, console, base_url=base_url, inputs=inputs)


def _train(
    recipe: Recipe,
    student: Student,
    run: Run,
    entry: Entry,
    processes: Processes,
    console: Console,
    base_url: BaseUrl,
) -> None:
    folder = run.stage("train", entry.name)
    inputs = _inputs(recipe, student, run, entry)
    if processes.agree(folder.is_done(inputs)):
        if processes.is_first:
            _clear_checkpoints(folder)
            console.print(f"{entry.name}: done before")
        return
    if not isinstance(entry, LmEntry):
        from distill.train.arguments import accumulation

        accumulation(entry, processes.size)
    elif processes.size > 1:
        raise DistillError(f"train entry '{entry.name}': lm runs in one process", remedy="start it without a launcher")
    if processes.is_first:
        folder.begin(inputs)
    processes.wait()
    if not processes.is_first:
        assert not isinstance(entry, LmEntry)
        _train_chats(recipe, student, run, entry, folder, processes, None, console, inputs, base_url)
        processes.wait()
        return
    with _tracker(recipe, run, entry, folder, inputs) as tracker:
        for name in _data(entry):
            tracker.uses(f"{recipe.name}-{name}", "dataset", run.dataset(name), {"digest": inputs[f"data:{name}"]})
        if isinstance(entry, LmEntry):
            from distill.quiet import quiet

            with quiet():
                from distill.train.lm_entry import run_lm

                start = _init(recipe, run, entry)
                metrics: dict[str, Any] = dict(run_lm(entry, student, start, folder.path, tracker, console))
        else:
            metrics = _train_chats(recipe, student, run, entry, folder, processes, tracker, console, inputs, base_url)
        tracker.summary(metrics)
        tracker.artifact(f"{recipe.name}-{entry.name}", "checkpoint", folder.path / "model", inputs)
    apart = (CHECKPOINTS, LM_CHECKPOINT)
    folder.finish(recipe, inputs, metrics=metrics, seed=entry.seed, notes=_notes(entry), apart=apart)
    _clear_checkpoints(folder)
    processes.wait()
    console.print(_line(entry, metrics))


def _train_chats(
    recipe: Recipe,
    student: Student,
    run: Run,
    entry: SftEntry | KdEntry | OnPolicyEntry | PairsEntry,
    folder: StageFolder,
    processes: Processes,
    tracker: Tracker | None,
    console: Console,
    inputs: dict[str, str],
    base_url: BaseUrl,
) -> dict[str, Any]:
    from distill.quiet import quiet

    with quiet():  # bitsandbytes speaks while it is imported
        from distill.train.entry import Source, train_entry
        from distill.train.signal_stage import place_of

    init = _init(recipe, run, entry)
    if init is None:
        raise DistillError(
            f"train entry '{entry.name}' starts from random weights, which have no chat template to train",
            remedy="set student.model, or put an entry of objective lm before it",
        )
    place = None
    if isinstance(entry, KdEntry | OnPolicyEntry):
        if processes.is_first:
            with quiet():
                place = place_of(recipe, run, entry, init, console, base_url=base_url, inputs=inputs)
        processes.wait()  # the first one writes what is to be stored, the others find it
        if place is None:
            place = place_of(recipe, run, entry, init, Console(quiet=True), base_url=base_url, inputs=inputs)
    source = Source(
        init=init,
        data=[run.dataset(name) for name in entry.data],
        place=place,
        dtype=student.dtype,
        trust_remote_code=student.trust_remote_code,
    )
    return train_entry(entry, source, folder, processes=processes, tracker=tracker, console=console)


def _clear_checkpoints(folder: StageFolder) -> None:
    """Only when the manifest is there: until then a kill goes on from them."""
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)
    (folder.path / LM_CHECKPOINT).unlink(missing_ok=True)


def _init(recipe: Recipe, run: Run, entry: Entry) -> Path | None:
    """Folder of the model that an entry starts from; None for a student from scratch."""
    init = recipe.init_of(entry.name)
    assert recipe.student is not None
    return None if init == "student" and recipe.student.model is None else run.checkpoint(init)


def _data(entry: Entry) -> tuple[str, ...]:
    return () if isinstance(entry, LmEntry) else entry.data


def _inputs(recipe: Recipe, student: Student, run: Run, entry: Entry) -> dict[str, str]:
    """Everything that decides what training makes. Logging and saving do not."""
    init = recipe.init_of(entry.name)
    settings = entry.model_dump(mode="json", exclude={"logging_steps", "save_steps", "workers", "data"})
    inputs = {"entry": digest_of(settings)}
    if _init(recipe, run, entry) is None:
        inputs["init"] = digest_of(student.model_dump(mode="json"))
    else:
        inputs["init"] = run.stage("train", STUDENT_BASE if init == "student" else init).require().digest
    jobs = [job.name for job in recipe.generate]
    for name in _data(entry):
        if name in jobs:
            inputs[f"data:{name}"] = run.stage("generate", name).require().digest
        elif Path(name).is_file():
            inputs[f"data:{name}"] = path_digest(name)
        else:
            raise DataError(f"train entry '{entry.name}': no dataset at {name}", remedy="mend the path")
    teacher = recipe.teacher_weights()
    if isinstance(entry, KdEntry | OnPolicyEntry) and entry.teachers is not None:
        inputs |= {f"teacher:{name}": path_digest(path) for name, path in recipe.scoring_weights(entry).items()}
    elif isinstance(entry, KdEntry) and isinstance(entry.signal, StoredSignal):
        inputs["signals"] = path_digest(entry.signal.path)
    elif isinstance(entry, KdEntry | OnPolicyEntry) and teacher is not None:
        inputs["teacher"] = path_digest(teacher)
    return inputs


def _tracker(recipe: Recipe, run: Run, entry: Entry, folder: StageFolder, inputs: dict[str, str]) -> Tracker:
    return Tracker(
        folder.path,
        name=f"{recipe.name}/{folder.name}",
        run_folder=run.path,
        wandb_mode=recipe.track.wandb,
        project=recipe.track.project,
        run_id=digest_of({"recipe": recipe.name, "stage": folder.name, **inputs}),
        config={"recipe": recipe.name, "stage": folder.name, **entry.model_dump(mode="json"), "digests": inputs},
    )


def _notes(entry: Entry) -> list[str]:
    if not isinstance(entry, LmEntry) and entry.lora is not None and not entry.lora.merge:
        return ["model/ is a LoRA adapter, not merged: later stages need `lora.merge: true`"]
    return []


def _line(entry: Entry, metrics: dict[str, Any]) -> str:
    """The result of an entry in one line."""
    if isinstance(entry, LmEntry):
        speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
        return f"{entry.name}: {entry.steps} steps, loss {metrics['loss']:.4f}, {speed}"
    name = {"sft": "accuracy", "kd": "divergence", "on_policy": "divergence"}.get(entry.objective, "reward_margin")
    value = metrics.get(f"final_{name}")
    parts = [
        f"{metrics['steps']} steps",
        f"{metrics['tokens']:,} tokens in {metrics['train_seconds']:.0f} s ({metrics['tokens_per_second']:,.0f}/s)",
        f"loss {metrics.get('final_loss', float('nan')):.4f}",
        f"{name.replace('_', ' ')} {value:.4f}" if value is not None else "",
        f"{metrics['rows_dropped']} rows dropped" if metrics["rows_dropped"] else "",
    ]
    return f"{entry.name}: {', '.join(part for part in parts if part)}"

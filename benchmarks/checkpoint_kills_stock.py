"""The stock trainer killed inside a save and resumed: transformers' `Trainer` as its documentation uses it."""

from __future__ import annotations

import random
import time
from pathlib import Path

from tests.train import forks

# The trainer writes this file of a checkpoint last.
_LAST = "trainer_state.json"


def train_stock(world: Path, out: Path, resume: bool) -> None:
    """16 steps, a checkpoint after each. Runs in a process of its own."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 300, (64, 24)).tolist()]
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(world / "teacher"),
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=4,
            max_steps=16,
            save_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
    )
    trainer.train(resume_from_checkpoint=resume)


def kill_and_resume_stock(world: Path, number: int) -> str:
    """What went wrong with a resume after a kill at a random point of a save; "" for nothing."""
    rng = random.Random(number)
    log, out = world / f"stock{number}.log", world / f"stock{number}"
    while True:
        step, share = rng.randint(2, 6), rng.random()
        job = forks.start(train_stock, world, out, False, log=log)
        place = out / f"checkpoint-{step}"
        while job.processes[0].is_alive() and _size(place) <= share * _size(out / f"checkpoint-{step - 1}"):
            time.sleep(0.0002)
        job.processes[0].kill()
        job.wait()
        if place.exists() and not (place / _LAST).exists():
            break
        out = out.with_name(f"{out.name}-again")
    code = forks.start(train_stock, world, out, True, log=log).wait()[0]
    said = log.read_text().replace(f"{world}/", "").strip().splitlines()
    return (said[-1] if said else f"exit {code}") if code else ""


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total

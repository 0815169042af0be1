"""What happens around the trainer's steps: metrics, the progress bar, and stopping on signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.errors import DistillError
from distill.track import Tracker
from distill.train.finite import REMEDY

SECONDS_BETWEEN_LINES = 30.0
# The trainer's and TRL's keys that go to the metrics, by the names that they get there. The rest is dropped: TRL's
# token counts, which start over at a resume, and the trainer's own totals.
KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "divergence": "divergence",
    "cross_entropy": "cross_entropy",
    "agreement": "agreement",
    "accuracy": "accuracy",
    "matching": "matching",
    "on_policy": "on_policy",
    "answer_tokens": "answer_tokens",
    "ended": "ended",
    "replayed": "replayed",
    "replay_age": "replay_age",
    "kl": "kl",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}


@dataclass(frozen=True)
class TokenCount:
    """Tokens seen after each optimizer step, known beforehand from the order of the rows."""

    tokens: Sequence[int]
    trained: Sequence[int]
    rows_per_epoch: int
    batch_size: int

    @classmethod
    def of(cls, order: Sequence[int], lengths: Sequence[int], trained: Sequence[int], *, batch_size: int) -> TokenCount:
        return cls(_running(order, lengths, batch_size), _running(order, trained, batch_size), len(lengths), batch_size)


def _running(order: Sequence[int], counts: Sequence[int], batch_size: int) -> list[int]:
    totals = [0]
    for begin in range(0, len(order), batch_size):
        totals.append(totals[-1] + sum(counts[row] for row in order[begin : begin + batch_size]))
    return totals


class Stop:
    """Whether Ctrl-C or SIGTERM asked for an end; the second one ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch both signals inside, where Python allows it (the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Watch(TrainerCallback):  # type: ignore[misc]
    """Logs, shows, stops. Runs in every process; `tracker` and `console` only in the first."""

    count: TokenCount
    stop: Stop
    tracker: Tracker | None
    console: Console | None
    label: str
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    first_step: int = 0
    _started: float = 0.0
    _progress: Progress | None = None
    _task: Any = None
    _spoken: float = 0.0
    _last_step: int = 0
    _told: tuple[int, int] | None = None  # tokens and trained ones up to the last log, where only the trainer knows
    _told_first: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Over this process's own steps, resumed ones not counted."""
        done = self._done_tokens()
        return done / self.seconds if self.seconds > 0 else 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.first_step = state.global_step
        self._started = time.monotonic()
        self._told_first = int(next((line["tokens"] for line in reversed(state.log_history) if "tokens" in line), 0))
        if self.console is None:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task(self.label, total=state.max_steps, completed=state.global_step, note="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.seconds = time.monotonic() - self._started
        self._last_step = state.global_step
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, note=self._note())
            self._speak(state)
        if self._everyone_stops(args):
            control.should_save = True
            control.should_training_stop = True
        # Means of the curve start anew at a checkpoint, as they do in a run that goes on from it.
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        found = {KEYS[key]: float(value) for key, value in (logs or {}).items() if key in KEYS}
        if "loss" not in found:
            return
        if logs is not None and "tokens" in logs:
            self._told = int(logs["tokens"]), int(logs["trained_tokens"])
        step = state.global_step
        if not math.isfinite(found["loss"]) or not math.isfinite(found.get("grad_norm", 0.0)):
            raise DistillError(
                f"{self.label}: loss {found['loss']}, gradient norm {found.get('grad_norm', 0.0)} at step {step}",
                remedy=REMEDY,
            )
        self.history.append({"step": step, **found})
        if self.tracker is not None:
            self.tracker.log(
                {
                    **found,
                    "epoch": step * self.count.batch_size / self.count.rows_per_epoch,
                    **self.totals(step),
                    "seconds": self.seconds,
                    "tokens_per_second": self.tokens_per_second,
                },
                step=step,
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress bar away, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def totals(self, step: int) -> dict[str, int]:
        """Tokens up to a step, which was the last one logged, and those of them that were trained."""
        tokens, trained = self._told or (self.count.tokens[step], self.count.trained[step])
        return {"tokens": tokens, "trained_tokens": trained}

    def _done_tokens(self) -> int:
        if self._told is not None:
            return self._told[0] - self._told_first
        return self.count.tokens[self._last_step] - self.count.tokens[self.first_step]

    def _speak(self, state: TrainerState) -> None:
        """Where no bar can be drawn (a log file), a line now and then."""
        assert self.console is not None
        if not self.console.is_terminal and self.seconds - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = self.seconds
            self.console.print(f"{self.label}: step {state.global_step} of {state.max_steps}, {self._note()}")

    def _note(self) -> str:
        loss = f"loss {self.history[-1]['loss']:.4f}  " if self.history else ""
        return f"{loss}{self.tokens_per_second:,.0f} tokens/s"

    def _everyone_stops(self, args: TrainingArguments) -> bool:
        """All processes must stop at the same step, or the ones that go on wait for ever."""
        asked = self.stop.signal is not None
        if args.world_size == 1:
            return asked
        flag = torch.tensor(int(asked), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if flag.item() and not asked:
            self.stop.signal = signal.SIGTERM
        return bool(flag.item())

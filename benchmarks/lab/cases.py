"""What the lab trains: a teacher or a folder of one, students of one shape, and the ways in which they learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lab.models import Shape

DIVERGENCES = ("reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")
CE, KD = "cross entropy", "kd forward_kl"


@dataclass(frozen=True)
class Method:
    """One row of the table: an entry's settings. `live`: of a stored form, the method whose teacher is live."""

    name: str
    entry: dict[str, Any]
    live: str | None = None
    seeds: int = 1
    sampled: bool = False  # trained on rows that the teacher samples

    @property
    def needs_no_teacher(self) -> bool:
        """Whether it can train before the teacher is there."""
        return self.entry["objective"] == "sft" and not self.sampled


@dataclass(frozen=True)
class Case:
    """Every student trains for `steps` steps on the students' part of the rows, of `row_tokens` tokens at most.

    `teacher` None: its folder is given, and the rows it samples are the text. `sampled`: how many rows it samples.
    """

    name: str
    student: Shape
    student_entry: dict[str, Any]
    steps: int
    row_tokens: int
    sampled: int
    teacher: Shape | None = None
    teacher_entry: dict[str, Any] = field(default_factory=dict)
    sample_batch: int = 2048


LIVE = {"objective": "kd", "divergence": "forward_kl"}
SFT = {"objective": "sft"}
ON_POLICY = {
    "objective": "on_policy",
    "divergence": "forward_kl",  # reverse KL has nothing to teach random weights
    "lmbda": 0.25,
    "rollout": {"max_new_tokens": 64},
}
SIGNALS = {
    "hidden states": {"kind": "hidden"},
    "top k": {"kind": "top_k"},
    "top k, no draws": {"kind": "top_k", "tail_draws": 0},
    "top k, k 255, no draws": {"kind": "top_k", "k": 255, "min_probability": 0.0, "tail_draws": 0},
    "sampled ids": {"kind": "sampled"},
    "sampled ids, 128 draws": {"kind": "sampled", "draws": 128},
}


def methods(case: Case, seeds: int, stored_seeds: int) -> list[Method]:
    """In the order in which they are trained: what the bars need first."""
    found = [
        Method(CE, SFT, seeds=seeds),
        Method(KD, LIVE, seeds=seeds),
        Method(f"{KD} again", LIVE, KD, stored_seeds),  # how far apart two runs of one thing are
    ]
    for name, signal in SIGNALS.items():
        found.append(Method(f"kd from {name}", {**LIVE, "signal": signal}, KD, stored_seeds))
    found += [Method(f"kd {name}", {**LIVE, "divergence": name}) for name in DIVERGENCES]
    found.append(Method("kd forward_kl, half cross entropy", {**LIVE, "ce_weight": 0.5}))
    found.append(Method(f"on-policy, lmbda {ON_POLICY['lmbda']}", ON_POLICY))
    return found if case.teacher is None else [*found, Method("sft on teacher samples", SFT, sampled=True)]


def sweep(rates: Sequence[float]) -> list[Method]:
    """Cross entropy and kd at several learning rates."""
    return [
        Method(f"{name} at {rate:g}", {**entry, "learning_rate": rate})
        for rate in rates
        for name, entry in ((CE, SFT), (KD, LIVE))
    ]


COMMON = {
    "weight_decay": 0.1,
    "mixed_precision": "auto",
    "schedule": "cosine",
    "warmup_ratio": 0.05,
    "logging_steps": 50,
    "save_steps": 1_000_000,
}
SMALL = Shape(layers=6, hidden=384, heads=6, kv_heads=2, intermediate=1024)
LARGE = Shape(layers=12, hidden=640, heads=10, kv_heads=5, intermediate=1792)
TINY = Shape(layers=2, hidden=64, heads=4, kv_heads=2, intermediate=128)
CASES = {
    case.name: case
    for case in (
        Case(
            "novels",
            student=SMALL,
            student_entry={"batch_size": 16, "micro_batch_size": 16, "learning_rate": 1e-3},
            steps=1000,
            row_tokens=512,
            sampled=4096,
            teacher=LARGE,
            teacher_entry={"batch_size": 32, "micro_batch_size": 32, "learning_rate": 1.5e-3, "max_steps": 1200},
        ),
        Case(
            "stories",
            student=Shape(layers=3, hidden=32, heads=4, kv_heads=2, intermediate=88),
            student_entry={"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2},
            steps=1500,
            row_tokens=256,
            sampled=1280,
            sample_batch=640,
        ),
        Case(
            "tiny",
            student=TINY,
            student_entry={"batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3},
            steps=10,
            row_tokens=128,
            sampled=16,
            teacher=Shape(layers=2, hidden=128, heads=4, kv_heads=2, intermediate=256),
            teacher_entry={"batch_size": 8, "micro_batch_size": 8, "learning_rate": 3e-3, "max_steps": 20},
            sample_batch=8,
        ),
    )
}

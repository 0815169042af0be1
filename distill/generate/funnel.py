"""The counts of a job: what came in, what stayed, what was dropped and why, what it cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from distill.generate.educational import NOT_EDUCATIONAL, Sifted
from distill.generate.invented import Invented
from distill.generate.outcome import Outcome
from distill.teacher.requests import Answer


@dataclass
class Used:
    """What one model answered; `cost_usd` is None as soon as one answer's price is unknown."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0

    def add(self, answer: Answer) -> None:
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        if self.cost_usd is not None:
            self.cost_usd = None if answer.cost_usd is None else self.cost_usd + answer.cost_usd

    def dollars(self) -> str:
        return "unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"


@dataclass
class Funnel:
    """Running totals over a job's prompts; the same whether answers came from the teacher or from the ledger.

    `cost_usd` is None as soon as one answer's price is unknown.
    """

    prompts: int = 0
    answers: int = 0
    rows: int = 0
    failed: int = 0
    retryable_failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    models: defaultdict[str, Used] = field(default_factory=lambda: defaultdict(Used))

    def add(self, outcome: Outcome) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.rows += len(outcome.rows)
        self.retryable_failures += outcome.retryable_failures
        self.counts.update({name: count for name, count in outcome.counts.items() if count})
        for rejected in outcome.rejected:
            self.dropped[rejected.reason] += 1
            self.failed += rejected.reason == "request_failed"
        self.add_answers(outcome.answers)

    def add_invented(self, made: Invented) -> None:
        """Count what it took to have the prompts written."""
        self.add_answers(made.answers)
        self.dropped.update(rejected.reason for rejected in made.rejected)

    def add_sifted(self, sifted: Sifted) -> None:
        """Count the labels' cost and the rows that went."""
        self.add_answers(sifted.answers)
        self.rows -= sifted.removed
        self.dropped.update(rejected.reason for rejected in sifted.rejected)
        if sifted.removed:
            self.dropped[NOT_EDUCATIONAL] += sifted.removed

    def add_labelled(self, outcomes: Iterable[Outcome], labels: Iterable[Answer]) -> None:
        """Count a preview's labels and the rows that went with them; the prompts themselves are counted."""
        self.add_answers(labels)
        rejected = [one for outcome in outcomes for one in outcome.rejected if one.reason == NOT_EDUCATIONAL]
        self.rows -= len(rejected)
        self.dropped.update(one.reason for one in rejected)

    def add_answers(self, answers: Iterable[Answer]) -> None:
        """Count tokens and dollars of answers."""
        for answer in answers:
            self.models[answer.teacher].add(answer)
            self.answers += 1
            self.prompt_tokens += answer.prompt_tokens
            self.completion_tokens += answer.completion_tokens
            if self.cost_usd is not None:
                self.cost_usd = None if answer.cost_usd is None else self.cost_usd + answer.cost_usd

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def rates(self) -> dict[str, float]:
        """What a judge is inclined to, as shares of the cases in which it shows; 0.5 is no inclination to length."""
        counts = self.counts
        longer, shorter = counts["longer_preferred"], counts["shorter_preferred"]
        shares = {
            "judge_flip_rate": (counts["judge_flips"], counts["pairs_judged"]),
            "longer_preferred_rate": (longer, longer + shorter),
            "chosen_longer_rate": (counts["chosen_longer"], counts["chosen_longer"] + counts["chosen_shorter"]),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}

"""What asking one teacher comes to: the session's counts, answers with their price, and a budget over all sessions."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass

from distill.errors import TeacherError
from distill.recipe.teacher import Teacher
from distill.teacher.endpoint import Reply
from distill.teacher.pricing import rates_of
from distill.teacher.requests import Answer, teacher_label


@dataclass
class Usage:
    """What this session did, for progress and manifests."""

    sent: int = 0  # attempts that went out
    answered: int = 0
    from_ledger: int = 0
    failed: int = 0
    refusals: int = 0  # 429 and 503
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spent_usd: float = 0.0
    latency_seconds: float = 0.0  # summed over answers

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Accounts:
    """`spent_before`: dollars of earlier sessions. `limited`: the recipe's budget holds."""

    def __init__(self, teacher: Teacher, *, spent_before: float, limited: bool) -> None:
        self.label = teacher_label(teacher)
        self.usage = Usage()
        self.rates = rates_of(teacher)
        self.batch_rates = self.rates.in_batch() if self.rates is not None else None
        self._spent_before = spent_before
        self._budget_usd = teacher.budget_usd if limited else None
        if self._budget_usd is not None and self.rates is None:
            raise TeacherError(
                f"teacher.budget_usd is set, but the price of '{teacher.model}' is unknown",
                remedy="set teacher.price.input and .output in dollars per million tokens",
            )

    def spent_usd(self) -> float:
        """Dollars of all sessions, this one included."""
        return self._spent_before + self.usage.spent_usd

    def overspent(self) -> TeacherError | None:
        """Why nothing more may be asked, where the budget is spent."""
        if self._budget_usd is None or self.spent_usd() < self._budget_usd:
            return None
        spent = f"${self.spent_usd():.4f}, earlier sessions included"
        return TeacherError(
            f"the budget of ${self._budget_usd:g} is spent ({spent})",
            remedy="raise teacher.budget_usd and run again: nothing is asked twice",
        )

    def answer(self, key: str, reply: Reply, *, attempts: int, seconds: float, in_batch: bool = False) -> Answer:
        """The reply as an answer with its price."""
        rates, cost = self.batch_rates if in_batch else self.rates, None
        if rates is not None:
            cost = rates.cost_usd(
                reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens, reply.reasoning_tokens
            )
        return Answer(
            key=key,
            text=reply.text,
            refusal=reply.refusal,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            cost_usd=cost,
            attempts=attempts,
            latency_seconds=seconds,
            created_at=time.time(),
            reasoning_tokens=reply.reasoning_tokens,
            logprobs=reply.logprobs,
            teacher=self.label,
        )

    def cost_of(self, answer: Answer, *, in_batch: bool) -> float | None:
        """What such an answer costs, however this one was had."""
        rates = self.batch_rates if in_batch else self.rates
        if rates is None:
            return None
        tokens = (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens, answer.reasoning_tokens)
        return rates.cost_usd(*tokens)

    def spend(self, answer: Answer) -> None:
        """Count its dollars, as soon as it is here."""
        self.usage.spent_usd += answer.cost_usd or 0.0

    def tally(self, answer: Answer) -> None:
        """Count it, once it is committed."""
        self.usage.answered += 1
        self.usage.latency_seconds += answer.latency_seconds
        self.usage.prompt_tokens += answer.prompt_tokens
        self.usage.completion_tokens += answer.completion_tokens

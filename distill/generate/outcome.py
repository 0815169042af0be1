"""What became of one prompt, and the tools that every method shares: drawing samples and describing rows."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distill.errors import TeacherError
from distill.generate.filters import unusable
from distill.generate.prompts import Prompt
from distill.generate.verify import Checker
from distill.recipe.generate import OnUnusable, Sampling, Unusable
from distill.records import Message
from distill.teacher.client import TeacherClient
from distill.teacher.panel import Panel
from distill.teacher.requests import Answer, ChatRequest

Row = dict[str, Any]
NEXT_TRY = 1_000_000  # added to the sample index: no job draws so many samples of a prompt


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that did not become a row, and why."""

    prompt: Prompt
    reason: str
    detail: str = ""
    answer: Answer | None = None
    row: Row | None = None  # where a finished row was removed by a filter


@dataclass(slots=True)
class Outcome:
    """Rows and rejections of one prompt, every answer that was asked for it, and further counts by name."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    retryable_failures: int = 0

    def add(self, other: Outcome) -> None:
        """Append what became of another part of the same prompt."""
        self.rows += other.rows
        self.rejected += other.rejected
        self.answers += other.answers
        self.counts.update(other.counts)
        self.retryable_failures += other.retryable_failures


@dataclass(frozen=True)
class Workbench:
    """What a method works with on every prompt of a job."""

    panel: Panel
    checker: Checker
    method: str
    policy: Unusable = Unusable()

    async def ask(
        self, outcome: Outcome, prompt: Prompt, messages: Sequence[Message], sampling: Sampling, sample: int = 0
    ) -> Answer | None:
        """One answer of the main teacher, noted in the outcome; None where the request failed. Raises when the
        teacher has stopped."""
        return await self._ask(self.panel.main, outcome, prompt, messages, sampling, sample)

    async def _ask(
        self,
        client: TeacherClient,
        outcome: Outcome,
        prompt: Prompt,
        messages: Sequence[Message],
        sampling: Sampling,
        sample: int,
        logprobs: int = 0,
    ) -> Answer | None:
        request = ChatRequest(tuple(messages), sampling, sample, self.method, prompt.seed_row, logprobs=logprobs)
        try:
            answer = await client.ask(request)
        except TeacherError as error:
            if client.stopped is not None:
                raise client.stopped from None
            outcome.rejected.append(Rejected(prompt, "request_failed", error.message))
            outcome.retryable_failures += error.retryable
            return None
        outcome.answers.append(answer)
        return answer

    async def samples(
        self, outcome: Outcome, prompt: Prompt, sampling: Sampling, count: int, logprobs: int = 0
    ) -> list[Answer]:
        """Usable answers to the prompt, no text twice; the others are noted with their reasons.

        A prompt that came with its answer has that one as its first.
        """
        given = [] if prompt.given is None else [prompt.given]
        tries = [Outcome() for _ in range(len(given), count)]
        drawn = await asyncio.gather(
            *(
                self.draw(each, prompt, prompt.messages, sampling, sample, logprobs)
                for sample, each in enumerate(tries, len(given))
            )
        )
        for each in tries:  # in the order of the samples, whichever came first: equal answers make equal datasets
            outcome.add(each)
        return self.usable(outcome, prompt, [*given, *drawn])

    async def draw(
        self,
        outcome: Outcome,
        prompt: Prompt,
        messages: Sequence[Message],
        sampling: Sampling,
        sample: int = 0,
        logprobs: int = 0,
    ) -> Answer | None:
        """One sample by the row's own teacher; where it is no answer and the policy says so, another one in its place,
        a few times."""
        client = self.panel.of_row(prompt.seed_row, sample)
        for number in range(self.policy.retries + 1):
            again = sample + number * NEXT_TRY
            answer = await self._ask(client, outcome, prompt, messages, sampling, again, logprobs)
            reason = None if answer is None else unusable(answer)
            if reason is None or number == self.policy.retries or self._what_to_do(reason) != "retry":
                break
            outcome.rejected.append(Rejected(prompt, f"{reason}_retried", answer=answer))
        return answer

    def _what_to_do(self, reason: Literal["truncated", "refused", "empty"]) -> OnUnusable:
        return {"truncated": self.policy.truncated, "refused": self.policy.refused, "empty": self.policy.empty}[reason]

    def usable(self, outcome: Outcome, prompt: Prompt, drawn: Sequence[Answer | None]) -> list[Answer]:
        """Those that are answers (or kept although they are none), no text twice; the others are noted with reasons."""
        usable: list[Answer] = []
        texts: set[str] = set()
        for answer in drawn:
            if answer is None:
                continue
            reason: str | None = None
            if (flaw := unusable(answer)) is not None:
                if self._what_to_do(flaw) == "keep":
                    outcome.counts[f"{flaw}_kept"] += 1
                    answer = replace(answer, text=answer.text or answer.refusal or "")
                else:
                    reason = flaw
            if reason is None and answer.text in texts:
                reason = "duplicate_answer"
            if reason is not None:
                outcome.rejected.append(Rejected(prompt, reason, answer=answer))
                continue
            texts.add(answer.text)
            usable.append(answer)
        return usable

    def provenance(self, prompt: Prompt, answer: Answer, others: Sequence[Answer] = ()) -> Row:
        """The provenance columns of a row made from `answer`; `others` were paid for it too."""
        paid = (answer, *others)
        costs = [one.cost_usd for one in paid]
        known = [cost for cost in costs if cost is not None]
        return {
            "teacher": answer.teacher,
            "request_hash": answer.key,
            "method": self.method,
            "seed_row": prompt.seed_row,
            "family": prompt.family,
            "prompt_tokens": sum(one.prompt_tokens for one in paid),
            "completion_tokens": sum(one.completion_tokens for one in paid),
            "cost_usd": math.fsum(known) if len(known) == len(costs) else None,
            "created_at": answer.created_at or None,  # of a file's answer nobody knows
        }


def conversation(prompt: Prompt, text: str) -> list[Message]:
    """The prompt's messages and the assistant's answer."""
    return [*prompt.messages, {"role": "assistant", "content": text}]


def pair_row(
    bench: Workbench,
    prompt: Prompt,
    outcome: Outcome,
    *,
    answers: tuple[Answer, Answer],
    scores: tuple[float, float],
    completions: list[Row] | None = None,
) -> Row:
    """A preference row of the chosen and the rejected answer; their lengths are counted."""
    chosen, rejected = answers
    outcome.counts["chosen_characters"] += len(chosen.text)
    outcome.counts["rejected_characters"] += len(rejected.text)
    outcome.counts["chosen_longer"] += len(chosen.text) > len(rejected.text)
    outcome.counts["chosen_shorter"] += len(chosen.text) < len(rejected.text)
    others = [answer for answer in outcome.answers if answer.key != chosen.key]
    return {
        "prompt": list(prompt.messages),
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "chosen_score": scores[0],
        "rejected_score": scores[1],
        "completions": completions,
        **bench.provenance(prompt, chosen, others),
    }

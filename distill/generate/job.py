"""One job from prompts to a dataset: each prompt becomes an outcome, outcomes become files in the prompts' order."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.generate import code, instruction, preference
from distill.generate.card import write_card
from distill.generate.filters import Seen
from distill.generate.forest import require_sklearn
from distill.generate.funnel import Funnel
from distill.generate.inputs import samples_of
from distill.generate.outcome import Outcome, Rejected, Row, Workbench
from distill.generate.output import (
    CANDIDATES,
    DATA,
    REJECTED,
    REJECTED_SCHEMA,
    RowWriter,
    rejected_row,
)
from distill.generate.progress import Done, shown
from distill.generate.prompts import Prompt
from distill.generate.row_filters import RowFilters
from distill.generate.second_pass import label_rows, sift_rows, write_distributions
from distill.generate.shards import Shard
from distill.generate.sources import open_source
from distill.generate.tracking import sample_table, tracked
from distill.generate.verify import Checker
from distill.recipe.filters import EducationalSample
from distill.recipe.generate import CodeJob, InstructionJob, Isolation, PreferenceJob, TaskPrompts
from distill.records import SCHEMAS
from distill.teacher.distributions import Written
from distill.teacher.flow import in_order
from distill.teacher.panel import Panel
from distill.teacher.requests import Answer
from distill.track import Tracker

AnyJob = InstructionJob | PreferenceJob | CodeJob
_EXAMPLES_ON_THE_CARD = 3
_SAMPLES = 20  # rows kept at hand, for the card and the tracker


@dataclass
class Finished:
    """What a job came to."""

    funnel: Funnel = field(default_factory=Funnel)
    examples: list[Row] = field(default_factory=list)
    set_aside: list[Rejected] = field(default_factory=list)  # what the writing of prompts threw away
    sifted: dict[str, Any] = field(default_factory=dict)  # by educational value: what that found out
    labels: list[Answer] = field(default_factory=list)  # of a preview's rows, where a sample of all will be labelled
    distributions: Written | None = None
    total_prompts: int | None = None
    written: Funnel = field(default_factory=Funnel)  # what the writing of prompts took; a part of `funnel`
    seen: Seen = field(default_factory=Seen)  # every prompt so far
    seconds: float = 0.0

    def metrics(self, panel: Panel) -> dict[str, Any]:
        """For the manifest. Tokens and dollars are of the data, whenever asked; `spent_usd` is this session's."""
        funnel, usage = self.funnel, panel.usage
        return {
            "prompts": funnel.prompts,
            "rows": funnel.rows,
            "answers": funnel.answers,
            "failed": funnel.failed,
            "retryable_failures": funnel.retryable_failures,
            "dropped": dict(sorted(funnel.dropped.items())),
            "counts": dict(sorted(funnel.counts.items())),
            "rates": funnel.rates(),
            **({"educational": self.sifted} if self.sifted else {}),
            **({"distributions": asdict(self.distributions)} if self.distributions else {}),
            "requests_sent": usage.sent,
            "from_ledger": usage.from_ledger,
            "refusals": usage.refusals,
            "prompt_tokens": funnel.prompt_tokens,
            "completion_tokens": funnel.completion_tokens,
            "cost_usd": funnel.cost_usd,
            "spent_usd": usage.spent_usd if panel.priced else None,
            "requests_by_teacher": {client.label: client.usage.sent for client in panel.clients},
            "seconds": self.seconds,
            "rows_per_second": funnel.rows / self.seconds if self.seconds else None,
        }


async def write_dataset(
    job: AnyJob, panel: Panel, folder: Path, console: Console, tracker: Tracker, *, shard: Shard | None = None
) -> Finished:
    """Run the job (or its shard) and write data.parquet, rejected.parquet and the card into `folder`."""
    finished = Finished()
    async with tracked(tracker, panel, finished.funnel):
        await _write_files(job, panel, folder, console, finished, shard)
    tracker.table("samples", *sample_table(finished.examples))
    return finished


async def _write_files(
    job: AnyJob, panel: Panel, folder: Path, console: Console, finished: Finished, shard: Shard | None
) -> None:
    if samples_of(job):
        require_sklearn()
    with RowWriter(folder / REJECTED, REJECTED_SCHEMA) as dropped:
        if isinstance(job, CodeJob) and isinstance(job.educational, EducationalSample):
            await _write_rows(job, panel, folder / CANDIDATES, dropped, console, finished, shard)
            sifted, finished.examples = await sift_rows(
                job.educational, panel.main, folder, dropped, method=f"{_method(job)}:labels", examples=_SAMPLES
            )
            finished.set_aside += sifted.rejected
            finished.sifted = sifted.metrics()
            finished.funnel.add_sifted(sifted)
        else:
            await _write_rows(job, panel, folder / DATA, dropped, console, finished, shard)
        for rejected in finished.set_aside:
            dropped.add(rejected_row(rejected))
    if not isinstance(job, PreferenceJob) and job.logprobs:
        finished.distributions = write_distributions(panel.main.ledger, folder)
    write_card(
        folder,
        job,
        finished.funnel,
        teacher=panel.label,
        prompts_digest=finished.seen.fingerprint,
        examples=finished.examples[:_EXAMPLES_ON_THE_CARD],
        sifted=finished.sifted,
    )


async def _write_rows(
    job: AnyJob,
    panel: Panel,
    path: Path,
    dropped: RowWriter,
    console: Console,
    finished: Finished,
    shard: Shard | None,
) -> None:
    """Every prompt's rows into the file as they come."""
    async with AsyncExitStack() as stack:
        rows = stack.enter_context(RowWriter(path, SCHEMAS[job.kind]))
        outcomes = await stack.enter_async_context(aclosing(_outcomes(job, panel, console, finished, shard=shard)))
        async for outcome in outcomes:
            for row in outcome.rows:
                rows.add(row)
            for rejected in outcome.rejected:
                dropped.add(rejected_row(rejected))
            if len(finished.examples) < _SAMPLES:
                finished.examples.extend(outcome.rows[:1])


async def sample_dataset(job: AnyJob, panel: Panel, console: Console, limit: int) -> tuple[Finished, list[Outcome]]:
    """Run only the first `limit` prompts and hand back what became of each, all filters passed."""
    finished = Finished()
    async with aclosing(_outcomes(job, panel, console, finished, limit=limit)) as stream:
        outcomes = [outcome async for outcome in stream]
    if isinstance(job, CodeJob) and isinstance(job.educational, EducationalSample):
        outcomes, finished.labels = await label_rows(outcomes, panel.main, method=f"{_method(job)}:labels")
        finished.funnel.add_labelled(outcomes, finished.labels)
    return finished, outcomes


async def _outcomes(
    job: AnyJob,
    panel: Panel,
    console: Console,
    finished: Finished,
    *,
    limit: int | None = None,
    shard: Shard | None = None,
) -> AsyncGenerator[Outcome, None]:
    """An outcome for each prompt, in order and counted; prompts are taken from their source as room comes free."""
    started_at = time.monotonic()
    funnel = finished.funnel
    bench = Workbench(panel, Checker(_isolation(job)), _method(job), job.unusable)
    if _runs_programs(job):
        bench.checker.require_sandbox()
    filters = RowFilters(job.filters)
    source, made = await open_source(job, panel.main, method=_method(job), limit=limit)
    funnel.add_invented(made)
    finished.written.add_invented(made)
    finished.set_aside = made.rejected
    finished.sifted = made.sifted
    finished.total_prompts = source.total if shard is None else None  # how many are a shard's is known at its end
    done = Done(cost_usd=0.0 if funnel.cost_usd is not None else None, written_usd=funnel.cost_usd or 0.0)

    async def work(prompt: Prompt | Rejected) -> Outcome:
        outcome = Outcome(rejected=[prompt]) if isinstance(prompt, Rejected) else await _make(job, prompt, bench)
        done.add(outcome)
        return outcome

    total = source.total if limit is None or source.total is None else min(limit, source.total)
    prompts = _new(islice(source.prompts, limit), finished.seen)
    if shard is not None:
        total = None if total is None else round(total / shard.count)
        prompts = (
            one for one in prompts if shard.holds(one.prompt.messages if isinstance(one, Rejected) else one.messages)
        )
    async with (
        shown(console, f"generate {job.name}{f' {shard}' if shard is not None else ''}", total, panel, funnel, done),
        aclosing(in_order(work, prompts, width=panel.width)) as outcomes,
    ):
        async for outcome in outcomes:
            outcome = filters.apply(outcome)
            funnel.add(outcome)
            finished.seconds = time.monotonic() - started_at
            yield outcome


def _new(prompts: Iterable[Prompt], seen: Seen) -> Iterator[Prompt | Rejected]:
    """The prompts, those rejected that came before or that ask nothing."""
    for prompt in prompts:
        if not prompt.question.strip():
            yield Rejected(prompt, "empty_prompt")
        elif seen.before(prompt):
            yield Rejected(prompt, "duplicate_prompt")
        else:
            yield prompt


async def _make(job: AnyJob, prompt: Prompt, bench: Workbench) -> Outcome:
    match job:
        case InstructionJob():
            return await instruction.make(job, prompt, bench)
        case PreferenceJob():
            return await preference.make(job, prompt, bench)
        case CodeJob():
            return await code.make(job, prompt, bench)


def _isolation(job: AnyJob) -> Isolation:
    return job.isolation if isinstance(job, CodeJob) else "bubblewrap"


def _runs_programs(job: AnyJob) -> bool:
    """Whether the job is bound to run code; prompts of a file may still bring tests along."""
    match job:
        case CodeJob():
            return job.verdict == "tests"
        case InstructionJob():
            decides = job.keep == "verified"
        case PreferenceJob():
            decides = job.rank == "verifier"
    return decides and isinstance(job.prompts, TaskPrompts) and "code" in job.prompts.kinds


def _method(job: AnyJob) -> str:
    """The provenance column: the kind of job and what decides in it."""
    match job:
        case InstructionJob():
            return f"instruction:{job.keep if job.chat is None else 'chat'}"
        case PreferenceJob():
            return f"preference:{job.rank}"
        case CodeJob():
            return f"code:{job.verdict}{'+educational' if job.educational else ''}"

"""Rows, requests, tokens and dollars that the generate jobs will take, before any of them is asked."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DataError
from distill.plan.asking import DEFAULT_PROMPT_TOKENS, YES_NO_TOKENS, talk, writing
from distill.recipe.generate import (
    CodeJob,
    Feedback,
    FilePrompts,
    InstructionJob,
    Job,
    PreferenceJob,
    SelfInstructPrompts,
    TaskPrompts,
)
from distill.recipe.prompts import (
    AlpacaPrompts,
    EvolInstructPrompts,
    ExercisePrompts,
    OssInstructPrompts,
)
from distill.recipe.schema import Plan
from distill.recipe.train import Entry, LmEntry, PairsEntry
from distill.teacher.pricing import Rates

_CHARACTERS_PER_TOKEN = 4  # the rule of thumb for English under a BPE of a real model
_LOOKED_AT = 64  # prompts read to estimate a mean
_JUDGE_ANSWER_TOKENS = 128
_ASPECTS = 4  # of UltraFeedback's judge
_SCALE_TOKENS = 250
_RATING_TOKENS = 50
_ALL_PAIRS_UP_TO = 4
_WRITTEN_TESTS_TOKENS = 256
_WITH_ANSWERS = (AlpacaPrompts, OssInstructPrompts, ExercisePrompts)


@dataclass(frozen=True)
class JobCost:
    """What one generate job asks for. Token counts are estimates over all requests, retries not included."""

    name: str
    kind: str
    prompts: int | None  # None: the file is not there to be counted
    rows: int | None  # at most; what filters keep is not known beforehand
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    dollars: float | None
    prompt_mean: float
    estimated_from: str


def job_cost(job: Job, *, plan: Plan, rates: Rates | None, count_tokens: Callable[[str], int]) -> JobCost:
    """Estimate one job from its prompt source and sampling settings."""
    prompts = _prompt_count(job)
    if plan.prompt_tokens is not None:
        mean, source = float(plan.prompt_tokens), "plan.prompt_tokens"
    else:
        mean, source = _prompt_mean(job, count_tokens)
    if job.system:
        mean += count_tokens(job.system)
    answer = plan.completion_tokens if plan.completion_tokens is not None else job.sampling.max_tokens / 2
    if prompts is None:
        return JobCost(job.name, job.kind, None, None, None, None, None, None, mean, source)
    # The first answer comes with the prompt.
    written_too = isinstance(job.prompts, _WITH_ANSWERS) or (
        isinstance(job.prompts, FilePrompts) and job.prompts.answer is not None
    )
    requests = float(prompts * (job.samples - written_too))
    asked, answered = requests * mean, requests * answer
    if not isinstance(job.prompts, (FilePrompts, TaskPrompts)):
        written = writing(job.prompts, mean, answer)
        requests += prompts * written.requests
        asked += prompts * written.asked
        answered += prompts * written.answered
    if isinstance(job, InstructionJob) and job.chat is not None:
        further = talk(job.chat, mean, answer)
        chats = prompts * job.samples
        requests += chats * further.requests
        asked += chats * further.asked
        answered += chats * further.answered
    if isinstance(job, PreferenceJob) and job.rank == "judge":
        # Pairs in both orders: all with all up to four answers, else a ring.
        pairs = math.comb(job.samples, 2) if job.samples <= _ALL_PAIRS_UP_TO else job.samples
        comparisons = prompts * 2 * pairs
        requests += comparisons
        asked += comparisons * (mean + 2 * answer)
        answered += comparisons * _JUDGE_ANSWER_TOKENS
    if isinstance(job, PreferenceJob) and job.rank == "feedback":
        feedback = job.feedback or Feedback()
        texts = job.samples * answer
        ratings = prompts * _ASPECTS * feedback.orders
        requests += ratings
        asked += ratings * (mean + texts + _SCALE_TOKENS)
        answered += ratings * job.samples * _RATING_TOKENS
        if feedback.binarize == "h4":
            scores = prompts * job.samples
            requests += scores
            asked += scores * (mean + answer + _SCALE_TOKENS)
            answered += scores * _JUDGE_ANSWER_TOKENS
    if isinstance(job, CodeJob) and job.write_tests:  # at most: prompts that bring tests need none
        requests += prompts * job.samples
        asked += prompts * job.samples * (mean + DEFAULT_PROMPT_TOKENS)
        answered += prompts * job.samples * _WRITTEN_TESTS_TOKENS
    labels = _labels(job, prompts)
    requests += labels
    asked += labels * (mean + answer)
    answered += labels * YES_NO_TOKENS
    rows = prompts if isinstance(job, PreferenceJob) else prompts * job.samples
    cost = rates.cost_usd(round(asked), round(answered)) if rates is not None else None
    return JobCost(
        job.name, job.kind, prompts, rows, round(requests), round(asked), round(answered), cost, mean, source
    )


def _labels(job: Job, prompts: int) -> int:
    """Programs whose educational value the teacher is asked about: rows, and seeds of OSS-Instruct."""
    labels = 0
    if isinstance(job, CodeJob) and job.educational:
        rows = prompts * job.samples
        labels += rows if isinstance(job.educational, bool) else min(rows, job.educational.sample)
    if isinstance(job.prompts, OssInstructPrompts) and job.prompts.educational is not None:
        labels += job.prompts.educational.sample
    return labels


def minutes_at_limits(
    costs: Iterable[JobCost], *, requests_per_minute: float | None, tokens_per_minute: float | None
) -> float | None:
    """Least minutes that the provider's own limits allow; None without limits."""
    known = list(costs)
    requests = sum(cost.requests or 0 for cost in known)
    tokens = sum((cost.prompt_tokens or 0) + (cost.completion_tokens or 0) for cost in known)
    times = []
    if requests_per_minute:
        times.append(requests / requests_per_minute)
    if tokens_per_minute:
        times.append(tokens / tokens_per_minute)
    return max(times) if times else None


def training_rows(entry: Entry, costs: dict[str, JobCost]) -> int | None:
    """Rows that an entry reads at most; None where a dataset is neither a job nor countable."""
    if isinstance(entry, LmEntry):
        return entry.steps * entry.rows
    total = 0
    for name in entry.data:
        rows = costs[name].rows if name in costs else _count_parquet(Path(name))
        if rows is None:
            return None
        total += rows
    return total


def optimizer_steps(entry: Entry, rows: int | None) -> int | None:
    """Optimizer steps of an entry without packing; None where the rows are unknown."""
    if isinstance(entry, LmEntry):
        return entry.steps
    if entry.max_steps is not None:
        return entry.max_steps
    return None if rows is None else math.ceil(rows * entry.epochs / entry.batch_size)


def tokens_per_step(entry: Entry) -> int:
    """Most tokens that an optimizer step reads, padding included."""
    if isinstance(entry, LmEntry):
        return entry.rows * entry.row_tokens
    return entry.batch_size * entry.max_length * (2 if isinstance(entry, PairsEntry) else 1)


def token_counter(tokenizer_file: Path) -> tuple[Callable[[str], int], str]:
    """Count with the teacher's own tokenizer where its file is here, else by characters; and the name of the way."""
    if tokenizer_file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        return (lambda text: len(tokenizer.encode(text).ids)), "the teacher's tokenizer"
    return (lambda text: math.ceil(len(text) / _CHARACTERS_PER_TOKEN)), "4 characters a token"


def _prompt_count(job: Job) -> int | None:
    prompts = job.prompts
    if isinstance(prompts, EvolInstructPrompts):
        return prompts.count * (prompts.rounds + 1)
    if not isinstance(prompts, FilePrompts):
        return prompts.count
    path = Path(prompts.path)
    if not path.is_file():
        return prompts.count
    there = _count_parquet(path) if path.suffix == ".parquet" else _count_lines(path)
    return there if prompts.count is None or there is None else min(there, prompts.count)


def _prompt_mean(job: Job, count_tokens: Callable[[str], int]) -> tuple[float, str]:
    """Mean tokens of the job's prompts over the first few, and what they were read from."""
    prompts = job.prompts
    if isinstance(prompts, TaskPrompts):
        from distill.tasks.registry import sample_tasks

        tasks = sample_tasks(
            kinds=prompts.kinds,
            families=prompts.families,
            split="train",
            count=min(prompts.count, _LOOKED_AT),
            seed=prompts.seed,
        )
        texts = [task.prompt for task in tasks]
        return _mean(texts, count_tokens), f"{len(texts)} tasks"
    if not isinstance(prompts, (FilePrompts, SelfInstructPrompts, EvolInstructPrompts)):
        return float(DEFAULT_PROMPT_TOKENS), "assumed"
    path = Path(prompts.path)
    if not path.is_file() or path.suffix == ".parquet":
        return float(DEFAULT_PROMPT_TOKENS), "assumed"
    texts = _first_texts(path, prompts.column)
    return _mean(texts, count_tokens), f"{len(texts)} lines of {path}"


def _first_texts(path: Path, column: str) -> list[str]:
    texts = []
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(itertools.islice(handle, _LOOKED_AT), 1):
            try:
                value = json.loads(line)[column]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise DataError(
                    f"{path}:{number} is not a JSON object with the key '{column}'",
                    remedy="mend the line, or name the right key as `column` in the recipe",
                ) from None
            texts.append(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return texts


def _mean(texts: list[str], count_tokens: Callable[[str], int]) -> float:
    return sum(map(count_tokens, texts)) / len(texts) if texts else float(DEFAULT_PROMPT_TOKENS)


def _count_lines(path: Path) -> int:
    with open(path, "rb") as handle:
        return sum(1 for line in handle if line.strip())


def _count_parquet(path: Path) -> int | None:
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}", remedy="make it again") from None

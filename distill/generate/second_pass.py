"""What is made of a job's rows when all are there: the sift by educational value, the teacher's distributions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from distill.generate.educational import ANSWER, NOT_EDUCATIONAL, Sifted, question, read_opinion, sift
from distill.generate.invented import try_to_ask
from distill.generate.outcome import Outcome, Rejected, Row
from distill.generate.output import CANDIDATES, DATA, RowWriter, read_batches, rejected_row
from distill.generate.row_filters import answers_of, prompt_of
from distill.recipe.filters import EducationalSample
from distill.records import CODE, user_message
from distill.teacher.client import TeacherClient
from distill.teacher.distributions import SIDECAR, Written, write_sidecar
from distill.teacher.ledger import Ledger
from distill.teacher.requests import Answer, ChatRequest
from distill.text.code import extract_code


async def sift_rows(
    section: EducationalSample, client: TeacherClient, folder: Path, dropped: RowWriter, *, method: str, examples: int
) -> tuple[Sifted, list[Row]]:
    """From the candidates to the dataset: rows that teach something stay, the others are set aside whole. What the sift
    found out, and the first rows."""
    candidates = folder / CANDIDATES
    total = pq.read_metadata(candidates).num_rows

    def programs() -> Iterator[list[str]]:
        for batch in read_batches(candidates):
            yield [extract_code(answers_of(row)[-1], row["entry_point"]) for row in batch]

    sifted, opinions = await sift(section, client, total, programs, method=method)
    first: list[Row] = []
    with RowWriter(folder / DATA, CODE) as rows:
        every_row = (row for batch in read_batches(candidates) for row in batch)
        for row, opinion in zip(every_row, opinions(), strict=True):
            if not opinion.keep:
                dropped.add(rejected_row(Rejected(prompt_of(row), NOT_EDUCATIONAL, opinion.detail, row=row)))
                continue
            rows.add(row)
            if len(first) < examples:
                first.append(row)
    candidates.unlink()
    return sifted, first


async def label_rows(
    outcomes: Sequence[Outcome], client: TeacherClient, *, method: str
) -> tuple[list[Outcome], list[Answer]]:
    """For a preview, which is too few rows for a forest: the outcomes without the rows that the teacher says teach
    nothing, and what it was asked. Where its word is unclear or fails to come, the row stays."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    asks = [
        ChatRequest(
            tuple(user_message(question(extract_code(answers_of(row)[-1], row["entry_point"])))),
            ANSWER,
            0,
            method,
            "label",
        )
        for row in rows
    ]
    said = await asyncio.gather(*(try_to_ask(client, ask) for ask in asks))
    answers = iter(said)
    labelled: list[Outcome] = []
    for outcome in outcomes:
        kept: list[Row] = []
        removed: list[Rejected] = []
        for row in outcome.rows:
            answer = next(answers)
            if isinstance(answer, Answer) and read_opinion(answer.text) is False:
                removed.append(Rejected(prompt_of(row), NOT_EDUCATIONAL, "by the teacher", row=row))
            else:
                kept.append(row)
        labelled.append(replace(outcome, rows=kept, rejected=[*outcome.rejected, *removed]))
    return labelled, [answer for answer in said if isinstance(answer, Answer)]


def write_distributions(ledger: Ledger, folder: Path) -> Written:
    """The sidecar of the finished rows, from their answers in the ledger."""

    def rows() -> Iterator[tuple[str, bytes | None]]:
        for batch in read_batches(folder / DATA, columns=["request_hash"]):
            for row in batch:
                answer = ledger.find(row["request_hash"])
                yield row["request_hash"], answer.logprobs if isinstance(answer, Answer) else None

    return write_sidecar(folder / SIDECAR, rows())

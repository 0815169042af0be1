"""What is made of a job's rows when all are there: repeats in other words, educational value, distributions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill.generate.educational import NOT_EDUCATIONAL, Sifted, sift
from distill.generate.outcome import Rejected, Row
from distill.generate.output import CANDIDATES, DATA, RowWriter, read_batches, rejected_row
from distill.generate.row_filters import answers_of, compared, name_of, prompt_of, question_of
from distill.recipe.filters import Compared, EducationalSample, EmbeddingDuplicates
from distill.records import CODE
from distill.teacher.client import TeacherClient
from distill.teacher.distributions import SIDECAR, Written, write_sidecar
from distill.teacher.ledger import Ledger
from distill.teacher.requests import Answer
from distill.text.code import extract_code

SAME_MEANING = "same_meaning"


def drop_repeats(
    section: EmbeddingDuplicates,
    folder: Path,
    dropped: RowWriter,
    *,
    on: Compared,
    schema: pa.Schema,
    target: str,
    examples: int,
) -> tuple[int, list[Row]]:
    """From the candidates to `target` (themselves, or the dataset), in order: a row goes where a kept one says the
    same, and is set aside whole. How many went, and the first rows that stay."""
    from distill.generate.embeddings import Embedder  # brings torch
    from distill.text.nearest import Distinct

    embedder = Embedder.load(section.model, max_tokens=section.max_tokens)
    distinct = Distinct(section.threshold, device=embedder.device)
    names: list[str] = []
    first: list[Row] = []
    removed = 0
    with RowWriter(folder / target, schema) as rows:
        for batch in read_batches(folder / CANDIDATES):
            vectors = embedder.embed([compared(on, question_of(row), answers_of(row)) for row in batch])
            for row, repeat in zip(batch, distinct.add(vectors), strict=True):
                if repeat is not None:
                    detail = f"of {names[repeat[0]]}, cosine {repeat[1]:.3f}"
                    dropped.add(rejected_row(Rejected(prompt_of(row), SAME_MEANING, detail, row=row)))
                    removed += 1
                    continue
                names.append(name_of(row))
                rows.add(row)
                if len(first) < examples:
                    first.append(row)
    if target != CANDIDATES:
        (folder / CANDIDATES).unlink()
    return removed, first


async def sift_rows(
    section: EducationalSample, client: TeacherClient, folder: Path, dropped: RowWriter, *, method: str, examples: int
) -> tuple[Sifted, list[Row]]:
    """From the candidates to the dataset: rows that teach something stay, the others are set aside whole. What the sift
    found out, and the first rows."""
    candidates = folder / CANDIDATES
    total = pq.read_metadata(candidates).num_rows

    def programs() -> Iterator[list[str]]:
        for batch in read_batches(candidates):
            yield [extract_code(answers_of(row)[0], row["entry_point"]) for row in batch]

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


def write_distributions(ledger: Ledger, folder: Path) -> Written:
    """The sidecar of the finished rows, from their answers in the ledger."""

    def rows() -> Iterator[tuple[str, bytes | None]]:
        for batch in read_batches(folder / DATA, columns=["request_hash"]):
            for row in batch:
                answer = ledger.find(row["request_hash"])
                yield row["request_hash"], answer.logprobs if isinstance(answer, Answer) else None

    return write_sidecar(folder / SIDECAR, rows())

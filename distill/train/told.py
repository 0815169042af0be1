"""Signals that a server told: beside a generated dataset, or asked for the prompt's log probabilities, row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.errors import DataError
from distill.recipe.signals import TopKSignal
from distill.records import read_parquet
from distill.teacher.distributions import SIDECAR, UNKNOWN, Distributions, Sidecar
from distill.teacher.prompt_scores import PromptScorer
from distill.teacher.stored import About, Writer
from distill.teacher.tops import Tops, sparse_of_tops
from distill.train.batches import Sequences
from distill.train.recording import Progress, Row, record_of

_ROWS_A_COMMIT = 64


def record_sidecars(
    rows: Sequences,
    data: Sequence[Path],
    vocabulary: Mapping[str, int],
    writer: Writer,
    about: About,
    settings: TopKSignal,
) -> tuple[int, int]:
    """Write what the datasets' sidecars tell; (tokens that have a distribution, tokens in all).

    A sidecar holds the answer in the server's own tokens: positions count as far as these are the row's, for the
    distribution after equal tokens is the same. The others stay without, and ask nothing of the student.
    """
    known = total = 0
    sidecars = [Sidecar(path.with_name(SIDECAR), vocabulary) for path in data]
    hashes = [[row["request_hash"] for row in read_parquet(path, columns=("request_hash",))] for path in data]
    records = []
    for place, row in _placed(rows, writer):
        file, number = place
        tops = aligned(row, sidecars[file].find(hashes[file][number]))
        entries = sparse_of_tops(
            tops, k=settings.k, min_probability=settings.min_probability, rows=about.fingerprint.vocabulary
        )
        records.append(record_of(row.row_id, entries, None, about))
        known += sum(top is not None for top in tops)
        total += len(tops)
    if total and not known:
        raise DataError(
            f"no answer of {', '.join(str(path) for path in data)} has distributions in the student's tokens",
            remedy="set logprobs in the generate job and use a student with the teacher's tokenizer",
        )
    writer.add(records)
    return known, total


def _placed(rows: Sequences, writer: Writer) -> list[tuple[tuple[int, int], Row]]:
    found: dict[int, tuple[tuple[int, int], Row]] = {}
    for index, names in enumerate(rows.row_ids):
        if names[0] not in writer:
            row = Row(names[0], rows.input_ids[index], rows.labels[index])
            found.setdefault(names[0], (rows.places[index][0], row))
    return list(found.values())


def aligned(row: Row, found: Distributions | None) -> list[Tops | None]:
    """What is known at each scored position of a row: the sidecar is of its last answer."""
    scored = row.scored
    tops: list[Tops | None] = [None] * len(scored)
    if found is None:
        return tops
    start = len(scored) - 1
    while start > 0 and scored[start - 1] == scored[start] - 1:
        start -= 1  # the last answer begins after the last gap
    expected = [row.labels[place + 1] for place in scored[start:]]
    for index, token in enumerate(expected[: len(found.token_ids_T)]):
        ids, values = found.top_ids_TK[index], found.top_logprobs_TK[index]
        told = np.isfinite(values)
        named = np.where(ids == UNKNOWN, -1 - np.arange(len(ids)), ids)
        if told.any():
            tops[start + index] = dict(zip(named[told].tolist(), values[told].tolist(), strict=True))
        if token != found.token_ids_T[index]:
            break
    return tops


async def record_served(
    rows: Sequence[Row],
    scorer: PromptScorer,
    writer: Writer,
    about: About,
    settings: TopKSignal,
    *,
    name: str,
    progress: Progress,
) -> None:
    """Ask for every row once: each answer is in the ledger before it counts, and here a few dozen rows at a time."""
    vocabulary = about.fingerprint.vocabulary
    for begin in range(0, len(rows), _ROWS_A_COMMIT):
        group = rows[begin : begin + _ROWS_A_COMMIT]
        asked = (scorer.score(row.input_ids, settings.k, method=name, row=f"{row.row_id:x}") for row in group)
        found = await asyncio.gather(*asked, return_exceptions=True)
        for outcome in found:  # when all have ended: what was answered meanwhile is in the ledger
            if isinstance(outcome, BaseException):
                raise outcome
        records = []
        for row, tops in zip(group, found, strict=True):
            assert isinstance(tops, list)
            entries = sparse_of_tops(
                [tops[place + 1] for place in row.scored],
                k=settings.k,
                min_probability=settings.min_probability,
                rows=vocabulary,
                extra=True,
            )
            records.append(record_of(row.row_id, entries, None, about))
        writer.add(records)
        progress(len(group))

"""What a job leaves behind: rows and rejections as Parquet, written as they come, and a card that tells their story."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import DataError
from distill.generate.funnel import Funnel
from distill.generate.outcome import Rejected
from distill.generate.row_filters import answers_of, removed_row
from distill.recipe.generate import CodeJob, FilePrompts, InstructionJob, PreferenceJob, TaskPrompts
from distill.recipe.prompts import MagpiePrompts
from distill.records import MESSAGES
from distill.runs import write_atomically

DATA = "data.parquet"
REJECTED = "rejected.parquet"
CANDIDATES = "candidates.parquet"  # there only while rows are made that will be sifted
CARD = "README.md"
_ROWS_IN_A_GROUP = 2048

REJECTED_SCHEMA = pa.schema(
    [
        pa.field("prompt", MESSAGES),
        pa.field("answer", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("seed_row", pa.string()),
        pa.field("family", pa.string()),
        pa.field("request_hash", pa.string()),
        pa.field("row", pa.string()),  # JSON of a finished row that a filter removed
    ]
)


class RowWriter:
    """Rows to a Parquet file that appears whole when the block ends well, and not at all otherwise."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.num_rows = 0
        self._schema = schema
        self._temporary = path.with_name(f".{path.name}.tmp")  # one writer: a run is locked
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> RowWriter:
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in __exit__
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it reaches the disk with its group."""
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == _ROWS_IN_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        try:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self._rows.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                os.replace(self._temporary, self.path)
        except OSError as problem:
            raise _cannot_write(self.path, problem) from None
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Leave nothing but a finished file. The writer insists on a footer, for which a full disk needs room."""
        if self._writer.is_open:
            self._file.seek(0)
            self._file.truncate()
            self._writer.close()
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def read_batches(path: Path, *, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of a Parquet file, or some columns of them, some at a time."""
    for batch in pq.ParquetFile(path).iter_batches(_ROWS_IN_A_GROUP, columns=columns):
        yield batch.to_pylist()


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror or error}",
        remedy="make room on that disk and run again; the answers are in the ledger",
    )


def rejected_row(rejected: Rejected) -> dict[str, Any]:
    """A rejection as a row of `REJECTED_SCHEMA`."""
    answer = rejected.answer
    row = rejected.row
    text = None if row is None else answers_of(row)[0]
    return {
        "prompt": list(rejected.prompt.messages),
        "answer": text if answer is None else answer.text,
        "reason": rejected.reason,
        "detail": rejected.detail,
        "seed_row": rejected.prompt.seed_row,
        "family": rejected.prompt.family,
        "request_hash": answer.key if answer is not None else None if row is None else row["request_hash"],
        "row": removed_row(rejected),
    }


def write_card(
    folder: Path,
    job: InstructionJob | PreferenceJob | CodeJob,
    funnel: Funnel,
    *,
    teacher: str,
    examples: Sequence[dict[str, Any]],
) -> None:
    """README.md in the dataset card's form. Nothing in it depends on when or in how many sessions the job ran."""
    write_atomically(folder / CARD, _card(job, funnel, teacher, examples))


def _card(
    job: InstructionJob | PreferenceJob | CodeJob, funnel: Funnel, teacher: str, examples: Sequence[dict[str, Any]]
) -> str:
    cost = "unknown (no price for this teacher)" if funnel.cost_usd is None else f"${funnel.cost_usd:.4f}"
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        f"  data_files: {DATA}",
        "tags: [synthetic, distillation]",
        "---",
        f"# {job.name}: {job.kind} data",
        "",
        f"Written by the teacher `{teacher}`. {_source(job)} Columns are TRL's standard format plus provenance.",
        "The teacher's licence and terms of use decide what this data may be used for.",
        "",
        "| | |",
        "|---|---:|",
        f"| prompts | {funnel.prompts:,} |",
        f"| answers | {funnel.answers:,} |",
        f"| rows kept | {funnel.rows:,} |",
        *(f"| dropped: {reason} | {count:,} |" for reason, count in sorted(funnel.dropped.items())),
        *(f"| {name.replace('_', ' ')} | {count:,} |" for name, count in sorted(funnel.counts.items())),
        *(f"| {name.replace('_', ' ')} | {rate:.1%} |" for name, rate in funnel.rates().items()),
        f"| prompt tokens | {funnel.prompt_tokens:,} |",
        f"| completion tokens | {funnel.completion_tokens:,} |",
        f"| cost | {cost} |",
        "",
        f"What was dropped is in `{REJECTED}` with its reason.",
        "",
        "```json",
        json.dumps(job.model_dump(mode="json"), indent=1, ensure_ascii=False),
        "```",
        "",
        "## Examples",
        "",
    ]
    for example in examples:
        shown = {name: value for name, value in example.items() if name in ("messages", "prompt", "chosen", "rejected")}
        lines += ["```json", json.dumps(shown, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _source(job: InstructionJob | PreferenceJob | CodeJob) -> str:
    prompts = job.prompts
    if isinstance(prompts, FilePrompts):
        return f"Prompts from `{Path(prompts.path).name}`."
    if isinstance(prompts, MagpiePrompts):
        return "Prompts by the source `magpie`."
    if not isinstance(prompts, TaskPrompts):
        return f"Prompts by the source `{prompts.source}` from `{Path(prompts.path).name}`."
    return f"Prompts from the verifiable task families ({', '.join(prompts.kinds)}), training split."

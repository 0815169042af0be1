"""What a job leaves behind: rows and rejections as Parquet, written as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import DataError
from distill.generate.outcome import Rejected
from distill.generate.row_filters import removed_row
from distill.records import MESSAGES

DATA = "data.parquet"
REJECTED = "rejected.parquet"
CANDIDATES = "candidates.parquet"  # there only while rows are made that will be sifted
_ROWS_AS_DICTS = 2048  # then they become Arrow's columns, which take a fraction
_ROWS_IN_A_GROUP = 1 << 14  # each group adds some 20 KiB to a footer that stays in memory to the end
_BYTES_IN_A_GROUP = 4 << 20

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
        self._tables: list[pa.Table] = []

    def __enter__(self) -> RowWriter:
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in __exit__
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it reaches the disk with its group."""
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == _ROWS_AS_DICTS:
            self._gather()
            gathered = sum(len(table) for table in self._tables), sum(table.nbytes for table in self._tables)
            if gathered[0] >= _ROWS_IN_A_GROUP or gathered[1] >= _BYTES_IN_A_GROUP:
                self._write_group()

    def _gather(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()

    def _write_group(self) -> None:
        group = pa.concat_tables(self._tables)
        self._tables.clear()
        try:
            self._writer.write_table(group, row_group_size=len(group))
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._rows:
                    self._gather()
                if self._tables:
                    self._write_group()
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
    for batch in pq.ParquetFile(path).iter_batches(_ROWS_AS_DICTS, columns=columns):
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
    text = None if row is None else (row["chosen"] if "chosen" in row else row["messages"])[-1]["content"]
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

"""Dataset rows: Parquet in TRL's standard formats plus provenance columns, and the exact reading of both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from distill.errors import DataError


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROVENANCE: tuple[pa.Field, ...] = (
    pa.field("teacher", pa.string()),
    pa.field("request_hash", pa.string()),
    pa.field("method", pa.string()),
    pa.field("seed_row", pa.string()),
    pa.field("family", pa.string()),
    pa.field("prompt_tokens", pa.int64()),
    pa.field("completion_tokens", pa.int64()),
    pa.field("cost_usd", pa.float64()),
    pa.field("created_at", pa.float64()),
)
INSTRUCTION = pa.schema([pa.field("messages", MESSAGES), pa.field("verdict", pa.string()), *PROVENANCE])
COMPLETIONS = pa.list_(  # of rank feedback: every judged answer of the prompt, to rank or binarize anew
    pa.struct(
        [
            ("text", pa.string()),
            ("teacher", pa.string()),
            ("request_hash", pa.string()),
            ("principle", pa.string()),
            ("score", pa.float64()),  # mean over the aspects
            ("overall_score", pa.int64()),  # from 1 to 10, where it was asked for
            ("instruction_following", pa.float64()),
            ("truthfulness", pa.float64()),
            ("honesty", pa.float64()),
            ("helpfulness", pa.float64()),
            ("rationales", pa.list_(pa.string())),
        ]
    )
)
PREFERENCE = pa.schema(
    [
        pa.field("prompt", MESSAGES),
        pa.field("chosen", MESSAGES),
        pa.field("rejected", MESSAGES),
        pa.field("chosen_score", pa.float64()),
        pa.field("rejected_score", pa.float64()),
        pa.field("completions", COMPLETIONS),
        *PROVENANCE,
    ]
)
UNPAIRED = pa.schema(  # an answer and whether it is desirable: what kto reads beside pairs
    [
        pa.field("prompt", MESSAGES),
        pa.field("completion", MESSAGES),
        pa.field("label", pa.bool_()),
        *PROVENANCE,
    ]
)
CODE = pa.schema(
    [
        pa.field("messages", MESSAGES),
        pa.field("entry_point", pa.string()),
        pa.field("tests", pa.list_(pa.string())),
        pa.field("verdict", pa.string()),
        *PROVENANCE,
    ]
)
SCHEMAS = {"instruction": INSTRUCTION, "preference": PREFERENCE, "code": CODE}


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows atomically: the file is whole or absent."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            pq.write_table(table, handle, compression="zstd")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parquet(path: str | Path, *, columns: Iterable[str] = ()) -> list[dict[str, Any]]:
    """All rows of a Parquet file, with `columns` alone where named: a preference row carries every judged answer.

    Raises DataError when it is missing, corrupt, or lacks one of `columns`.
    """
    path, wanted = Path(path), list(columns)
    if not path.exists():
        raise DataError(f"no dataset at {path}", remedy="run `distill generate` first or mend the path")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in wanted if name not in names]
        table = None if missing else pq.read_table(path, columns=wanted or None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}", remedy="remove it and make it again"
        ) from None
    if table is None:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def has_columns(path: str | Path, columns: Iterable[str]) -> bool:
    """Whether a Parquet file that is there and readable has all of `columns`; `read_parquet` says what is wrong."""
    try:
        return set(columns) <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


def user_message(content: str, system: str | None = None) -> list[Message]:
    """A one-turn chat that asks `content`."""
    asked: list[Message] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": system}, *asked] if system else asked

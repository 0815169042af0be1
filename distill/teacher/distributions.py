"""A teacher's distributions beside a dataset: a Parquet row a dataset row, read back as token ids and logarithms.

`logprobs.parquet` has the columns `request_hash` (the dataset row's), `positions` (tokens of the answer), `top` (most
tokens kept at one of them) and `packed` (`logprobs.pack`); its schema's metadata names the format. Ids are looked up
when it is read, in the vocabulary of whoever reads: servers name tokens by their bytes, or as `token_id:17`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distill.errors import DataError
from distill.teacher.logprobs import Position, unpack
from distill.text.token_bytes import ids_by_bytes

SIDECAR = "logprobs.parquet"
UNKNOWN = -1  # in the place of an id: a token that the vocabulary does not hold, or none (fewer than `top` were sent)
_FORMAT = b"distill.logprobs.v1"
_SCHEMA = pa.schema(
    [
        pa.field("request_hash", pa.string()),
        pa.field("positions", pa.int32()),
        pa.field("top", pa.int32()),
        pa.field("packed", pa.binary()),
    ],
    metadata={b"format": _FORMAT},
)
_ROWS_IN_A_GROUP = 1024
_ID_PREFIX = b"token_id:"


@dataclass(frozen=True)
class Written:
    """What went into a sidecar: rows with distributions, rows without, tokens, and bytes on the disk."""

    rows: int
    missing: int
    positions: int
    size_bytes: int


@dataclass(frozen=True)
class Distributions:
    """Of one answer of T tokens, the K most likely at each: natural logarithms, -inf where there are fewer than K.

    The teacher scored its answer in its own tokens: whoever trains on it checks `token_ids_T` against its own.
    """

    token_ids_T: NDArray[np.int64]
    logprobs_T: NDArray[np.float32]
    top_ids_TK: NDArray[np.int64]
    top_logprobs_TK: NDArray[np.float32]


def write_sidecar(path: Path, rows: Iterable[tuple[str, bytes | None]]) -> Written:
    """(request_hash, packed log probabilities) of every dataset row, in its order; rows without any are left out.

    The file is whole or absent.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    written = missing = positions = 0
    try:
        with open(temporary, "wb") as handle:
            with pq.ParquetWriter(handle, _SCHEMA, compression="none") as writer:  # they are zlib streams already
                for batch in _batches(rows):
                    missing += sum(packed is None for _, packed in batch)
                    found = [_described(name, packed) for name, packed in batch if packed is not None]
                    written += len(found)
                    positions += sum(int(row["positions"]) for row in found)
                    writer.write_table(pa.Table.from_pylist(found, schema=_SCHEMA))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(written, missing, positions, path.stat().st_size)


def _batches(rows: Iterable[tuple[str, bytes | None]]) -> Iterator[list[tuple[str, bytes | None]]]:
    batch: list[tuple[str, bytes | None]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_IN_A_GROUP:
            yield batch
            batch = []
    if batch:
        yield batch


def _described(name: str, packed: bytes) -> dict[str, int | str | bytes]:
    found = unpack(packed)
    top = max((len(position.top) for position in found), default=0)
    return {"request_hash": name, "positions": len(found), "top": top, "packed": packed}


class Sidecar:
    """Distributions by the `request_hash` of their dataset row, unpacked when asked for.

    `vocabulary` is a tokenizer's `get_vocab()`. The packed bytes are mapped from the file, not held.
    """

    def __init__(self, path: Path, vocabulary: Mapping[str, int]) -> None:
        try:
            table = pq.read_table(path, memory_map=True)
        except FileNotFoundError:
            raise DataError(f"no distributions at {path}", remedy="set logprobs in the generate job") from None
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not readable: {error}", remedy="make the dataset again") from None
        if (table.schema.metadata or {}).get(b"format") != _FORMAT:
            raise DataError(f"{path} holds no distributions of this format", remedy="make the dataset again")
        self._packed = table["packed"]
        self._rows = {name: row for row, name in enumerate(table["request_hash"].to_pylist())}
        self._ids = ids_by_bytes(vocabulary)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, request_hash: str) -> bool:
        return request_hash in self._rows

    def __getitem__(self, request_hash: str) -> Distributions:
        """Raises KeyError for a row without."""
        return self._read(unpack(self._packed[self._rows[request_hash]].as_py()))

    def find(self, request_hash: str) -> Distributions | None:
        """None for a row without."""
        row = self._rows.get(request_hash)
        return None if row is None else self._read(unpack(self._packed[row].as_py()))

    def _read(self, positions: list[Position]) -> Distributions:
        width = max((len(position.top) for position in positions), default=0)
        tops = np.full((len(positions), width), UNKNOWN, dtype=np.int64)
        values = np.full((len(positions), width), -np.inf, dtype=np.float32)
        for row, position in enumerate(positions):
            for column, (token, logprob) in enumerate(position.top):
                tops[row, column] = self._id(token)
                values[row, column] = logprob
        tokens = np.array([self._id(position.token) for position in positions], dtype=np.int64)
        chosen = np.array([position.logprob for position in positions], dtype=np.float32)
        return Distributions(tokens, chosen, tops, values)

    def _id(self, token: bytes) -> int:
        if token.startswith(_ID_PREFIX) and token[len(_ID_PREFIX) :].isdigit():
            return int(token[len(_ID_PREFIX) :])
        return self._ids.get(token, UNKNOWN)

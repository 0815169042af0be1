"""A folder of stored teacher signals: written in pieces that survive a kill, read at random from mapped memory.

- `about.json`: the format, the form and its numbers, and the fingerprint: what the signals hold for.
- `data.bin`: the rows' bytes, one after the other.
- `index.bin`: 32 bytes a row: its id, where its bytes are and how many, its tokens and entries, and their CRC-32.

A piece counts once its index is on the disk, which is after its bytes are; whatever else a killed writer left is cut
off by the next one, which goes on from there. A row's id is a digest of its token ids and labels (`row_id`): it finds
its row in any order, subset or packing of a dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill.errors import DataError
from distill.runs import write_atomically

FormName = Literal["top_k", "sampled", "hidden"]
ABOUT, DATA, INDEX = "about.json", "data.bin", "index.bin"
_FORMAT = "distill.signals.v2"
_RECORD = np.dtype(
    [("row", "<i8"), ("offset", "<u8"), ("size", "<u4"), ("tokens", "<u4"), ("entries", "<u4"), ("crc", "<u4")]
)


@dataclass(frozen=True)
class Fingerprint:
    """What signals hold for: digests, or the number itself. `teacher` is its weights, or where they are served."""

    vocabulary: int  # rows of the distributions
    tokenizer: str
    chat_template: str
    teacher: str

    def differences(self, other: Fingerprint) -> list[str]:
        """Names of what differs."""
        return [name for name, value in vars(self).items() if value != vars(other)[name]]


@dataclass(frozen=True)
class About:
    """What a folder holds. `draws`: of sampled, or from top k's tail. `width` and `dtype`: of hidden states.
    `temperature`: of the others. `step_nats`: of top k, between two log probabilities."""

    form: FormName
    fingerprint: Fingerprint
    temperature: float = 1.0
    draws: int = 0
    width: int = 0
    dtype: str = ""
    step_nats: float = 0.0

    def text(self) -> str:
        """As in `about.json`."""
        return json.dumps({"format": _FORMAT, **vars(self), "fingerprint": vars(self.fingerprint)}, indent=1)


@dataclass(frozen=True)
class Record:
    """One row to write."""

    row: int
    tokens: int
    entries: int
    packed: bytes


def row_id(input_ids: Sequence[int], labels: Sequence[int]) -> int:
    """A row's id: 63 bits of a digest of its tokens and labels."""
    sha = hashlib.blake2b(np.asarray(input_ids, "<i4").tobytes(), digest_size=8)
    sha.update(np.asarray(labels, "<i4").tobytes())
    return int.from_bytes(sha.digest(), "little") >> 1


class Writer:
    """Adds rows to a folder; a second one on the same folder goes on where the first one was stopped."""

    def __init__(self, folder: Path, about: About) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if not (folder / ABOUT).exists() or (folder / ABOUT).read_text() != about.text():
            for name in (INDEX, DATA):
                (folder / name).unlink(missing_ok=True)
            write_atomically(folder / ABOUT, about.text())
        index = _whole_records(folder)
        self._rows = set(index["row"].tolist())
        self._end = int(index["offset"][-1] + index["size"][-1]) if len(index) else 0
        for name, size in ((INDEX, len(index) * _RECORD.itemsize), (DATA, self._end)):
            with open(folder / name, "ab") as handle:
                handle.truncate(size)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def add(self, records: Sequence[Record]) -> None:
        """Commit rows: they are on the disk when this returns. Those that are there already are left out."""
        index = np.empty(len(records), _RECORD)
        kept: list[bytes] = []
        end = self._end
        for record in records:
            if record.row in self._rows:
                continue
            size, crc = len(record.packed), zlib.crc32(record.packed)
            index[len(kept)] = (record.row, end, size, record.tokens, record.entries, crc)
            kept.append(record.packed)
            self._rows.add(record.row)
            end += size
        _append(self.folder / DATA, b"".join(kept))
        _append(self.folder / INDEX, index[: len(kept)].tobytes())
        self._end = end


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _whole_records(folder: Path) -> NDArray[np.void]:
    """The records whose bytes are all there."""
    try:
        raw = (folder / INDEX).read_bytes()
        size = (folder / DATA).stat().st_size
    except FileNotFoundError:
        return np.empty(0, _RECORD)
    index = np.frombuffer(raw, _RECORD, len(raw) // _RECORD.itemsize)
    beyond = np.flatnonzero(index["offset"] + index["size"] > size)
    return index[: beyond[0]] if len(beyond) else index


def read_about(folder: Path) -> About:
    """Raises DataError for a folder that holds no signals of this format."""
    try:
        found = json.loads((folder / ABOUT).read_text())
        if found.pop("format") != _FORMAT:
            raise DataError(f"{folder} holds signals of another format", remedy="remove it and write them again")
        return About(**{**found, "fingerprint": Fingerprint(**found["fingerprint"])})
    except FileNotFoundError:
        raise DataError(f"no signals in {folder}", remedy="mend the path, or run `distill signals`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / ABOUT} is not readable: {error}", remedy="remove the folder") from None


class Reader:
    """Rows by their id, mapped from the folder's files; nothing but the index is held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = read_about(folder)
        index = _whole_records(folder)
        order = np.argsort(index["row"], kind="stable")
        self._index = index[order]
        self._rows = np.ascontiguousarray(self._index["row"])
        self.size_bytes = int(index["size"].sum()) + index.nbytes
        self.tokens = int(index["tokens"].sum())
        self._data: NDArray[np.uint8] = np.empty(0, np.uint8)
        if self.size_bytes:
            self._data = np.memmap(folder / DATA, np.uint8, "r")

    def __len__(self) -> int:
        return len(self._rows)

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those that are not here."""
        return [row for row in rows if self._place(row) is None]

    def read(self, row: int) -> Record:
        """Raises DataError for a row that is not here, or whose bytes changed."""
        place = self._place(row)
        if place is None:
            raise DataError(f"{self.folder} has no signals of row {row:x}", remedy="write them for this dataset")
        found = self._index[place]
        begin = int(found["offset"])
        packed = self._data[begin : begin + int(found["size"])].tobytes()
        if zlib.crc32(packed) != int(found["crc"]):
            raise DataError(
                f"{self.folder / DATA}: the bytes of row {row:x} at {begin} changed since they were written",
                remedy=f"remove {self.folder} and write the signals again",
            )
        return Record(row, int(found["tokens"]), int(found["entries"]), packed)

    def _place(self, row: int) -> int | None:
        place = int(np.searchsorted(self._rows, row))
        return place if place < len(self._rows) and self._rows[place] == row else None


def require_match(reader: Reader, expected: Fingerprint, temperature: float) -> None:
    """Refuse signals of another vocabulary, tokenizer, chat template, teacher or temperature, by name."""
    about = reader.about
    different = about.fingerprint.differences(expected)
    if different:
        names = ", ".join(name.replace("_", " ") for name in different)
        found = ", ".join(f"{vars(about.fingerprint)[name]} against {vars(expected)[name]}" for name in different)
        raise DataError(
            f"the signals in {reader.folder} are of another {names} ({found})",
            remedy="write them anew for this teacher and student, or mend the recipe",
        )
    if about.form != "hidden" and about.temperature != temperature:
        raise DataError(
            f"the signals in {reader.folder} are at temperature {about.temperature:g}, training is at {temperature:g}",
            remedy=f"set temperature: {about.temperature:g}, or write them anew",
        )

"""A teacher's top-k log probabilities: read from replies of either endpoint, and packed for the ledger."""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SIZES = struct.Struct("<II")  # bytes of the token table, number of values


@dataclass(frozen=True, slots=True)
class Position:
    """One token of an answer: its bytes, its log probability, and the most likely tokens there, best first.

    A server that is asked for ids instead of texts (vLLM) says `token_id:17` in the place of the bytes.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


def read_logprobs(found: Mapping[str, Any]) -> list[Position]:
    """From a choice's `logprobs`. Raises KeyError, TypeError or ValueError for anything that is none."""
    if "content" in found:
        return [
            Position(
                _bytes(entry),
                float(entry["logprob"]),
                tuple((_bytes(one), float(one["logprob"])) for one in entry.get("top_logprobs") or ()),
            )
            for entry in found["content"] or ()
        ]
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return [
        Position(
            str(token).encode("utf-8", "replace"),
            float(logprob) if logprob is not None else 0.0,
            tuple(
                (str(one).encode("utf-8", "replace"), float(value))
                for one, value in sorted((top or {}).items(), key=lambda item: -item[1])
            ),
        )
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    ]


def pack(positions: Sequence[Position]) -> bytes:
    """A zlib stream of: the table of distinct tokens (JSON, bytes as Latin-1), then for each position the number of
    its top tokens, all token numbers (uint32) and all log probabilities (float32)."""
    table: dict[bytes, int] = {}
    numbers, values = array("I"), array("f")
    for position in positions:
        numbers.append(len(position.top))
        for token, logprob in ((position.token, position.logprob), *position.top):
            numbers.append(table.setdefault(token, len(table)))
            values.append(logprob)
    names = json.dumps([token.decode("latin-1") for token in table]).encode()
    return zlib.compress(_SIZES.pack(len(names), len(numbers)) + names + numbers.tobytes() + values.tobytes())


def unpack(packed: bytes) -> list[Position]:
    """What `pack` was given (log probabilities as float32)."""
    data = zlib.decompress(packed)
    num_names, num_numbers = _SIZES.unpack_from(data)
    start = _SIZES.size + num_names
    names = [name.encode("latin-1") for name in json.loads(data[_SIZES.size : start])]
    numbers, values = array("I"), array("f")
    numbers.frombytes(data[start : start + num_numbers * numbers.itemsize])
    values.frombytes(data[start + num_numbers * numbers.itemsize :])
    positions: list[Position] = []
    at = value_at = 0
    while at < len(numbers):
        count = numbers[at]
        tokens = [names[number] for number in numbers[at + 1 : at + 2 + count]]
        logprobs = values[value_at : value_at + count + 1]
        positions.append(Position(tokens[0], logprobs[0], tuple(zip(tokens[1:], logprobs[1:], strict=True))))
        at += count + 2
        value_at += count + 1
    return positions


def _bytes(entry: Mapping[str, Any]) -> bytes:
    given = entry.get("bytes")
    return bytes(given) if given is not None else str(entry["token"]).encode("utf-8", "replace")

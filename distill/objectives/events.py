"""Two vocabularies' tokens as events that both can speak of: shared tokens, and what is made of those that are not.

Legend: V student rows, U teacher rows, K events. An event is a spelling that both vocabularies have (special tokens by
their name, the two ends of turn as one). Of the other tokens

- `prefix`: each counts to the longest shared token that it begins with: whatever it says begins with that one. Both
  models' distributions are then compared whole, on the coarser events (ours). A token of which no beginning is shared,
  which byte-level vocabularies do not have, is left out, and distributions are conditioned on the others.
- `uld`: they are compared apart, by their sorted probabilities alone (ULD, 2402.12030; GOLD, TRL's GOLDTrainer).

Special tokens that only one side has, and rows of a head that are no token, are ruled out of both distributions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.text.token_bytes import Spelling

Unmatched = Literal["prefix", "uld"]
_Key = tuple[str, bytes]


@dataclass(frozen=True)
class Side:
    """One vocabulary. `events_V`: the event of each row, K where it has none; `excluded_V`: whether it is ruled out;
    `unmatched`: rows without an event that are not."""

    events_V: Tensor
    excluded_V: Tensor
    unmatched: Tensor

    def on(self, device: torch.device) -> Side:
        """The same on a device."""
        return Side(*(values.to(device) for values in vars(self).values()))


@dataclass(frozen=True)
class Events:
    """What two vocabularies have in common; `num_shared` is the number of the student's tokens that are shared."""

    ours: Side
    theirs: Side
    count: int
    unmatched: Unmatched
    num_shared: int

    def on(self, device: torch.device) -> Events:
        """The same on a device."""
        return Events(self.ours.on(device), self.theirs.on(device), self.count, self.unmatched, self.num_shared)


def events_of(
    ours: Spelling,
    theirs: Spelling,
    *,
    rows: tuple[int, int],
    ends: tuple[int, int] | None,
    unmatched: Unmatched,
) -> Events:
    """`rows`: of the student's and the teacher's head; `ends`: their end-of-turn tokens, which mean the same."""
    our_keys, their_keys = _keys(ours, ends and ends[0]), _keys(theirs, ends and ends[1])
    shared = set(our_keys.values()) & set(their_keys.values())
    numbers: dict[_Key, int] = {}
    for _, key in sorted(our_keys.items()):
        if key in shared:
            numbers.setdefault(key, len(numbers))
    sides = [
        _side(keys, numbers, num_rows, unmatched) for keys, num_rows in ((our_keys, rows[0]), (their_keys, rows[1]))
    ]
    num_shared = sum(key in shared for key in our_keys.values())
    return Events(sides[0], sides[1], len(numbers), unmatched, num_shared)


def _keys(spelling: Spelling, end: int | None) -> dict[int, _Key]:
    """What each token is known by."""
    found: dict[int, _Key] = {index: ("text", text) for index, text in spelling.ordinary.items()}
    found |= {index: ("special", name) for index, name in spelling.special.items()}
    return found if end is None else {**found, end: ("end", b"")}


def _side(keys: Mapping[int, _Key], numbers: Mapping[_Key, int], rows: int, unmatched: Unmatched) -> Side:
    none = len(numbers)
    events_V, excluded_V = torch.full((rows,), none), torch.ones(rows, dtype=torch.bool)
    for index, key in keys.items():
        if index >= rows:  # as the image token of Gemma's text models
            assert key[0] != "text", "an ordinary token that the head has no row for"
            continue
        number = numbers.get(key)
        if number is None and unmatched == "prefix":
            number = _root(key, numbers)
        if number is not None:
            events_V[index] = number
        excluded_V[index] = number is None and key[0] != "text"
    return Side(events_V, excluded_V, ((events_V == none) & ~excluded_V).nonzero().squeeze(-1))


def _root(key: _Key, numbers: Mapping[_Key, int]) -> int | None:
    """The longest shared token that a text begins with; None where there is none, as for special tokens."""
    kind, text = key
    beginnings = (numbers.get((kind, text[:end])) for end in range(len(text) - 1, 0, -1))
    return next((number for number in beginnings if number is not None), None) if kind == "text" else None

"""Two small vocabularies, one text in both, and span distances from dictionaries of texts in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from distill.objectives.aligned import Cuts, Tokens
from distill.objectives.divergences import Objective, divergence
from distill.objectives.events import Events, events_of
from distill.text.continuations import Continuations
from distill.text.spans import cuts
from distill.text.token_bytes import Spelling
from distill.train.aligned import cuts_of
from distill.train.aligned_rows import RowCut

# Rows 0 to 11 and 0 to 12 of the heads; the last of each is padding.
OURS = Spelling(
    dict(enumerate([b"a", b"b", b"c", b"un", b"able", b" the", b"ab", b"unab", b"abc"])), {9: b"<end>", 10: b"<user>"}
)
THEIRS = Spelling(
    dict(enumerate([b"b", b"un", b"unable", b"a", b"c", b" the", b"abl", b"e", b"bc", b"able"])),
    {10: b"<stop>", 11: b"<role>"},
)
ROWS, ENDS = (12, 13), (9, 10)
# "unable a b abc <end>" without the spaces
OUR_IDS, OUR_SPANS = [3, 4, 0, 1, 6, 2, 9], [0, 0, 1, 2, 3, 3, 4]
THEIR_IDS, THEIR_SPANS = [2, 3, 0, 3, 8, 10], [0, 1, 2, 3, 3, 4]


def events(unmatched: str = "prefix") -> Events:
    return events_of(OURS, THEIRS, rows=ROWS, ends=ENDS, unmatched=unmatched)  # type: ignore[arg-type]


def some_logits(rows: int, tokens: int, seed: int) -> Tensor:
    return 2 * torch.randn(tokens, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sides(seed: int = 0) -> tuple[Tokens, Tokens]:
    return (
        Tokens(some_logits(ROWS[0], 7, seed), torch.tensor(OUR_IDS), torch.tensor(OUR_SPANS)),
        Tokens(some_logits(ROWS[1], 6, seed + 1), torch.tensor(THEIR_IDS), torch.tensor(THEIR_SPANS)),
    )


def cuts_between(ours: tuple[Spelling, list[int], list[int]], theirs: tuple[Spelling, list[int], list[int]]) -> Cuts:
    """From what `text` says of the spans of several tokens: (spelling, ids, spans) of either side."""
    sides = (ours, theirs)
    either = [Continuations(ours[0], theirs[0]), Continuations(theirs[0], ours[0])]
    found: list[RowCut] = []
    for span in range(max(ours[2]) + 1):
        places = [[n for n, number in enumerate(side[2]) if number == span] for side in sides]
        ids = [[side[1][n] for n in mine] for side, mine in zip(sides, places, strict=True)]
        texts = [side[0].of(mine) for side, mine in zip(sides, ids, strict=True)]
        if ids[0][0] in ours[0].special:
            continue
        if len(places[0]) == len(places[1]) == 1:
            alone = either[1].ids(b"", texts[0][0], (len(texts[0][0]),))
            found.append(RowCut(span, places[0][0], places[1][0], True, tuple(ids[0]), alone))
            continue
        of_span = cuts(*texts)
        alike = either[0].at(of_span, ids[0], texts[0], texts[1])
        other = either[1].at([cut.mirrored for cut in of_span], ids[1], texts[1], texts[0])
        for cut, a, b in zip(of_span, alike, other, strict=True):
            ended = cut.length == len(texts[0][cut.token])
            found.append(RowCut(span, places[0][cut.token], places[1][cut.other_token], ended, a, b))
    return cuts_of(found)


CUTS = cuts_between((OURS, OUR_IDS, OUR_SPANS), (THEIRS, THEIR_IDS, THEIR_SPANS))


def texts_of(spelling: Spelling, end: int, rows: int) -> list[str | None]:
    """What each row says; None for rows that no answer has."""
    found: list[str | None] = [None] * rows
    for index, text in spelling.ordinary.items():
        found[index] = text.decode()
    found[end] = "END"
    return found


def reference(
    student: Tokens, teacher: Tokens, objective: Objective, unmatched: str, uld_weight: float
) -> list[Tensor]:
    """Span by span, from dictionaries text -> probability; written down from docs/objectives.md."""
    plain = replace(objective, temperature=1.0)
    sides = ((student, texts_of(OURS, 9, ROWS[0])), (teacher, texts_of(THEIRS, 10, ROWS[1])))
    shared = {text for text in sides[0][1] if text is not None} & {text for text in sides[1][1] if text is not None}
    found = []
    for span in range(int(student.spans_C.max()) + 1):
        tables, others, spoken = [], [], []
        for side, texts in sides:
            spoken.append([])
            for place in (side.spans_C == span).nonzero().flatten().tolist():
                kept = [index for index, text in enumerate(texts) if text is not None]
                p = torch.softmax(side.logits_CV[place, kept] / objective.temperature, -1)
                spoken[-1].append((texts[int(side.ids_C[place])], {texts[index]: p[n] for n, index in enumerate(kept)}))
            table, rest = {text: torch.zeros((), dtype=torch.float64) for text in shared}, []
            for text, value in spoken[-1][0][1].items():
                target = text if text in shared else None
                if target is None and unmatched == "prefix":
                    target = max((t for t in shared if text.startswith(t)), key=len, default=None)
                if target is None:
                    rest.append(value)
                else:
                    table[target] = table[target] + value
            tables.append(table)
            others.append(rest)
        q, p = (torch.stack(list(table.values())) for table in tables)
        value = divergence((q / q.sum()).log()[None], (p / p.sum()).log()[None], plain)[0]
        if unmatched == "uld":
            filled = itertools.zip_longest(
                *(sorted(rest, key=Tensor.item, reverse=True) for rest in others), fillvalue=0.0
            )
            value = p.sum().item() * value + uld_weight * torch.stack([(a - b).abs() for a, b in filled]).sum()
        pair = max(map(len, spoken)) == 1
        if spoken[0][0][0] != "END" and not (pair and unmatched == "uld"):
            reached = [{end: reach(a, b, end) for end in ends(spoken)} for a, b in (spoken, spoken[::-1])]
            if pair:  # the teacher's tokens that the student would begin with this one
                texts = {text for text in spoken[0][0][1] if text != "END"}
                said = spoken[0][0][0]
                alike = [
                    probability
                    for text, probability in spoken[1][0][1].items()
                    if text.startswith(said) and max((t for t in texts if text.startswith(t)), key=len) == said
                ]
                reached[1] = {len(said): torch.stack(alike).sum()}
            first = min(ends(spoken))
            ended = next(text for (text, _), *_ in spoken if len(text) == first)
            event = max((t for t in shared if ended.startswith(t)), key=len)
            for before, end in zip([0, *ends(spoken)], ends(spoken), strict=False):
                two = []
                for table, side in zip(tables, reached, strict=True):
                    start = side[before] if before else (table[event] if unmatched == "prefix" else 1.0)
                    c = (side[end] / start).clamp(max=math.exp(-1e-5))
                    two.append(torch.stack([c, 1 - c]).log()[None])
                inside = divergence(two[0], two[1], plain)[0]
                value = inside if unmatched == "uld" and not before else value + inside
        found.append(value)
    return found


Spoken = list[tuple[str, dict[str, Tensor]]]  # the tokens of a span on one side, and what else could have been said


def ends(sides: list[Spoken]) -> list[int]:
    return sorted({end for side in sides for end in itertools.accumulate(len(text) for text, _ in side)})


def reach(side: Spoken, other: Spoken, end: int) -> Tensor:
    """F: the probability of the first `end` characters of a span, as the other side cuts them."""
    found, at = torch.ones((), dtype=torch.float64), 0
    whole = "".join(text for text, _ in side)
    tokens = {text for text in other[0][1] if text != "END"}
    said = list(itertools.accumulate((len(text) for text, _ in other), initial=0))
    for text, probabilities in side:
        if at + len(text) <= end:
            found, at = found * probabilities[text], at + len(text)
        elif at < end:
            total = torch.zeros((), dtype=torch.float64)
            for word, value in probabilities.items():
                line = whole[:at] + word
                pieces = [(a, b) for a, b in itertools.pairwise(said) if at < b <= end]
                alike = all(
                    max((t for t in tokens if line[a:].startswith(t)), key=len, default=None) == whole[a:b]
                    for a, b in pieces
                )
                if word == text or (word != "END" and line.startswith(whole[:end]) and alike):
                    total = total + value
            return found * total
    return found

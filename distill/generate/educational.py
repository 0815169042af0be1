"""phi-1's filter (2306.11644, section 2.1): the teacher says of a sample what teaches, a random forest of the rest.

The sample keeps the teacher's own word. What the forest is worth is measured on a part of the sample that it never saw.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from distill.errors import DataError, TeacherError
from distill.generate.forest import Forest, Quality, train
from distill.generate.invented import NOTHING_ASKED, try_to_ask
from distill.generate.outcome import Rejected
from distill.recipe.filters import EducationalSample
from distill.recipe.prompts import Sampling
from distill.records import user_message
from distill.teacher.client import TeacherClient
from distill.teacher.requests import Answer, ChatRequest

ASK = """\
Determine the educational value of the following code for a student whose goal is to learn basic coding concepts. \
Is it clear, self-contained and instructive? Answer with one word, yes or no.

```python
{code}
```"""
_YES_OR_NO = re.compile(r"\W*(yes|no)\b\W*\Z", re.IGNORECASE)
ANSWER = Sampling(temperature=0.0, max_tokens=16)
NOT_EDUCATIONAL = "not_educational"
_FEWEST_OF_A_KIND = 8

Batches = Callable[[], Iterable[Sequence[str]]]  # the same programs in the same order whenever called


@dataclass(frozen=True)
class Opinion:
    """Whether a program stays, and who says so."""

    keep: bool
    detail: str


@dataclass
class Sifted:
    """What sifting found out, for the manifest and the card, and what it took."""

    quality: Quality
    features: str
    labelled: int
    affirmed: int
    unclear: int
    kept: int = 0
    removed: int = 0
    answers: list[Answer] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        names = ("features", "labelled", "affirmed", "unclear", "kept", "removed")
        return {**{name: vars(self)[name] for name in names}, **asdict(self.quality)}


def question(code: str) -> str:
    """The published question, with an answer that can be read strictly."""
    return ASK.format(code=code.strip())


def read_opinion(text: str) -> bool | None:
    """Yes or no; None for anything else."""
    said = _YES_OR_NO.match(text)
    return None if said is None else said.group(1).lower() == "yes"


async def sift(
    section: EducationalSample, client: TeacherClient, total: int, batches: Batches, *, method: str
) -> tuple[Sifted, Callable[[], Iterator[Opinion]]]:
    """Label a sample of `total` programs and train the forest; the function gives an opinion on each, in order.

    Raises DataError where the sample holds too few of either kind to learn from.
    """
    wanted = sorted(random.Random(section.seed).sample(range(total), min(section.sample, total)))
    programs = dict(zip(wanted, _pick(batches(), wanted), strict=True))
    asks = [
        ChatRequest(tuple(user_message(question(code))), ANSWER, 0, method, f"educational:{place}")
        for place, code in programs.items()
    ]
    answers = await asyncio.gather(*(try_to_ask(client, ask) for ask in asks))
    labels: dict[int, bool] = {}
    got: list[Answer] = []
    rejected: list[Rejected] = []
    for place, answer in zip(programs, answers, strict=True):
        if isinstance(answer, TeacherError):
            rejected.append(Rejected(NOTHING_ASKED, "label_request_failed", answer.message))
            continue
        got.append(answer)
        opinion = read_opinion(answer.text)
        if opinion is None:
            rejected.append(Rejected(NOTHING_ASKED, "label_unclear", answer.text[:80], answer))
        else:
            labels[place] = opinion
    affirmed = sum(labels.values())
    if min(affirmed, len(labels) - affirmed) < _FEWEST_OF_A_KIND:
        raise DataError(
            f"of {len(labels)} programs the teacher affirms {affirmed}: too few of a kind to learn from",
            remedy=f"raise educational.sample so that at least {_FEWEST_OF_A_KIND} of each kind are in it, "
            "or ask about every row with educational: true",
        )
    forest, quality = train(section, [programs[place] for place in labels], list(labels.values()))
    sifted = Sifted(quality, forest.features, len(labels), affirmed, len(programs) - len(labels))
    sifted.answers, sifted.rejected = got, rejected
    return sifted, lambda: _opinions(forest, section.threshold, labels, batches(), sifted)


def _pick(batches: Iterable[Sequence[str]], wanted: Sequence[int]) -> Iterator[str]:
    """The programs with these numbers, which ascend."""
    numbers, start = iter(wanted), 0
    number = next(numbers, None)
    for batch in batches:
        while number is not None and number < start + len(batch):
            yield batch[number - start]
            number = next(numbers, None)
        start += len(batch)


def _opinions(
    forest: Forest, threshold: float, labels: dict[int, bool], batches: Iterable[Sequence[str]], sifted: Sifted
) -> Iterator[Opinion]:
    place = 0
    for batch in batches:
        for value in forest.values(batch):
            if place in labels:
                opinion = Opinion(labels[place], "by the teacher")
            else:
                opinion = Opinion(value >= threshold, f"by the forest: {value:.2f}")
            sifted.kept += opinion.keep
            sifted.removed += not opinion.keep
            place += 1
            yield opinion

"""Parts of a job for several processes or machines: which prompts are whose, and what a part may use of the limits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import DistillError
from distill.recipe.generate import why_no_shards
from distill.recipe.schema import Recipe
from distill.recipe.teacher import Teacher
from distill.records import Message


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder(self) -> str:
        """Its folder under `shards/`."""
        return f"{self.index}-of-{self.count}"

    def holds(self, messages: tuple[Message, ...]) -> bool:
        """Whether a prompt is this shard's: by its text alone, so that further prompts move none."""
        digest = hashlib.blake2b(json.dumps(messages).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1

    def part_of(self, recipe: Recipe) -> Recipe:
        """The recipe with this shard's equal part of what is declared for the whole: rates and budgets."""
        budgets = {
            label: teacher.budget_usd / self.count
            for label, teacher in recipe.teachers_by_label().items()
            if teacher.budget_usd is not None
        }
        return Part(1 / self.count, budgets).of(recipe)


@dataclass(frozen=True)
class Part:
    """What one of several processes may use: a share of the declared rates, and dollars by the teacher's label."""

    rates: float
    budgets_usd: Mapping[str, float]

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe with only so much declared."""
        return recipe.model_copy(
            update={
                "teacher": self._of(recipe.teacher),
                "teachers": tuple(self._of(teacher) for teacher in recipe.teachers),
            }
        )

    def _of(self, teacher: Teacher) -> Teacher:
        rates = {
            "requests_per_minute": teacher.requests_per_minute,
            "tokens_per_minute": teacher.tokens_per_minute,
        }
        update = {name: rate * self.rates for name, rate in rates.items() if rate is not None}
        if teacher.budget_usd is not None:
            update["budget_usd"] = self.budgets_usd[teacher.id or teacher.model]
        return teacher.model_copy(update=update)


def require_separable(recipe: Recipe) -> None:
    """Raise where a job looks at all of its prompts or rows."""
    for job in recipe.generate:
        why = why_no_shards(job)
        if why is not None:
            raise DistillError(
                f"generate {job.name}: {why}",
                remedy="have prompts written in one run and shard a job over that file; ask about each row with "
                "educational: true",
            )


def parse_shard(text: str) -> Shard:
    """`2/8` is the second of eight."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise DistillError(f"--shard {text}: not a part of a whole", remedy="write 1/4 to 4/4 for four shards")
    return Shard(int(found[1]), int(found[2]))


def all_shards(count: int) -> list[Shard]:
    """The parts of a whole."""
    return [Shard(index, count) for index in range(1, count + 1)]

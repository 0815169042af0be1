"""What a teacher's tokens cost: the recipe's price, else the line of `prices.toml`, else unknown (never 0)."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DistillError
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher

PRICES_PATH = Path(__file__).with_name("prices.toml")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_FIELDS = {"input", "cached_input", "output"}


@dataclass(frozen=True)
class Rates:
    """Dollars per million tokens. `cached_input` is what prompt tokens cost that the provider had cached."""

    input: float
    output: float
    cached_input: float | None = None

    def cost_usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars of one request; `cached_tokens` are among `prompt_tokens`."""
        cached_rate = self.input if self.cached_input is None else self.cached_input
        fresh = prompt_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached_rate + completion_tokens * self.output) / 1e6


FREE = Rates(input=0.0, output=0.0)


def rates_of(teacher: OpenAITeacher | EmbeddedTeacher, prices_path: Path = PRICES_PATH) -> Rates | None:
    """The teacher's rates, or None where they are unknown. A teacher of our own costs nothing a token."""
    price = teacher.price
    listed = FREE if isinstance(teacher, EmbeddedTeacher) else _listed(teacher.model, prices_path)
    if price is None or (price.input is None and price.output is None):
        return listed
    input_rate = price.input if price.input is not None else (listed.input if listed else None)
    output_rate = price.output if price.output is not None else (listed.output if listed else None)
    if input_rate is None or output_rate is None:
        return None
    return Rates(input=input_rate, output=output_rate)


def _listed(model: str, prices_path: Path) -> Rates | None:
    try:
        table = tomllib.loads(prices_path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DistillError(f"{prices_path} is not TOML: {error}", remedy="mend the file") from None
    bare = model.rsplit("/", 1)[-1]
    for name in (model, bare, _DATE.sub("", bare)):
        if name in table:
            return _rates(name, table[name], prices_path)
    return None


def _rates(name: str, line: object, prices_path: Path) -> Rates:
    if not isinstance(line, dict) or not {"input", "output"} <= set(line) <= _FIELDS:
        raise DistillError(
            f"{prices_path}: '{name}' needs input and output, and may have cached_input", remedy="mend the file"
        )
    if any(isinstance(rate, bool) or not isinstance(rate, int | float) or rate < 0 for rate in line.values()):
        raise DistillError(f"{prices_path}: '{name}': a rate is a number of dollars, 0 or more", remedy="mend the file")
    return Rates(**{field: float(rate) for field, rate in line.items()})

"""What a teacher's tokens cost: the recipe's price, else the line of `prices.toml`, else unknown (never 0)."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import DistillError
from distill.recipe.teacher import EmbeddedTeacher, Teacher

PRICES_PATH = Path(__file__).with_name("prices.toml")
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_FIELDS = {"input", "cached_input", "output", "reasoning", "batch_input", "batch_output"}


@dataclass(frozen=True)
class Rates:
    """Dollars per million tokens. `cached_input` is what prompt tokens cost that the provider had cached, `reasoning`
    what hidden ones of the answer cost (None: as any other), `batch_*` what all of them cost in a batch (None: as
    online)."""

    input: float
    output: float
    cached_input: float | None = None
    reasoning: float | None = None
    batch_input: float | None = None
    batch_output: float | None = None

    def in_batch(self) -> Rates:
        """What requests of the Batch API cost."""
        asked, answered = self.batch_input, self.batch_output
        return Rates(
            input=self.input if asked is None else asked,
            output=self.output if answered is None else answered,
            cached_input=self.cached_input if asked is None else None,
            reasoning=self.reasoning if answered is None else None,
        )

    def cost_usd(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> float:
        """Dollars of one request; `cached_tokens` are among `prompt_tokens`, `reasoning_tokens` in the completion's."""
        cached_rate = self.input if self.cached_input is None else self.cached_input
        reasoning_rate = self.output if self.reasoning is None else self.reasoning
        prompt = (prompt_tokens - cached_tokens) * self.input + cached_tokens * cached_rate
        answer = (completion_tokens - reasoning_tokens) * self.output + reasoning_tokens * reasoning_rate
        return (prompt + answer) / 1e6


FREE = Rates(input=0.0, output=0.0)


def user_prices_path() -> Path:
    """The user's own price file, there or not: DISTILL_PRICES, else the configuration folder's distill/prices.toml."""
    named = os.environ.get("DISTILL_PRICES")
    if named:
        return Path(named)
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "distill" / "prices.toml"


def rates_of(teacher: Teacher, prices_path: Path = PRICES_PATH, user_path: Path | None = None) -> Rates | None:
    """The teacher's rates: the recipe's, else a line of the user's file, else of the project's; None: unknown.

    A teacher of our own costs nothing a token.
    """
    price = teacher.price
    user_path = user_path or user_prices_path()
    listed: Rates | None = FREE
    if not isinstance(teacher, EmbeddedTeacher):
        listed = _listed(teacher.model, user_path) if user_path.is_file() else None
        listed = listed or _listed(teacher.model, prices_path)
    if price is None:
        return listed
    own = price.input is not None or price.output is not None
    input_rate = price.input if price.input is not None else (listed.input if listed else None)
    output_rate = price.output if price.output is not None else (listed.output if listed else None)
    if input_rate is None or output_rate is None:
        return None
    # A cached or reasoning rate of the file belongs to the file's other rates, not to the recipe's.
    kept = FREE if own or listed is None else listed
    return Rates(
        input=input_rate,
        output=output_rate,
        cached_input=price.cached_input if price.cached_input is not None else kept.cached_input,
        reasoning=price.reasoning if price.reasoning is not None else kept.reasoning,
        batch_input=price.batch_input if price.batch_input is not None else kept.batch_input,
        batch_output=price.batch_output if price.batch_output is not None else kept.batch_output,
    )


def blended(rates: Sequence[tuple[Rates | None, float]]) -> Rates | None:
    """The mean of several teachers' rates by their shares; None where one is unknown."""
    known = [(one, share) for one, share in rates if one is not None]
    if len(known) < len(rates):
        return None
    return Rates(
        input=sum(one.input * share for one, share in known),
        output=sum(one.output * share for one, share in known),
    )


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
            f"{prices_path}: '{name}' needs input and output",
            remedy="it may also have cached_input, reasoning, batch_input and batch_output, nothing else",
        )
    if any(isinstance(rate, bool) or not isinstance(rate, int | float) or rate < 0 for rate in line.values()):
        raise DistillError(f"{prices_path}: '{name}': a rate is a number of dollars, 0 or more", remedy="mend the file")
    return Rates(**{field: float(rate) for field, rate in line.items()})

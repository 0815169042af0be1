"""How instruction families are put together: worked answers, their last line, and plain-text frames."""

import random
from collections.abc import Callable, Mapping, Sequence

from distill.tasks.phrasing import expand, pick
from distill.tasks.types import Draw, Family

ANSWER = "Answer: "


def worked(slots: Mapping[str, str], *, steps: Sequence[str] = (), result: str, key: str) -> Draw:
    """A draw whose answer shows its steps, a line each, and ends with the line `Answer: <result>`."""
    return Draw(slots=slots, answer="\n".join([*steps, ANSWER + result]), held_out_key=key)


def split_answer(answer: str) -> tuple[str, str | None]:
    """(steps, final answer): the text before and after the last `Answer:`; None where there is none."""
    steps, marker, final = answer.rpartition("Answer:")
    return (steps.rstrip("\n"), final.strip()) if marker else (answer, None)


def from_frames(frames: Sequence[str]) -> Callable[[random.Random, Draw], str]:
    """Plain text of a draw: a sentence frame filled with the slots, the `{steps}` and the `{result}`."""

    def plain(rng: random.Random, draw: Draw) -> str:
        steps, result = split_answer(draw.answer)
        return expand(pick(rng, frames), rng).format(steps=steps, result=result, **draw.slots)

    return plain


def instruction(
    name: str,
    draw: Callable[[random.Random], Draw],
    *,
    phrasings: Sequence[str],
    held_out: Sequence[str],
    frames: Sequence[str],
) -> Family:
    """An instruction family from its draw function, phrasings and plain-text frames."""
    return Family(
        name=name,
        kind="instruction",
        phrasings=tuple(phrasings),
        held_out_phrasings=tuple(held_out),
        draw=draw,
        plain=from_frames(frames),
    )


def comma(items: Sequence[object]) -> str:
    """Items as they stand in prompts and answers: `3, 1, 2`."""
    return ", ".join(map(str, items))


def spelled(word: str) -> str:
    """A word letter by letter: `l-e-m-o-n`."""
    return "-".join(word)

"""Task families by name: sampling tasks of a split, endless training streams, and verdicts on answers."""

import random
from collections.abc import Iterator, Sequence

from distill.errors import DistillError
from distill.judge.pairwise import parse
from distill.tasks.compare import JUDGE_FAMILY, draw_pair, final_answer
from distill.tasks.families import SOLVED_FAMILIES
from distill.tasks.phrasing import render_plainly, render_varied
from distill.tasks.split import draw_in_split
from distill.tasks.types import Draw, Family, Kind, Split, Task, Verdict, make_task

FAMILIES: dict[str, Family] = {family.name: family for family in (*SOLVED_FAMILIES, JUDGE_FAMILY)}
ALL_KINDS: tuple[Kind, ...] = ("instruction", "code", "judge")

# Share of each kind in the draws of a training stream; a judge task is about four times as long as an instruction.
KIND_SHARES: dict[Kind, float] = {"instruction": 0.48, "code": 0.34, "judge": 0.18}
# Draws relative to an ordinary family (1.0) of the same kind: what is hard to learn comes more often.
TRAINING_WEIGHTS: dict[str, float] = {
    "add": 2.0,
    "subtract": 2.0,
    "multiply": 2.0,
    "divide": 1.5,
    "compare_numbers": 1.5,
    "word_gain_loss": 2.0,
    "word_change": 2.0,
    "reverse_word": 3.0,
    "count_letter": 1.5,
    "uppercase": 1.5,
    "replace_letter": 3.0,
    "sort_ascending": 2.0,
    "sort_descending": 2.0,
    "sort_words": 2.0,
    "date_after": 1.5,
    "weekday_after": 2.0,
    "true_or_false": 1.5,
    "if_then": 1.5,
    "odd_one_out": 2.5,
    "order_of_three": 1.5,
    "question_about_text": 4.0,
}
MAX_REPEATS = 2000  # prompts met again in a row before a family counts as used up


def family_names(kind: Kind | None = None) -> tuple[str, ...]:
    """Names of all families, or of one kind."""
    return tuple(family.name for family in FAMILIES.values() if kind is None or family.kind == kind)


def _draw(family: Family, split: Split, rng: random.Random) -> Draw:
    if family.kind == "judge":  # its values are another family's, so it needs to know the split
        return draw_pair(rng, split)
    return draw_in_split(family, rng, held_out=split != "train")


def draw_task(family: Family, split: Split, rng: random.Random) -> Task:
    """One task of a split; wrappers and noise only in training."""
    drawn = _draw(family, split, rng)
    templates = family.held_out_phrasings if split == "phrasings" else family.phrasings
    phrasing = int(rng.random() * len(templates))
    if split == "train":
        prompt = render_varied(templates[phrasing], drawn.slots, rng, family.kind)
    else:
        prompt = render_plainly(templates[phrasing], drawn.slots, rng)
    return make_task(family.name, family.kind, split, phrasing, prompt, drawn)


def _selected(kinds: Sequence[Kind], families: Sequence[str] | None) -> list[Family]:
    if families is None:
        return [family for family in FAMILIES.values() if family.kind in kinds]
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise DistillError(
            f"unknown task families: {', '.join(unknown)}", remedy=f"choose from: {', '.join(sorted(FAMILIES))}"
        )
    return [FAMILIES[name] for name in families if FAMILIES[name].kind in kinds]


def sample_tasks(
    *,
    kinds: Sequence[Kind] = ALL_KINDS,
    families: Sequence[str] | None = None,
    split: Split,
    count: int,
    seed: int,
) -> Iterator[Task]:
    """`count` tasks of a split, family by family in turn, the same for the same seed, no prompt twice.

    A family that has no new prompts left drops out of the turn; fewer than `count` tasks come when all have.
    """
    turn = [(family, random.Random(f"{seed} {split} {family.name}")) for family in _selected(kinds, families)]
    seen: set[str] = set()
    made = 0
    while turn and made < count:
        used_up = []
        for family, rng in turn:
            if made == count:
                return
            for _ in range(MAX_REPEATS):
                task = draw_task(family, split, rng)
                if task.id not in seen:
                    seen.add(task.id)
                    made += 1
                    yield task
                    break
            else:
                used_up.append(family.name)
        turn = [(family, rng) for family, rng in turn if family.name not in used_up]


def _stream_weights(families: Sequence[Family]) -> list[float]:
    weights = [TRAINING_WEIGHTS.get(family.name, 1.0) for family in families]
    totals = {
        kind: sum(weight for family, weight in zip(families, weights, strict=True) if family.kind == kind)
        for kind in ALL_KINDS
    }
    return [
        weight * KIND_SHARES[family.kind] / totals[family.kind]
        for family, weight in zip(families, weights, strict=True)
    ]


def training_stream(seed: int, shard: int = 0, num_shards: int = 1) -> Iterator[Task]:
    """Endless training tasks of all families by weight; shards of one seed are independent streams."""
    if not 0 <= shard < num_shards:
        raise DistillError(f"shard {shard} of {num_shards} does not exist", remedy=f"use 0 to {num_shards - 1}")
    rng = random.Random(f"stream {seed} {shard} {num_shards}")
    families = list(FAMILIES.values())
    weights = _stream_weights(families)
    while True:
        for family in rng.choices(families, weights, k=1024):
            yield draw_task(family, "train", rng)


def _verify_judge(task: Task, text: str) -> Verdict:
    found, expected = parse(text), parse(task.answer)
    assert expected is not None
    if found is None:
        return Verdict(ok=False, reason="not in the form of a judgement")
    ok = found.better == expected.better
    return Verdict(ok=ok, reason="right choice" if ok else f"chose {found.better}, {expected.better} is better")


def verify(task: Task, text: str) -> Verdict:
    """Verdict on an answer: the exact final answer (instruction), the same choice (judge). Code needs the sandbox."""
    if task.kind == "code":
        raise DistillError(f"task {task.id} is code", remedy="run its tests with distill.sandbox")
    if task.kind == "judge":
        return _verify_judge(task, text)
    found, expected = final_answer(text), final_answer(task.answer)
    if found is None:
        return Verdict(ok=False, reason="no line `Answer:`")
    ok = found == expected
    return Verdict(ok=ok, reason="exact match" if ok else f"expected {expected!r}, got {found!r}")

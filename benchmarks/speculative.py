"""Speculative decoding beside plain decoding: a student as the draft of the teacher it was made from.

    python -m benchmarks.speculative [--draft FOLDER] [--tasks N] [--rounds N] [--quick] [--json PATH]

Held-out tasks as chats, tokens per CPU-second of the process on one thread, prompts included. Both ways take turns and
the best of each counts. Greedy texts are compared; sampled ones have the same distribution, not the same text. Beside
it, what Leviathan et al. (2211.17192) expect of an accept length L and K guesses at a time, where a draft's token costs
c of the target's, and checking K + 1 tokens costs one: L / (K c + 1), with c the share of its weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf

from benchmarks.common import Row, envelope, write_json
from distill.engine.runner import Engine, EngineConfig
from distill.engine.speculative.speculation import Draft
from distill.engine.types import EngineStats, SamplingParams
from distill.evaluate.accuracy import prompts_of
from distill.model.load import load_model, load_tokenizer
from distill.tasks.registry import sample_tasks

DATA = Path(__file__).parent.parent / "data"
SEED = 77


@dataclass(frozen=True)
class Load:
    """Prompts that are answered together, and how."""

    name: str
    rows: int
    params: SamplingParams
    draft_tokens: int


@dataclass(frozen=True)
class Measured:
    """Tokens per CPU-second, what came out, and the engine's counts."""

    speed: float
    outputs: list[tuple[int, ...]]
    stats: EngineStats


def loads(max_tokens: int, *, quick: bool) -> list[Load]:
    """One row and sixteen, greedy and sampled; how many guesses pay is part of the question."""
    greedy = SamplingParams(max_tokens=max_tokens)
    sampled = SamplingParams(max_tokens=max_tokens, temperature=1.0, top_p=0.95, seed=SEED)
    found = [
        Load("1 row, greedy, 4 guesses", 1, greedy, 4),
        Load("16 rows, greedy, 4 guesses", 16, greedy, 4),
        Load("1 row, temperature 1, 4 guesses", 1, sampled, 4),
    ]
    more = [Load(f"1 row, greedy, {count} guesses", 1, greedy, count) for count in (2, 8)]
    return found if quick else found + more


def answer(engine: Engine, prompts: Sequence[Sequence[int]], load: Load) -> Measured:
    """All prompts, `load.rows` at a time."""
    engine.stats = EngineStats()
    engine.forget_prefixes()
    outputs: list[tuple[int, ...]] = []
    started = time.process_time()
    for first in range(0, len(prompts), load.rows):
        outputs += [c.token_ids for c in engine.generate(prompts[first : first + load.rows], load.params)]
    seconds = time.process_time() - started
    return Measured(sum(map(len, outputs)) / seconds, outputs, engine.stats)


def measure(plain: Engine, draft: Draft, prompts: Sequence[Sequence[int]], load: Load, rounds: int) -> list[Row]:
    """Speed with a draft against speed without, accept length, acceptance rate, and equal texts where greedy."""
    guesser = Draft(draft.model, draft.tokenizer, load.draft_tokens)
    own = Engine(plain.model, plain.tokenizer, plain.config, draft=guesser)
    turns = [(answer(own, prompts, load), answer(plain, prompts, load)) for _ in range(rounds)]
    ours = max((mine for mine, _ in turns), key=lambda m: m.speed)
    peer = max((other for _, other in turns), key=lambda m: m.speed)
    cost = weights(draft.model) / weights(plain.model)
    expected = ours.stats.accept_length / (load.draft_tokens * cost + 1)
    most = load.draft_tokens + 1
    rows = [
        Row(f"{load.name}: with a draft", ours.speed, "tokens per CPU-second", peer.speed, ours.speed / peer.speed),
        Row(f"{load.name}: speed-up expected of the accept length", expected, "ratio"),
        Row(f"{load.name}: accept length, of at most {most}", ours.stats.accept_length, "tokens a verification"),
        Row(f"{load.name}: guesses that stood", ours.stats.acceptance_rate, "share"),
        Row(f"{load.name}: time of guessing", ours.stats.draft_seconds, "s"),
    ]
    if not load.params.temperature:
        same = sum(a == b for a, b in zip(ours.outputs, peer.outputs, strict=True)) / len(prompts)
        rows.append(Row(f"{load.name}: texts identical to plain decoding", same, "share", bar=1.0, ok=same == 1.0))
    return rows


def weights(model: hf.PreTrainedModel) -> int:
    """Parameters, each once; in the shipped models the table of embeddings is the LM head too."""
    return sum(p.numel() for p in model.parameters())


def main() -> int:
    """Measure, print, write; the exit code says whether every text is identical."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=DATA / "teacher")
    parser.add_argument("--draft", type=Path, default=DATA / "student-base")
    parser.add_argument("--tasks", type=int, default=64, help="prompts of each load")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--quick", action="store_true", help="few and short answers: under a minute")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.target)
    model = load_model(options.target, dtype="float32", device="cpu")
    draft = Draft(load_model(options.draft, dtype="float32", device="cpu"), load_tokenizer(options.draft))
    plain = Engine(model, tokenizer, EngineConfig(max_batch=16))
    count = 8 if options.quick else options.tasks
    tasks = list(sample_tasks(kinds=("instruction", "code"), split="values", count=count, seed=SEED))
    prompts = prompts_of(tokenizer, tasks)
    rows: list[Row] = []
    for load in loads(48 if options.quick else 256, quick=options.quick):
        rows += measure(plain, draft, prompts, load, rounds=1 if options.quick else options.rounds)
    for row in rows:
        beside = "" if row.ratio is None else f", without {row.peer:.4g}, ratio {row.ratio:.3f}"
        print(f"{row.name}: {row.value:.4g} {row.unit}{beside}" + ("" if row.bar is None else f" (bar: {row.ok})"))
    if options.json:
        size = " --quick" if options.quick else f" --tasks {options.tasks} --rounds {options.rounds}"
        command = "python -m benchmarks.speculative" + size
        details = {
            "target": {"name": options.target.name, "weights": weights(model)},
            "draft": {"name": "/".join(options.draft.resolve().parts[-2:]), "weights": weights(draft.model)},
        }
        write_json(options.json, envelope(what="speculative decoding", command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

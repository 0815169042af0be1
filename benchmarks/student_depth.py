"""Which layers a student should keep: those that every rule chooses, or all choices there are, before and after the
same steps of distillation.

    python -m benchmarks.student_depth --teacher ../shared/weights/stories260k --sampled 1000 --keep 3 --all --json PATH
    python -m benchmarks.student_depth --teacher FOLDER --text FOLDER --keep 6 --steps 200 --rows 32 --json PATH

Each set of layers is made and healed once for every `--steps` and seed, with the teacher's forward KL at one rate,
however many rules choose it. `--all` heals every set of that many layers: then a rule's place among all of them is
known, and how well the KL before healing, or after a few steps of it, tells what it is after many. Text is as in
`benchmarks.student_init`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.common import Row, envelope, write_json
from benchmarks.student_init import device, heal, quality, text_of
from benchmarks.student_init_text import Text, chats
from distill.model.calibration import Batch, pad_batches
from distill.model.depth import block_importance, choose_layers, evenly_spaced, losses_without, next_token_loss
from distill.model.importance import silent
from distill.model.load import load_model, load_tokenizer
from distill.model.selection import Report, best
from distill.model.structure import layers_of, without
from distill.quiet import quiet
from distill.recipe.prune import Prune

Layers = tuple[int, ...]
Measure = Literal["loss", "block_importance"]
MEASURES: tuple[Measure, ...] = ("loss", "block_importance")


def choices(teacher: Any, keep: int, batches: Sequence[Batch]) -> dict[str, Layers]:
    """What each rule keeps, by its name."""
    total = len(layers_of(teacher))
    found = {"evenly": evenly_spaced(total, keep)}
    for iterative, suffix in ((True, "one by one"), (False, "at once")):
        for by in MEASURES:
            name = f"{by.replace('_', ' ')}, {suffix}"
            found[name] = _freely(teacher, keep, batches, by, iterative)
            prune = Prune(layers_by=by, iterative=iterative)
            found[f"{name}, ends stay"] = choose_layers(teacher, keep, prune, batches, Report(), silent)
    blocks = {start: _without_block(teacher, start, total - keep, batches) for start in range(1, keep)}
    if blocks:
        start = min(blocks, key=lambda place: blocks[place])
        found["loss, a block, ends stay"] = [*range(start), *range(start + total - keep, total)]
    found["the first ones"] = list(range(keep))
    return {name: tuple(layers) for name, layers in found.items()}


def _freely(teacher: Any, keep: int, batches: Sequence[Batch], by: Measure, iterative: bool) -> list[int]:
    """As `choose_layers`, but the first and the last layer may go."""
    total = len(layers_of(teacher))
    left = list(range(total))
    while len(left) > keep:
        with without(teacher, set(range(total)) - set(left)):
            if by == "loss":
                scores = losses_without(teacher, batches, left)[1]
            else:
                scores = block_importance(teacher, batches)[left]
        left = [left[place] for place in best(scores, len(left) - 1 if iterative else keep)]
    return left


def _without_block(teacher: Any, start: int, count: int, batches: Sequence[Batch]) -> float:
    with without(teacher, range(start, start + count)):
        return next_token_loss(teacher, batches)


def student_of(teacher: Any, layers: Layers) -> Any:
    """The teacher with only these layers; its own weights."""
    student = copy.deepcopy(teacher)
    kept = [layers_of(student)[index] for index in layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    student.base_model.layers = nn.ModuleList(kept)
    student.config.num_hidden_layers = len(kept)
    return student


def measured(
    teacher: Any, remembered: Remembered, layers: Layers, text: Text, options: argparse.Namespace
) -> dict[str, Any]:
    """KL to the teacher of these layers, before and after: {steps: [of each seed]}."""
    started = time.monotonic()
    student = student_of(teacher, layers)
    before = quality(student, teacher, text.held_out, options, text.labels)
    after: dict[str, list[dict[str, float]]] = {}
    for steps in options.steps:
        found = []
        for seed in options.seeds:
            healed = copy.deepcopy(student)
            asked = argparse.Namespace(**{**vars(options), "steps": steps})
            heal(healed, remembered, text.train, asked, rate=options.rate, seed=seed, labels=text.labels)
            found.append(vars(quality(healed, teacher, text.held_out, options, text.labels)))
        after[str(steps)] = found
    return {"layers": list(layers), "before": vars(before), "after": after, "seconds": time.monotonic() - started}


class Remembered:
    """A teacher whose hidden states of a batch are computed once, for all students that read it in training."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self._states: dict[bytes, Any] = {}

    def base_model(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        """The output of the teacher's."""
        key = input_ids.cpu().numpy().tobytes()
        if key not in self._states:
            self._states[key] = self._teacher.base_model(input_ids=input_ids, use_cache=use_cache)
        return self._states[key]

    def get_output_embeddings(self) -> Any:
        """The teacher's."""
        return self._teacher.get_output_embeddings()


def kl_after(run: dict[str, Any], steps: int) -> float:
    """Mean over the seeds."""
    return statistics.fmean(each["kl"] for each in run["after"][str(steps)])


def summary(keep: int, rules: dict[str, Layers], runs: Sequence[dict[str, Any]], steps: Sequence[int]) -> list[Row]:
    """Of each rule whose layers are healed its KL before and after, the last beside the least of all sets that were."""
    by_layers = {tuple(run["layers"]): run for run in runs}
    rows = []
    for name, layers in rules.items():
        if (run := by_layers.get(layers)) is None:
            continue
        label = f"{keep} layers, {name} {list(layers)}"
        rows.append(Row(f"{label}, KL before", run["before"]["kl"], "nats/token"))
        for count in steps:
            kl, least = kl_after(run, count), min(kl_after(each, count) for each in runs)
            rows.append(Row(f"{label}, KL after {count}", kl, "nats/token", peer=least, ratio=kl / least))
    return rows


def told(keep: int, runs: Sequence[dict[str, Any]], steps: Sequence[int]) -> list[Row]:
    """How well an earlier KL orders the sets as the last one does: Spearman's rank correlation."""
    last = [kl_after(run, steps[-1]) for run in runs]
    earlier = {"before": [run["before"]["kl"] for run in runs]}
    earlier |= {f"after {count}": [kl_after(run, count) for run in runs] for count in steps[:-1]}
    name = f"{keep} layers, all {len(runs)} sets, rank correlation of KL {{}} with KL after {steps[-1]}"
    return [Row(name.format(when), spearman(values, last), "") for when, values in earlier.items()]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Of values without ties."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def compare(options: argparse.Namespace, keep_results: Callable[[list[Row], dict[str, Any]], None]) -> None:
    """Heal every set of layers; `keep_results` gets all rows and details after each of them."""
    teacher: Any = load_model(options.teacher, dtype="float32").to(device())  # type: ignore[arg-type]
    text = _text(teacher, options)
    calibration = pad_batches(text.train[: options.calibration_rows].tolist(), max_length=options.row_tokens)
    shapes = {"train": list(text.train.shape), "held_out": list(text.held_out.shape)}
    details: dict[str, Any] = {"text": {"of": text.of, **shapes}, "cuts": []}
    done: list[Row] = []
    remembered = Remembered(teacher)
    for keep in options.keep:
        rules = choices(teacher, keep, calibration)
        sets: list[Layers] = list(dict.fromkeys(rules.values()))
        if options.all:
            sets = list(itertools.combinations(range(len(layers_of(teacher))), keep))
        print(f"{keep} layers: " + "; ".join(f"{name} {list(layers)}" for name, layers in rules.items()), flush=True)
        runs: list[dict[str, Any]] = []
        details["cuts"].append({"keep": keep, "rules": rules, "runs": runs})
        for layers in sets:
            run = measured(teacher, remembered, layers, text, options)
            runs.append(run)
            after = "  ".join(f"{steps}: {kl_after(run, steps):.4f}" for steps in options.steps)
            print(f"{list(layers)!s:<44} KL {run['before']['kl']:7.4f}  {after}  {run['seconds']:.0f} s", flush=True)
            keep_results(done + summary(keep, rules, runs, options.steps), details)
        done += summary(keep, rules, runs, options.steps)
        done += told(keep, runs, options.steps) if options.all else []
        keep_results(done, details)


def _text(teacher: Any, options: argparse.Namespace) -> Text:
    if options.chats:
        tokenizer: Any = load_tokenizer(options.teacher)
        return chats(tokenizer, rows=options.chats, row_tokens=options.row_tokens, held_out=options.held_out)
    return text_of(teacher, argparse.Namespace(**{**vars(options), "steps": max(options.steps)}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a Llama")
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--sampled", type=int, default=0, help="rows that the teacher writes, instead of --text")
    parser.add_argument("--chats", type=int, default=0, help="rows of the embedded teacher's chats; answers count")
    parser.add_argument("--keep", type=int, nargs="+", required=True, help="layers that stay")
    parser.add_argument("--all", action="store_true", help="all sets of so many layers, not only those of the rules")
    parser.add_argument("--steps", type=int, nargs="+", default=[300], help="each in a schedule of its own")
    parser.add_argument("--rows", type=int, default=8, help="in a step")
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calibration-rows", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=64, help="rows of text held out")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    if sum(map(bool, (options.text, options.sampled, options.chats))) != 1:
        parser.error("give one of --text, --sampled and --chats")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it."""
    options = _options(arguments)
    command = "python -m benchmarks.student_depth " + " ".join(arguments or sys.argv[1:])

    def keep_results(rows: list[Row], details: dict[str, Any]) -> None:
        if options.json:
            what = "which layers a student should keep"
            write_json(options.json, envelope(what=what, command=command, rows=rows, details=details))

    with quiet():
        compare(options, keep_results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

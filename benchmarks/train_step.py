"""Training steps of distillation beside TRL's: tokens a second and peak memory, off-policy and on-policy.

    python -m benchmarks.train_step [--quick] [--ways NAME ...] [--steps N] [--limit SECONDS] [--json PATH]

On a CUDA GPU: a teacher of Qwen2.5-1.5B's shape and a student of Qwen2.5-0.5B's with random weights, V = 151,936, rows
of up to 1,024 tokens whose lengths spread as chats' do; the student in float32 under bfloat16 autocast, the teacher in
bfloat16, no gradient checkpointing, the same for all. `--quick`, and any CPU: tiny models, to see that it runs; its
numbers mean nothing. Each way trains in a process of its own, timed after two steps (on-policy one, where passes are
captured eight), tells each step as it ends, and is written to the JSON file as soon as it is done. What `--limit` ends
counts the steps that it ended; where these are none, what the one under way took is a lower bound. Random weights never
say that they are done: so many tokens end an answer that lengths are geometric, for every trainer alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Row, envelope, write_json
from benchmarks.own_process import NOT_DONE, in_own_process

SEED = 0
ANSWER_TOKENS = ("answer_tokens", "completions/mean_length")  # as ours and TRL's call it
OFF_POLICY_BAR, ON_POLICY_BAR = 1.5, 3.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the models and of the work."""

    vocab: int
    teacher: dict[str, int]
    student: dict[str, int]
    longest: int
    batch: int
    micro_batch: int
    own_micro_batch: int  # on-policy
    max_new_tokens: int
    end_tokens: int  # of the vocabulary: how many end an answer
    steps: int
    own_steps: int
    warm_up: int  # steps before those that are timed; on-policy one
    capture_steps: int  # the same where passes are captured


QWEN = {"max_position_embeddings": 32_768}
REAL = Shape(
    vocab=151_936,
    teacher={
        **QWEN,
        **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
        **{"num_attention_heads": 12, "num_key_value_heads": 2},
    },
    student={
        **QWEN,
        **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2},
    },
    longest=1024,
    batch=32,
    micro_batch=8,
    own_micro_batch=8,
    max_new_tokens=256,
    end_tokens=900,
    steps=6,
    own_steps=2,
    warm_up=2,
    capture_steps=8,
)
TINY_MODEL = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 1024},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
TINY = Shape(
    vocab=300,
    teacher={**TINY_MODEL, "num_hidden_layers": 3},
    student=TINY_MODEL,
    longest=48,
    batch=4,
    micro_batch=2,
    own_micro_batch=2,
    max_new_tokens=6,
    end_tokens=20,
    steps=2,
    own_steps=2,
    warm_up=1,
    capture_steps=2,
)


@dataclass(frozen=True)
class Kind:
    """A function of `train_step_ways`, whether it trains on the student's answers, and what of ours it uses."""

    function: str
    own: bool = False
    triton: bool = False
    graphs: bool = False
    replay: bool = False


GKD, GKD_OWN, DISTILLATION = "TRL GKDTrainer, off-policy", "TRL GKDTrainer, on-policy", "TRL DistillationTrainer"
WAYS = {
    "kd": Kind("ours_off_policy", triton=True, graphs=True),
    GKD: Kind("gkd_off_policy"),
    "on_policy": Kind("ours_on_policy", own=True, triton=True, graphs=True),
    DISTILLATION: Kind("distillation_on_policy", own=True),
    "on_policy, replay": Kind("ours_on_policy", own=True, triton=True, graphs=True, replay=True),
    "kd, no graphs": Kind("ours_off_policy", triton=True),
    "on_policy, no graphs": Kind("ours_on_policy", own=True, triton=True),
    "kd, plain torch": Kind("ours_off_policy"),
    "on_policy, plain torch": Kind("ours_on_policy", own=True),
    GKD_OWN: Kind("gkd_on_policy", own=True),
    "kd, stored hidden states": Kind("ours_stored_hidden", triton=True, graphs=True),
    "kd, stored top k": Kind("ours_stored_top_k", triton=True, graphs=True),
    "kd, stored samples": Kind("ours_stored_samples", triton=True, graphs=True),
}
PEERS = {
    name: DISTILLATION if kind.own else GKD
    for name, kind in WAYS.items()
    if kind.function.startswith("ours") and not kind.replay  # the peers answer in every step
}


@dataclass(frozen=True)
class Result:
    """What one way did: seconds of the timed steps, tokens of the dataset's rows in them, mean tokens of the student's
    answers as the trainer logs them, peak memory in bytes and what the models alone take of it.

    `part_seconds`: of `seconds`, what parts of a step took (`train_step_ways.timed_parts`).
    `steps` 0: not one of the timed ones ended, and `seconds` is what the step under way took, at least.
    """

    seconds: float
    step_seconds: list[float]
    steps: int
    tokens: int
    answer_tokens: list[float]
    peak_bytes: int
    model_bytes: int
    losses: list[float]
    part_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How many steps a way has ended and after how many seconds of training; what they did, once one was timed."""

    steps: int
    seconds: float
    result: Result | None


Tell = Callable[[Progress], None]


def rows_of(shape: Shape, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of random tokens: whole lengths log-normal with median 0.4 of the longest and sigma 0.7, cut
    at the longest; a prompt is between a tenth and a half of its row."""
    rng = random.Random(SEED)
    found = []
    for _ in range(count):
        length = min(shape.longest, max(8, round(0.4 * shape.longest * rng.lognormvariate(0.0, 0.7))))
        prompt = max(2, round(length * rng.uniform(0.1, 0.5)))
        tokens = [rng.randrange(shape.end_tokens + 3, shape.vocab) for _ in range(length)]
        found.append((tokens[:prompt], tokens[prompt:]))
    return found


def measure(name: str, shape: Shape, steps: int | None, tell: Tell = lambda progress: None) -> Result:
    """Build the models and train on the rows, with a step or two before that are not timed."""
    import torch
    from transformers.trainer_callback import PrinterCallback

    from distill.quiet import quiet

    with quiet():
        from benchmarks import train_step_ways as ways

    kind = WAYS[name]
    steps = steps or (shape.own_steps if kind.own else shape.steps)
    warm_up = warm_up_of(name, shape)
    cuda = torch.cuda.is_available()

    with quiet():
        student, teacher = _models(shape, "cuda" if cuda else "cpu")
        rows = [ways.Row(*row) for row in rows_of(shape, (steps + warm_up) * shape.batch)]
        setting = ways.Setting(
            student=student,
            teacher=teacher,
            rows=rows,
            steps=steps + warm_up,
            batch=shape.batch,
            micro_batch=shape.own_micro_batch if kind.own else shape.micro_batch,
            max_new_tokens=shape.max_new_tokens,
            bfloat16=cuda,
            triton=kind.triton and cuda,
            cuda_graphs=kind.graphs,
            replay=kind.replay,
        )
        model_bytes = torch.cuda.memory_allocated() if cuda else 0
        way: ways.Way = getattr(ways, kind.function)
        trainer = way(setting)
        ordered = [len(row.ids) for row in ways.in_order(setting, trainer)]

        def result(ends: Sequence[float]) -> Result:
            """Of the steps that ended, the untimed ones included."""
            timed = len(ends) - 1
            answered = [line[key] for line in trainer.state.log_history for key in ANSWER_TOKENS if key in line]
            return Result(
                seconds=ends[-1] - ends[0],
                step_seconds=[after - before for before, after in zip(ends, ends[1:], strict=False)],
                steps=timed,
                tokens=sum(ordered[warm_up * shape.batch : (warm_up + timed) * shape.batch]),
                answer_tokens=answered,
                peak_bytes=_peak_bytes(),
                model_bytes=model_bytes,
                losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
                part_seconds={name: partly[-1][name] - partly[warm_up][name] for name in parts},
            )

        times: list[float] = []
        parts = ways.timed_parts(trainer)
        partly: list[dict[str, float]] = []  # seconds until each of the times

        def note(now: float) -> None:
            times.append(now)
            partly.append({name: part.seconds() for name, part in parts.items()})
            partial = result(times[warm_up:]) if len(times) > warm_up else None
            tell(Progress(len(times) - 1, now - times[0], partial))

        trainer.add_callback(ways.Clock(note))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return result(times[warm_up:])


def warm_up_of(name: str, shape: Shape) -> int:
    """Steps of a way that are not timed."""
    kind = WAYS[name]
    if kind.graphs:  # shapes are captured the second time they come
        return shape.capture_steps
    return 1 if kind.own else shape.warm_up


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _models(shape: Shape, device: str) -> tuple[Any, Any]:
    """Student in float32 and teacher in bfloat16 (float32 on a CPU), random weights."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(SEED)
    made = []
    for sizes, tied in ((shape.student, True), (shape.teacher, True)):
        config = Qwen2Config(vocab_size=shape.vocab, tie_word_embeddings=tied, rope_theta=1e6, **sizes)
        with torch.device(device):
            made.append(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    student, teacher = made
    for model in made:
        model.generation_config.eos_token_id = list(range(1, shape.end_tokens + 1))
    return student, teacher.to(torch.bfloat16) if device == "cuda" else teacher


def timed(name: str, shape: Shape, steps: int | None, limit: float | None) -> Result | str:
    """A way's result; of what the limit ended, the steps that it had done, or how long the one under way took."""
    heard: list[tuple[Progress, float]] = []

    def hear(progress: Progress) -> None:
        heard.append((progress, time.monotonic()))
        print(f"{name}: {progress.steps} steps after {progress.seconds:.2f} s", flush=True)

    found = in_own_process(functools.partial(measure, name, shape, steps), hear, limit=limit)
    if isinstance(found, Result) or not heard or not found.startswith(NOT_DONE):
        return found
    last, when = heard[-1]
    if last.result is not None and last.result.steps:
        return last.result
    return Result(time.monotonic() - when, [], 0, 0, [], 0, 0, [])


def table(results: dict[str, Result], *, bars: bool) -> list[Row]:
    """Rows for the JSON file: rates with the ratio to the peer's, and peaks. Of a peer that ended no step the rate is
    an upper bound, and the ratio a lower one."""
    rows = []
    for name, result in results.items():
        own = WAYS[name].own
        peer = results.get(PEERS.get(name, ""))
        rate = _rate(result, own=own)
        unit, bar = ("steps/s", ON_POLICY_BAR) if own else ("tokens/s", OFF_POLICY_BAR)
        if not result.steps:
            rows.append(Row(f"{name}: a step takes more than", result.seconds, "s"))
            continue
        if peer is None or not (peer.steps or own):
            rows.append(Row(name, rate, unit))
            rows.append(Row(f"{name}: peak memory", result.peak_bytes / 2**30, "GiB"))
            continue
        theirs = _rate(peer, own=own)
        ratio = rate / theirs
        title = name if peer.steps else f"{name} (the peer's rate is an upper bound)"
        rows.append(Row(title, rate, unit, theirs, ratio, None, bar if bars else None, ratio >= bar if bars else None))
        peaks = result.peak_bytes / 2**30, peer.peak_bytes / 2**30
        if not peer.steps:
            rows.append(Row(f"{name}: peak memory", peaks[0], "GiB"))
            continue
        share, less = peaks[0] / peaks[1], result.peak_bytes < peer.peak_bytes
        rows.append(Row(f"{name}: peak memory", peaks[0], "GiB", peaks[1], share, None, None, less if bars else None))
    return rows


def _rate(result: Result, *, own: bool) -> float:
    """Steps or tokens a second; of an unfinished step what it can be at most."""
    return (max(result.steps, 1) if own else result.tokens) / result.seconds


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; 1 where a bar is missed or a way failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="NAME", help=", ".join(WAYS))
    parser.add_argument("--steps", type=int, help="timed steps of each way")
    parser.add_argument("--limit", type=float, help="seconds, with its start, after which a way is ended")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    import torch

    from distill.quiet import quiet

    with quiet():
        import benchmarks.train_step_ways  # noqa: F401  before the forks

    real = torch.cuda.device_count() > 0 and not options.quick
    shape = REAL if real else TINY
    chosen = options.ways or list(WAYS)
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        found = timed(name, shape, options.steps, options.limit)
        if isinstance(found, Result):
            results[name] = found
        else:
            failed[name] = found
        print(name, found, flush=True)
        rows = table(results, bars=real)
        if options.json is not None:
            details = {
                "shape": asdict(shape),
                "results": {way: asdict(result) for way, result in results.items()},
                "failed": failed,
            }
            command = " ".join(["python -m benchmarks.train_step", *arguments])
            # it asks for the GPU's name, and a process that has used CUDA cannot be forked
            made = functools.partial(envelope, what="train step", command=command, rows=rows, details=details)
            result = in_own_process(lambda _, made=made: made(), lambda _: None)
            assert not isinstance(result, str), result
            write_json(options.json, result)
    print(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if failed or any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

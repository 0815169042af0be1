"""Training steps of distillation beside TRL's: tokens a second and peak memory, off-policy and on-policy.

    python -m benchmarks.train_step [--quick] [--ways NAME ...] [--steps N] [--json PATH]

On a CUDA GPU: a teacher of Qwen2.5-1.5B's shape and a student of Qwen2.5-0.5B's with random weights, V = 151,936, rows
of up to 1,024 tokens whose lengths spread as chats' do; the student in float32 under bfloat16 autocast, the teacher in
bfloat16, no gradient checkpointing, the same for all. `--quick`, and any CPU: tiny models, to see that it runs; its
numbers mean nothing. Each way trains in a process of its own, timed after two steps (on-policy one), and is written to
the JSON file as soon as it is done. Random weights never say that they are done: so many tokens end an answer that
lengths are geometric, for every trainer alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import Row, envelope, write_json

T = TypeVar("T")
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
)
# name -> (function of train_step_ways, whether it trains on the student's answers, whether our kernels are used)
WAYS = {
    "kd, triton": ("ours_off_policy", False, True),
    "TRL GKDTrainer, off-policy": ("gkd_off_policy", False, False),
    "on_policy, triton": ("ours_on_policy", True, True),
    "TRL DistillationTrainer": ("distillation_on_policy", True, False),
    "kd": ("ours_off_policy", False, False),
    "on_policy": ("ours_on_policy", True, False),
    "TRL GKDTrainer, on-policy": ("gkd_on_policy", True, False),
}
PEERS = {
    "kd": "TRL GKDTrainer, off-policy",
    "kd, triton": "TRL GKDTrainer, off-policy",
    "on_policy": "TRL DistillationTrainer",
    "on_policy, triton": "TRL DistillationTrainer",
}


@dataclass(frozen=True)
class Result:
    """What one way did: seconds of the timed steps, tokens of the dataset's rows in them, mean tokens of the student's
    answers as the trainer logs them, peak memory in bytes and what the models alone take of it."""

    seconds: float
    step_seconds: list[float]
    steps: int
    tokens: int
    answer_tokens: list[float]
    peak_bytes: int
    model_bytes: int
    losses: list[float]


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


def measure(name: str, shape: Shape, steps: int | None) -> Result:
    """Build the models and train on the rows, with a step before that is not timed."""
    import torch
    from transformers.trainer_callback import PrinterCallback

    from distill.quiet import quiet

    with quiet():
        from benchmarks import train_step_ways as ways

    function, own, triton = WAYS[name]
    steps = steps or (shape.own_steps if own else shape.steps)
    warm_up = 1 if own else shape.warm_up
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
            micro_batch=shape.own_micro_batch if own else shape.micro_batch,
            max_new_tokens=shape.max_new_tokens,
            bfloat16=cuda,
            triton=triton,
        )
        model_bytes = torch.cuda.memory_allocated() if cuda else 0
        way: ways.Way = getattr(ways, function)
        trainer, clock = way(setting), ways.Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    ends = clock.ends[warm_up - 1 :]
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Result(
        seconds=ends[-1] - ends[0],
        step_seconds=[after - before for before, after in zip(ends, ends[1:], strict=False)],
        steps=steps,
        tokens=sum(len(row.ids) for row in ways.in_order(setting, trainer)[warm_up * shape.batch :]),
        answer_tokens=[line[key] for line in trainer.state.log_history for key in ANSWER_TOKENS if key in line],
        peak_bytes=peak,
        model_bytes=model_bytes,
        losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
    )


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


def in_own_process(work: Callable[[], T]) -> T | str:
    """What `work` returns in a process of its own, or why it returns nothing."""
    context = multiprocessing.get_context("fork")  # what is imported already need not be again; CUDA is not in use here
    receiver, sender = context.Pipe(duplex=False)

    def answer() -> None:
        try:
            sender.send(work())
        except BaseException as error:
            traceback.print_exc()
            sender.send(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(0)

    process = context.Process(target=answer)
    process.start()
    sender.close()
    try:
        found: T | str = receiver.recv()
    except EOFError:
        found = "its process was killed"
    process.join()
    return found


def table(results: dict[str, Result], *, bars: bool) -> list[Row]:
    """Rows for the JSON file: rates with the ratio to the peer's, and peaks."""
    rows = []
    for name, result in results.items():
        own = WAYS[name][1]
        peer = results.get(PEERS.get(name, ""))
        rate = result.steps / result.seconds if own else result.tokens / result.seconds
        unit, bar = ("steps/s", ON_POLICY_BAR) if own else ("tokens/s", OFF_POLICY_BAR)
        if peer is None:
            rows.append(Row(name, rate, unit))
            rows.append(Row(f"{name}: peak memory", result.peak_bytes / 2**30, "GiB"))
            continue
        theirs = peer.steps / peer.seconds if own else peer.tokens / peer.seconds
        ratio, less = rate / theirs, result.peak_bytes < peer.peak_bytes
        rows.append(Row(name, rate, unit, theirs, ratio, None, bar if bars else None, ratio >= bar if bars else None))
        peaks = result.peak_bytes / 2**30, peer.peak_bytes / 2**30
        share = peaks[0] / peaks[1]
        rows.append(Row(f"{name}: peak memory", peaks[0], "GiB", peaks[1], share, None, None, less if bars else None))
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; 1 where a bar is missed or a way failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), metavar="NAME", help=", ".join(WAYS))
    parser.add_argument("--steps", type=int, help="timed steps of each way")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    import torch

    from distill.quiet import quiet

    with quiet():
        import benchmarks.train_step_ways  # noqa: F401  before the forks

    real = torch.cuda.device_count() > 0 and not options.quick
    shape = REAL if real else TINY
    chosen = options.ways or [name for name, (_, _, triton) in WAYS.items() if real or not triton]
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    for name in chosen:
        found = in_own_process(functools.partial(measure, name, shape, options.steps))
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
            result = in_own_process(made)
            assert not isinstance(result, str), result
            write_json(options.json, result)
    print(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if failed or any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

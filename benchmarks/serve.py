"""The engine against `generate()` and transformers' continuous batching, one after the other in one process.

    python -m benchmarks.serve [--quick] [--json PATH]

Speed is tokens per CPU-second of the process on one thread, prompts included, greedy. The engine and `generate()` take
turns, each first in every second round; a ratio is the median of the rounds' ratios, as neighbours in time share the
machine's mood. Ours runs without reuse of prefixes.
Then what the cache saves and costs (`benchmarks/serve_cache.py`).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import transformers as hf

from benchmarks.common import Row, envelope, write_json
from benchmarks.serve_cache import cache_rows
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams

BLOCK = 32  # the engine's default
UNIT = "tokens per CPU-second"
_PATIENCE_SECONDS = 900


@dataclass(frozen=True)
class Load:
    """Prompts, and how many tokens each gets."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Measured:
    """Tokens per CPU-second, and what came out."""

    speed: float
    outputs: list[tuple[int, ...]]


def thirty_million() -> hf.PreTrainedModel:
    """A Llama of 30 M parameters, random weights, fp32: 8 query heads on 2 KV heads of size 64."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = hf.LlamaForCausalLM(config).float().eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model


def equal_load(rows: int, prompt: int, new: int) -> Load:
    """Every row the same size."""
    return Load(f"{rows} x {prompt}+{new}", _prompts([prompt] * rows), [new] * rows)


def ragged_load(rows: int, longest: int) -> Load:
    """Prompts and answers of 1/16 of `longest` to `longest` tokens."""
    rng = random.Random(1)
    draw = [(rng.randint(longest // 16, longest), rng.randint(longest // 16, longest)) for _ in range(rows)]
    return Load(f"{rows} ragged to {longest}+{longest}", _prompts([p for p, _ in draw]), [n for _, n in draw])


def _prompts(lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(1, 8192) for _ in range(length)] for length in lengths]


def by_engine(model: hf.PreTrainedModel) -> Callable[[Load], Measured]:
    """Ours. The engine is made before the clock starts, as in a server."""
    engine = Engine(model, None, EngineConfig(max_batch=64, block_size=BLOCK, prefix_cache=False))

    def run(load: Load) -> Measured:
        params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in load.lengths]
        started = time.process_time()
        found = engine.generate(load.prompts, params)
        return Measured(load.tokens / (time.process_time() - started), [c.token_ids for c in found])

    return run


def by_generate(model: hf.PreTrainedModel) -> Callable[[Load], Measured]:
    """One padded batch, to the end of its longest row."""

    def run(load: Load) -> Measured:
        width = max(map(len, load.prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in load.prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in load.prompts])
        started = time.process_time()
        out = model.generate(ids, attention_mask=mask, max_new_tokens=max(load.lengths), do_sample=False)
        seconds = time.process_time() - started
        rows = [tuple(row[width : width + n].tolist()) for row, n in zip(out, load.lengths, strict=True)]
        return Measured(load.tokens / seconds, rows)

    return run


def by_continuous_batching(model: hf.PreTrainedModel) -> Callable[[Load], Measured]:
    """transformers' own paged engine, at our block size and token budget."""

    def run(load: Load) -> Measured:
        blocks = sum(-(-(len(p) + n) // BLOCK) + 1 for p, n in zip(load.prompts, load.lengths, strict=True))
        settings = hf.ContinuousBatchingConfig(
            page_size=BLOCK, num_blocks=blocks, max_batch_tokens=512 + len(load.prompts), allow_block_sharing=False
        )
        started = time.process_time()
        with model.continuous_batching_context_manager(
            generation_config=hf.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=settings,
            block=True,
            timeout=_PATIENCE_SECONDS,
        ) as manager:
            names = [
                manager.add_request(prompt, max_new_tokens=n)
                for prompt, n in zip(load.prompts, load.lengths, strict=True)
            ]
            found: dict[str, tuple[int, ...]] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=_PATIENCE_SECONDS)
                assert result is not None, "continuous batching fell silent"
                if result.is_finished():
                    found[result.request_id] = tuple(result.generated_tokens)
            seconds = time.process_time() - started
        return Measured(load.tokens / seconds, [found[name] for name in names])

    return run


def compare(model: hf.PreTrainedModel, load: Load, bars: dict[str, float], rounds: int) -> list[Row]:
    """One row a peer: our median speed, the peer's, the median ratio, and whether the greedy tokens are those of
    `generate()`. Continuous batching, the slowest, runs once."""
    engine, generate, batching = by_engine(model), by_generate(model), by_continuous_batching(model)
    turns = []
    for turn in range(rounds):
        if turn % 2:
            peer, own = generate(load), engine(load)
        else:
            own, peer = engine(load), generate(load)
        turns.append((own, peer))
    ours = [own for own, _ in turns]
    single = batching(load)
    peers = {"generate": [peer for _, peer in turns], "continuous batching": [single] * rounds}
    rows = []
    for name, found in peers.items():
        ratio, bar = median(a.speed / b.speed for a, b in zip(ours, found, strict=True)), bars.get(name)
        speeds = [median(one.speed for one in many) for many in (ours, found)]
        ok = None if bar is None else ratio >= bar
        rows.append(Row(f"{load.name} against {name}", speeds[0], UNIT, speeds[1], ratio, bar=bar, ok=ok))
    same = sum(a == b for a, b in zip(turns[0][0].outputs, turns[0][1].outputs, strict=True)) / len(load.prompts)
    rows.append(Row(f"{load.name}: rows identical to generate", same, "share", bar=1.0, ok=same == 1.0))
    return rows


def main() -> int:
    """Measure, print, write; the exit code says whether every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short answers and 16 ragged rows: under a minute")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = thirty_million()
    new = 16 if options.quick else 128
    loads = [
        (equal_load(1, 128, new), {"generate": 1.0}, 1 if options.quick else 15),
        (equal_load(16, 128, new), {"generate": 1.0}, 1 if options.quick else 5),
    ]
    if options.quick:
        loads.append((ragged_load(16, 64), {}, 1))  # its bar is for 64 rows
    else:
        loads.append((equal_load(64, 128, new), {"continuous batching": 2.5}, 1))
        loads.append((ragged_load(64, 256), {"generate": 1.7}, 1))
    rows = [row for load, bars, rounds in loads for row in compare(model, load, bars, rounds)]
    rows += cache_rows(model, documents=8 if options.quick else 200)
    for row in rows:
        peer = "" if row.ratio is None else f", peer {row.peer:.4g}, ratio {row.ratio:.4g}"
        print(
            f"{row.name}: {row.value:.4g} {row.unit}{peer}" + ("" if row.bar is None else f" (bar {row.bar}: {row.ok})")
        )
    if options.json:
        command = "python -m benchmarks.serve" + (" --quick" if options.quick else "")
        write_json(options.json, envelope(what="engine speed", command=command, rows=rows, details={}))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""What the KV cache saves and costs: prefix reuse, bytes, int8 and fp8, doing without. Counts, and CPU time at times.

Used by `python -m benchmarks.serve`; alone it measures int8 and fp8.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from itertools import compress
from pathlib import Path
from typing import Literal

import torch
import transformers as hf

from benchmarks.common import Row, at_least, envelope, write_json
from distill.engine.kv_cache import CODES, LayerShape, blocks_for, kv_bytes_per_token, stored_bytes
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import Completion, SamplingParams
from distill.model.chat import encode_completion
from distill.model.load import load_model, load_tokenizer
from distill.records import Message, user_message
from distill.tasks.registry import sample_tasks

_HEADER, _CHOICE, _CHOICES = 200, 12, 4
_QUESTIONS = 8
_TEACHER = Path(__file__).parent.parent / "data" / "teacher"


def cache_rows(model: hf.PreTrainedModel, *, documents: int) -> list[Row]:
    """All of it; `documents` is how many answers the perplexity is taken over."""
    return [*_prefix_rows(model), _bytes_row(model), _window_row(), *_off_rows(model), *_code_rows(documents)]


def _prefix_rows(model: hf.PreTrainedModel) -> list[Row]:
    """Questions of 200 tokens with four answers each, scored with and without reuse."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(1, 8192) for _ in range(count)]

    headers = [tokens(_HEADER) for _ in range(_QUESTIONS)]
    prompts = [header + tokens(_CHOICE) for header in headers for _ in range(_CHOICES)]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    cached, plain = Engine(model, None), Engine(model, None, EngineConfig(prefix_cache=False))
    seconds: list[float] = []
    found: list[list[Completion]] = []
    for engine in (cached, plain):
        started = time.process_time()
        found.append(engine.generate(prompts, params))
        seconds.append(time.process_time() - started)
    computed, naive = (e.stats.prefill_tokens + e.stats.decode_tokens for e in (cached, plain))
    furthest = max(
        abs(a.logprob - b.logprob)
        for own, other in zip(*found, strict=True)
        for a, b in zip(own.prompt_logprobs or (), other.prompt_logprobs or (), strict=True)
        if a is not None and b is not None
    )
    name = f"scoring {_CHOICES} answers to a question of {_HEADER} tokens"
    share = computed / naive
    return [
        Row(f"{name}: tokens computed", computed, "tokens", naive, share, bar=0.35, ok=share <= 0.35),
        Row(f"{name}: largest difference of a log probability", furthest, "nats", bar=1e-4, ok=furthest <= 1e-4),
        Row(f"{name}: CPU time, without reuse as the peer", seconds[0], "s", seconds[1], seconds[0] / seconds[1]),
    ]


def _bytes_row(model: hf.PreTrainedModel) -> Row:
    """Bytes allocated against 2 x bytes x layers x KV heads x head size x tokens."""
    config = EngineConfig(num_blocks=37, block_size=16)
    cache = Engine(model, None, config).cache
    assert cache is not None
    formula = kv_bytes_per_token(model.config, model.dtype) * 37 * 16
    exact = cache.total_bytes == formula
    return Row(
        "KV bytes allocated, the formula as the peer", cache.total_bytes, "bytes", formula, 1.0, bar=1.0, ok=exact
    )


def _window_row() -> Row:
    """What a sequence of eight windows holds once its prompt is computed, in a Gemma-2 of which every other layer sees
    a window of 256 tokens. Of all it is (8 + 1) / 16, and what a window takes at most to lie across its blocks."""
    window = 256
    torch.manual_seed(0)
    config = hf.Gemma2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=window,
        max_position_embeddings=16 * window,
    )
    engine = Engine(hf.Gemma2ForCausalLM(config).float().eval(), None)
    assert engine.cache is not None
    rng = random.Random(0)
    prompt = [rng.randrange(1, 512) for _ in range(8 * window)]
    engine.add("long", prompt, SamplingParams(max_tokens=8, ignore_eos=True))
    while engine.stats.sampled_tokens < 2:
        engine.step()
    held = engine.blocks_in_use * engine.cache.block_bytes
    whole = blocks_for(len(prompt) + 1, engine.config.block_size) * engine.config.block_size
    everything = whole * kv_bytes_per_token(engine.model.config, engine.model.dtype)
    share = held / everything
    return Row(
        "KV bytes held at 8 windows, every other layer sliding, all of them as the peer",
        held,
        "bytes",
        everything,
        share,
        bar=0.6,
        ok=share <= 0.6,
    )


def _off_rows(model: hf.PreTrainedModel) -> list[Row]:
    """One answer with the cache and without."""
    prompt = [[random.Random(1).randrange(1, 8192) for _ in range(128)]]
    params = SamplingParams(max_tokens=32, ignore_eos=True)
    speeds, texts = [], []
    for use in (True, False):
        engine = Engine(model, None, EngineConfig(use_kv_cache=use))
        started = time.process_time()
        (completion,) = engine.generate(prompt, params)
        speeds.append(32 / (time.process_time() - started))
        texts.append(completion.token_ids)
    ratio = speeds[0] / speeds[1]
    return [
        Row("1 x 128+32, the cache off as the peer", speeds[0], "tokens per CPU-second", speeds[1], ratio),
        at_least("1 x 128+32: text the same with the cache off", float(texts[0] == texts[1]), 1.0),
    ]


def _code_rows(documents: int) -> list[Row]:
    """Bytes at head size 64 against 16 bits, and the perplexity of the embedded teacher with its KV in each form."""
    tokenizer, model = load_tokenizer(_TEACHER), load_model(_TEACHER, dtype="float32", device="cpu")
    answers = []
    for task in sample_tasks(kinds=("instruction", "code"), split="values", count=documents, seed=1):
        chat: list[Message] = [*user_message(task.prompt), {"role": "assistant", "content": task.answer}]
        ids, labels = encode_completion(tokenizer, chat, 512)
        answers.append((ids, [label >= 0 for label in labels[1:]]))

    def scores(kind: Literal["auto", "int8", "fp8"]) -> list[float]:
        found = Engine(model, None, EngineConfig(kv_dtype=kind)).score([ids for ids, _ in answers])
        return [score for row, (_, kept) in zip(found, answers, strict=True) for score in compress(row, kept)]

    exact = scores("auto")
    whole = stored_bytes(LayerShape(1, 64, 64), torch.float16, codes=None)
    rows = []
    for kind in ("int8", "fp8"):
        rounded = scores(kind)
        change = sum(abs(a - b) for a, b in zip(exact, rounded, strict=True)) / len(exact)
        few = stored_bytes(LayerShape(1, 64, 64), torch.float16, codes=CODES[kind])
        before, after = (math.exp(-sum(own) / len(own)) for own in (exact, rounded))
        rows += [
            Row(f"KV bytes of {kind} with scales, head size 64, 16 bits as the peer", few, "bytes", whole, few / whole,
                bar=0.53, ok=few / whole <= 0.53),
            Row(f"perplexity of answers with KV in {kind}, in float32 as the peer", after, "perplexity", before,
                after / before),
            Row(f"mean change of a log probability with KV in {kind}", change, "nats"),
        ]  # fmt: skip
    return rows


def main() -> int:
    """What codes change in the embedded teacher's answers, alone: `python -m benchmarks.serve_cache [--json PATH]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = _code_rows(options.documents)
    for row in rows:
        print(f"{row.name}: {row.value:.6g} {row.unit}" + ("" if row.peer is None else f", {row.peer:.6g}"))
    if options.json:
        command = f"python -m benchmarks.serve_cache --documents {options.documents}"
        details = {"documents": options.documents}
        write_json(options.json, envelope(what="KV in codes", command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""A variant's size and speed through the engine, and one answer of it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill.engine.runner import Engine
from distill.engine.types import SamplingParams
from distill.errors import DistillError
from distill.model.chat import render
from distill.model.load import load_model, load_tokenizer
from distill.model.packed import count_parameters
from distill.recipe.schema import Serve
from distill.records import user_message
from distill.serve.server import engine_config

_SMOKE_QUESTION = "Hello! What can you do?"
_SMOKE_TOKENS = 32
_BATCHES = (1, 16)
_PROMPT_TOKENS = 128
_DECODE_TOKENS = 32
_REPEATS = 3


def measure_checkpoint(path: Path, settings: Serve, *, trust_remote_code: bool) -> dict[str, Any]:
    """Load a variant and measure it."""
    model = load_model(path, dtype=settings.dtype, trust_remote_code=trust_remote_code, packed=True)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return measure_variant(Engine(model, tokenizer, engine_config(settings)), path)


def measure_variant(engine: Engine, path: Path) -> dict[str, Any]:
    """A variant's metrics: one greedy answer, bytes, and tokens per second at batch 1 and 16."""
    assert engine.tokenizer is not None and engine.cache is not None
    answer = smoke_test(engine, engine.tokenizer, path)
    batches = sorted({min(batch, engine.config.max_batch) for batch in _BATCHES})
    speeds = {batch: measure_speed(engine, batch) for batch in batches}
    return {
        "smoke_question": _SMOKE_QUESTION,
        "smoke_answer": answer,
        "weight_bytes": _file_bytes(path) or _memory_bytes(engine.model),
        "memory_bytes": _memory_bytes(engine.model),
        "parameters": count_parameters(engine.model),
        "kv_bytes_per_token": engine.cache.bytes_per_token,
        "kv_cache_bytes": engine.cache.total_bytes,
        "dtype": str(engine.cache.keys[0].dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": _DECODE_TOKENS,
        **speeds[batches[-1]],
        "batch": batches[-1],
        "by_batch": {str(batch): speed for batch, speed in speeds.items()},
    }


def smoke_test(engine: Engine, tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """One greedy answer, through the chat template where there is one. Raises DistillError if nothing comes out."""
    if tokenizer.chat_template is not None:
        ids = render(tokenizer, user_message(_SMOKE_QUESTION), True)
    else:
        ids = [int(token) for token in tokenizer(_SMOKE_QUESTION)["input_ids"]]
    (completion,) = engine.generate([ids], SamplingParams(max_tokens=_SMOKE_TOKENS))
    assert engine.blocks_in_use == 0, "the engine kept blocks of a finished request"
    if not completion.token_ids:
        raise DistillError(f"the model at {path} answers nothing", remedy="look at its training curves and template")
    return completion.text


def measure_speed(engine: Engine, batch: int) -> dict[str, float]:
    """Prompt tokens per second of prefill and sampled tokens per second of decode after it, both for `batch`
    sequences of equal length; the best of a few repeats, as other work on the machine only slows down."""
    prefill, decode = 0.0, 0.0
    for repeat in range(_REPEATS):
        with _requests(engine, batch, max_tokens=1, seed=repeat):
            started = time.perf_counter()
            while engine.has_work:
                engine.step()
            prefill = max(prefill, batch * _PROMPT_TOKENS / (time.perf_counter() - started))
        with _requests(engine, batch, max_tokens=_DECODE_TOKENS, seed=repeat):
            whole = engine.stats.prefill_tokens + batch * _PROMPT_TOKENS
            while engine.stats.prefill_tokens < whole:
                engine.step()
            sampled, started = engine.stats.sampled_tokens, time.perf_counter()
            while engine.has_work:
                engine.step()
            decode = max(decode, (engine.stats.sampled_tokens - sampled) / (time.perf_counter() - started))
    return {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode}


@contextmanager
def _requests(engine: Engine, batch: int, *, max_tokens: int, seed: int) -> Iterator[None]:
    """Queue random prompts, none of them computed before; whatever happens, none stays."""
    engine.forget_prefixes()
    rng = random.Random(seed)
    length = min(_PROMPT_TOKENS, engine.max_model_len - max_tokens)
    if length < _PROMPT_TOKENS:
        raise DistillError(
            f"the engine's context of {engine.max_model_len} tokens is too short to measure",
            remedy="give the KV cache more memory (serve.kv_gib)",
        )
    names = [f"measure-{i}" for i in range(batch)]
    for name in names:
        prompt = [rng.randrange(engine.vocab_size) for _ in range(length)]
        engine.add(name, prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    try:
        yield
    finally:
        for name in names:
            engine.abort(name)


def _file_bytes(path: Path) -> int:
    """Bytes of the weight files; 0 for a hub id."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _memory_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights as loaded."""
    return int(model.get_memory_footprint())

"""Greedy text is the same as transformers' generate(), however the engine batches, chunks, preempts or caches."""

from __future__ import annotations

import random

import pytest

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from tests.engine.models import ARCHITECTURES, VOCAB, reference, tiny_model

MAX_TOKENS = 14


def _prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 2, 5, 13, 30)))] for _ in range(count)]


def _run(engine: Engine, prompts: list[list[int]], arrivals: list[int]) -> list[tuple[int, ...]]:
    """Add prompt i before step arrivals[i]."""
    params = SamplingParams(max_tokens=MAX_TOKENS)
    found: dict[str, tuple[int, ...]] = {}
    step = 0
    while len(found) < len(prompts):
        for index, at in enumerate(arrivals):
            if at == step:
                engine.add(str(index), prompts[index], params)
        for output in engine.step():
            assert output.completion is not None
            found[output.request_id] = output.completion.token_ids
        step += 1
    assert engine.pool is None or engine.pool.num_used == 0
    assert not engine.has_work
    return [found[str(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(name: str) -> None:
    model = tiny_model(name)
    prompts = _prompts(7)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    for config, arrivals in (
        (EngineConfig(max_batch=8, block_size=16), [0] * 7),
        (EngineConfig(max_batch=8, block_size=3, prefill_tokens=7), [0, 0, 2, 3, 3, 9, 20]),
        (EngineConfig(max_batch=3, block_size=4, prefill_tokens=64, prefix_cache=False), [6, 5, 4, 3, 2, 1, 0]),
        (EngineConfig(max_batch=8, block_size=3, prefill_tokens=7, overlap=True), [0, 0, 2, 3, 3, 9, 20]),
    ):
        engine = Engine(model, None, config)
        assert _run(engine, prompts, arrivals) == expected
        if config.block_size == 3:
            computed = engine.stats.prefill_tokens
            assert _run(engine, prompts[::-1], arrivals) == expected[::-1]
            assert engine.stats.prefill_tokens - computed < computed / 2  # the rest was in the cache


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_preemption_keeps_the_text(name: str, overlap: bool) -> None:
    model = tiny_model(name)
    prompts = _prompts(6, seed=1)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    longest = max(map(len, prompts)) + MAX_TOKENS
    blocks = -(-longest // 4) + 2
    config = EngineConfig(max_batch=6, block_size=4, num_blocks=blocks, prefill_tokens=16, overlap=overlap)
    engine = Engine(model, None, config)
    assert _run(engine, prompts, [0] * 6) == expected
    assert engine.stats.preemptions > 0


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "opt"])
def test_cache_off_keeps_the_text(name: str) -> None:
    model = tiny_model(name)
    prompts = _prompts(5, seed=2)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    engine = Engine(model, None, EngineConfig(use_kv_cache=False, prefill_tokens=60))
    assert engine.cache is None
    assert _run(engine, prompts, [0, 0, 1, 2, 5]) == expected


def test_cache_off_computes_more() -> None:
    model = tiny_model("llama-gqa")
    prompt = [[5, 6, 7, 8, 9, 10, 11, 12]]
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    cached, plain = Engine(model, None), Engine(model, None, EngineConfig(use_kv_cache=False))
    assert cached.generate(prompt, params) == plain.generate(prompt, params)
    assert (cached.stats.prefill_tokens, cached.stats.decode_tokens) == (8, 9)
    assert plain.stats.prefill_tokens == sum(range(8, 18))


def test_model_is_left_as_it_was() -> None:
    model = tiny_model("llama-gqa")
    before = model.config._attn_implementation
    engine = Engine(model, None)
    engine.generate([[5, 6]], SamplingParams(max_tokens=3))
    assert model.config._attn_implementation == before
    assert len(reference(model, [5, 6], 3)) <= 3

"""Blocks and buffers: the largest batch, windows that pass, nobody who starves, and nothing made anew at a step."""

from __future__ import annotations

import random

import pytest

from distill.engine import runner
from distill.engine.batch import PackedBatch, Work
from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import PagedKVCache, blocks_for, kv_bytes_per_token
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from tests.engine.models import VOCAB, reference, tiny_model


def test_the_largest_batch_is_what_the_bytes_hold() -> None:
    """Sequences of 16 tokens in blocks of 4: the bytes of n x 16 tokens hold n of them, and a byte less n - 1."""
    model = tiny_model("llama-gqa")
    token = kv_bytes_per_token(model.config, model.dtype)
    for count in (2, 5, 9):
        for kv_bytes, most in ((count * 16 * token, count), (count * 16 * token - 1, count - 1)):
            engine = Engine(model, None, EngineConfig(block_size=4, kv_bytes=kv_bytes, max_batch=32, max_model_len=16))
            assert engine.cache is not None
            assert engine.cache.total_bytes == kv_bytes // (4 * token) * 4 * token
            assert kv_bytes - engine.cache.total_bytes < 4 * token
            for i in range(count + 2):
                # 13 tokens and one sampled fill four blocks at admission
                engine.add(str(i), [3 + i] * 13, SamplingParams(max_tokens=3, ignore_eos=True))
            engine.step()
            assert engine.num_running == most and engine.num_waiting == count + 2 - most
            while engine.has_work:
                engine.step()
            assert engine.stats.preemptions == 0


@pytest.mark.parametrize("prefill_tokens", [512, 7])
def test_a_window_keeps_its_own_blocks_only(prefill_tokens: int) -> None:
    model = tiny_model("mistral")  # every layer sees 11 tokens
    prompts = [[5 + i] * 3 + list(range(20, 20 + 9 * i)) for i in range(4)]
    engine = Engine(model, None, EngineConfig(block_size=4, prefill_tokens=prefill_tokens))
    for i, prompt in enumerate(prompts):
        engine.add(str(i), prompt, SamplingParams(max_tokens=60, ignore_eos=True))
    found: dict[str, tuple[int, ...]] = {}
    while engine.has_work:
        prefilled = engine.stats.prefill_tokens
        for output in engine.step():
            assert output.completion is not None
            found[output.request_id] = output.completion.token_ids
        if engine.stats.prefill_tokens == prefilled:
            assert engine.blocks_in_use <= 4 * engine.num_running  # 11 tokens touch 4 blocks at most
    assert len(found) == 4
    model.generation_config.eos_token_id = None
    assert [found[str(i)] for i in range(4)] == [reference(model, prompt, 60) for prompt in prompts]
    assert engine.blocks_in_use == 0


def test_a_layer_that_sees_all_keeps_all() -> None:
    engine = Engine(tiny_model("gemma2"), None, EngineConfig(block_size=4))  # windows on every other layer
    engine.add("a", [5] * 8, SamplingParams(max_tokens=40, ignore_eos=True))
    for _ in range(30):
        engine.step()
    # the windows of 9 tokens keep three of ten blocks
    assert engine.blocks_in_use == blocks_for(8 + 29, 4) + 3


def test_a_window_and_preemption_and_reuse() -> None:
    model = tiny_model("mistral")
    rng = random.Random(2)
    trunk = [rng.randrange(3, VOCAB) for _ in range(30)]
    prompts = [trunk[: rng.choice((4, 17, 30))] + [rng.randrange(3, VOCAB)] for _ in range(10)]
    expected = [reference(model, prompt, 25) for prompt in prompts]
    for blocks in (15, 200):
        engine = Engine(model, None, EngineConfig(block_size=4, num_blocks=blocks, prefill_tokens=9, max_batch=8))
        for _ in range(2):
            assert [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=25))] == expected
        assert (engine.stats.preemptions > 0) == (blocks == 15) and engine.stats.cached_tokens > 0


def test_nobody_starves() -> None:
    """A stream of short requests never ends; a long one among them, too large for the blocks at hand, gets its turn."""
    model = tiny_model("llama-gqa")
    engine = Engine(model, None, EngineConfig(block_size=4, num_blocks=12, max_batch=4, prefill_tokens=16))
    short = SamplingParams(max_tokens=6, ignore_eos=True)
    order: list[str] = []
    for step in range(200):
        engine.add(f"short-{step}", [5 + step % 50, 6, 7], short)
        if step == 5:
            engine.add("long", list(range(3, 33)), SamplingParams(max_tokens=10, ignore_eos=True))
        order += [output.request_id for output in engine.step() if output.completion is not None]
        if "long" in order:
            break
    assert "long" in order
    # who came before it was served before it; of those after it, no more than were running beside it
    before = order[: order.index("long")]
    assert {f"short-{i}" for i in range(6)} <= set(before)
    assert len(before) <= 6 + 4 * 3
    for step in range(200):
        engine.abort(f"short-{step}")


def test_decoding_sequences_wait_for_a_prompt_no_longer_than_its_chunk() -> None:
    """While a long prompt is computed in chunks, who decodes gets a token at every step."""
    model = tiny_model("llama-gqa")
    engine = Engine(model, None, EngineConfig(block_size=4, prefill_tokens=8))
    engine.add("first", [5, 6], SamplingParams(max_tokens=40, ignore_eos=True), stream=True)
    engine.step()
    engine.add("long", list(range(3, 103)), SamplingParams(max_tokens=2))
    for step in range(12):
        before = engine.stats.prefill_tokens
        engine.step()
        assert engine.stats.decode_tokens == step + 1
        assert engine.stats.prefill_tokens - before == 8


def test_steps_use_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first requests of a size, cache and step arrays stay where they are, and no array is made."""
    engine = Engine(tiny_model("gemma2"), None, EngineConfig(block_size=4, num_blocks=80))
    seen: set[tuple[int, ...]] = set()
    own_pack = runner.pack

    def watched(works: list[Work], cache: PagedKVCache | None, buffers: StepBuffers, *, kernels: bool) -> PackedBatch:
        batch = own_pack(works, cache, buffers, kernels=kernels)
        assert cache is not None
        tensors = [batch.input_ids, *cache.keys, *cache.values]
        full, windowed = batch.placements
        if full.decode is not None and windowed.decode is not None:
            tensors += [full.decode.view(None).rows, windowed.decode.view(9).rows]
            seen.add(tuple(t.untyped_storage().data_ptr() for t in tensors))
        return batch

    monkeypatch.setattr(runner, "pack", watched)
    rng = random.Random(0)

    def load() -> None:
        prompts = [[rng.randrange(3, VOCAB) for _ in range(20 + i)] for i in range(6)]
        engine.generate(prompts, SamplingParams(max_tokens=20, ignore_eos=True))

    for _ in range(4):
        load()
    seen.clear()
    made = engine.stats.buffer_allocations
    load()
    assert engine.stats.steps > 50 and engine.stats.buffer_allocations == made
    assert len(seen) == 1

"""Speculative decoding: the same greedy text as without a draft, the same blocks afterwards, and honest counts."""

from __future__ import annotations

import random

import pytest
import torch
import transformers as hf

from distill.engine.kv_cache import blocks_for, kv_bytes_per_token
from distill.engine.paging.groups import num_passed
from distill.engine.runner import Engine, EngineConfig
from distill.engine.speculative.speculation import Draft
from distill.engine.types import Completion, SamplingParams
from distill.errors import EngineError
from tests.engine.models import ARCHITECTURES, VOCAB, byte_tokenizer, chat_model, nearby, reference, tiny_model

GREEDY = SamplingParams(max_tokens=14)


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    return tiny_model("llama-gqa")


def _prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 2, 5, 13, 30)))] for _ in range(count)]


def _draft_blocks(engine: Engine) -> int:
    assert engine.speculation is not None
    return engine.speculation.drafter.pool.num_used


def _run(engine: Engine, prompts: list[list[int]], params: SamplingParams, arrivals: list[int]) -> list[Completion]:
    """Add prompt i before step arrivals[i]; nothing is left in either cache."""
    found: dict[str, Completion] = {}
    step = 0
    while len(found) < len(prompts):
        for index, at in enumerate(arrivals):
            if at == step:
                engine.add(str(index), prompts[index], params)
        for output in engine.step():
            assert output.completion is not None
            found[output.request_id] = output.completion
        step += 1
    assert not engine.has_work and engine.blocks_in_use == 0 and _draft_blocks(engine) == 0
    return [found[str(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_plain_decoding(name: str) -> None:
    target = tiny_model(name)
    prompts = _prompts(7)
    expected = [reference(target, prompt, GREEDY.max_tokens) for prompt in prompts]
    other = tiny_model("mistral" if name == "llama-gqa" else "llama-gqa", seed=3)
    for guesser, config, count, arrivals in (
        (nearby(target, 0.05), EngineConfig(max_batch=8, block_size=16), 3, [0] * 7),
        (nearby(target, 0.05), EngineConfig(block_size=3, prefill_tokens=7), 5, [0, 0, 2, 3, 3, 9, 20]),
        (target, EngineConfig(max_batch=3, block_size=4, prefix_cache=False), 4, [6, 5, 4, 3, 2, 1, 0]),
        (other, EngineConfig(block_size=4), 1, [0, 1, 2, 3, 4, 5, 6]),
    ):
        engine = Engine(target, None, config, draft=Draft(guesser, None, count))
        found = _run(engine, prompts, GREEDY, arrivals)
        assert [c.token_ids for c in found] == expected
        if config.block_size == 3:
            again = _run(engine, prompts[::-1], GREEDY, arrivals)  # over what the first run left in both prefix caches
            assert [c.token_ids for c in again] == expected[::-1] and engine.stats.cached_tokens > 0
        assert engine.stats.verifications > 0
        if guesser is target:
            assert engine.stats.acceptance_rate == 1.0
        elif guesser is not other:
            assert 0.1 < engine.stats.acceptance_rate < 1.0  # both outcomes are in the test


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2"])
def test_preemption_and_a_draft_short_of_blocks_keep_the_text(name: str) -> None:
    target = tiny_model(name)
    prompts = _prompts(6, seed=1)
    expected = [reference(target, prompt, GREEDY.max_tokens) for prompt in prompts]
    longest = max(map(len, prompts)) + GREEDY.max_tokens
    config = EngineConfig(max_batch=6, block_size=4, num_blocks=-(-longest // 4) + 2, prefill_tokens=16)
    engine = Engine(target, None, config, draft=Draft(nearby(target, 0.05), None, 4))
    assert [c.token_ids for c in _run(engine, prompts, GREEDY, [0] * 6)] == expected
    assert engine.stats.preemptions > 0 and engine.stats.accepted_tokens > 0
    short = Engine(target, None, EngineConfig(block_size=4), draft=Draft(target, None, 4))
    assert short.speculation is not None
    pool = short.speculation.drafter.pool
    pool.allocate(pool.num_blocks - 7)  # 28 tokens for six sequences
    assert [c.token_ids for c in short.generate(prompts, GREEDY)] == expected
    assert 0 < short.stats.verifications < short.stats.decode_tokens


def test_blocks_are_those_of_plain_decoding(model: hf.PreTrainedModel) -> None:
    """After every step a sequence owns what it would own, without a draft, at the same length; the draft's copy owns
    what its certain tokens fill."""
    engine = Engine(model, None, EngineConfig(block_size=4), draft=Draft(nearby(model, 0.1), None, 5))
    assert engine.pool is not None and engine.speculation is not None
    engine.add("a", [5] * 7, SamplingParams(max_tokens=60, ignore_eos=True), stream=True)
    rejections = 0
    while engine.has_work:
        engine.step()
        sampled, stats = engine.stats.sampled_tokens, engine.stats
        rejections = stats.draft_tokens - stats.accepted_tokens
        if engine.has_work:
            cached = 7 + sampled - 1
            assert engine.pool.num_used == blocks_for(max(cached, 8), 4)
            assert _draft_blocks(engine) in (blocks_for(cached, 4), blocks_for(cached - 1, 4)) or sampled == 1
            assert stats.blocks_used == engine.pool.num_used
    assert rejections > 10 and engine.stats.accepted_tokens > 10
    assert engine.pool.num_used == _draft_blocks(engine) == 0
    plain = Engine(model, None, EngineConfig(block_size=4))
    plain.generate([[5] * 7], SamplingParams(max_tokens=60, ignore_eos=True))
    assert plain.pool is not None and engine.pool.num_cached == plain.pool.num_cached


def test_a_window_is_kept_beside_guesses() -> None:
    """Gemma-2: a layer sees all and has every block; the other has those after the ones that its window of 9 had passed
    when the step began. Guesses that did not stand leave nothing in either."""
    model = tiny_model("gemma2")
    engine = Engine(model, None, EngineConfig(block_size=4), draft=Draft(nearby(model, 0.3), None, 5))
    assert engine.pool is not None and engine.speculation is not None
    assert engine.pool.num_blocks == 2 * engine.speculation.drafter.pool.num_blocks
    params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=1.0, seed=3)
    engine.add("a", [5, 9, 33, 12, 80, 7, 44], params)
    cached = 0
    while engine.has_work:
        before = cached
        engine.step()
        cached = 7 + engine.stats.sampled_tokens - 1
        if engine.has_work:
            assert engine.pool.num_used == 2 * blocks_for(max(cached, 8), 4) - num_passed(9, before, 4)
    assert engine.stats.accepted_tokens > 10 and engine.stats.draft_tokens - engine.stats.accepted_tokens > 10
    assert engine.pool.num_used == _draft_blocks(engine) == 0


def test_an_aborted_request_frees_both_caches(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(block_size=4), draft=Draft(nearby(model, 0.1), None))
    for name in "ab":
        engine.add(name, [5, 6, 7], SamplingParams(max_tokens=60, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert engine.blocks_in_use and _draft_blocks(engine)
    engine.abort("a")
    engine.step()
    engine.abort("b")
    assert engine.blocks_in_use == _draft_blocks(engine) == 0


def test_ends_inside_an_accepted_run(model: hf.PreTrainedModel) -> None:
    """The model is its own draft, so that whole runs stand: EOS, stop tokens and limits cut them where they should."""
    (free,) = Engine(model, None).generate([[9, 8, 7]], SamplingParams(max_tokens=30, ignore_eos=True))
    for at in range(1, 9):
        for params in (
            SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(free.token_ids[at],)),
            SamplingParams(max_tokens=at, ignore_eos=True),
            SamplingParams(max_tokens=30, min_tokens=at + 3, stop_token_ids=(free.token_ids[at],), logprobs=2),
        ):
            plain = Engine(model, None).generate([[9, 8, 7]], params)
            found = Engine(model, None, draft=Draft(model, None, 6)).generate([[9, 8, 7]], params)
            assert [(c.token_ids, c.finish_reason) for c in found] == [(c.token_ids, c.finish_reason) for c in plain]
            if params.logprobs is not None:
                own, other = plain[0].logprobs or (), found[0].logprobs or ()
                assert len(own) == len(other) == len(found[0].token_ids)
                for a, b in zip(own, other, strict=True):
                    assert a.token_id == b.token_id and a.logprob == pytest.approx(b.logprob, abs=1e-4)
                    assert [t for t, _ in a.top] == [t for t, _ in b.top]


def test_stop_strings_and_streams() -> None:
    tokenizer = byte_tokenizer()
    model = chat_model(tokenizer)
    prompt = tokenizer("the cat").input_ids
    plain, own = Engine(model, tokenizer), Engine(model, tokenizer, draft=Draft(model, tokenizer, 6))
    whole = plain.generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True))[0]
    for start in (3, 10, 11):
        params = SamplingParams(max_tokens=40, ignore_eos=True, stop=(whole.text[start : start + 2],), logprobs=0)
        (expected,) = plain.generate([prompt], params)
        own.add("s", prompt, params, stream=True)
        pieces, tokens, completion = [], [], None
        while completion is None:
            for output in own.step():
                pieces.append(output.text)
                tokens.extend(report.token_id for report in output.logprobs)
                completion = output.completion
        assert "".join(pieces) == completion.text == expected.text
        assert tuple(tokens) == completion.token_ids == expected.token_ids
        assert completion.finish_reason == "stop"


def test_sampling_keeps_penalties_bias_and_seeds_apart(model: hf.PreTrainedModel) -> None:
    """Greedy rows with penalties and bias are those of plain decoding beside sampled rows; a seeded row is the same in
    any batch, as long as nobody runs short of blocks."""
    draft = Draft(nearby(model, 0.1), None, 3)
    prompts = _prompts(8)
    params = [
        SamplingParams(max_tokens=12, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2)
        if i % 2
        else SamplingParams(max_tokens=12, temperature=0.9, top_p=0.9, top_k=40, seed=i, logit_bias=((7, 2.0),))
        for i in range(8)
    ]
    together = Engine(model, None, draft=draft).generate(prompts, params)
    small = Engine(model, None, EngineConfig(block_size=4, prefill_tokens=9, max_batch=2), draft=draft)
    assert small.generate(prompts, params) == together
    alone = [Engine(model, None, draft=draft).generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]
    assert alone == together
    plain = Engine(model, None).generate(prompts, params)
    assert together[1::2] == plain[1::2]


def test_counts(model: hf.PreTrainedModel) -> None:
    """The model as its own draft, 4 at a time: 1 token by prefill, then 5 a verification; the 3 that are left after 15
    are 2 guesses and one more."""
    engine = Engine(model, None, draft=Draft(model, None, 4))
    engine.generate([[5, 6, 7]], SamplingParams(max_tokens=1 + 15 + 3, ignore_eos=True))
    stats = engine.stats
    assert (stats.verifications, stats.draft_tokens, stats.accepted_tokens) == (4, 14, 14)
    assert (stats.acceptance_rate, stats.accept_length) == (1.0, 1 + 14 / 4)
    assert (stats.steps, stats.sampled_tokens) == (5, 19)
    assert (stats.prefill_tokens, stats.decode_tokens) == (3, 3 * 5 + 3)
    none = Engine(model, None)
    none.generate([[5]], GREEDY)
    assert (none.stats.acceptance_rate, none.stats.accept_length, none.stats.verifications) == (0.0, 0.0, 0)


def test_a_prompt_is_read_once_by_the_draft(model: hf.PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers to one prompt share its blocks in the draft's cache too, within a step and later."""
    engine = Engine(model, None, EngineConfig(block_size=4), draft=Draft(model, None, 1))
    assert engine.speculation is not None
    prompt = list(range(3, 44))
    for i in range(8):
        engine.add(str(i), prompt, SamplingParams(max_tokens=20, temperature=1.0, seed=i, ignore_eos=True))
    while engine.stats.verifications < 8:
        engine.step()
    # 10 full blocks once, and one block of each: its last tokens and what was sampled
    assert _draft_blocks(engine) == 10 + 8
    for i in range(8):
        engine.abort(str(i))


def test_both_caches_fit_in_the_bytes(model: hf.PreTrainedModel) -> None:
    token = kv_bytes_per_token(model.config, model.dtype)
    config = EngineConfig(block_size=4, kv_bytes=2 * 16 * token, max_batch=32, max_model_len=16)
    engine = Engine(model, None, config, draft=Draft(model, None))
    assert engine.cache is not None and engine.speculation is not None
    assert engine.num_blocks == 4
    assert engine.cache.total_bytes + engine.speculation.drafter.cache.total_bytes == config.kv_bytes
    # a target of two groups: two blocks of a layer each for one block of the draft's two layers, and one to spare
    target = tiny_model("gemma2")
    block, own = (4 * kv_bytes_per_token(m.config, m.dtype) for m in (target, model))
    for kv_bytes, count in ((5 * (block + own), 10), (5 * (block + own) + block // 2, 11), (6 * (block + own) - 1, 11)):
        engine = Engine(target, None, EngineConfig(block_size=4, kv_bytes=kv_bytes), draft=Draft(model, None))
        assert engine.cache is not None and engine.speculation is not None
        assert (engine.num_blocks, engine.speculation.drafter.pool.num_blocks) == (count, 5)
        assert engine.cache.total_bytes + engine.speculation.drafter.cache.total_bytes <= kv_bytes


def test_a_draft_with_a_shorter_context_falls_silent(model: hf.PreTrainedModel) -> None:
    guesser = tiny_model("llama-gqa")
    guesser.config.max_position_embeddings = 20
    engine = Engine(model, None, draft=Draft(guesser, None, 4))
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    assert engine.generate([[5, 6, 7]], params) == Engine(model, None).generate([[5, 6, 7]], params)
    assert 0 < engine.stats.draft_tokens < 20


def test_other_pairs_are_refused_by_name(model: hf.PreTrainedModel) -> None:
    tokenizer = byte_tokenizer()
    target, larger = chat_model(tokenizer), chat_model(tokenizer, vocab_size=len(tokenizer) + 8)
    with pytest.raises(EngineError, match="LlamaForCausalLM cannot guess for LlamaForCausalLM: its vocabulary has"):
        Engine(model, None, draft=Draft(target, tokenizer))
    longer = byte_tokenizer()
    longer.add_tokens(["<more>"])
    with pytest.raises(EngineError, match=f"its tokenizer has {len(longer)} tokens, the target's {len(tokenizer)}"):
        Engine(target, tokenizer, draft=Draft(larger, longer))
    ours, theirs = byte_tokenizer(), byte_tokenizer()
    ours.add_tokens(["<more>"])
    theirs.add_tokens(["<other>"])
    with pytest.raises(EngineError, match=r"'<more>' is token \d+ of the target and no token of it"):
        Engine(larger, ours, draft=Draft(larger, theirs))
    with pytest.raises(EngineError, match="KV cache"):
        Engine(model, None, EngineConfig(use_kv_cache=False), draft=Draft(model, None))
    with pytest.raises(EngineError, match="0 tokens"):
        Draft(model, None, 0)


@pytest.mark.parametrize("extra", [-8, 8])
def test_padded_vocabularies_go_together(extra: int) -> None:
    """One tokenizer, another number of rows; a target's token that the draft has no row for only silences it."""
    tokenizer = byte_tokenizer()
    size = len(tokenizer) + 16
    target = chat_model(tokenizer, vocab_size=size)
    guesser = chat_model(tokenizer, vocab_size=size + extra)
    engine = Engine(target, tokenizer, draft=Draft(guesser, tokenizer))
    prompts = [[5, 6, 7], [9], [size - 1, 4]]
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    assert engine.generate(prompts, params) == Engine(target, tokenizer).generate(prompts, params)
    sampled = SamplingParams(max_tokens=20, temperature=1.0, ignore_eos=True, seed=1)
    assert all(len(c.token_ids) == 20 for c in engine.generate(prompts, sampled))
    assert torch.isfinite(torch.tensor(engine.stats.accept_length)) and engine.stats.verifications > 0


def test_int8_caches_keep_the_text(model: hf.PreTrainedModel) -> None:
    """Both caches in int8: the text of plain decoding over an int8 cache."""
    config = EngineConfig(block_size=4, kv_dtype="int8")
    engine = Engine(model, None, config, draft=Draft(nearby(model, 0.05), None))
    prompts = _prompts(5, seed=4)
    assert engine.generate(prompts, GREEDY) == Engine(model, None, config).generate(prompts, GREEDY)
    assert engine.stats.accepted_tokens > 0

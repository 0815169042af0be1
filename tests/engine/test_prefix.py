"""Prefix reuse changes what is computed and nothing else: same tokens, same scores, exact counters."""

from __future__ import annotations

import random

import pytest
import torch
import transformers as hf

from distill.engine import runner
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import Completion, SamplingParams
from tests.engine.models import VOCAB, reference, tiny_model

HEADER = 200


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    return tiny_model("llama-gqa")


def _tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def _computed(engine: Engine) -> int:
    return engine.stats.prefill_tokens + engine.stats.decode_tokens


def _tree(count: int, seed: int) -> list[list[int]]:
    """Prompts that share beginnings of several lengths with each other."""
    rng = random.Random(seed)
    trunk = _tokens(40, seed)
    return [trunk[: rng.choice((8, 16, 24, 40))] + _tokens(rng.randint(1, 9), seed + i % 4) for i in range(count)]


def _same_scores(found: Completion, expected: Completion) -> None:
    assert found.prompt_logprobs is not None and expected.prompt_logprobs is not None
    assert len(found.prompt_logprobs) == len(expected.prompt_logprobs)
    for own, other in zip(found.prompt_logprobs, expected.prompt_logprobs, strict=True):
        if own is None or other is None:
            assert own is None and other is None
            continue
        assert own.token_id == other.token_id
        assert own.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [token for token, _ in own.top] == [token for token, _ in other.top]
        assert (own.logprob == own.top[0][1]) == (own.token_id == own.top[0][0])


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("prefill_tokens", [512, 100])
def test_four_choices_are_prefilled_once(model: hf.PreTrainedModel, together: bool, prefill_tokens: int) -> None:
    """Issued at once or one after the other, whole or in chunks: 192 of the 200 shared tokens fill blocks of 32."""
    prompts = [_tokens(HEADER, 0) + _tokens(8, 10 + choice) for choice in range(4)]
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    plain = Engine(model, None, EngineConfig(prefix_cache=False))
    engine = Engine(model, None, EngineConfig(prefill_tokens=prefill_tokens))
    expected = plain.generate(prompts, params)
    if together:
        found = engine.generate(prompts, params)
    else:
        found = [engine.generate([prompt], params)[0] for prompt in prompts]
    for own, other in zip(found, expected, strict=True):
        _same_scores(own, other)
    naive = 4 * (HEADER + 8 - 1)  # the last token of a prompt is scored, not computed
    assert _computed(plain) == naive
    assert _computed(engine) == (HEADER + 8 - 1) + 3 * (HEADER + 8 - 1 - 191)  # token 191 again, for its logits
    assert engine.stats.cached_tokens == 3 * 191
    assert _computed(engine) <= 0.35 * naive
    assert engine.blocks_in_use == 0 and engine.stats.blocks_cached == 6  # no choice fills a block of its own


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2", "opt"])
def test_greedy_is_the_same_with_and_without_reuse(name: str) -> None:
    model = tiny_model(name)
    prompts = _tree(12, seed=3)
    expected = [reference(model, prompt, 12) for prompt in prompts]
    params = SamplingParams(max_tokens=12)
    for config in (
        EngineConfig(block_size=4),
        EngineConfig(block_size=8, prefill_tokens=11, max_batch=3),
        EngineConfig(block_size=1, prefill_tokens=30),
        EngineConfig(block_size=4, num_blocks=17, max_batch=6),  # preempts, and evicts what others could use
        EngineConfig(block_size=4, prefix_cache=False),
    ):
        engine = Engine(model, None, config)
        first = [c.token_ids for c in engine.generate(prompts, params)]
        again = [c.token_ids for c in engine.generate(prompts[::-1], params)]
        assert first == expected and again == expected[::-1]
        assert engine.blocks_in_use == 0
        assert (engine.stats.cached_tokens > 0) == config.prefix_cache
        if config.num_blocks:
            assert engine.stats.block_evictions
            assert engine.stats.preemptions or name == "mistral"  # its window gives blocks back


def test_scores_of_random_trees(model: hf.PreTrainedModel) -> None:
    """Scoring of different depths, sampling and plain requests, sharing blocks with each other in every order."""
    rng = random.Random(5)
    prompts = _tree(40, seed=9)
    params = [
        SamplingParams(max_tokens=rng.choice((1, 5)), prompt_logprobs=depth)
        if (depth := rng.choice((None, 0, 2, 5))) is None
        else SamplingParams(max_tokens=rng.choice((0, 0, 3)), prompt_logprobs=depth)
        for _ in prompts
    ]
    expected = Engine(model, None, EngineConfig(prefix_cache=False)).generate(prompts, params)
    for config in (
        EngineConfig(block_size=4),
        EngineConfig(block_size=4, prefill_tokens=13, max_batch=5),
        EngineConfig(block_size=1, prefill_tokens=50),
        EngineConfig(block_size=8, num_blocks=9, max_batch=6),
        EngineConfig(block_size=8, logits_bytes=4 * VOCAB * 7),
    ):
        engine = Engine(model, None, config)
        for order in (range(40), rng.sample(range(40), 40)):
            found = engine.generate([prompts[i] for i in order], [params[i] for i in order])
            for index, own in zip(order, found, strict=True):
                assert own.token_ids == expected[index].token_ids
                if params[index].prompt_logprobs is not None:
                    _same_scores(own, expected[index])
        assert engine.stats.cached_tokens > 0 and engine.blocks_in_use == 0


def test_a_repeated_prompt_computes_one_token(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(block_size=4))
    prompt = _tokens(16, 1)
    (first,) = engine.generate([prompt], SamplingParams(max_tokens=5, ignore_eos=True))
    before = engine.stats.prefill_tokens
    (second,) = engine.generate([prompt], SamplingParams(max_tokens=5, ignore_eos=True))
    assert first.token_ids == second.token_ids
    assert engine.stats.prefill_tokens - before == 4  # the last block, as one token of it is needed
    assert engine.stats.cached_tokens == 12


def test_an_answer_is_found_by_the_next_turn(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(block_size=4))
    prompt = _tokens(6, 1)
    (first,) = engine.generate([prompt], SamplingParams(max_tokens=11, ignore_eos=True))
    turn = [*prompt, *first.token_ids, 7, 8, 9]
    (second,) = engine.generate([turn], SamplingParams(max_tokens=4))
    assert second.token_ids == reference(model, turn, 4)
    assert engine.stats.cached_tokens == 16  # 6 + 11 - 1 computed: the last sampled token was not


def test_plain_blocks_do_not_score(model: hf.PreTrainedModel) -> None:
    """Blocks without scores are computed again by a request that needs them, and then have them."""
    engine = Engine(model, None, EngineConfig(block_size=4))
    prompt = _tokens(18, 2)
    score = SamplingParams(max_tokens=0, prompt_logprobs=0)
    engine.generate([prompt], SamplingParams(max_tokens=1))
    engine.generate([prompt], score)
    assert engine.stats.cached_tokens == 0
    engine.generate([prompt], score)
    assert engine.stats.cached_tokens == 15
    engine.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=3))  # deeper than what is kept
    assert engine.stats.cached_tokens == 15


def test_changed_weights_are_not_mixed(model: hf.PreTrainedModel) -> None:
    own = tiny_model("llama-gqa", seed=1)
    engine = Engine(own, None, EngineConfig(block_size=4))
    prompt = _tokens(20, 3)
    engine.generate([prompt], SamplingParams(max_tokens=3))
    own.load_state_dict(model.state_dict())
    engine.forget_prefixes()
    assert engine.generate([prompt], SamplingParams(max_tokens=8))[0].token_ids == reference(model, prompt, 8)
    assert engine.stats.cached_tokens == 0


def test_aborted_requests_leave_what_they_computed(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(block_size=4, prefill_tokens=10))
    prompt = _tokens(30, 4)
    engine.add("gone", prompt, SamplingParams(max_tokens=3))
    engine.step()
    engine.abort("gone")
    assert engine.blocks_in_use == 0
    (found,) = engine.generate([prompt], SamplingParams(max_tokens=8))
    assert found.token_ids == reference(model, prompt, 8)
    assert engine.stats.cached_tokens == 8


def test_shared_blocks_decode_in_one_batch() -> None:
    """Eight samples of one prompt read the same blocks at the same time."""
    model = tiny_model("gemma2")
    prompt = _tokens(33, 5)
    params = [SamplingParams(max_tokens=9, temperature=1.0, seed=i, ignore_eos=True) for i in range(8)]
    shared = Engine(model, None, EngineConfig(block_size=4))
    apart = Engine(model, None, EngineConfig(block_size=4, prefix_cache=False))
    found = shared.generate([prompt] * 8, params)
    assert [c.token_ids for c in found] == [c.token_ids for c in apart.generate([prompt] * 8, params)]
    # at the end; and in the first step, when the window has passed nothing yet
    assert shared.stats.blocks_peak == 8 + 8 * 3 + 8 * 3 and apart.stats.blocks_peak == 8 * 9 + 8 * 9


def test_an_interrupted_step_leaves_nothing_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks can be found before they are computed; where they never are, they must not be."""
    model = tiny_model("llama-gqa")
    engine = Engine(model, None, EngineConfig(block_size=4))
    prompt = _tokens(20, 6)

    def interrupted(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([prompt], SamplingParams(max_tokens=5))
    assert engine.blocks_in_use == 0
    assert engine.generate([prompt], SamplingParams(max_tokens=5))[0].token_ids == reference(model, prompt, 5)
    assert engine.stats.cached_tokens == 0

"""The engine's contract: seeds, ends, limits, accounting, scoring, refusals."""

from __future__ import annotations

import random

import pytest
import torch
import transformers as hf

from distill.engine.kv_cache import blocks_for
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.errors import EngineError
from tests.engine.models import VOCAB, byte_tokenizer, chat_model, reference, tiny_model


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    return tiny_model("llama-gqa")


def _prompts(count: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 25))] for _ in range(count)]


def test_seeded_text_does_not_depend_on_the_batch(model: hf.PreTrainedModel) -> None:
    prompts = _prompts(10)
    params = [
        SamplingParams(max_tokens=12, temperature=0.8 + i / 10, top_p=0.9, top_k=(0, 20)[i % 2], seed=i)
        for i in range(10)
    ]
    together = Engine(model, None, EngineConfig(max_batch=16)).generate(prompts, params)
    small = Engine(model, None, EngineConfig(max_batch=2, block_size=4, prefill_tokens=9)).generate(prompts, params)
    alone = [Engine(model, None).generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]
    assert [c.token_ids for c in together] == [c.token_ids for c in small] == [c.token_ids for c in alone]
    other = Engine(model, None).generate(prompts, [SamplingParams(max_tokens=12, temperature=1.0, seed=99)] * 10)
    assert [c.token_ids for c in other] != [c.token_ids for c in together]


def test_unseeded_requests_differ_and_follow_the_engines_seed(model: hf.PreTrainedModel) -> None:
    params = SamplingParams(max_tokens=10, temperature=1.0, ignore_eos=True)
    first = Engine(model, None, EngineConfig(seed=3)).generate([[5, 6]] * 4, params)
    assert len({c.token_ids for c in first}) == 4
    assert Engine(model, None, EngineConfig(seed=3)).generate([[5, 6]] * 4, params) == first


def test_blocks_are_counted_exactly(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(block_size=4, num_blocks=20))
    assert engine.pool is not None
    engine.add("a", [5] * 7, SamplingParams(max_tokens=30, ignore_eos=True))
    engine.add("b", [6] * 8, SamplingParams(max_tokens=30, ignore_eos=True))
    for step in range(1, 12):
        engine.step()
        cached = [7 + step - 1, 8 + step - 1]
        # at admission there is room for the first sampled token too
        expected = sum(blocks_for(max(n, p + 1), 4) for n, p in zip(cached, (7, 8), strict=True))
        assert engine.pool.num_used == expected
    engine.abort("a")
    assert engine.pool.num_used == blocks_for(18, 4)
    engine.abort("a")
    engine.abort("b")
    assert engine.pool.num_used == 0 and not engine.has_work
    with pytest.raises(EngineError, match="context"):
        engine.add("c", [5] * 80, SamplingParams())


def test_all_blocks_fill(model: hf.PreTrainedModel) -> None:
    """One sequence may use every block of the cache."""
    engine = Engine(model, None, EngineConfig(block_size=4, num_blocks=5))
    (completion,) = engine.generate([[5, 6, 7]], SamplingParams(max_tokens=100, ignore_eos=True))
    assert completion.finish_reason == "length" and 3 + len(completion.token_ids) == 20


def test_ends(model: hf.PreTrainedModel) -> None:
    tokens = reference(model, [9, 8, 7], 30)
    assert model.generation_config.eos_token_id == 2
    free = Engine(model, None).generate([[9, 8, 7]], SamplingParams(max_tokens=30, ignore_eos=True))[0]
    assert len(free.token_ids) == 30 and free.token_ids[: len(tokens)] == tokens
    end = free.token_ids[4]
    at = free.token_ids.index(end)
    params = SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(end,))
    stopped = Engine(model, None).generate([[9, 8, 7]], params)[0]
    assert (stopped.token_ids, stopped.finish_reason) == (free.token_ids[: at + 1], "stop")
    short = Engine(model, None).generate([[9, 8, 7]], SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert (short.token_ids, short.finish_reason) == (free.token_ids[:3], "length")


def test_list_of_eos_tokens() -> None:
    model = tiny_model("llama-gqa", seed=4)
    free = Engine(model, None).generate([[9, 8, 7]], SamplingParams(max_tokens=20, ignore_eos=True))[0]
    end = free.token_ids[6]
    model.generation_config.eos_token_id = [2, end]
    engine = Engine(model, None)
    assert engine.eos_ids == {2, end}
    (completion,) = engine.generate([[9, 8, 7]], SamplingParams(max_tokens=20))
    assert completion.token_ids == reference(model, [9, 8, 7], 20)
    assert completion.finish_reason == "stop"
    late = engine.generate([[9, 8, 7]], SamplingParams(max_tokens=20, min_tokens=12))[0]
    assert len(late.token_ids) >= 12 and not set(late.token_ids[:12]) & engine.eos_ids


def test_stop_strings_and_streaming() -> None:
    tokenizer = byte_tokenizer()
    model = chat_model(tokenizer)
    engine = Engine(model, tokenizer)
    prompt = tokenizer("the cat").input_ids
    whole = engine.generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True))[0]
    stop = whole.text[10:12]
    cut = engine.generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True, stop=(stop,)))[0]
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    engine.add("s", prompt, SamplingParams(max_tokens=40, ignore_eos=True, stop=(stop,), logprobs=0), stream=True)
    pieces, logprobs, completion = [], [], None
    while completion is None:
        for output in engine.step():
            pieces.append(output.text)
            logprobs.extend(output.logprobs)
            completion = output.completion
    assert "".join(pieces) == cut.text == completion.text
    assert [item.token_id for item in logprobs] == list(completion.token_ids) == list(cut.token_ids)


def test_progress_and_stats(model: hf.PreTrainedModel) -> None:
    heard: list[int] = []
    engine = Engine(model, None, EngineConfig(max_batch=2))
    engine.generate([[5]] * 5, SamplingParams(max_tokens=4, ignore_eos=True), heard.append)
    assert heard[-1] == 5 and heard == sorted(heard)
    assert (engine.stats.finished, engine.stats.sampled_tokens) == (5, 20)
    assert (engine.stats.prefill_tokens, engine.stats.decode_tokens) == (5, 15)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2", "mistral"])
def test_scores_equal_the_models_own(name: str) -> None:
    model = tiny_model(name)
    sequences = [[5], *_prompts(6), [4] * 60]
    expected = []
    with torch.inference_mode():
        for tokens in sequences:
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            expected.append([logprobs[i, t].item() for i, t in enumerate(tokens[1:])])
    for config in (
        EngineConfig(),
        EngineConfig(block_size=4, prefill_tokens=7),
        EngineConfig(logits_bytes=4 * VOCAB * 5),  # five positions at once
        EngineConfig(block_size=4, num_blocks=16, max_batch=3),
        EngineConfig(use_kv_cache=False),
    ):
        engine = Engine(model, None, config)
        found = engine.score(sequences)
        assert [len(s) for s in found] == [len(t) - 1 for t in sequences]
        for own, reference_scores in zip(found, expected, strict=True):
            assert own == pytest.approx(reference_scores, abs=1e-4)
        assert engine.pool is None or engine.pool.num_used == 0


def test_refused_requests(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None, EngineConfig(max_model_len=10))
    for prompt, params, message in (
        ([], SamplingParams(), "empty"),
        ([5] * 10, SamplingParams(), "context"),
        ([VOCAB], SamplingParams(), "vocabulary"),
        ([-1], SamplingParams(), "vocabulary"),
        ([5], SamplingParams(stop_token_ids=(VOCAB,)), "stop_token_ids"),
        ([5], SamplingParams(stop=("x",)), "tokenizer"),
        ([5], SamplingParams(logit_bias=((VOCAB, 1.0),)), "logit_bias"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.generate([[5], prompt], params)
    assert not engine.has_work


def _small(config_class: type[hf.PretrainedConfig], **more: object) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    base = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return hf.AutoModelForCausalLM.from_config(config_class(**{**base, **more}))


def test_other_structures_are_refused_by_name() -> None:
    with pytest.raises(EngineError, match="MambaForCausalLM"):
        Engine(_small(hf.MambaConfig, state_size=4), None)
    with pytest.raises(EngineError, match="BloomForCausalLM"):
        Engine(_small(hf.BloomConfig, n_head=4, n_layer=2), None)
    with pytest.raises(EngineError, match="encoder-decoder"):
        torch.manual_seed(0)
        t5 = hf.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        Engine(hf.T5ForConditionalGeneration(t5), None)
    with pytest.raises(EngineError, match="StableLmForCausalLM.*do not pass our argument"):
        Engine(_small(hf.StableLmConfig, intermediate_size=48), None)
    gpt_oss = _small(
        hf.GptOssConfig,
        intermediate_size=32,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    with pytest.raises(EngineError, match="s_aux"):
        Engine(gpt_oss, None)


@pytest.mark.parametrize("config", [EngineConfig(), EngineConfig(block_size=4, prefill_tokens=5, max_batch=2)])
def test_prompt_logprobs(model: hf.PreTrainedModel, config: EngineConfig) -> None:
    """Scores of prompts beside sampling ones, in one batch; the likeliest token and its number are exact."""
    prompts = [[5], *_prompts(4), [9, 8, 7, 6, 5]]
    depths = [0, 1, None, 3, 0, 2]
    params = [SamplingParams(max_tokens=i % 3 if d is not None else 2, prompt_logprobs=d) for i, d in enumerate(depths)]
    found = Engine(model, None, config).generate(prompts, params)
    for prompt, own, completion in zip(prompts, params, found, strict=True):
        assert completion.finish_reason in ("length", "stop") and len(completion.token_ids) <= own.max_tokens
        if own.prompt_logprobs is None:
            assert completion.prompt_logprobs is None
            continue
        assert completion.prompt_logprobs is not None and len(completion.prompt_logprobs) == len(prompt)
        assert completion.prompt_logprobs[0] is None
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
        for row, token, report in zip(rows, prompt[1:], completion.prompt_logprobs[1:], strict=False):
            assert report is not None and report.token_id == token
            assert report.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert len(report.top) == max(1, own.prompt_logprobs)
            assert report.top[0][0] == row.argmax().item()
            assert (report.logprob == report.top[0][1]) == (token == report.top[0][0])
    with pytest.raises(EngineError, match="max_tokens"):
        SamplingParams(max_tokens=0)


def test_logit_bias(model: hf.PreTrainedModel) -> None:
    engine = Engine(model, None)
    forced, free = engine.generate(
        [[5, 6]] * 2,
        [
            SamplingParams(max_tokens=3, ignore_eos=True, logprobs=0, logit_bias=((77, 100.0),)),
            SamplingParams(max_tokens=3),
        ],
    )
    assert forced.token_ids == (77, 77, 77)
    assert forced.logprobs is not None and forced.logprobs[0].logprob < -1e-3  # of the model itself
    banned = SamplingParams(max_tokens=1, logit_bias=((free.token_ids[0], -100.0),))
    assert engine.generate([[5, 6]], banned)[0].token_ids[0] != free.token_ids[0]

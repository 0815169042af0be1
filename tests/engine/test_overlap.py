"""Steps launched before the last one's tokens are read: the same text, whatever ends, arrives or fails in between."""

from __future__ import annotations

import random

import pytest
import torch
import transformers as hf

from distill.engine import runner
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import Completion, SamplingParams
from tests.engine.models import VOCAB, byte_tokenizer, chat_model, reference, tiny_model
from tests.engine.test_prefix import _tokens, _tree


@pytest.fixture(scope="module")
def model() -> hf.PreTrainedModel:
    return tiny_model("llama-gqa")


def _ahead(model: hf.PreTrainedModel, **limits: object) -> Engine:
    return Engine(model, None, EngineConfig(overlap=True, **limits))  # type: ignore[arg-type]


def _finish(engine: Engine) -> dict[str, Completion]:
    found = {}
    while engine.has_work:
        found.update((o.request_id, o.completion) for o in engine.step() if o.completion is not None)
    return found


def test_tokens_come_a_step_late(model: hf.PreTrainedModel) -> None:
    engine, params = _ahead(model), SamplingParams(max_tokens=2, ignore_eos=True)
    engine.add("a", [5, 6, 7], params)
    assert [engine.step(), engine.step()] == [[], []]
    assert (
        engine.stats.sampled_tokens == 1 and engine.has_work
    )  # the second is under way, and the last: nothing follows
    (output,) = engine.step()
    assert output.completion is not None and not engine.has_work and engine.blocks_in_use == 0
    assert output.completion.token_ids == Engine(model, None).generate([[5, 6, 7]], params)[0].token_ids
    assert (engine.stats.steps, engine.stats.prefill_tokens, engine.stats.decode_tokens) == (2, 3, 1)


@pytest.mark.parametrize("blocks", [None, 15])
def test_sampled_text_is_that_of_an_engine_that_waits(model: hf.PreTrainedModel, blocks: int | None) -> None:
    """Temperature, filters, ends at EOS and stop tokens; with few blocks preemption comes on top."""
    rng = random.Random(0)
    prompts = _tree(14, seed=1)
    params = [
        SamplingParams(
            max_tokens=rng.randint(1, 20),
            temperature=rng.choice((0.0, 0.7, 1.2)),
            top_p=rng.choice((1.0, 0.8)),
            top_k=rng.choice((0, 15)),
            min_p=rng.choice((0.0, 0.05)),
            seed=i,
            stop_token_ids=tuple(rng.sample(range(VOCAB), 8)),
        )
        for i in range(14)
    ]
    expected = Engine(model, None).generate(prompts, params)
    engine = _ahead(model, block_size=4, num_blocks=blocks, prefill_tokens=11, max_batch=6)
    assert engine.generate(prompts, params) == expected
    assert engine.generate(prompts, params) == expected  # with what the cache has now
    assert {c.finish_reason for c in expected} == {"stop", "length"}
    assert (engine.stats.preemptions > 0) == (blocks is not None)
    assert engine.blocks_in_use == 0 and engine.stats.cached_tokens > 0


def test_requests_that_must_be_waited_for_come_and_go(model: hf.PreTrainedModel) -> None:
    """Log probabilities, penalties and scores beside plain requests, which go on as before."""
    rng = random.Random(1)
    prompts = _tree(16, seed=2)
    special = [{"logprobs": 2}, {"presence_penalty": 1.5}, {"prompt_logprobs": 1}, {"min_tokens": 5}]
    params = [
        SamplingParams(
            max_tokens=rng.randint(2, 12), seed=i, temperature=i % 2, **(special[i // 4] if i % 4 == 3 else {})
        )
        for i in range(16)
    ]
    expected = [Engine(model, None).generate([p], own)[0] for p, own in zip(prompts, params, strict=True)]
    engine = _ahead(model, block_size=4, prefill_tokens=20, max_batch=5)
    found: dict[str, Completion] = {}
    for index, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        engine.add(str(index), prompt, own)
        for _ in range(rng.randint(0, 4)):
            found.update((o.request_id, o.completion) for o in engine.step() if o.completion is not None)
    found.update(_finish(engine))
    for index, completion in enumerate(expected):
        own = found[str(index)]
        assert (own.token_ids, own.finish_reason) == (completion.token_ids, completion.finish_reason)
        for one, other in zip(own.logprobs or (), completion.logprobs or (), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert engine.blocks_in_use == 0


def test_aborted_requests_leave_nothing(model: hf.PreTrainedModel) -> None:
    rng, params = random.Random(2), SamplingParams(max_tokens=10)
    prompts = _tree(12, seed=3)
    engine = _ahead(model, block_size=4, num_blocks=30, max_batch=5)
    found: dict[str, Completion] = {}
    gone = set()
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, params)
        found.update((o.request_id, o.completion) for o in engine.step() if o.completion is not None)
        if index % 3 == 2:
            name = str(rng.randint(0, index))
            engine.abort(name)
            gone.add(name)
            engine.add(f"again-{index}", prompt, params)
            engine.abort(f"again-{index}")
    found.update(_finish(engine))
    for index, prompt in enumerate(prompts):
        if str(index) in found:
            assert found[str(index)].token_ids == reference(model, prompt, 10)
        else:
            assert str(index) in gone
    assert len(found) >= 8 and engine.blocks_in_use == 0


def test_blocks_are_found_once_their_tokens_are_known(model: hf.PreTrainedModel) -> None:
    engine = _ahead(model, block_size=4)
    prompt = _tokens(6, 1)
    (first,) = engine.generate([prompt], SamplingParams(max_tokens=11, ignore_eos=True))
    turn = [*prompt, *first.token_ids, 7, 8, 9]
    (second,) = engine.generate([turn], SamplingParams(max_tokens=4))
    assert second.token_ids == reference(model, turn, 4)
    assert engine.stats.cached_tokens == 16  # as without overlap: 6 + 11 - 1 computed


def test_stop_strings_and_streams() -> None:
    """A text is cut where it would have been, though the device computed a token more."""
    tokenizer = byte_tokenizer()
    model = chat_model(tokenizer)
    plain, engine = Engine(model, tokenizer), Engine(model, tokenizer, EngineConfig(overlap=True))
    prompt = tokenizer("the cat").input_ids
    whole = plain.generate([prompt], SamplingParams(max_tokens=40, ignore_eos=True))[0]
    params = SamplingParams(max_tokens=40, ignore_eos=True, stop=(whole.text[10:12],))
    (expected,) = plain.generate([prompt], params)
    assert engine.generate([prompt], params) == [expected]
    engine.add("s", prompt, params, stream=True)
    outputs = [output for _ in range(50) for output in engine.step()]
    assert "".join(output.text for output in outputs) == expected.text
    assert [o.completion for o in outputs if o.completion is not None] == [expected]
    assert engine.blocks_in_use == 0


def test_an_interrupted_step_is_computed_anew(model: hf.PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens under way are lost with it, and sampled again."""
    engine, params = _ahead(model, block_size=4), SamplingParams(max_tokens=9, temperature=1.0, seed=5)
    prompts = _tree(4, seed=6)
    expected = Engine(model, None).generate(prompts, params)
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, params)
    for _ in range(3):
        engine.step()

    def interrupted(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    found = _finish(engine)
    assert [found[str(i)].token_ids for i in range(4)] == [completion.token_ids for completion in expected]
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", ["gemma2", "mistral"])
def test_windows(name: str) -> None:
    """Blocks behind a window are given back while the step that reads them is under way."""
    model = tiny_model(name)
    prompts = _tree(4, seed=7)
    engine = _ahead(model, block_size=4, num_blocks=26, prefill_tokens=9, max_batch=3)
    found = engine.generate(prompts, SamplingParams(max_tokens=16))
    assert [completion.token_ids for completion in found] == [reference(model, prompt, 16) for prompt in prompts]
    assert engine.blocks_in_use == 0

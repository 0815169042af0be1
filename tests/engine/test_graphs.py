"""Decode steps on fixed inputs. Without a GPU nothing is captured: each "replay" computes on those inputs, with
attention by its definition in place of the kernels."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import transformers as hf

from distill.engine import choices, runner
from distill.engine.graphs import batch_buckets
from distill.engine.prompt_graphs import token_buckets
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.errors import EngineError
from distill.kernels.reference import paged_reference
from tests.engine.models import reference, tiny_model
from tests.engine.test_prefix import _tree


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    width: torch.Tensor | None = None,
    arrived: torch.Tensor,
    scales: None,
    **limits: object,
) -> torch.Tensor:
    assert not arrived.any() and len(arrived) >= len(lengths) * keys.shape[1]
    if width is not None:
        tables = tables[: len(lengths) * int(width)].view(len(lengths), -1)
    starts, ones = torch.arange(len(lengths)), torch.ones_like(lengths)
    out = paged_reference(query, keys, values, tables, starts, ones, lengths - 1, **limits)  # type: ignore[arg-type]
    return out.to(query.dtype)


def _prefill(query: torch.Tensor, *arrays: torch.Tensor, scales: None, **limits: object) -> torch.Tensor:
    return paged_reference(query, *arrays[:-1], **limits).to(query.dtype)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton were there."""
    module = ModuleType("distill.kernels.paged_attention")
    module.paged_decode, module.varlen_prefill = _decode, _prefill  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distill.kernels.paged_attention", module)
    monkeypatch.setattr(choices, "find_spec", lambda name: name)


def _engine(model: hf.PreTrainedModel, **limits: object) -> Engine:
    return Engine(model, None, EngineConfig(attention="triton", fused=False, **limits))  # type: ignore[arg-type]


def test_buckets() -> None:
    assert batch_buckets(1) == [1] and batch_buckets(6) == [1, 2, 4, 6] and batch_buckets(24) == [1, 2, 4, 8, 16, 24]
    assert batch_buckets(256)[-8:] == [96, 112, 128, 160, 192, 224, 256][-8:] or batch_buckets(256)[-1] == 256
    for largest in (1, 7, 64, 100, 128, 256):
        sizes = batch_buckets(largest)
        assert sizes == sorted(set(sizes)) and sizes[-1] == largest


@pytest.mark.parametrize(
    "name,overlap", [("llama-gqa", False), ("llama-gqa", True), ("mistral", True), ("gemma2", True), ("opt", True)]
)
def test_greedy_equals_generate(name: str, overlap: bool) -> None:
    """Batches that grow and shrink over several sizes, blocks that are given back and handed out again."""
    model = tiny_model(name)
    prompts = _tree(7, seed=1)
    params = [SamplingParams(max_tokens=2 + i) for i in range(7)]
    expected = [reference(model, prompt, 2 + i) for i, prompt in enumerate(prompts)]
    for limits in ({"block_size": 4}, {"block_size": 8, "num_blocks": 12, "max_batch": 5, "prefill_tokens": 9}):
        engine = _engine(model, overlap=overlap, **limits)
        for order in (range(7), range(6, -1, -1)):
            found = engine.generate([prompts[i] for i in order], [params[i] for i in order])
            assert [c.token_ids for c in found] == [expected[i] for i in order]
        assert engine.blocks_in_use == 0
        mixed = name == "gemma2"  # windows on every other layer: no graphs
        assert (engine.graphs is None) == mixed
        assert engine.graphs is None or engine.graphs.num_captured >= 3  # sizes


def test_replays_are_what_decode_is_computed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of pure decode do not pack a batch."""
    model = tiny_model("llama-gqa")
    engine = _engine(model, overlap=True)
    prompts = _tree(3, seed=2)
    expected = [reference(model, prompt, 10) for prompt in prompts]
    packed = []

    def pack(works: list[runner.Work], *args: object, **kwargs: object) -> object:
        packed.append(len(works))
        return original(works, *args, **kwargs)

    original = runner.pack
    monkeypatch.setattr(runner, "pack", pack)
    found = engine.generate(prompts, SamplingParams(max_tokens=10, ignore_eos=True))
    assert packed == [3] and engine.stats.steps == 10
    assert [c.token_ids[: len(e)] for c, e in zip(found, expected, strict=True)] == expected


def test_token_buckets() -> None:
    assert token_buckets(9) == [9] and token_buckets(40) == [16, 32, 40]
    sizes = token_buckets(1024)
    assert sizes == sorted(set(sizes)) and sizes[-1] == 1024
    for count in range(129, 1025):
        assert next(size for size in sizes if size >= count) <= count * 9 / 8


@pytest.mark.parametrize("name,overlap", [("llama-gqa", True), ("mistral", False), ("opt", True)])
def test_prompts_that_come_again_are_replayed(name: str, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One and several, alone and with blocks that others have filled, more than a graph has room for; the text is that
    of generate(), and only what is new in its size is packed."""
    model = tiny_model(name)
    packed: list[list[int]] = []

    def pack(works: list[runner.Work], *args: object, **kwargs: object) -> object:
        packed.append([work.num_tokens for work in works])
        return original(works, *args, **kwargs)

    original = runner.pack
    monkeypatch.setattr(runner, "pack", pack)
    prompts = [[3 + (7 * i + 5 * j) % 50 for j in range(22 + i)] for i in range(3)]
    expected = [reference(model, prompt, 6) for prompt in prompts]
    engine = _engine(model, overlap=overlap, block_size=4, max_batch=12)
    params = SamplingParams(max_tokens=6)
    assert engine.graphs is not None
    for repeat in range(3):
        for prompt, wanted in zip(prompts, expected, strict=True):  # 22 to 24 tokens: one size
            engine.forget_prefixes()
            assert engine.generate([prompt], params)[0].token_ids == wanted
        assert packed == [[22]] and engine.graphs.prompts.num_captured == 1, repeat
    for _ in range(3):
        engine.forget_prefixes()
        assert [c.token_ids for c in engine.generate(prompts, params)] == expected
    assert packed == [[22], [22, 23, 24]] and engine.graphs.prompts.num_captured == 2
    cached = engine.stats.cached_tokens
    for _ in range(2):  # the last few tokens of each
        assert [c.token_ids for c in engine.generate(prompts, params)] == expected
    assert engine.stats.cached_tokens > cached and engine.graphs.prompts.num_captured == 3
    count = len(packed)
    for _ in range(2):
        assert [c.token_ids for c in engine.generate(prompts * 4, params)] == expected * 4  # twelve
    assert [len(works) for works in packed[count:]] == [12, 12] and engine.blocks_in_use == 0


def test_sampled_tokens_and_scores_after_a_replayed_prompt() -> None:
    model = tiny_model("llama-gqa")
    prompts = [[5 + i, 6, 7, 8] for i in range(4)]
    params = [SamplingParams(max_tokens=5, temperature=i % 3 / 2, seed=i, logprobs=i % 2 or None) for i in range(4)]
    expected = Engine(model, None).generate(prompts, params)
    engine = _engine(model, overlap=True, max_batch=6, prefix_cache=False)
    for _ in range(3):
        found = engine.generate(prompts, params)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        assert found[1].logprobs is not None and expected[1].logprobs is not None
        for own, other in zip(found[1].logprobs, expected[1].logprobs, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert engine.graphs is not None and engine.graphs.prompts.num_captured == 1
    engine.score(prompts * 2)  # asks for logits of more than the last tokens


def test_samples_and_log_probabilities_come_from_replays_too() -> None:
    model = tiny_model("llama-gqa")
    prompts = _tree(6, seed=3)
    params = [
        SamplingParams(max_tokens=9, temperature=i % 3 / 2, top_p=0.9, seed=i, logprobs=1 if i == 5 else None)
        for i in range(6)
    ]
    expected = Engine(model, None).generate(prompts, params)
    found = _engine(model, overlap=True, max_batch=6).generate(prompts, params)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert found[5].logprobs is not None and expected[5].logprobs is not None
    for own, other in zip(found[5].logprobs, expected[5].logprobs, strict=True):
        assert own.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_the_spare_block_is_nobodys() -> None:
    model = tiny_model("llama-gqa")
    engine = _engine(model, block_size=4, num_blocks=6)
    assert engine.cache is not None and (engine.num_blocks, engine.cache.num_blocks) == (5, 6)
    (completion,) = engine.generate([[5, 6, 7]], SamplingParams(max_tokens=100, ignore_eos=True))
    assert 3 + len(completion.token_ids) == 20
    assert _engine(model, block_size=4, num_blocks=6, cuda_graphs=False).num_blocks == 6


def test_weights_that_move_are_captured_anew() -> None:
    model, other = tiny_model("llama-gqa"), tiny_model("llama-gqa", seed=1)
    engine, params = _engine(model, max_batch=2), SamplingParams(max_tokens=5)
    for _ in range(2):
        engine.generate([[5, 6]] * 2, params)
        engine.forget_prefixes()
    assert engine.graphs is not None and engine.graphs.num_captured and engine.graphs.prompts.num_captured
    model.load_state_dict(other.state_dict())
    engine.weights_changed()
    assert engine.graphs.num_captured  # in place: what was captured reads the new values
    assert engine.generate([[5, 6]], params)[0].token_ids == reference(other, [5, 6], 5)
    moved = {name: tensor.clone() for name, tensor in tiny_model("llama-gqa", seed=2).state_dict().items()}
    model.load_state_dict(moved, assign=True)
    engine.weights_changed()
    assert not engine.graphs.num_captured and not engine.graphs.prompts.num_captured
    assert engine.generate([[5, 6]], params)[0].token_ids == reference(tiny_model("llama-gqa", seed=2), [5, 6], 5)


def test_what_the_kernels_cannot_do_is_not_chosen_by_itself() -> None:
    model = tiny_model("llama-gqa")
    assert Engine(model, None).config.attention == "torch"
    with pytest.raises(EngineError, match="KV cache"):
        EngineConfig(attention="triton", use_kv_cache=False)

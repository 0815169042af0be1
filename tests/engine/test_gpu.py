"""On a GPU greedy text is that of generate() on a CPU, in fp32, whether steps are captured, overlap, or neither."""

from __future__ import annotations

import pytest
import torch

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from tests.engine.models import ARCHITECTURES, reference, tiny_model
from tests.engine.test_prefix import _tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
MAX_TOKENS = 14


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(name: str) -> None:
    model = tiny_model(name)
    prompts = _tree(8, seed=2)
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    model.to("cuda")
    for config in (
        EngineConfig(max_batch=8, block_size=16),
        EngineConfig(max_batch=8, block_size=4, prefill_tokens=20, overlap=False, fused=False),
        EngineConfig(max_batch=8, block_size=4, prefill_tokens=20, cuda_graphs=False),
        EngineConfig(max_batch=6, block_size=4, num_blocks=20, capture_at_start=True),  # preempts
    ):
        engine = Engine(model, None, config)
        assert engine.config.attention == "triton"
        for again in range(
            4
        ):  # prompts whole, then what the cache does not hold; both twice, as then they are captured
            if again == 2:
                engine.forget_prefixes()
            found = engine.generate(prompts, SamplingParams(max_tokens=MAX_TOKENS))
            assert [completion.token_ids for completion in found] == expected
        assert engine.blocks_in_use == 0
        if engine.graphs is not None and name not in ("mixtral",):
            assert engine.graphs.failure is None and engine.graphs.num_captured
            assert engine.graphs.prompts.failure is None


@pytest.mark.parametrize("name", ["qwen2", "phi3", "opt"])
def test_prompts_are_captured(name: str) -> None:
    """One and a few, in the sizes that come again."""
    model = tiny_model(name)
    prompts = [[3 + (7 * i + 5 * j) % 50 for j in range(22 + i)] for i in range(3)]
    expected = [reference(model, prompt, 6) for prompt in prompts]
    engine = Engine(model.to("cuda"), None, EngineConfig(max_batch=8, block_size=4, prefix_cache=False))
    assert engine.graphs is not None
    for _ in range(3):
        for prompt, wanted in zip(prompts, expected, strict=True):
            assert engine.generate([prompt], SamplingParams(max_tokens=6))[0].token_ids == wanted
        found = engine.generate(prompts, SamplingParams(max_tokens=6))
        assert [completion.token_ids for completion in found] == expected
    assert engine.graphs.prompts.failure is None and engine.graphs.prompts.num_captured == 2


def test_weights_change_in_place_and_elsewhere() -> None:
    """Values that change in place reach the captured steps; weights that move make them be captured anew."""
    model, other = tiny_model("qwen2").to("cuda"), tiny_model("qwen2", seed=1)
    prompts = _tree(4, seed=3)
    engine = Engine(model, None, EngineConfig(max_batch=4, block_size=4, capture_at_start=True))
    params = SamplingParams(max_tokens=MAX_TOKENS)
    before = [completion.token_ids for completion in engine.generate(prompts, params)]
    assert engine.graphs is not None
    captured = engine.graphs.num_captured
    seconds = engine.graphs.capture_seconds
    model.load_state_dict(other.state_dict())
    engine.weights_changed()
    expected = [reference(other, prompt, MAX_TOKENS) for prompt in prompts]
    assert expected != before
    assert [completion.token_ids for completion in engine.generate(prompts, params)] == expected
    assert (engine.graphs.num_captured, engine.graphs.capture_seconds) == (captured, seconds)
    third = tiny_model("qwen2", seed=2)
    expected = [reference(third, prompt, MAX_TOKENS) for prompt in prompts]
    moved = {name: tensor.to("cuda") for name, tensor in third.state_dict().items()}
    model.load_state_dict(moved, assign=True)
    engine.weights_changed()
    assert [completion.token_ids for completion in engine.generate(prompts, params)] == expected
    assert engine.graphs.capture_seconds > seconds


def test_seeded_text_is_that_of_a_cpu() -> None:
    model = tiny_model("llama-gqa")
    prompts = _tree(6, seed=4)
    params = [
        SamplingParams(
            max_tokens=12, temperature=0.8 + i / 10, top_p=(1.0, 0.9)[i % 2], top_k=(0, 20)[i % 3 == 0], seed=i
        )
        for i in range(6)
    ]
    expected = [completion.token_ids for completion in Engine(model, None).generate(prompts, params)]
    engine = Engine(model.to("cuda"), None, EngineConfig(max_batch=6))
    assert [completion.token_ids for completion in engine.generate(prompts, params)] == expected

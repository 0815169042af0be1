"""KV in int8: exact where numbers lie on the grid, half a step off at most elsewhere, and independent of chunks."""

from __future__ import annotations

import pytest
import torch

from distill.engine.kv_cache import LayerShape, PagedKVCache, quantize_rows
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.recipe.schema import Serve
from distill.serve.server import engine_config
from tests.engine.models import tiny_model
from tests.engine.test_prefix import _tree


def test_codes_by_hand() -> None:
    codes, scales = quantize_rows(torch.tensor([[127.0, -64.0, 0.4], [0.0, 0.0, 0.0], [2.0, -4.0, 1.0]]))
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0], [64, -127, 32]]
    assert scales.tolist() == [1.0, 2.0**-14, pytest.approx(4 / 127, rel=1e-3)]


def test_numbers_on_the_grid_are_exact_and_others_half_a_step_off() -> None:
    torch.manual_seed(0)
    scale = torch.tensor([0.5, 0.03125, 2.0])
    grid = torch.randint(-127, 128, (3, 16)).float() * scale[:, None]
    grid[:, 0] = 127 * scale
    codes, scales = quantize_rows(grid)
    assert torch.equal(codes * scales[:, None].float(), grid)
    rows = torch.randn(50, 64)
    codes, scales = quantize_rows(rows)
    # a float16 scale is off by 2^-11, which the largest code multiplies
    assert ((codes * scales[:, None].float() - rows).abs() <= scales[:, None].float() * (0.5 + 127 * 2.0**-11)).all()


def test_bytes_at_head_size_64() -> None:
    def cache(quantized: bool, dtype: torch.dtype) -> PagedKVCache:
        shapes = [LayerShape(2, 64, 64)] * 3
        cpu = torch.device("cpu")
        return PagedKVCache(shapes, num_blocks=5, block_size=16, dtype=dtype, device=cpu, quantized=quantized)

    small, half = cache(True, torch.float32), cache(False, torch.float16)
    assert small.bytes_per_token == 3 * 2 * 2 * (64 + 2) and half.bytes_per_token == 3 * 2 * 2 * 64 * 2
    assert small.total_bytes == small.bytes_per_token * 5 * 16
    assert small.total_bytes / half.total_bytes == 0.515625  # the bar is 0.53


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2"])
def test_text_does_not_depend_on_batch_chunks_and_reuse(name: str) -> None:
    model = tiny_model(name)
    prompts = _tree(8, seed=4)
    params = SamplingParams(max_tokens=8, prompt_logprobs=0)
    found = [
        Engine(model, None, config).generate(prompts, params)
        for config in (
            EngineConfig(kv_dtype="int8", block_size=4),
            EngineConfig(kv_dtype="int8", block_size=8, prefill_tokens=7, max_batch=3),
            EngineConfig(kv_dtype="int8", block_size=4, prefix_cache=False),
        )
    ]
    texts = [[c.token_ids for c in completions] for completions in found]
    assert texts[0] == texts[1] == texts[2]
    exact = Engine(model, None, EngineConfig(block_size=4)).generate(prompts, params)
    difference = [
        abs(own.logprob - other.logprob)
        for a, b in zip(found[0], exact, strict=True)
        for own, other in zip(a.prompt_logprobs or (), b.prompt_logprobs or (), strict=True)
        if own is not None and other is not None
    ]
    assert 0 < sum(difference) / len(difference) < 0.05


def test_the_serve_section_asks_for_it() -> None:
    assert engine_config(Serve()).kv_dtype == "auto"
    engine = Engine(tiny_model("llama-gqa"), None, engine_config(Serve(kv_dtype="int8", kv_gib=0.001)))
    assert engine.cache is not None and engine.cache.is_quantized

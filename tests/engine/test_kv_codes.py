"""KV in int8 and fp8: exact on the grid, as far off elsewhere as rounding says, and independent of chunks."""

from __future__ import annotations

from typing import Literal

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
    def cache(codes: torch.dtype | None, dtype: torch.dtype) -> PagedKVCache:
        shapes = [LayerShape(2, 64, 64)] * 3
        cpu = torch.device("cpu")
        return PagedKVCache(shapes, num_blocks=5, block_size=16, dtype=dtype, device=cpu, codes=codes)

    half = cache(None, torch.float16)
    for codes in (torch.int8, torch.float8_e4m3fn):
        small = cache(codes, torch.float32)
        _check_bytes(small, half)


def _check_bytes(small: PagedKVCache, half: PagedKVCache) -> None:
    assert small.bytes_per_token == 3 * 2 * 2 * (64 + 2) and half.bytes_per_token == 3 * 2 * 2 * 64 * 2
    assert small.total_bytes == small.bytes_per_token * 5 * 16
    assert small.total_bytes / half.total_bytes == 0.515625  # the bar is 0.53


def test_numbers_of_fp8_are_exact_and_others_a_sixteenth_off() -> None:
    """E4M3 (2209.05433): 3 bits of mantissa, so that rounding changes a number by 2^-4 of itself at most, but for the
    subnormal ones below 2^-6, whose step is 2^-9; 448 is the largest."""
    numbers = torch.tensor([[448.0, -448.0, 1.125, 240.0, 2.0**-9]])
    codes, scales = quantize_rows(numbers, torch.float8_e4m3fn)
    assert scales.tolist() == [1.0] and torch.equal(codes.float(), numbers)
    torch.manual_seed(0)
    rows = torch.randn(50, 64)
    codes, scales = quantize_rows(rows, torch.float8_e4m3fn)
    back = codes.float() * scales[:, None].float()
    bound = (rows.abs() * 2.0**-4).clamp(min=0) + scales[:, None].float() * 2.0**-10
    # the float16 scale may be a little too small for the largest number, which is then cut
    assert ((back - rows).abs() <= bound + rows.abs() * 2.0**-10).all()
    assert torch.equal(quantize_rows(torch.zeros(2, 4), torch.float8_e4m3fn)[0].float(), torch.zeros(2, 4))


def test_a_cache_of_fp8_returns_what_was_rounded() -> None:
    """Written at scattered rows; read in place, picked, and by position."""
    torch.manual_seed(0)
    cache = PagedKVCache(
        [LayerShape(2, 8, 8)], num_blocks=4, block_size=4, dtype=torch.float32, device=torch.device("cpu"),
        codes=torch.float8_e4m3fn,
    )  # fmt: skip
    key, value = torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    slots = torch.tensor([8, 9, 10, 11, 4])  # block 2, then block 1
    cache.write(0, cache.head_rows(slots, 2), key, value)
    expected = []
    for tokens in (key, value):
        codes, scales = quantize_rows(tokens.reshape(-1, 8), torch.float8_e4m3fn)
        expected.append((codes.float() * scales[:, None].float()).view(5, 2, 8).transpose(0, 1))
    for got, own in zip(cache.read(0, torch.tensor([2, 1]), 0, 5), expected, strict=True):
        assert torch.equal(got, own)
    ((keys, _),) = cache.parts(0, [range(1, 3)], None)
    assert torch.equal(keys[1], expected[0][:, :4]) and torch.equal(keys[0][:, :1], expected[0][:, 4:])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2"])
def test_text_does_not_depend_on_batch_chunks_and_reuse(name: str, kind: Literal["int8", "fp8"]) -> None:
    model = tiny_model(name)
    prompts = _tree(8, seed=4)
    params = SamplingParams(max_tokens=8, prompt_logprobs=0)
    found = [
        Engine(model, None, config).generate(prompts, params)
        for config in (
            EngineConfig(kv_dtype=kind, block_size=4),
            EngineConfig(kv_dtype=kind, block_size=8, prefill_tokens=7, max_batch=3),
            EngineConfig(kv_dtype=kind, block_size=4, prefix_cache=False),
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
    assert 0 < sum(difference) / len(difference) < {"int8": 0.05, "fp8": 0.2}[kind]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_serve_section_asks_for_it(kind: Literal["int8", "fp8"]) -> None:
    assert engine_config(Serve()).kv_dtype == "auto"
    engine = Engine(tiny_model("llama-gqa"), None, engine_config(Serve(kv_dtype=kind, kv_gib=0.001)))
    assert engine.cache is not None and engine.cache.is_quantized

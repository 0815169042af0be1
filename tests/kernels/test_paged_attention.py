"""The Triton kernels against the float64 definition: compiled on a GPU, elsewhere by Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

from __future__ import annotations

import os

import pytest
import torch
from transformers import PreTrainedModel

from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.kernels.reference import paged_reference
from tests.engine.models import tiny_model
from tests.engine.test_prefix import _tree

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels.paged_attention import paged_decode, varlen_prefill  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"


def _cache(
    totals: list[int], kv_heads: int, size: int, dims: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values and a table of scattered blocks, wide enough for the longest."""
    counts = [-(-total // size) for total in totals]
    order = torch.randperm(sum(counts) + 3).tolist()
    tables = torch.full((len(totals), max(counts) + 1), -1, dtype=torch.int32)
    for row, count in enumerate(counts):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    shape = (sum(counts) + 3, kv_heads, size)
    keys, values = (torch.randn(*shape, dim, dtype=dtype, device=DEVICE) for dim in dims)
    return keys, values, tables.to(DEVICE)


@pytest.mark.parametrize("window", [None, 70, 5])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 1), (6, 2)])
def test_decode(window: int | None, softcap: float | None, heads: int, kv_heads: int) -> None:
    """Lengths on both sides of a block, a tile and a split; sizes that are no powers of two."""
    torch.manual_seed(0)
    totals = [1, 8, 9, 64, 65, 530]
    keys, values, tables = _cache(totals, kv_heads, 8, (24, 20), torch.float32)
    query = torch.randn(heads, len(totals), 24, device=DEVICE).transpose(0, 1)  # as a model hands it over
    lengths = torch.tensor(totals, dtype=torch.int64, device=DEVICE)
    out = paged_decode(query, keys, values, tables, lengths, scale=0.3, window=window, softcap=softcap)
    starts, ones = torch.arange(len(totals)), torch.ones(len(totals), dtype=torch.int64)
    expected = paged_reference(
        query, keys, values, tables, starts, ones, lengths - 1, scale=0.3, window=window, softcap=softcap
    )
    assert torch.allclose(out.double(), expected, atol=2e-5)


@pytest.mark.parametrize("window", [None, 70, 5])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 1), (6, 2)])
def test_prefill(window: int | None, softcap: float | None, heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    lengths, contexts = [1, 7, 40, 70], [0, 3, 100, 0]
    totals = [a + b for a, b in zip(lengths, contexts, strict=True)]
    keys, values, tables = _cache(totals, kv_heads, 8, (24, 20), torch.float32)
    starts = [0, 1, 8, 48]
    query = torch.randn(heads, sum(lengths), 24, device=DEVICE).transpose(0, 1)
    arrays = [torch.tensor(x, dtype=torch.int64, device=DEVICE) for x in (starts, lengths, contexts)]
    out = varlen_prefill(query, keys, values, tables, *arrays, max(lengths), scale=0.3, window=window, softcap=softcap)
    expected = paged_reference(query, keys, values, tables, *arrays, scale=0.3, window=window, softcap=softcap)
    assert torch.allclose(out.double(), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2"])
def test_the_engine_by_kernels(name: str) -> None:
    """Chunks, reuse, windows and preemption: greedy text is that of generate()."""
    model = tiny_model(name).to(DEVICE)
    prompts = _tree(5, seed=6)
    expected = [_generate(model, prompt) for prompt in prompts]
    for config in (
        EngineConfig(attention="triton", block_size=4, prefill_tokens=20, fused=False),
        EngineConfig(attention="triton", block_size=8, num_blocks=9, max_batch=4),
    ):
        engine = Engine(model, None, config)
        assert [c.token_ids for c in engine.generate(prompts, SamplingParams(max_tokens=6))] == expected
        assert engine.stats.cached_tokens > 0


def _generate(model: PreTrainedModel, prompt: list[int]) -> tuple[int, ...]:
    ids = torch.tensor([prompt], device=DEVICE)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype,tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float32, 2e-5)])
def test_on_a_gpu(dtype: torch.dtype, tolerance: float) -> None:
    """Sizes of real models: 32 query heads on 8 KV heads of size 128, several splits."""
    torch.manual_seed(0)
    totals = [1, 100, 2049, 4096]
    keys, values, tables = _cache(totals, 8, 32, (128, 128), dtype)
    lengths = torch.tensor(totals, dtype=torch.int64, device=DEVICE)
    query = torch.randn(len(totals), 32, 128, dtype=dtype, device=DEVICE)
    out = paged_decode(query, keys, values, tables, lengths, scale=128**-0.5)
    starts, ones = torch.arange(len(totals)), torch.ones(len(totals), dtype=torch.int64)
    expected = paged_reference(
        query, keys, values, tables, starts, ones, lengths - 1, scale=128**-0.5, window=None, softcap=None
    )
    assert (out.double() - expected).abs().max() < tolerance
    chunk = torch.tensor([1, 50, 300, 1000], device=DEVICE)
    begins = chunk.cumsum(0) - chunk
    query = torch.randn(int(chunk.sum()), 32, 128, dtype=dtype, device=DEVICE)
    out = varlen_prefill(query, keys, values, tables, begins, chunk, lengths - chunk, 1000, scale=128**-0.5)
    expected = paged_reference(
        query, keys, values, tables, begins, chunk, lengths - chunk, scale=128**-0.5, window=None, softcap=None
    )
    assert (out.double() - expected).abs().max() < tolerance

"""The Triton kernels against the float64 definition: compiled on a GPU, elsewhere by Triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/kernels
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

import pytest
import torch
from transformers import PreTrainedModel

from distill.engine.kv_cache import quantize_rows
from distill.engine.runner import Engine, EngineConfig
from distill.engine.types import SamplingParams
from distill.kernels.reference import paged_reference
from tests.engine.models import ARCHITECTURES, tiny_model
from tests.engine.test_prefix import _tree

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels import paged_attention  # noqa: E402
from distill.kernels.fused import rotate_and_store  # noqa: E402
from distill.kernels.paged_attention import Turn, paged_decode, plan_splits, varlen_prefill  # noqa: E402
from distill.kernels.paged_launches import DecodeLaunch  # noqa: E402

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


def test_decode_of_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are programs enough, a short sequence has one and a long one several; counts are zero again after a
    call, and a table may be flat, with a width that only the device knows."""
    monkeypatch.setattr(paged_attention, "_LONG", 128)
    how = DecodeLaunch(tile=64, warps=2, stages=2, programs=1, tokens=64)
    assert plan_splits(24, 5000, how) == (4, 2) and plan_splits(1, 100, how) == (1, 2)
    assert plan_splits(24, 5000, replace(how, tokens=300)) == (4, 5)
    assert plan_splits(1, 5000, replace(how, programs=8)) == (8, 1)
    torch.manual_seed(0)
    totals = [100, 1, 129, 700]
    keys, values, tables = _cache(totals, 2, 8, (32, 32), torch.float32)
    query = torch.randn(len(totals), 4, 32, device=DEVICE)
    lengths = torch.tensor(totals, dtype=torch.int64, device=DEVICE)
    starts, ones = torch.arange(len(totals)), torch.ones(len(totals), dtype=torch.int64)
    limits = {"scale": 0.3, "window": None, "softcap": None}
    expected = paged_reference(query, keys, values, tables, starts, ones, lengths - 1, **limits)
    arrived = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    flat = torch.cat([tables.flatten(), torch.full((400,), -1, dtype=torch.int32, device=DEVICE)])
    width = torch.tensor([tables.shape[1]], device=DEVICE)
    for _ in range(2):
        out = paged_decode(query, keys, values, tables, lengths, scale=0.3, arrived=arrived, launch=how)
        assert torch.allclose(out.double(), expected, atol=2e-5) and not arrived.any()
        out = paged_decode(query, keys, values, flat, lengths, scale=0.3, arrived=arrived, width=width, launch=how)
        assert torch.allclose(out.double(), expected, atol=2e-5) and not arrived.any()


@pytest.mark.parametrize("heads,kv_heads,dims", [(7, 1, (24, 20)), (2, 2, (16, 128)), (3, 1, (16, 128))])
@pytest.mark.parametrize("programs", [1024, 66])
def test_decode_of_one_long_sequence(heads: int, kv_heads: int, dims: tuple[int, int], programs: int) -> None:
    """Cut into as many pieces as there may be, whose values are read in several goes, the last of them not full; the
    largest scores stand in one piece, so that a wrong shift of the others shows."""
    torch.manual_seed(0)
    total = 128 * 16 - 3
    keys, values, tables = _cache([total], kv_heads, 8, dims, torch.float32)
    keys[tables[0, 5].item()] *= 6
    query = torch.randn(1, heads, dims[0], device=DEVICE)
    lengths, zero = torch.tensor([total], device=DEVICE), torch.zeros(1, dtype=torch.int64)
    how = DecodeLaunch(tile=16, warps=2, stages=2, programs=programs, tokens=16)
    splits, _ = plan_splits(kv_heads, total, how)
    assert splits == min(128, programs // kv_heads)
    out = paged_decode(query, keys, values, tables, lengths, scale=0.3, launch=how)
    limits = {"scale": 0.3, "window": None, "softcap": None}
    expected = paged_reference(query, keys, values, tables, zero, zero + 1, lengths - 1, **limits)
    assert torch.allclose(out.double(), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window,normed,by_position", [(None, False, True), (70, True, True), (5, True, False)])
@pytest.mark.parametrize("heads,kv_heads,dim", [(4, 4, 32), (6, 2, 24)])
def test_decode_that_turns(
    dtype: torch.dtype, window: int | None, normed: bool, by_position: bool, heads: int, kv_heads: int, dim: int
) -> None:
    """As `rotate_and_store` and decode one after the other: the newest token at the start of a block and of a split,
    the only one, and one that is not to be stored."""
    torch.manual_seed(0)
    totals = [1, 9, 64, 65, 130, 200]
    keys, values, tables = _cache(totals, kv_heads, 8, (dim, dim), dtype)
    qkv = torch.randn(len(totals), (heads + 2 * kv_heads) * dim, dtype=dtype, device=DEVICE)
    angles = torch.randn(200, dim // 2, device=DEVICE).repeat(1, 2)
    lengths = torch.tensor(totals, dtype=torch.int64, device=DEVICE)
    newest = lengths - 1
    slots = tables.gather(1, newest[:, None] // 8)[:, 0].long() * 8 + newest % 8
    norms = None
    if normed:
        norms = (torch.randn(dim, dtype=dtype, device=DEVICE), torch.randn(dim, dtype=dtype, device=DEVICE), 1e-5)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    own = {"keys": keys.clone(), "values": values.clone()}
    query = rotate_and_store(qkv, cos[newest], sin[newest], slots, keys, values, query_heads=heads, norms=norms)
    how = DecodeLaunch(tile=64, warps=2, stages=2, programs=1024, tokens=64)
    expected = paged_decode(query, keys, values, tables, lengths, scale=0.3, window=window, launch=how)
    kept = slots.clone()
    kept[1] = -1
    was = own["keys"][slots[1] // 8, :, slots[1] % 8].clone()
    turn = Turn(cos, sin, True, kept, norms) if by_position else Turn(cos[newest], sin[newest], False, kept, norms)
    out = paged_decode(qkv, **own, tables=tables, lengths=lengths, scale=0.3, window=window, launch=how, turn=turn)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    assert torch.allclose(out, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(own["keys"][slots[1] // 8, :, slots[1] % 8], was)
    for mine, theirs in ((own["keys"], keys), (own["values"], values)):
        mine[slots[1] // 8, :, slots[1] % 8] = theirs[slots[1] // 8, :, slots[1] % 8]
        assert torch.allclose(mine, theirs, atol=tolerance, rtol=tolerance)


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


@pytest.mark.parametrize("codes", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("window,softcap", [(None, None), (70, 3.0)])
def test_caches_of_codes(codes: torch.dtype, window: int | None, softcap: float | None) -> None:
    """Decode and prefill over codes and scales: attention over the numbers that they stand for."""
    torch.manual_seed(0)
    chunk, contexts = torch.tensor([1, 7, 40], device=DEVICE), torch.tensor([8, 3, 500], device=DEVICE)
    totals = chunk + contexts
    exact = _cache(totals.tolist(), 2, 8, (24, 20), torch.float32)
    tables, stored, scales, numbers = exact[2], [], [], []
    for tensor in exact[:2]:
        rows, factors = quantize_rows(tensor.flatten(0, 2), codes)
        stored.append(rows.view(tensor.shape))
        scales.append(factors.view(tensor.shape[:3]))
        numbers.append((rows.float() * factors[:, None].float()).view(tensor.shape))
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    query = torch.randn(3, 4, 24, device=DEVICE)
    out = paged_decode(query, *stored, tables, totals, scales=(scales[0], scales[1]), **options)
    starts, ones = torch.arange(3), torch.ones(3, dtype=torch.int64)
    expected = paged_reference(query, *numbers, tables, starts, ones, totals - 1, **options)
    assert torch.allclose(out.double(), expected, atol=2e-5)
    begins = chunk.cumsum(0) - chunk
    query = torch.randn(int(chunk.sum()), 4, 24, device=DEVICE)
    out = varlen_prefill(query, *stored, tables, begins, chunk, contexts, 40, scales=(scales[0], scales[1]), **options)
    expected = paged_reference(query, *numbers, tables, begins, chunk, contexts, **options)
    assert torch.allclose(out.double(), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_engine_over_codes(kind: Literal["int8", "fp8"]) -> None:
    """The kernels' log probabilities are those of plain torch over the same codes, fused or not."""
    model = tiny_model("llama-gqa").to(DEVICE)
    prompts = _tree(5, seed=6)
    found = [
        Engine(model, None, EngineConfig(attention=attention, block_size=4, kv_dtype=kind, fused=fused)).score(prompts)
        for attention, fused in (("torch", False), ("triton", False), ("triton", True))
    ]
    for row, *others in zip(*found, strict=True):
        for other in others:
            assert other == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral", "gemma2", "qwen3-mixed"])
def test_the_engine_by_kernels(name: str) -> None:
    """Chunks, reuse, windows, several groups of layers and preemption: greedy text is that of generate()."""
    _check_text(name)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_on_a_gpu(name: str) -> None:
    _check_text(name)


def _check_text(name: str) -> None:
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

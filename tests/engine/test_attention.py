"""The fast paths against the float64 definition, and the cache's layout and accounting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.engine.attention import _attend_one, blockwise_decode, grouped_attention
from distill.engine.batch import DecodePlan, Segment, _ranges
from distill.engine.buffers import StepBuffers
from distill.engine.kv_cache import LayerShape, PagedKVCache, blocks_for, kv_bytes_per_token
from distill.engine.sequence import Sequence
from distill.engine.types import SamplingParams
from distill.kernels.reference import attention_reference
from tests.engine.models import tiny_model

CPU = torch.device("cpu")


def _sequence(length: int, blocks: list[int]) -> Sequence:
    """A sequence of `length` tokens whose last one is pending."""
    return Sequence(
        request_id="x",
        token_ids=[0] * length,
        num_prompt=1,
        params=SamplingParams(),
        seed=0,
        max_length=99,
        stop_ids=frozenset(),
        num_computed=length - 1,
        tables=[blocks],
    )


@pytest.mark.parametrize("window", [None, 5, 1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("scattered", [False, True])
def test_decode(window: int | None, softcap: float | None, heads: int, kv_heads: int, scattered: bool) -> None:
    torch.manual_seed(0)
    size, key_dim, value_dim = 4, 8, 6
    lengths = [1, 4, 5, 11, 16]
    cache = PagedKVCache(
        [LayerShape(kv_heads, key_dim, value_dim)], num_blocks=60, block_size=size, dtype=torch.float64, device=CPU
    )
    order = torch.randperm(60 if scattered else 13).tolist()  # scattered: sparse, so that blocks are gathered
    sequences, keys, values = [], [], []
    for length in lengths:
        blocks = [order.pop() for _ in range(blocks_for(length, size))]
        key, value = torch.randn(kv_heads, length, key_dim).double(), torch.randn(kv_heads, length, value_dim).double()
        slots = torch.tensor([blocks[i // size] * size + i % size for i in range(length)])
        cache.write(0, cache.head_rows(slots, kv_heads), key.transpose(0, 1), value.transpose(0, 1))
        stored_key, stored_value = cache.read(0, torch.tensor(blocks), 0, length)
        assert torch.equal(stored_key, key) and torch.equal(stored_value, value)
        sequences.append(_sequence(length, blocks))
        keys.append(key)
        values.append(value)
    query = torch.randn(len(lengths), heads, key_dim).double()
    view = DecodePlan(sequences, size, StepBuffers(CPU)).view(window)
    assert bool(view.ranges) != scattered or window is not None
    assert sum(map(len, view.ranges)) + (0 if view.gather is None else len(view.gather)) == len(view.rows)
    grouped = query.view(len(lengths), kv_heads, heads // kv_heads, key_dim)
    parts = cache.parts(0, view.ranges, view.gather)
    out = blockwise_decode(grouped, parts, view, scale=0.4, softcap=softcap)
    for row, (key, value) in enumerate(zip(keys, values, strict=True)):
        expected = attention_reference(query[row, :, None], key, value, scale=0.4, window=window, softcap=softcap)
        # the softmax itself is computed in float32
        assert torch.allclose(out[row].reshape(heads, -1), expected[0], atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("context", [0, 6])
def test_prefill(window: int | None, softcap: float | None, context: int) -> None:
    torch.manual_seed(0)
    length, kv_heads, group = 7, 2, 3
    query = torch.randn(kv_heads, group, length, 8).double()
    keys, values = (
        torch.randn(kv_heads, context + length, 8).double(),
        torch.randn(kv_heads, context + length, 8).double(),
    )
    mask = Segment(0, length, context, None).mask(window, CPU)
    assert (mask is None) == (context == 0 and window != 3)
    out = grouped_attention(query, keys, values, mask, scale=0.3, softcap=softcap)
    expected = attention_reference(query.flatten(0, 1), keys, values, scale=0.3, window=window, softcap=softcap)
    assert torch.allclose(out.flatten(0, 1).transpose(0, 1), expected, atol=1e-5)


def test_attention_by_hand() -> None:
    """Two keys with scores 0 and ln 3: weights 1/4 and 3/4."""
    query = torch.tensor([[[1.0]]])
    keys, values = torch.tensor([[[0.0], [3.0]]]).log1p() * 0, torch.tensor([[[4.0], [8.0]]])
    keys[0, 1, 0] = torch.tensor(3.0).log()
    out = attention_reference(query, keys, values, scale=1.0, window=None, softcap=None)
    assert out.item() == pytest.approx(0.25 * 4 + 0.75 * 8)
    assert attention_reference(query, keys, values, scale=1.0, window=1, softcap=None).item() == pytest.approx(8.0)


def test_bytes_are_exact() -> None:
    model = tiny_model("llama-gqa")  # 2 layers, 2 KV heads, head size 8
    assert kv_bytes_per_token(model.config, torch.float32) == 2 * 4 * 2 * 2 * 8
    assert kv_bytes_per_token(model.config, torch.bfloat16) == 2 * 2 * 2 * 2 * 8
    cache = PagedKVCache([LayerShape(2, 8, 8)] * 2, num_blocks=5, block_size=3, dtype=torch.float32, device=CPU)
    assert cache.bytes_per_token == kv_bytes_per_token(model.config, torch.float32)
    assert cache.total_bytes == 5 * 3 * cache.bytes_per_token


def test_ranges_by_hand() -> None:
    """Sorted ids of blocks in use: steps of 1 and 2 belong together, lonely ones are copied, the longest come first."""
    assert _ranges(np.array([4, 5, 6])) == (range(4, 7),)
    long, gaps = list(range(100, 120)), list(range(10, 30, 2))
    assert _ranges(np.array([*gaps, 50, 51, *long])) == (range(100, 120), range(10, 29))
    assert _ranges(np.arange(0, 90, 3)) == ()
    many = np.concatenate([np.arange(start, start + 8) for start in range(0, 400, 20)])
    assert len(_ranges(many)) == 8


@pytest.mark.parametrize("window", [None, 5])
def test_decode_of_one_sequence(window: int | None) -> None:
    """The shortcut for a single row: blocks in a row, and out of order."""
    torch.manual_seed(0)
    for blocks in ([3, 4, 5], [5, 2, 9]):
        cache = PagedKVCache([LayerShape(2, 8, 6)], num_blocks=12, block_size=4, dtype=torch.float64, device=CPU)
        key, value = torch.randn(2, 11, 8).double(), torch.randn(2, 11, 6).double()
        slots = torch.tensor([blocks[i // 4] * 4 + i % 4 for i in range(11)])
        cache.write(0, cache.head_rows(slots, 2), key.transpose(0, 1), value.transpose(0, 1))
        row = DecodePlan([_sequence(11, blocks)], 4, StepBuffers(CPU)).only_row(window)
        assert isinstance(row.blocks, range) == (blocks == [3, 4, 5])
        query = torch.randn(4, 1, 8).double()
        found = _attend_one(query, *cache.read(0, row.blocks, row.start, row.stop), 0.4)
        assert torch.allclose(found, attention_reference(query, key, value, scale=0.4, window=window, softcap=None))

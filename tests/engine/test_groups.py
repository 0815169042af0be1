"""Models that mix windows: how layers are grouped, what each group holds, and that nothing of it shows in the text."""

from __future__ import annotations

import random

import pytest

from distill.engine.kv_cache import LayerShape, blocks_for, kv_bytes_per_token
from distill.engine.paging.blocks import BlockPool
from distill.engine.paging.groups import LayerGroups, group_layers, most_held, num_passed
from distill.engine.paging.prefix import PrefixCache
from distill.engine.runner import Engine, EngineConfig
from distill.engine.sequence import GONE, Sequence
from distill.engine.types import SamplingParams
from tests.engine.models import VOCAB, reference, tiny_model

SHAPE = LayerShape(2, 8, 8)
MIXED = ("gemma2", "qwen2-mixed")


def _group(windows: list[int | None], max_length: int = 1000) -> LayerGroups:
    return group_layers([SHAPE] * len(windows), windows, max_length=max_length)


def _tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB) for _ in range(count)]


def test_groups_by_hand() -> None:
    assert _group([9, None, 9, None]) == LayerGroups(
        windows=(None, 9), places=((1, 0), (0, 0), (1, 1), (0, 1)), slots=(SHAPE, SHAPE)
    )
    # Gemma-3 with 26 layers: four see all, 22 see 9: blocks of four layers, two of 28 slots without a layer
    groups = _group([None if i % 6 == 5 else 9 for i in range(26)])
    assert (len(groups.slots), groups.windows) == (4, (None, *[9] * 6))
    assert len(set(groups.places)) == 26 and {place[0] for place in groups.places} == set(range(7))
    # 14 layers of one kind and 13 of the other: two groups with a slot to spare, not 27
    assert len((odd := _group([9, None] * 13 + [9])).slots) == 14 and odd.windows == (None, 9)
    # two windows and nothing that sees all; the wider first
    assert _group([5, 9, 9, 9]).windows == (9, 9, 9, 5)


def test_one_group_where_windows_do_not_matter() -> None:
    assert _group([9, None, 9], max_length=9) == LayerGroups((None,), ((0, 0), (0, 1), (0, 2)), (SHAPE,) * 3)
    assert _group([9, 9]).windows == (9,) and _group([None]).windows == (None,)
    other = LayerShape(1, 16, 16)
    assert group_layers([SHAPE, other], [9, None], max_length=99) == LayerGroups(
        (None,), ((0, 0), (0, 1)), (SHAPE, other)
    )
    assert group_layers([SHAPE, other], [9, 5], max_length=99).windows == (9,)


def test_blocks_by_hand() -> None:
    """A window of 9 and a chunk of 6 in blocks of 4: 15 tokens, with the one sampled after them, touch 5 at most."""
    assert most_held(9, 4, 6) == 5
    groups, counts = _group([9, None]), (1, 2, 10, 11, 14, 15, 99)
    found = [groups.longest(count, block_size=4, chunk=6, limit=38) for count in counts]
    assert found == [0, 4, 20, 24, 36, 38, 38]
    # the next token is number 12 and sees 4 to 12: block 0 is passed. Before it, block 0 is seen
    assert [num_passed(9, n, 4) for n in (0, 11, 12, 16)] == [0, 0, 1, 2]
    assert num_passed(None, 99, 4) == 0


def test_homes_keep_groups_apart_and_lend() -> None:
    pool = BlockPool(7, num_homes=2)  # blocks 0 to 3, and 4 to 6
    assert pool.allocate(2, home=1) == [4, 5] and pool.allocate(1) == [0]
    assert pool.allocate(3, home=1) == [6, 1, 2]
    pool.release([5, 0])
    assert pool.allocate(2) == [0, 3] and pool.allocate(1) == [5]
    assert (pool.num_free, pool.num_used) == (0, 7)


def _begin(tokens: list[int]) -> Sequence:
    return Sequence(
        request_id="x",
        token_ids=tokens,
        num_prompt=len(tokens),
        params=SamplingParams(),
        seed=0,
        max_length=99,
        stop_ids=frozenset(),
    )


def test_a_prefix_needs_the_last_window_alone() -> None:
    """Blocks of 4, a window of 5. Before token 12 block 1 is passed: the window still sees 8 to 11."""
    pool = BlockPool(16, num_homes=2)
    prefix = PrefixCache(pool, block_size=4, enabled=True, windows=(None, 5))
    tokens = _tokens(17, 0)
    first = _begin(tokens)
    prefix.adopt(first, prefix.find(first))
    assert first.tables == [[], []]
    first.tables = [pool.allocate(4), pool.allocate(4, home=1)]
    prefix.offer(first, 17)
    found = prefix.find(_begin(tokens))
    assert found.num_blocks == 4 and [[c.block for c in blocks] for blocks in found.groups] == [[0, 1, 2, 3], [11]]
    # the windowed block 11 (tokens 12 to 15) is lost to another: three blocks can be used, not four
    pool.release(first.tables[1])
    pool.allocate(8)  # what is empty goes first
    assert pool.allocate(1) == [11]
    found = prefix.find(_begin(tokens))
    assert found.num_blocks == 3 and [[c.block for c in blocks] for blocks in found.groups] == [[0, 1, 2], [10]]
    second = _begin(tokens)
    prefix.adopt(second, found)
    assert second.tables == [[0, 1, 2], [GONE, GONE, 10]] and second.num_dropped == [0, 2]
    assert (second.num_computed, second.num_shared) == (12, 12)
    # block 9 is passed before token 12, so that it need not be there; block 10 must be
    assert pool.allocate(1) == [9] and prefix.find(_begin(tokens)).num_blocks == 3
    pool.release([10])
    assert pool.allocate(1) == [8] and prefix.find(_begin(tokens)).num_blocks == 3
    assert pool.allocate(1) == [10] and prefix.find(_begin(tokens)).num_blocks == 0


def _held(engine: Engine) -> int:
    """Blocks that sequences own, counted by their tables."""
    tables = [table for s in engine._scheduler.running for table in s.tables]
    return len({block for table in tables for block in table if block != GONE})


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("prefill_tokens", [512, 12])
def test_windowed_groups_keep_their_window_alone(name: str, prefill_tokens: int) -> None:
    """A prompt of eight windows and an answer of one: the groups that slide hold a window, the others everything."""
    model = tiny_model(name)
    window, size = (9 if name == "gemma2" else 10), 4
    engine = Engine(model, None, EngineConfig(block_size=size, prefill_tokens=prefill_tokens, max_batch=2))
    assert engine.cache is not None
    num_full, num_windowed = (1, 1) if name == "gemma2" else (2, 3)
    assert engine.cache.num_groups == num_full + num_windowed
    prompt = _tokens(8 * window, 1)
    engine.add("a", prompt, SamplingParams(max_tokens=12, ignore_eos=True))
    completion = None
    while completion is None:
        before = engine.stats.prefill_tokens
        running = list(engine._scheduler.running)
        for output in engine.step():
            completion = output.completion
        assert engine.blocks_in_use == _held(engine)
        if not running or completion is not None:
            continue
        (sequence,) = running
        most = blocks_for(window - 1 + (prefill_tokens if engine.stats.prefill_tokens > before else 1), size) + 1
        whole = blocks_for(sequence.num_computed + 1, size)
        if sequence.num_output:
            assert engine.blocks_in_use <= num_full * whole + num_windowed * min(whole, most)
        else:
            assert engine.blocks_in_use <= num_full * blocks_for(len(prompt) + 1, size) + num_windowed * most
    model.generation_config.eos_token_id = None
    assert completion.token_ids == reference(model, prompt, 12)
    assert engine.blocks_in_use == 0


@pytest.mark.parametrize("name", MIXED)
def test_text_is_that_of_generate(name: str) -> None:
    """Contexts of up to eight windows, prefixes of many lengths, chunks, preemption; rounds that reuse each other."""
    model = tiny_model(name)
    trunk = _tokens(80, 5)
    lengths = random.Random(7)
    prompts = [trunk[: lengths.choice((0, 8, 23, 44, 80))] + _tokens(lengths.randint(1, 6), 20 + i) for i in range(12)]
    expected = [reference(model, prompt, 14) for prompt in prompts]
    for config in (
        EngineConfig(block_size=4),
        EngineConfig(block_size=4, prefill_tokens=7, max_batch=5),
        EngineConfig(block_size=4, num_blocks=27, prefill_tokens=9, max_batch=8),  # preempts
        EngineConfig(block_size=3, num_blocks=36, prefill_tokens=40, prefix_cache=False),
    ):
        engine = Engine(model, None, config)
        for order in (list(range(12)), random.Random(1).sample(range(12), 12)):
            for i in order:
                engine.add(str(i), prompts[i], SamplingParams(max_tokens=14))
            found: dict[str, tuple[int, ...]] = {}
            while engine.has_work:
                for output in engine.step():
                    assert output.completion is not None
                    found[output.request_id] = output.completion.token_ids
                assert engine.blocks_in_use == _held(engine)
            assert [found[str(i)] for i in range(12)] == expected
        assert engine.blocks_in_use == 0
        assert (engine.stats.cached_tokens > 0) == config.prefix_cache
        if config.num_blocks:
            assert engine.stats.preemptions > 0


@pytest.mark.parametrize("name", [*MIXED, "mistral"])
def test_scores_in_little_memory(name: str) -> None:
    """Scoring asks for every block's scores, also behind the windows, and fills the context to its last block."""
    model = tiny_model(name)
    plain = Engine(model, None, EngineConfig(use_kv_cache=False))
    engine = Engine(model, None, EngineConfig(block_size=4, num_blocks=16, prefill_tokens=64, max_batch=3))
    assert engine.max_model_len == 64
    trunk = _tokens(50, 3)
    prompts = [trunk + _tokens(15, 4), trunk + _tokens(9, 5), trunk[:30], trunk + _tokens(15, 6)]
    expected = plain.score(prompts)
    for _ in range(2):
        for own, other in zip(engine.score(prompts), expected, strict=True):
            assert own == pytest.approx(other, abs=1e-4)
    assert engine.stats.cached_tokens > 0 and engine.blocks_in_use == 0


def test_bytes_are_exact() -> None:
    """Every block holds the layers of one group: 2 x bytes x layers of it x KV heads x head size x tokens."""
    model = tiny_model("gemma2")  # a layer each sees all, and 9 tokens
    block = 4 * kv_bytes_per_token(model.config, model.dtype) // 2
    for kv_bytes in (40 * block, 40 * block + block - 1):
        cache = Engine(model, None, EngineConfig(block_size=4, kv_bytes=kv_bytes)).cache
        assert cache is not None and (cache.num_blocks, cache.block_bytes) == (40, block)
        assert cache.total_bytes == 40 * block and cache.bytes_per_token * 2 == block
    # never more than max_batch contexts of 256 tokens: what a window has passed is kept for others to find
    engine = Engine(model, None, EngineConfig(block_size=4, max_batch=3))
    assert engine.cache is not None and engine.cache.num_blocks == 3 * 2 * 64
    small = Engine(model, None, EngineConfig(block_size=4, kv_dtype="int8", num_blocks=5)).cache
    assert small is not None and small.total_bytes == 5 * 4 * 2 * 2 * 2 * (8 + 2) == 5 * 4 * small.bytes_per_token


@pytest.mark.parametrize("blocks,running", [(30, 2), (29, 1)])
def test_the_largest_batch_is_what_the_bytes_hold(blocks: int, running: int) -> None:
    """A prompt of 40 tokens, read in chunks of 8, then holds 11 blocks of the layers that see all and 3 of the window.
    The next one asks for 11, and for 5 of its window and chunk: it comes with 30 blocks, and not with one less."""
    model = tiny_model("gemma2")
    block = 4 * kv_bytes_per_token(model.config, model.dtype) // 2
    kv_bytes = (blocks + 1) * block - 1
    engine = Engine(model, None, EngineConfig(block_size=4, kv_bytes=kv_bytes, prefill_tokens=8, prefix_cache=False))
    assert engine.num_blocks == blocks
    for i in range(2):
        engine.add(str(i), _tokens(40, i), SamplingParams(max_tokens=5, ignore_eos=True))
    for _ in range(5):
        engine.step()
        assert engine.num_running == 1
    engine.step()
    assert engine.num_running == running and engine.blocks_in_use == (14 if running == 1 else 14 + 11 + 2)
    while engine.has_work:
        engine.step()
    assert engine.stats.finished == 2 and engine.stats.preemptions == 0

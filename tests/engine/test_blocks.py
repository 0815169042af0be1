"""The block pool: owners, reuse by hash, eviction. Counted by hand."""

from __future__ import annotations

import random

import pytest

from distill.engine.paging.blocks import BlockPool, block_digest


def test_lowest_blocks_first() -> None:
    pool = BlockPool(4)
    assert pool.allocate(3) == [0, 1, 2]
    pool.release([1])
    assert (pool.num_free, pool.num_used) == (2, 2)
    assert pool.allocate(1) == [1]
    with pytest.raises(AssertionError, match="already free"):
        pool.release([3])
    with pytest.raises(AssertionError, match="2 blocks asked of 1"):
        pool.allocate(2)


def test_digest_covers_everything_before() -> None:
    first, other = block_digest(b"", [1, 2]), block_digest(b"", [2, 1])
    assert first != other
    assert block_digest(first, [3]) != block_digest(other, [3])
    assert block_digest(first, [3]) == block_digest(block_digest(b"", [1, 2]), [3])


def test_shared_blocks_are_free_after_their_last_owner() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.register(b"a", blocks[0])
    pool.share([blocks[0]])
    pool.release(blocks)
    assert (pool.num_used, pool.num_free, pool.num_cached) == (1, 2, 1)
    pool.release([blocks[0]])
    assert (pool.num_used, pool.num_free, pool.num_cached) == (0, 3, 1)
    with pytest.raises(AssertionError, match="already free"):
        pool.release([blocks[0]])
    found = pool.find(b"a")
    assert found is not None and found.block == blocks[0]
    assert pool.num_idle([found.block]) == 1
    pool.share([found.block])
    assert (pool.num_used, pool.num_idle([found.block])) == (1, 0)


def test_least_recently_used_goes_first() -> None:
    pool = BlockPool(3)
    for name in (b"a", b"b", b"c"):
        pool.register(name, pool.allocate(1)[0])
    pool.release([0, 1])  # the end of a sequence is forgotten before its beginning
    pool.release([2])
    pool.share([1])
    pool.release([1])  # used again: 0, 2, 1 is the order now
    assert pool.allocate(1) == [0] and pool.find(b"a") is None
    assert pool.allocate(1) == [2] and pool.find(b"c") is None
    assert pool.find(b"b") is not None and (pool.num_evictions, pool.num_cached) == (2, 1)


def test_empty_blocks_before_cached_ones() -> None:
    pool = BlockPool(2)
    pool.register(b"a", pool.allocate(1)[0])
    pool.release([0])
    assert pool.allocate(1) == [1] and pool.find(b"a") is not None


def test_the_first_of_equal_blocks_is_the_one_to_find() -> None:
    pool = BlockPool(2)
    pool.allocate(2)
    first = pool.register(b"a", 0)
    assert pool.register(b"a", 1) is first and first.block == 0
    pool.release([1])
    assert pool.allocate(1) == [1]  # it held nothing that can be found


def test_forget() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    pool.register(b"a", 0)
    pool.register(b"b", 1)
    pool.release([0])
    pool.forget()
    assert (pool.num_cached, pool.num_free, pool.num_used) == (0, 2, 1)
    pool.release([1])
    assert sorted(pool.allocate(3)) == [0, 1, 2]


def test_accounting_under_random_use() -> None:
    rng, pool = random.Random(0), BlockPool(12)
    owned: list[list[int]] = []
    for step in range(2000):
        action = rng.random()
        if action < 0.4 and pool.num_free:
            owned.append(pool.allocate(rng.randint(1, pool.num_free)))
            for block in owned[-1]:
                if rng.random() < 0.5:
                    pool.register(b"%d" % step + b"-%d" % block, block)
        elif action < 0.5 and owned:
            shared = [b for b in rng.choice(owned) if rng.random() < 0.5]
            pool.share(shared)
            owned.append(shared)
        elif owned:
            pool.release(owned.pop(rng.randrange(len(owned))))
        used = {block for blocks in owned for block in blocks}
        assert (pool.num_used, pool.num_free) == (len(used), 12 - len(used))
    for blocks in owned:
        pool.release(blocks)
    assert pool.num_free == 12 and len(set(pool.allocate(12))) == 12

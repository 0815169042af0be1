"""Layers grouped by their sliding window, so that each group keeps the blocks that its window reaches and no others.

All groups have as many layers, or lack some, and all layers of a model with several groups store alike. So a block,
which holds some tokens of one group, fits whichever group asks for it: one pool serves all, and none starves beside
memory that another does not need.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from distill.engine.kv_cache import LayerShape, blocks_for

_MOST_GROUPS = 8  # each has block tables of its own, and a plan of what decode reads, at every step


@dataclass(frozen=True)
class LayerGroups:
    """Where each layer of a model keeps its tokens."""

    windows: tuple[int | None, ...]  # tokens that the layers of a group see; None: all of them. Those come first
    places: tuple[tuple[int, int], ...]  # of each layer its group, and the slot that it has in blocks of that group
    slots: tuple[LayerShape, ...]

    def longest(self, num_blocks: int, *, block_size: int, chunk: int, limit: int) -> int:
        """The longest sequence, up to `limit` tokens, that so many blocks hold while `chunk` tokens are computed at a
        time."""
        held = [most_held(window, block_size, chunk) for window in self.windows]
        lengths = range(0, limit + block_size, block_size)
        needed = [sum(min(length // block_size, most) for most in held) for length in lengths]
        return min(limit, lengths[bisect_right(needed, num_blocks) - 1])


def most_held(window: int | None, block_size: int, chunk: int) -> int:
    """Blocks of a sequence that a group needs at once: those of its window, of the chunk that is computed and of the
    token sampled after it, wherever they begin."""
    return sys.maxsize if window is None else blocks_for(window - 1 + chunk, block_size) + 1


def num_passed(window: int | None, num_computed: int, block_size: int) -> int:
    """The first blocks of a sequence that its next token, and those after it, do not see any more."""
    return 0 if window is None else max(0, num_computed - window + 1) // block_size


def one_group(layers: Sequence[LayerShape]) -> LayerGroups:
    """All layers together, and each of them keeps everything."""
    return LayerGroups((None,), tuple((0, i) for i in range(len(layers))), tuple(layers))


def group_layers(layers: Sequence[LayerShape], windows: Sequence[int | None], *, max_length: int) -> LayerGroups:
    """Groups for layers with these windows, in sequences of `max_length` tokens at most. One group where there is one
    window, and where layers store differently: it then keeps what the widest window reaches."""
    reach = [window if window is not None and window < max_length else None for window in windows]
    kinds: dict[int | None, list[int]] = {}
    for layer in sorted(range(len(layers)), key=lambda i: -(reach[i] or max_length)):
        kinds.setdefault(reach[layer], []).append(layer)
    if len(kinds) == 1 or len(set(layers)) > 1:
        return LayerGroups((next(iter(kinds)),), tuple((0, i) for i in range(len(layers))), tuple(layers))
    size = _group_size({window or max_length: len(members) for window, members in kinds.items()})
    places: dict[int, tuple[int, int]] = {}
    found: list[int | None] = []
    for window, members in kinds.items():
        for index, layer in enumerate(members):
            places[layer] = len(found) + index // size, index % size
        found += [window] * blocks_for(len(members), size)
    return LayerGroups(tuple(found), tuple(places[i] for i in range(len(layers))), (layers[0],) * size)


def _group_size(counts: dict[int, int]) -> int:
    """Layers a group, where so many layers see so many tokens: what slots without a layer waste in a short sequence
    times what they waste in one that fills the context is to be small, and then the number of groups."""

    def cost(size: int) -> tuple[int, int]:
        groups = {tokens: blocks_for(count, size) for tokens, count in counts.items()}
        return size * sum(groups.values()) * size * sum(t * n for t, n in groups.items()), sum(groups.values())

    sizes = range(1, max(counts.values()) + 1)
    few = [size for size in sizes if cost(size)[1] <= max(_MOST_GROUPS, len(counts))]
    return min(few, key=cost)

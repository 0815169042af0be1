"""Memory for the index arrays of a step: made once, filled anew at every step."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch


class Buffer:
    """One array, at a fixed address. On a GPU it is put together in pinned memory, and copied without waiting. `whole`
    has `before` numbers more, zeros in front of it that no `put` writes."""

    def __init__(self, dtype: torch.dtype, device: torch.device, size: int, *, before: int = 0) -> None:
        on_gpu = device.type == "cuda"
        self.size = size
        self.whole = torch.zeros(before + size, dtype=dtype, device=device)
        self.there = self.whole[before:]
        self._host = self.there if device.type == "cpu" else torch.empty(size, dtype=dtype, pin_memory=on_gpu)
        self._array = self._host.numpy()
        self._copied = torch.cuda.Event() if on_gpu else None

    def put(self, array: np.ndarray) -> torch.Tensor:
        if self._copied is not None:
            self._copied.synchronize()  # the last step's copy may still be under way
        self._array[: array.size] = array.ravel()
        there = self.there[: array.size]
        if self.there is not self._host:
            there.copy_(self._host[: array.size], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return there.view(array.shape)


class StepBuffers:
    """Arrays by name. What `put` returns is valid until the next array of that name; a buffer grows to twice what it
    had to hold, so that after the largest steps none is made any more."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[str, Hashable], Buffer] = {}
        self.num_allocations = 0

    def put(self, name: str, array: np.ndarray, *, part: Hashable = None) -> torch.Tensor:
        """The array on the device; `part` tells apart arrays of one name that a step needs at once."""
        buffer = self._buffers.get((name, part))
        if buffer is None or buffer.size < array.size:
            buffer = Buffer(torch.from_numpy(array).dtype, self.device, 2 * array.size)
            self._buffers[name, part] = buffer
            self.num_allocations += 1
        return buffer.put(array)

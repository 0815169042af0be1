"""Vectors in turn, each kept unless a kept one is too like it by cosine: an exact search, a block at a time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 4096
_ROUNDING = 1e-6  # of a cosine in float32: equal vectors come to 0.9999999


class Distinct:
    """The kept vectors of width D. Memory: 4 D bytes each, and a block of cosines for every batch that is compared.

    Time: D multiplications for each pair of a vector and an earlier kept one.
    """

    def __init__(self, threshold: float, *, device: torch.device | str = "cpu") -> None:
        self.threshold = threshold
        self.num_kept = 0
        self._device = device
        self._blocks: list[torch.Tensor] = []  # each _BLOCK x D, of length 1; the last one is filled up to num_kept

    def add(self, vectors: NDArray[np.float32]) -> list[tuple[int, float] | None]:
        """For each vector in turn: None, then it is kept; else the number of the nearest kept one (they count from 0,
        over all calls) and their cosine. How the vectors are divided into calls makes no difference."""
        rows = torch.nn.functional.normalize(torch.from_numpy(vectors).to(self._device, torch.float32), dim=1)
        cosines, numbers = self._nearest(rows)
        among = (rows @ rows.T).cpu().numpy()
        ordinals = np.full(len(rows), -1)  # of those kept here
        found: list[tuple[int, float] | None] = []
        kept = self.num_kept
        for place in range(len(rows)):
            best, number = float(cosines[place]), int(numbers[place])
            if place:
                here = np.where(ordinals[:place] >= 0, among[place, :place], -np.inf)
                nearest = int(here.argmax())
                if here[nearest] > best:
                    best, number = float(here[nearest]), int(ordinals[nearest])
            if best >= self.threshold - _ROUNDING:
                found.append((number, min(best, 1.0)))
                continue
            ordinals[place] = kept
            kept += 1
            found.append(None)
        self._keep(rows[torch.from_numpy(ordinals >= 0).to(rows.device)])
        return found

    def _nearest(self, rows: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosine and number of the nearest one kept by earlier calls, the first of equals; minus infinity without."""
        best = torch.full((len(rows),), -torch.inf, device=rows.device)
        number = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        for index, block in enumerate(self._blocks):
            filled = min(_BLOCK, self.num_kept - index * _BLOCK)
            cosine, place = (rows @ block[:filled].T).max(dim=1)
            nearer = cosine > best
            best = torch.where(nearer, cosine, best)
            number = torch.where(nearer, place + index * _BLOCK, number)
        return best.cpu().numpy(), number.cpu().numpy()

    def _keep(self, rows: torch.Tensor) -> None:
        while len(rows):
            filled = self.num_kept % _BLOCK
            if filled == 0:
                self._blocks.append(torch.empty(_BLOCK, rows.shape[1], device=rows.device))
            taken = rows[: _BLOCK - filled]
            self._blocks[-1][filled : filled + len(taken)] = taken
            self.num_kept += len(taken)
            rows = rows[len(taken) :]

"""What captured steps of either kind share: how a step becomes a CUDA graph, and what that graph holds on to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from distill.engine.batch import PackedBatch

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as Pool

Forward = Callable[[PackedBatch, torch.Tensor | None], torch.Tensor]  # logits of a batch's tokens, None: of all
_WARM_UPS = 2  # kernels are compiled, and libraries take their memory, before the capture


def captured(step: Callable[[], None], pool: Pool) -> Callable[[], None]:
    """What replays `step`, which is computed twice before. RuntimeError where it waits for the device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            step()
    finally:
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


def weight_addresses(model: PreTrainedModel) -> list[int]:
    """Where a captured step reads the weights."""
    return [t.data_ptr() for t in (*model.parameters(), *model.buffers())]

"""A decoder's passes as CUDA graphs: captured for the shapes that come again, replayed without launching each kernel.

Small students wait for Python: a decoder layer is some fifty launches, forward, and twice that backward. A shape is
launched as ever the first time it is seen (which also warms libraries up), captured the second time, and replayed from
then on: the same kernels on the same numbers. Embeddings are captured with the layers, the head and the loss are not.
Widths are rounded up to one of a few; what stands to the right of a row is never seen by it. Layers may run in their
fused form (`fused.py`). The first batch goes through transformers' own passes too: where they say something else, or
where nothing can be captured, these are used.

Weights are read, and gradients added up, at fixed addresses: the optimizer has to change weights in place, and a weight
whose gradient was dropped gets the same memory for the next one. Without a GPU a "replay" computes the same thing on
the same inputs, which is what tests there run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from distill.engine.attention import attention_by

# transformers' own SDPA; as no mask function has this name, no mask is made, nor waited for
CAUSAL = "distill_causal"
AttentionInterface.register(CAUSAL, sdpa_attention_forward)

_LOG = logging.getLogger(__name__)
_NARROWEST = 32
_TOLERANCE = 0.05  # relative distance of hidden states that rounding explains
_MOVING_ROPES = ("dynamic", "longrope")  # frequencies that depend on the longest row of a batch
_Key = tuple[int, int, bool, torch.dtype | None]  # rows, width, with gradients, autocast's dtype


class Layers(Protocol):
    """Another form of a model's layers."""

    def active(self) -> AbstractContextManager[None]:
        """Lets the layers run in it."""
        ...


def capturable(model: PreTrainedModel) -> bool:
    """Whether a row's hidden states depend on what precedes it alone, by plain causal SDPA, and on nothing drawn."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    ropes = getattr(config, "rope_parameters", None) or {}
    types = {part.get("rope_type") for part in [ropes, *ropes.values()] if isinstance(part, dict)}
    return (
        model.config._attn_implementation == "sdpa"
        and window is None
        and all(kind == "full_attention" for kind in kinds)
        and types.isdisjoint(_MOVING_ROPES)
        and not any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        and not getattr(config, "attention_dropout", 0.0)
        and all(weight.is_floating_point() for weight in model.parameters())
    )


def rounded_up(width: int) -> int:
    """The width of the graph that computes rows of `width` tokens: a multiple of 32, beyond 512 of a sixteenth of the
    next power of two."""
    step = max(_NARROWEST, 1 << max(0, (width - 1).bit_length() - 4))
    return -(-width // step) * step


@dataclass
class _Slot:
    """A captured shape: its inputs and outputs at their addresses, and what replays its passes."""

    input_ids: Tensor
    position_ids: Tensor
    hidden: Tensor | None = None
    gradient: Tensor | None = None
    forward: Callable[[], None] = lambda: None
    backward: Callable[[], None] = lambda: None


class GraphedDecoder:
    """Takes the place of a model's decoder for rows that are not packed and need no mask."""

    def __init__(self, model: PreTrainedModel, pool: Any = None, layers: Layers | None = None) -> None:
        """`pool`: of `torch.cuda.graph_pool_handle()`, shared by decoders that take turns; `layers`: the fused ones."""
        self._model = model
        self._pool = pool
        self._layers = layers
        self._is_checked = False
        self._stream = torch.cuda.Stream() if pool is not None else None
        self._slots: dict[_Key, _Slot] = {}
        self._seen: set[_Key] = set()
        self._anchor: Tensor | None = None  # makes the output need a gradient
        self._weights: list[nn.Parameter] = []
        self._gradients: list[Tensor] = []
        self.failure: str | None = None  # why nothing is captured

    @property
    def num_captured(self) -> int:
        return len(self._slots)

    def __call__(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, S, H] of rows [B, S] whose positions count up from 0; valid until the next call.

        Differentiable by the weights where gradients are enabled, and then once, before the next call.
        """
        trains = torch.is_grad_enabled()
        if trains:
            self._place_gradients()
        if not self._is_checked:
            self._check(input_ids, position_ids)
        width = input_ids.shape[1]
        key = (input_ids.shape[0], rounded_up(width), trains, _autocast_dtype(input_ids.device.type))
        if key not in self._slots and self.failure is None and key in self._seen:
            self._capture(key, input_ids.device)
        if self.failure is not None:
            return self._plain(input_ids, position_ids)
        slot = self._slots.get(key)
        if slot is None:  # of the graph's shape, so that what compiles for a shape does so here
            self._seen.add(key)
            wide = F.pad(input_ids, (0, key[1] - width))
            return self._run(wide, _positions(*key[:2], input_ids.device))[:, :width]
        slot.input_ids[:, :width].copy_(input_ids)
        if trains:
            if self._anchor is None:
                self._anchor = torch.zeros((), device=input_ids.device, requires_grad=True)
            hidden: Tensor = _Replay.apply(self._anchor, slot)
            return hidden[:, :width]
        slot.forward()
        assert slot.hidden is not None
        return slot.hidden[:, :width]

    def _plain(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        states = self._model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        hidden: Tensor = states.last_hidden_state
        return hidden

    def _run(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """The passes that are captured."""
        layers = nullcontext() if self._layers is None else self._layers.active()
        with attention_by(self._model, CAUSAL), layers:
            return self._plain(input_ids, position_ids)

    @torch.no_grad()
    def _check(self, input_ids: Tensor, position_ids: Tensor) -> None:
        """Whether what is to be captured gives the same without waiting. (A capture that fails would leave torch's
        random numbers unusable.)"""
        self._is_checked = True
        with _uncached(input_ids.device.type):
            try:
                with _waiting_is_an_error(input_ids.device):
                    found = self._run(input_ids, position_ids)
            except RuntimeError as error:  # as of some mixtures of experts
                self._fail(str(error).splitlines()[0])
                return
            distance = _distance(found, self._plain(input_ids, position_ids))
        if not distance < _TOLERANCE:
            self._fail(f"hidden states differ by {distance:.2g}")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._slots.clear()
        _LOG.warning("training with transformers' own passes: %s", reason)

    def _place_gradients(self) -> None:
        """Give every weight without a gradient a zero one, always at the same place."""
        if not self._gradients:
            self._weights = [weight for weight in self._model.base_model.parameters() if weight.requires_grad]
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        emptied = []
        for weight, kept in zip(self._weights, self._gradients, strict=True):
            if weight.grad is None:
                emptied.append(kept)
            elif weight.grad is not kept:
                kept.copy_(weight.grad)
            weight.grad = kept
        if emptied:
            torch._foreach_zero_(emptied)

    def _capture(self, key: _Key, device: torch.device) -> None:
        """Record the shape's passes; where that fails nothing is captured any more."""
        rows, width, trains, _ = key
        ids = torch.zeros(rows, width, dtype=torch.int64, device=device)
        slot = _Slot(ids, _positions(rows, width, device))

        def forward() -> None:
            with _uncached(device.type), torch.set_grad_enabled(trains):
                slot.hidden = self._run(slot.input_ids, slot.position_ids)

        def backward() -> None:
            assert slot.hidden is not None
            torch.autograd.backward(slot.hidden, slot.gradient)

        try:
            slot.forward = self._recorded(forward)
            if self._pool is None:
                forward()
            assert slot.hidden is not None
            if trains:
                slot.gradient = torch.zeros_like(slot.hidden)
                slot.backward = self._recorded(backward)
            if self._pool is not None:
                slot.hidden = slot.hidden.detach()  # what it was made from may go: graphs know their addresses
        except RuntimeError as error:
            self._fail(str(error).splitlines()[0])
            return
        self._slots[key] = slot

    def _recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the work again, from the same addresses to the same addresses."""
        if self._pool is None:
            return work
        graph = torch.cuda.CUDAGraph()
        # other threads (NCCL's) may go on meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class _Replay(torch.autograd.Function):
    """The decoder's passes as one node of autograd; the weights get their gradients inside."""

    @staticmethod
    def forward(ctx: FunctionCtx, anchor: Tensor, slot: _Slot) -> Tensor:  # type: ignore[override]
        slot.forward()
        ctx.slot = slot  # type: ignore[attr-defined]
        assert slot.hidden is not None
        return slot.hidden.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, None]:  # type: ignore[override]
        slot: _Slot = ctx.slot  # type: ignore[attr-defined]
        assert slot.gradient is not None
        slot.gradient.copy_(gradient)
        slot.backward()
        return None, None


def _positions(rows: int, width: int, device: torch.device) -> Tensor:
    return torch.arange(width, device=device).repeat(rows, 1)


def _uncached(device: str) -> torch.autocast:
    """Autocast as it is, but that it keeps none of the weights that it casts, to hand them to later passes."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def _waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """Operations of torch that wait for the GPU raise RuntimeError inside."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "a prototype feature and does not yet detect all"
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _distance(found: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((found - expected).float().norm() / expected.float().norm())


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

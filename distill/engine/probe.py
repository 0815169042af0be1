"""Whether the engine can serve a model at all: found out by running it once, not from a list of names."""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from distill.engine.attention import NAME, attention_by
from distill.engine.batch import Observer, PackedBatch, Placement, Segment
from distill.engine.kv_cache import LayerShape
from distill.errors import EngineError

if TYPE_CHECKING:
    from distill.engine.fusion import Fusion

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LENGTHS = (2, 3)  # two sequences in one batch: anything that leaks from one to the other shows


@dataclass(frozen=True)
class Structure:
    """What a model's layers store, and the longest context they can be served at."""

    layers: list[LayerShape]
    dtype: torch.dtype  # of K and V
    max_length: int
    windows: list[int | None]  # tokens that each layer sees; None: all


def inspect_model(model: PreTrainedModel, *, compare: bool) -> Structure:
    """The structure of a model the engine can serve; EngineError names the model and the reason otherwise."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise _refusal(name, "is an encoder-decoder; the engine serves decoder-only models")
    parameters = inspect.signature(model.forward).parameters
    missing = [p for p in ("input_ids", "position_ids", "logits_to_keep") if p not in parameters]
    if missing:
        raise _refusal(name, f"does not take {', '.join(missing)}")
    types = set(getattr(config, "layer_types", None) or ())
    if types - _LAYER_TYPES:
        raise _refusal(name, f"has layers of type {', '.join(sorted(types - _LAYER_TYPES))}")
    layers, dtype, windows = _observe(model, name, compare)
    return Structure(layers, dtype, _context(config), windows)


def forward(
    model: PreTrainedModel, batch: PackedBatch, rows: torch.Tensor | None, fusion: Fusion | None = None
) -> torch.Tensor:
    """Logits of the batch's tokens `rows` (None: of all), [rows, vocabulary]; transformers' own forward with our
    attention, its layers in their fused form where there is one."""
    with attention_by(model, NAME), fusion.active() if fusion is not None else nullcontext():
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=0 if rows is None else rows,
            packed_batch=batch,
        )
    logits: torch.Tensor = output.logits
    return logits[0]


@torch.inference_mode()
def fuse(model: PreTrainedModel, structure: Structure, length: int) -> Fusion | None:
    """The fused form of the model's layers for positions below `length`, if they have one and it gives the same
    logits."""
    from distill.engine.fusion import Fusion  # Triton is not installed everywhere

    fusion = Fusion(model, structure.windows, length)
    if not len(fusion):
        return None
    rows = torch.arange(sum(_LENGTHS), device=model.device)
    plain = forward(model, _probe_batch(model), rows).float()
    distance = float((forward(model, _probe_batch(model), rows, fusion).float() - plain).norm() / plain.norm())
    if not distance < _tolerance(model):
        name = type(model).__name__
        warnings.warn(f"{name} runs unfused: its fused layers differ by {distance:.2g}", UserWarning, stacklevel=2)
        return None
    return fusion


def _probe_tokens(model: PreTrainedModel) -> list[list[int]]:
    vocab_size = model.config.get_text_config().vocab_size
    return [[(7 * i + 3 * n + 1) % vocab_size for i in range(n)] for n in _LENGTHS]


def _probe_batch(model: PreTrainedModel, observer: Observer | None = None) -> PackedBatch:
    """Two short sequences, without a cache."""
    return PackedBatch(
        input_ids=torch.tensor([sum(_probe_tokens(model), [])], device=model.device),
        position_ids=torch.tensor([[i for n in _LENGTHS for i in range(n)]], device=model.device),
        num_decode=0,
        placements=[Placement([Segment(0, _LENGTHS[0], 0, None), Segment(_LENGTHS[0], sum(_LENGTHS), 0, None)])],
        observe=observer,
    )


def _tolerance(model: PreTrainedModel) -> float:
    """Relative distance of logits that rounding explains."""
    return 1e-3 if all(p.dtype == torch.float32 for p in model.parameters()) else 0.1


@torch.inference_mode()
def _observe(
    model: PreTrainedModel, name: str, compare: bool
) -> tuple[list[LayerShape], torch.dtype, list[int | None]]:
    """Run two short sequences as one batch; note what each layer asks of attention."""
    config = model.config.get_text_config()
    device: torch.device = model.device
    seen: dict[int, LayerShape] = {}
    windows: dict[int, int | None] = {}

    dtypes: set[torch.dtype] = set()

    def observer(layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        seen[layer] = LayerShape(key.shape[0], key.shape[-1], value.shape[-1])
        windows[layer] = window
        dtypes.update((key.dtype, value.dtype))

    try:
        packed = forward(model, _probe_batch(model, observer), torch.arange(sum(_LENGTHS), device=device)).float()
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        raise _refusal(name, f"fails on a packed batch ({type(error).__name__}: {error})") from error
    if sorted(seen) != list(range(config.num_hidden_layers)):
        raise _refusal(name, f"calls attention in {len(seen)} of its {config.num_hidden_layers} layers")
    if len(dtypes) > 1:
        raise _refusal(name, f"mixes {', '.join(sorted(str(d) for d in dtypes))} in K and V")
    _check_windows(name, config, windows)
    if compare:
        with attention_by(model, "eager"):  # the definition; sdpa leaves out soft-capping in some versions
            own = [
                model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
                for ids in _probe_tokens(model)
            ]
        reference = torch.cat(own).float()
        distance = float((packed - reference).norm() / reference.norm().clamp_min(1e-9))
        # attention in 16 bits under weights in 32 is autocast's
        if not distance < (_tolerance(model) if dtypes == {torch.float32} else 0.1):
            raise _refusal(name, f"gives other logits in a packed batch than alone (relative error {distance:.2g})")
    order = range(config.num_hidden_layers)
    return [seen[layer] for layer in order], dtypes.pop(), [windows[layer] for layer in order]


def _check_windows(name: str, config: object, windows: dict[int, int | None]) -> None:
    """A sliding window that the configuration names must reach attention."""
    types: list[str] | None = getattr(config, "layer_types", None)
    if types is not None:
        sliding = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    else:
        active = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
        sliding = list(windows) if active else []
    lost = [i for i in sliding if windows[i] is None]
    if lost:
        raise _refusal(name, f"does not tell attention the sliding window of layer {lost[0]}")


def _context(config: object) -> int:
    """The model's context; where rotary frequencies would change with the longest sequence in a batch, only the length
    up to which they stay."""
    longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings")
            longest = min(longest, int(original or getattr(config, "original_max_position_embeddings", 0) or longest))
    return longest


def _refusal(name: str, reason: str) -> EngineError:
    return EngineError(f"the engine cannot serve {name}: it {reason}", remedy="serve it with vLLM or transformers")

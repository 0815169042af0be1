"""Whether the engine can serve a model at all: found out by running it once, not from a list of names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distill.engine.attention import NAME, attention_by
from distill.engine.batch import PackedBatch, Placement, Segment
from distill.engine.kv_cache import LayerShape
from distill.errors import EngineError

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


def forward(model: PreTrainedModel, batch: PackedBatch, rows: torch.Tensor) -> torch.Tensor:
    """Logits of the batch's tokens `rows`, [rows, vocabulary]; transformers' own forward with our attention."""
    with attention_by(model, NAME):
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=rows,
            packed_batch=batch,
        )
    logits: torch.Tensor = output.logits
    return logits[0]


@torch.inference_mode()
def _observe(
    model: PreTrainedModel, name: str, compare: bool
) -> tuple[list[LayerShape], torch.dtype, list[int | None]]:
    """Run two short sequences as one batch; note what each layer asks of attention."""
    config = model.config.get_text_config()
    device: torch.device = model.device
    tokens = [[(7 * i + 3 * n + 1) % config.vocab_size for i in range(n)] for n in _LENGTHS]
    seen: dict[int, LayerShape] = {}
    windows: dict[int, int | None] = {}

    dtypes: set[torch.dtype] = set()

    def observer(layer: int, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        seen[layer] = LayerShape(key.shape[0], key.shape[-1], value.shape[-1])
        windows[layer] = window
        dtypes.update((key.dtype, value.dtype))

    total = sum(_LENGTHS)
    batch = PackedBatch(
        input_ids=torch.tensor([sum(tokens, [])], device=device),
        position_ids=torch.tensor([[i for n in _LENGTHS for i in range(n)]], device=device),
        num_decode=0,
        placements=[Placement([Segment(0, _LENGTHS[0], 0, None), Segment(_LENGTHS[0], total, 0, None)])],
        observe=observer,
    )
    try:
        packed = forward(model, batch, torch.arange(total, device=device)).float()
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        raise _refusal(name, f"fails on a packed batch ({type(error).__name__}: {error})") from error
    if sorted(seen) != list(range(config.num_hidden_layers)):
        raise _refusal(name, f"calls attention in {len(seen)} of its {config.num_hidden_layers} layers")
    if len(dtypes) > 1:
        raise _refusal(name, f"mixes {', '.join(sorted(str(d) for d in dtypes))} in K and V")
    _check_windows(name, config, windows)
    if compare:
        with attention_by(model, "eager"):  # the definition; sdpa leaves out soft-capping in some versions
            own = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in tokens]
        reference = torch.cat(own).float()
        distance = float((packed - reference).norm() / reference.norm().clamp_min(1e-9))
        exact = dtypes == {torch.float32} and all(p.dtype == torch.float32 for p in model.parameters())
        if not distance < (1e-3 if exact else 0.1):
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

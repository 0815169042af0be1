"""A student made from a larger model: fewer layers (depth pruning) and fewer key/value heads (MHA -> GQA)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from distill.errors import CheckpointError, DistillError
from distill.model.load import DtypeName, load_model, load_tokenizer, require_chat_template

_LAYER = re.compile(r"^(?P<before>.*\.(?:layers|h|blocks)\.)(?P<index>\d+)(?P<after>\..*)$")
_KEY_VALUE = re.compile(r"\.(?:k_proj|v_proj)\.(?:weight|bias)$")


@dataclass(frozen=True)
class Made:
    """What a student is, beside the model it was made from."""

    parameters: int
    parameters_before: int
    layers: tuple[int, ...]
    layers_before: int
    kv_heads: int
    kv_heads_before: int
    kv_bytes_per_token: int
    kv_bytes_per_token_before: int

    def as_metrics(self) -> dict[str, Any]:
        """For the stage's manifest."""
        return {**vars(self), "layers": list(self.layers)}

    def summary(self) -> str:
        """One line."""
        if self.layers_before == len(self.layers) and self.kv_heads == self.kv_heads_before:
            return f"{self.parameters:,} parameters, as they were"
        return (
            f"{self.parameters:,} of {self.parameters_before:,} parameters, {len(self.layers)} of "
            f"{self.layers_before} layers, {self.kv_heads} of {self.kv_heads_before} KV heads, KV cache "
            f"{self.kv_bytes_per_token / self.kv_bytes_per_token_before:.1%}"
        )


def make_student(
    model_path: str | Path,
    *,
    layers: int | None,
    kv_heads: int | None,
    out: Path,
    dtype: DtypeName,
    chat_template: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Made:
    """Write the model at `model_path` with `layers` decoder layers and `kv_heads` key/value heads to the folder `out`.

    None keeps what there is. Weights are stored in `dtype` ("auto": as they were), with tokenizer and chat template
    (the Jinja file `chat_template`, else the tokenizer's own). Raises CheckpointError for a model that does not load,
    DistillError for numbers that do not fit it.
    """
    tokenizer = load_tokenizer(model_path, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(Path(chat_template))
    require_chat_template(tokenizer, model_path)
    stored: DtypeName = "stored" if dtype == "auto" else dtype
    model = load_model(model_path, dtype=stored, device="cpu", trust_remote_code=trust_remote_code)
    config = model.config
    state = dict(model.state_dict())
    before = _shape(config)
    count_before = sum(parameter.numel() for parameter in model.parameters())
    keep = evenly_spaced(before.layers, layers or before.layers)
    if len(keep) != before.layers:
        state = prune_layers(state, keep)
        _set_layers(config, keep)
    wanted = kv_heads or before.kv_heads
    if wanted != before.kv_heads:
        state = pool_kv_heads(state, kv_heads_before=before.kv_heads, kv_heads=wanted)
        config.num_key_value_heads = wanted
    model.save_pretrained(str(out), state_dict=state)
    tokenizer.save_pretrained(str(out))
    unique = {tensor.data_ptr(): tensor.numel() for name, tensor in state.items()}
    element = model.dtype.itemsize
    return Made(
        parameters=sum(unique.values()),
        parameters_before=count_before,
        layers=tuple(keep),
        layers_before=before.layers,
        kv_heads=wanted,
        kv_heads_before=before.kv_heads,
        kv_bytes_per_token=2 * len(keep) * wanted * before.head_size * element,
        kv_bytes_per_token_before=2 * before.layers * before.kv_heads * before.head_size * element,
    )


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"no chat template at {path}: {error}", remedy="mend student.chat_template") from None


def evenly_spaced(total: int, keep: int) -> list[int]:
    """`keep` of the layers 0..total-1, evenly spaced, the first and the last among them (one alone: the first)."""
    if not 1 <= keep <= total:
        raise DistillError(f"student.layers is {keep}, the model has {total}", remedy=f"keep 1 to {total} layers")
    if keep == 1:
        return [0]
    return [(index * (total - 1) + (keep - 1) // 2) // (keep - 1) for index in range(keep)]


def prune_layers(state: Mapping[str, Tensor], keep: Sequence[int]) -> dict[str, Tensor]:
    """The state dict with only the decoder layers `keep`, renumbered from 0; everything else as it is."""
    place = {old: new for new, old in enumerate(keep)}
    pruned = {}
    for name, tensor in state.items():
        match = _LAYER.match(name)
        if match is None:
            pruned[name] = tensor
        elif int(match["index"]) in place:
            pruned[f"{match['before']}{place[int(match['index'])]}{match['after']}"] = tensor
    return pruned


def pool_kv_heads(state: Mapping[str, Tensor], *, kv_heads_before: int, kv_heads: int) -> dict[str, Tensor]:
    """Mean-pool neighbouring key and value heads, weights and biases (GQA, 2305.13245, section 2.1).

    Query head i reads KV head i // (queries per KV head), so pooling neighbours keeps every query with the mean of a
    group that its own head was in. Exact where the heads of a group are equal. Means are taken in float32.
    """
    if kv_heads < 1 or kv_heads_before % kv_heads:
        divisors = [str(n) for n in range(1, kv_heads_before + 1) if kv_heads_before % n == 0]
        raise DistillError(
            f"student.kv_heads is {kv_heads}, the model has {kv_heads_before}", remedy=f"one of {', '.join(divisors)}"
        )
    pooled = dict(state)
    found = 0
    for name, tensor in state.items():
        if _KEY_VALUE.search(name):
            found += 1
            heads = tensor.float().unflatten(0, (kv_heads, kv_heads_before // kv_heads, -1))
            pooled[name] = heads.mean(1).flatten(0, 1).to(tensor.dtype).contiguous()
    if not found:
        raise DistillError(
            "the model has no separate k_proj and v_proj to pool", remedy="leave student.kv_heads out for this model"
        )
    return pooled


@dataclass(frozen=True)
class _Shape:
    layers: int
    kv_heads: int
    head_size: int


def _shape(config: PreTrainedConfig) -> _Shape:
    keys = config.to_dict()
    try:
        heads = int(keys["num_attention_heads"])
        return _Shape(
            int(keys["num_hidden_layers"]),
            int(keys.get("num_key_value_heads") or heads),
            int(keys.get("head_dim") or keys["hidden_size"] // heads),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the model's config has no {error}", remedy="cut down a decoder-only model of the Llama kind"
        ) from None


def _set_layers(config: PreTrainedConfig, keep: Sequence[int]) -> None:
    """Also per-layer lists, such as which layers slide their attention window."""
    config.num_hidden_layers = len(keep)
    types = config.to_dict().get("layer_types")
    if types is not None:
        config.layer_types = [types[index] for index in keep]

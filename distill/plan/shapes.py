"""Sizes of a model read from its config.json and safetensors headers, without torch and without loading a weight."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from distill.errors import CheckpointError
from distill.recipe.teacher import Scratch, Student


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory and speed."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    tied: bool = False  # the LM head is the embedding
    gated: bool = True  # SwiGLU: three FFN matrices; else two
    qkv_bias: bool = False
    dense_bias: bool = False  # biases of the output projection, the FFN and the LM head
    qk_norm: bool = False
    norms_per_layer: int = 2
    norm_vectors: int = 1  # 1: RMSNorm, 2: LayerNorm (scale and shift)

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's linear maps: q, k, v, o, then the FFN's."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        up = ((self.hidden, self.ffn),) * (2 if self.gated else 1)
        attention = ((self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden))
        return (*attention, *up, (self.ffn, self.hidden))

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear maps: what a quantizer shrinks and a decode step multiplies with."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_shapes)

    @property
    def embedding_parameters(self) -> int:
        """Embedding plus LM head, once where they are tied."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters."""
        layer = self.norms_per_layer * self.norm_vectors * self.hidden
        if self.qkv_bias:
            layer += (self.heads + 2 * self.kv_heads) * self.head_size
        if self.dense_bias:
            layer += self.hidden + self.ffn * (2 if self.gated else 1) + self.hidden
        if self.qk_norm:
            layer += 2 * self.head_size
        head_bias = self.vocab if self.dense_bias and not self.tied else 0
        rest = self.layers * layer + self.norm_vectors * self.hidden + head_bias
        return self.linear_parameters + self.embedding_parameters + rest


@dataclass(frozen=True)
class ModelSize:
    """A model by name: its shape, its parameters, and where both were read."""

    name: str
    shape: ModelShape
    parameters: int
    weight_bytes: int | None  # of the files on disk, None where there are none
    source: str


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: bool) -> ModelShape:
    return ModelShape(layers, hidden, heads, kv_heads, hidden // heads, ffn, vocab, **more)


_PHI_1 = ModelShape(24, 2048, 32, 32, 64, 8192, 51200, False, False, True, True, False, 1, 2)
# Public shapes, from each model's published config.json, for recipes that name a hub id not on this machine.
KNOWN: dict[str, ModelShape] = {
    "mistralai/Mistral-7B-v0.1": _llama(32, 4096, 32, 8, 14336, 32000),
    "mistralai/Mistral-7B-Instruct-v0.2": _llama(32, 4096, 32, 8, 14336, 32000),
    "HuggingFaceH4/zephyr-7b-beta": _llama(32, 4096, 32, 8, 14336, 32000),
    "meta-llama/Llama-2-7b-hf": _llama(32, 4096, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-13b-hf": _llama(40, 5120, 40, 40, 13824, 32000),
    "meta-llama/Llama-2-70b-hf": _llama(80, 8192, 64, 8, 28672, 32000),
    "meta-llama/Meta-Llama-3-8B": _llama(32, 4096, 32, 8, 14336, 128256),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(32, 4096, 32, 8, 14336, 128256),
    "Qwen/Qwen2.5-0.5B": _llama(24, 896, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
    "Qwen/Qwen2.5-0.5B-Instruct": _llama(24, 896, 14, 2, 4864, 151936, tied=True, qkv_bias=True),
    "Qwen/Qwen2.5-1.5B": _llama(28, 1536, 12, 2, 8960, 151936, tied=True, qkv_bias=True),
    "Qwen/Qwen2.5-7B": _llama(28, 3584, 28, 4, 18944, 152064, qkv_bias=True),
    "Qwen/Qwen2.5-7B-Instruct": _llama(28, 3584, 28, 4, 18944, 152064, qkv_bias=True),
    "microsoft/phi-1": _PHI_1,
    "microsoft/phi-1_5": _PHI_1,
}


def read_size(model: str) -> ModelSize | None:
    """Sizes of a local folder, of a hub id in the local cache, or of a well-known hub id; None where unknown.

    Raises CheckpointError for a folder without a readable config.json.
    """
    folder = Path(model)
    if not folder.is_dir():
        cached = _cached_snapshot(model)
        if cached is None:
            shape = KNOWN.get(model)
            return ModelSize(model, shape, shape.parameters, None, "published config") if shape else None
        folder = cached
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy="name a folder of a whole model") from None
    shape = shape_of(config, str(path))
    counted = _count_safetensors(folder)
    # A packed 4-bit checkpoint counts words, not weights: its parameters are those of its shape.
    parameters = counted[0] if counted and "quantization_config" not in config else shape.parameters
    return ModelSize(model, shape, parameters, counted[1] if counted else None, str(path))


def shape_of(config: dict[str, Any], where: str) -> ModelShape:
    """Shape from a transformers config.json (Llama-like, Mistral, Qwen2/3, Phi and their kin)."""
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        kind = str(config.get("model_type", "llama"))
        phi = kind == "phi"
        return ModelShape(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            ffn=int(config.get("intermediate_size") or 4 * hidden),
            vocab=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            gated=not phi,
            qkv_bias=phi or kind == "qwen2" or bool(config.get("attention_bias", False)),
            dense_bias=phi,
            qk_norm=kind == "qwen3",
            norms_per_layer=1 if phi else 2,
            norm_vectors=2 if phi else 1,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where} does not describe a decoder-only transformer: {error}", remedy="check `model` in the recipe"
        ) from None


def pruned(shape: ModelShape, student: Student) -> ModelShape:
    """The shape after the cuts that the section asks for; multi-head attention loses keys and values with its heads."""
    heads = student.heads or shape.heads
    multi_head = shape.kv_heads == shape.heads
    return replace(
        shape,
        layers=student.layers or shape.layers,
        heads=heads,
        kv_heads=student.kv_heads or (heads if multi_head else shape.kv_heads),
        ffn=student.intermediate_size or shape.ffn,
        hidden=student.hidden_size or shape.hidden,
    )


def scratch_shape(scratch: Scratch) -> ModelShape:
    """The shape of a Llama with tied embeddings that a recipe describes."""
    head_size = scratch.hidden_size // scratch.heads
    return ModelShape(
        scratch.layers,
        scratch.hidden_size,
        scratch.heads,
        scratch.kv_heads,
        head_size,
        scratch.intermediate_size,
        scratch.vocab_size,
        tied=True,
    )


def _count_safetensors(folder: Path) -> tuple[int, int] | None:
    """(elements, bytes) of all tensors in the folder's safetensors files, from their headers alone."""
    elements = bytes_ = 0
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        try:
            with open(path, "rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}", remedy="copy the model again") from None
        for name, tensor in header.items():
            if name != "__metadata__":
                elements += prod(tensor["shape"])
                bytes_ += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return (elements, bytes_) if files else None


def _cached_snapshot(model: str) -> Path | None:
    """Newest snapshot of a hub id in the local Hugging Face cache."""
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub")))
    found = sorted((hub / f"models--{model.replace('/', '--')}" / "snapshots").glob("*/config.json"), key=_modified)
    return found[-1].parent if found else None


def _modified(path: Path) -> float:
    return path.stat().st_mtime

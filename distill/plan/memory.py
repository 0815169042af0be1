"""Bytes: of weights, of the KV cache, of training, and of a GPU's memory split. Pure functions of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.plan.shapes import ModelShape
from distill.recipe.quantize import Awq, Gptq, Int8, Nf4
from distill.recipe.train import (
    DpoEntry,
    Entry,
    FakeQuantization,
    KdEntry,
    KtoEntry,
    LmEntry,
    OnPolicyEntry,
    PairsEntry,
    SftEntry,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
_FP32 = 4
# Logits that the loss head holds at once where the recipe leaves it open: of 1,024 tokens, or of more where the
# vocabulary is smaller than this
CHUNK_TOKENS, CHUNK_VOCABULARY = 1024, 1 << 17
_NF4_BLOCK = 64  # weights that share a scale in bitsandbytes
_NF4_SCALES_BLOCK = 256  # scales that share a second scale under double quantization


def kv_bytes_per_token(shape: ModelShape, bytes_per_value: float = 2) -> float:
    """2 (key and value) x bytes x layers x KV heads x head size: what one token keeps in the cache."""
    return 2 * bytes_per_value * shape.layers * shape.kv_heads * shape.head_size


def kv_bytes(shape: ModelShape, *, tokens: int, batch: int = 1, bytes_per_value: float = 2) -> float:
    """KV cache of `batch` sequences of `tokens` tokens."""
    return kv_bytes_per_token(shape, bytes_per_value) * tokens * batch


@dataclass(frozen=True)
class MemorySplit:
    """How a card's memory is used when as many whole sequences as fit are served, all in bytes."""

    memory: float
    weights: float
    workspace: float
    kv_per_sequence: float
    max_batch: int

    @property
    def kv(self) -> float:
        """KV cache at the maximum batch."""
        return self.max_batch * self.kv_per_sequence

    @property
    def rest(self) -> float:
        """Left over beside weights and KV cache, workspace included; negative: the weights alone do not fit."""
        return self.memory - self.weights - self.kv


def memory_split(*, memory: float, weights: float, kv_per_sequence: float, workspace: float = 0.0) -> MemorySplit:
    """Split `memory` bytes: the weights, a workspace for activations, and whole sequences of KV cache."""
    room = memory - weights - workspace
    return MemorySplit(memory, weights, workspace, kv_per_sequence, max(0, int(room // kv_per_sequence)))


Scheme = Nf4 | Int8 | Gptq | Awq | FakeQuantization


def serving_workspace(shape: ModelShape, *, prefill_tokens: int, batch: int, bytes_per_value: int = 2) -> int:
    """Peak of one forward pass without gradients: the widest layer's activations, or fp32 logits of a decode batch."""
    layer = prefill_tokens * (4 * shape.hidden + (2 if shape.gated else 1) * shape.ffn) * bytes_per_value
    return max(layer, batch * shape.vocab * _FP32)


def bits_per_weight(quantizer: Scheme, inputs: int) -> float:
    """Stored bits of one weight of a linear map with `inputs` columns, its scales and zero points included."""
    if isinstance(quantizer, Nf4):
        if quantizer.double_quant:
            return 4 + 8 / _NF4_BLOCK + 32 / (_NF4_BLOCK * _NF4_SCALES_BLOCK)
        return 4 + 32 / _NF4_BLOCK
    if isinstance(quantizer, Int8):
        return 8 + 32 / inputs  # one fp32 scale a row
    group = min(quantizer.group_size, inputs)
    zero = 0 if quantizer.symmetric else quantizer.bits
    return quantizer.bits + (16 + zero) / group


def quantized_weight_bytes(shape: ModelShape, quantizer: Scheme) -> float:
    """Weight bytes after quantization: the layers' linear maps packed, everything else left in 16 bits."""
    packed = shape.layers * sum(i * o * bits_per_weight(quantizer, i) / 8 for i, o in shape.linear_shapes)
    return packed + 2 * (shape.parameters - shape.linear_parameters)


@dataclass(frozen=True)
class TrainingMemory:
    """What one process of a training entry holds on its device, in bytes, without sharding."""

    trainable: int  # parameters, not bytes
    weights: int
    gradients: int
    optimizer: int  # two AdamW moments
    frozen: int  # the kd teacher or the dpo reference
    activations: int
    logits_full: int  # what full-vocabulary logits of a micro batch would take
    logits_chunked: int  # what the chunked head takes instead
    chunked: bool  # whether this entry's loss is the chunked one

    @property
    def total(self) -> int:
        logits = self.logits_chunked if self.chunked else self.logits_full
        return self.weights + self.gradients + self.optimizer + self.frozen + self.activations + logits


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Weights of rank-`rank` adapters on every linear map of every layer: rank x (inputs + outputs) each."""
    return shape.layers * sum(rank * (inputs + outputs) for inputs, outputs in shape.linear_shapes)


def activation_bytes(shape: ModelShape, *, tokens: int, bytes_per_value: int, checkpointing: bool) -> int:
    """Saved activations of a forward pass over `tokens` tokens, attention never materialised (SDPA).

    Per token and layer: inputs and outputs of both norms and both residuals (6 hidden), q before and after the rotation
    and the attention output (3 x heads x head size), k likewise and v once (3 x KV heads x head size), and gate, up,
    activation and product (4 FFN widths; 2 where ungated). Checkpointing keeps one hidden state a layer and recomputes
    one layer at a time. Source of the accounting: Korthikanti et al., 2205.05198, section 4, without its softmax term.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    layer = 6 * shape.hidden + 3 * queries + 3 * keys + (4 if shape.gated else 2) * shape.ffn
    values = layer + shape.layers * shape.hidden if checkpointing else layer * shape.layers
    return tokens * values * bytes_per_value


@dataclass(frozen=True)
class _Pass:
    """What an entry puts through one forward pass, and how it holds its weights."""

    tokens: int
    mixed: bool
    checkpointing: bool
    lora_rank: int | None
    chunk_tokens: int | None


def _pass_of(entry: Entry, vocab: int) -> _Pass:
    if isinstance(entry, LmEntry):
        return _Pass(entry.rows * entry.row_tokens, True, False, None, None)
    sequences = entry.micro_batch_size * (2 if isinstance(entry, PairsEntry) else 1)  # chosen and rejected
    chunk = None
    if isinstance(entry, SftEntry | KdEntry | OnPolicyEntry):
        chunk = entry.chunk_tokens or CHUNK_TOKENS * max(1, CHUNK_VOCABULARY // vocab)
    return _Pass(
        sequences * entry.max_length,
        entry.mixed_precision != "no",
        entry.gradient_checkpointing,
        entry.lora.rank if entry.lora else None,
        chunk,
    )


def training_memory(
    shape: ModelShape, entry: Entry, *, weights_dtype: str, teachers: Sequence[ModelShape]
) -> TrainingMemory:
    """Memory of one entry on one device; `teachers` are those that it scores with.

    Weights that are trained are float32, for bfloat16 loses small updates; mixed precision adds a bf16 copy for the
    pass. Only the frozen base of LoRA under mixed precision stays in `weights_dtype`, as it is stored.
    """
    work = _pass_of(entry, shape.vocab)
    adapters = lora_parameters(shape, work.lora_rank) if work.lora_rank else 0
    stored = DTYPE_BYTES[weights_dtype] if adapters and work.mixed else _FP32
    trainable = adapters or shape.parameters
    frozen, models = 0, 1
    if isinstance(entry, KdEntry | OnPolicyEntry) and entry.signal.kind == "live":
        frozen = sum(2 * teacher.parameters for teacher in teachers)  # in 16 bits
        models = 1 + len(teachers)
    elif isinstance(entry, DpoEntry | KtoEntry) and not adapters:
        frozen = shape.parameters * stored
    if isinstance(entry, OnPolicyEntry) and work.mixed and not adapters and entry.rollout.attention != "torch":
        frozen += 2 * shape.parameters  # the copy that answers
    chunk = min(work.tokens, work.chunk_tokens or work.tokens)
    return TrainingMemory(
        trainable=trainable,
        weights=shape.parameters * stored
        + adapters * _FP32
        + (2 * shape.parameters if work.mixed and stored == _FP32 else 0),
        gradients=trainable * _FP32,
        optimizer=trainable * 2 * _FP32,
        frozen=frozen,
        activations=activation_bytes(
            shape,
            tokens=work.tokens,
            bytes_per_value=2 if work.mixed else _FP32,
            checkpointing=work.checkpointing,
        ),
        # fp32 logits of each model, and the gradient of the student's
        logits_full=work.tokens * shape.vocab * _FP32 * (models + 1),
        logits_chunked=chunk * shape.vocab * _FP32 * (models + 1),
        chunked=work.chunk_tokens is not None,
    )

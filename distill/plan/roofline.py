"""The roofline of decoding: at which batch a named GPU passes from memory-bound to compute-bound, and how fast."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from distill.errors import DistillError
from distill.plan.memory import kv_bytes
from distill.plan.shapes import ModelShape


@dataclass(frozen=True)
class Gpu:
    """A card's ceiling: memory in bytes, bandwidth in bytes/s, dense bf16 tensor FLOP/s (no sparsity)."""

    name: str
    memory: float
    bandwidth: float
    flops: float
    note: str = ""


def _gpu(name: str, memory_gb: float, bandwidth_gbs: float, tflops: float, note: str = "") -> Gpu:
    # Vendors' gigabytes are taken as 1e9 bytes: the few per cent between that and what the card has are what a CUDA
    # context, its workspaces and fragmentation take.
    return Gpu(name, memory_gb * 1e9, bandwidth_gbs * 1e9, tflops * 1e12, note)


# Sources: the vendors' datasheets. Tensor-core numbers printed "with sparsity" are halved.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40GB", 40, 1555, 312, "NVIDIA A100 datasheet, SXM4/PCIe 40 GB"),
        _gpu("A100-80GB", 80, 2039, 312, "NVIDIA A100 datasheet, SXM4 80 GB"),
        _gpu("H100-80GB", 80, 3350, 989.4, "NVIDIA H100 datasheet, SXM5"),
        _gpu("H200", 141, 4800, 989.4, "NVIDIA H200 datasheet, SXM5"),
        _gpu("L4", 24, 300, 121, "NVIDIA L4 datasheet"),
        _gpu("L40S", 48, 864, 362.05, "NVIDIA L40S datasheet"),
        _gpu("A10G", 24, 600, 70, "NVIDIA A10G datasheet"),
        _gpu("T4", 16, 320, 65, "NVIDIA T4 datasheet; fp16, the card has no bf16"),
        _gpu("RTX-4090", 24, 1008, 165.2, "NVIDIA Ada whitepaper, fp32 accumulation"),
        _gpu("RTX-3090", 24, 936, 71, "NVIDIA GA102 whitepaper, fp32 accumulation"),
        _gpu("MI300X", 192, 5300, 1307.4, "AMD Instinct MI300X datasheet"),
    )
}


def gpus() -> tuple[Gpu, ...]:
    """Every card known by name."""
    return tuple(GPUS.values())


def find_gpu(name: str) -> Gpu:
    """The card of that name, in any case and with spaces or dashes; an unknown name lists the choices."""
    wanted = {key.lower(): key for key in GPUS}
    key = name.lower().replace(" ", "-")
    if key in wanted:
        return GPUS[wanted[key]]
    near = difflib.get_close_matches(key, list(wanted), 1)
    hint = f"did you mean {wanted[near[0]]}? " if near else ""
    raise DistillError(f"no GPU '{name}'", remedy=f"{hint}choose one of {', '.join(GPUS)}")


def roofline_batch(gpu: Gpu, bytes_per_parameter: float) -> float:
    """B* = FLOP/s x bytes per parameter / (2 x bandwidth): weights alone.

    A decode step reads every weight once (parameters x bytes / bandwidth seconds) and does 2 FLOP for each weight and
    sequence (2 x parameters x batch / FLOP/s seconds); B* makes both equal. Below it decoding is memory-bound and a
    bigger batch is nearly free.
    """
    return gpu.flops * bytes_per_parameter / (2 * gpu.bandwidth)


@dataclass(frozen=True)
class DecodeModel:
    """What a decode step costs: bytes of the weights, and per sequence the KV bytes read and the FLOP done."""

    weight_bytes: float
    kv_bytes_per_sequence: float
    flop_per_sequence: float


def decode_model(
    shape: ModelShape, *, weight_bytes: float, context_tokens: int, kv_bytes_per_value: float = 2
) -> DecodeModel:
    """Costs of decoding one token at a context of `context_tokens` tokens.

    FLOP per sequence: 2 for each weight of the linear maps and the LM head, and 4 x layers x heads x head size x
    context for scores and weighted values.
    """
    multiplied = shape.linear_parameters + shape.vocab * shape.hidden
    attention = 4 * shape.layers * shape.heads * shape.head_size * context_tokens
    cache = kv_bytes(shape, tokens=context_tokens, bytes_per_value=kv_bytes_per_value)
    return DecodeModel(weight_bytes, cache, 2 * multiplied + attention)


def roofline_batch_with_kv(gpu: Gpu, model: DecodeModel) -> float | None:
    """The batch at which compute time equals memory time, the KV cache's reading included; None: never, at any batch.

    (weights + B x KV) / bandwidth = B x FLOP / (FLOP/s)  =>  B = (weights / bw) / (FLOP / (FLOP/s) - KV / bw).
    Each sequence brings its own cache to read, so at a long context no batch is compute-bound.
    """
    gained = model.flop_per_sequence / gpu.flops - model.kv_bytes_per_sequence / gpu.bandwidth
    return (model.weight_bytes / gpu.bandwidth) / gained if gained > 0 else None


@dataclass(frozen=True)
class DecodeStep:
    """A step at one batch size: its seconds at the roofline, the tokens/s of all sequences, and what bounds it."""

    batch: int
    seconds: float
    tokens_per_second: float
    bound: Literal["memory", "compute"]


def decode_step(gpu: Gpu, model: DecodeModel, batch: int) -> DecodeStep:
    """Best possible time of one decode step (an upper bound on speed: no launch gaps, full bandwidth)."""
    memory = (model.weight_bytes + batch * model.kv_bytes_per_sequence) / gpu.bandwidth
    compute = batch * model.flop_per_sequence / gpu.flops
    seconds = max(memory, compute)
    return DecodeStep(batch, seconds, batch / seconds, "memory" if memory >= compute else "compute")


def prefill_seconds(gpu: Gpu, shape: ModelShape, tokens: int, *, weight_bytes: float) -> float:
    """Best possible time to read a prompt: 2 FLOP a weight and token, causal attention, or the weights read once."""
    linear = 2 * (shape.linear_parameters + shape.vocab * shape.hidden) * tokens
    attention = 2 * shape.layers * shape.heads * shape.head_size * tokens * tokens
    return max((linear + attention) / gpu.flops, weight_bytes / gpu.bandwidth)

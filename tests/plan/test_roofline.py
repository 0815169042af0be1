"""Balance points: at B* the two times are equal."""

from __future__ import annotations

import pytest

from distill.errors import DistillError
from distill.plan.memory import kv_bytes
from distill.plan.roofline import (
    DecodeModel,
    decode_model,
    decode_step,
    find_gpu,
    gpus,
    prefill_seconds,
    roofline_batch,
    roofline_batch_with_kv,
)
from distill.plan.shapes import KNOWN

MISTRAL = KNOWN["mistralai/Mistral-7B-v0.1"]


def test_simple_roofline_batch_of_an_a100() -> None:
    assert roofline_batch(find_gpu("A100-80GB"), 2) == pytest.approx(312e12 / 2039e9)  # 153 sequences in fp16
    assert roofline_batch(find_gpu("A100-80GB"), 0.5) == pytest.approx(312e12 / 2039e9 / 4)


def test_without_a_cache_both_forms_agree() -> None:
    gpu = find_gpu("H100-80GB")
    model = DecodeModel(weight_bytes=2 * 7e9, kv_bytes_per_sequence=0, flop_per_sequence=2 * 7e9)
    assert roofline_batch_with_kv(gpu, model) == pytest.approx(roofline_batch(gpu, 2))


def test_compute_time_equals_memory_time_at_the_balance() -> None:
    gpu = find_gpu("H100-80GB")
    model = decode_model(MISTRAL, weight_bytes=14.5e9, context_tokens=100)
    batch = roofline_batch_with_kv(gpu, model)
    assert batch is not None and batch > roofline_batch(gpu, 2)
    memory = (model.weight_bytes + batch * model.kv_bytes_per_sequence) / gpu.bandwidth
    assert batch * model.flop_per_sequence / gpu.flops == pytest.approx(memory)
    assert decode_step(gpu, model, int(batch * 0.9)).bound == "memory"
    assert decode_step(gpu, model, int(batch * 1.1)).bound == "compute"


def test_a_long_context_is_never_compute_bound() -> None:
    model = decode_model(KNOWN["meta-llama/Llama-2-13b-hf"], weight_bytes=26e9, context_tokens=4096)
    assert roofline_batch_with_kv(find_gpu("A100-40GB"), model) is None
    assert decode_step(find_gpu("A100-40GB"), model, 100_000).bound == "memory"


def test_decode_model_by_hand() -> None:
    model = decode_model(MISTRAL, weight_bytes=1.0, context_tokens=1000)
    multiplied = MISTRAL.parameters - 32000 * 4096 - 65 * 4096  # all but the embedding and the norms
    assert model.flop_per_sequence == 2 * multiplied + 4 * 32 * 32 * 128 * 1000
    assert model.kv_bytes_per_sequence == kv_bytes(MISTRAL, tokens=1000)


def test_one_sequence_decodes_at_bandwidth_over_weights() -> None:
    gpu = find_gpu("RTX-4090")
    step = decode_step(gpu, DecodeModel(14e9, 0, 14e9), 1)
    assert step.tokens_per_second == pytest.approx(1008 / 14)
    assert step.bound == "memory"


def test_prefill_is_compute_bound_at_length_and_reads_the_weights_at_least_once() -> None:
    gpu = find_gpu("H100-80GB")
    assert prefill_seconds(gpu, MISTRAL, 1, weight_bytes=14e9) == pytest.approx(14 / 3350)
    assert prefill_seconds(gpu, MISTRAL, 8192, weight_bytes=14e9) > 2 * MISTRAL.linear_parameters * 8192 / gpu.flops


def test_gpu_names_are_forgiving_and_unknown_ones_list_the_choices() -> None:
    assert find_gpu("rtx 4090").name == "RTX-4090"
    assert len(gpus()) >= 11
    with pytest.raises(DistillError, match="did you mean H100-80GB"):
        find_gpu("H100-80G")

"""Hand-computed bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.plan.memory import (
    activation_bytes,
    bits_per_weight,
    kv_bytes,
    kv_bytes_per_token,
    lora_parameters,
    memory_split,
    quantized_weight_bytes,
    serving_workspace,
    training_memory,
)
from distill.plan.roofline import find_gpu
from distill.plan.shapes import KNOWN, ModelShape
from distill.recipe.quantize import Awq, Gptq, Int8, Nf4
from distill.recipe.train import DpoEntry, KdEntry, LmEntry, Lora, OnPolicyEntry, Rollout, SftEntry

LLAMA_2_13B = KNOWN["meta-llama/Llama-2-13b-hf"]
TINY = ModelShape(layers=2, hidden=8, heads=4, kv_heads=2, head_size=2, ffn=12, vocab=10)


def test_llama_2_13b_takes_3_125_gib_a_sequence_and_four_fit_on_40_gb() -> None:
    per_sequence = kv_bytes(LLAMA_2_13B, tokens=4096, bytes_per_value=2)
    assert per_sequence == 3.125 * 2**30
    card = find_gpu("A100-40GB").memory
    workspace = serving_workspace(LLAMA_2_13B, prefill_tokens=2048, batch=128)
    for room_for_activations in (0, workspace):
        split = memory_split(memory=card, weights=26e9, kv_per_sequence=per_sequence, workspace=room_for_activations)
        assert split.max_batch == 4
    assert split.weights + split.kv + split.rest == card


def test_grouped_queries_divide_the_cache() -> None:
    mistral = KNOWN["mistralai/Mistral-7B-v0.1"]
    assert kv_bytes_per_token(mistral) == 2 * 2 * 32 * 8 * 128 == 131_072
    assert kv_bytes_per_token(KNOWN["meta-llama/Llama-2-7b-hf"]) == 4 * kv_bytes_per_token(mistral)


def test_weights_that_do_not_fit_leave_no_batch() -> None:
    split = memory_split(memory=10, weights=12, kv_per_sequence=1)
    assert split.max_batch == 0 and split.rest == -2


def test_bits_per_weight() -> None:
    assert bits_per_weight(Nf4(name="n", method="nf4", double_quant=False), 4096) == 4.5
    assert bits_per_weight(Nf4(name="n", method="nf4"), 4096) == pytest.approx(4.127, abs=5e-4)  # QLoRA, section 3
    assert bits_per_weight(Int8(name="i", method="int8"), 32) == 9
    assert bits_per_weight(Gptq(name="g", method="gptq"), 4096) == 4.125
    assert bits_per_weight(Awq(name="a", method="awq"), 4096) == 4 + 20 / 128
    assert bits_per_weight(Gptq(name="g", method="gptq"), 64) == 4.25  # a matrix narrower than the group is one group


def test_quantized_bytes_leave_the_embedding_alone() -> None:
    linear = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 12)
    assert TINY.linear_parameters == linear
    int8 = quantized_weight_bytes(TINY, Int8(name="i", method="int8"))
    rows = 2 * (8 + 4 + 4 + 8 + 12 + 12 + 8)
    assert int8 == linear + 4 * rows + 2 * (160 + 5 * 8)


def test_training_memory_of_full_fine_tuning() -> None:
    entry = SftEntry(name="s", objective="sft", data=("a.parquet",), micro_batch_size=2, batch_size=2, max_length=16)
    memory = training_memory(TINY, entry, weights_dtype="float32", teachers=())
    parameters = TINY.parameters
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert memory.logits_full == 32 * 10 * 4 * 2  # logits and their gradient
    assert memory.frozen == 0 and memory.chunked and memory.logits_chunked == memory.logits_full
    assert memory.total == 16 * parameters + memory.activations + memory.logits_full
    in_bf16 = training_memory(TINY, entry, weights_dtype="bfloat16", teachers=())
    assert in_bf16 == memory  # weights that are trained are float32, however they are stored
    long = entry.model_copy(update={"max_length": 4096})
    assert training_memory(TINY, long, weights_dtype="float32", teachers=()).logits_chunked == 8192 * 10 * 4 * 2
    large = replace(TINY, vocab=151_936)
    assert training_memory(large, long, weights_dtype="float32", teachers=()).logits_chunked == 1024 * 151_936 * 8


def test_training_memory_of_kd_counts_the_teacher_and_the_chunk() -> None:
    entry = KdEntry(
        name="k",
        objective="kd",
        data=("a.parquet",),
        micro_batch_size=4,
        batch_size=4,
        max_length=16,
        chunk_tokens=8,
        mixed_precision="bf16",
    )
    memory = training_memory(TINY, entry, weights_dtype="bfloat16", teachers=(LLAMA_2_13B,))
    assert memory.weights == 6 * TINY.parameters  # fp32 master and the bf16 copy
    assert memory.frozen == 2 * 13_015_864_320
    assert memory.logits_chunked * 8 == memory.logits_full
    assert memory.total < memory.weights + memory.gradients + memory.optimizer + memory.frozen + memory.activations + (
        memory.logits_full
    )


def test_every_teacher_that_scores_is_counted() -> None:
    entry = KdEntry(name="k", objective="kd", data=("a.parquet",))
    one, two = (training_memory(TINY, entry, weights_dtype="float32", teachers=(LLAMA_2_13B,) * n) for n in (1, 2))
    assert two.frozen == 2 * one.frozen and two.logits_chunked * 3 == one.logits_chunked * 4
    assert two.weights == one.weights


def test_on_policy_has_a_copy_that_answers() -> None:
    entry = OnPolicyEntry(name="o", objective="on_policy", data=("a.parquet",), mixed_precision="bf16")
    memory = training_memory(TINY, entry, weights_dtype="float32", teachers=(LLAMA_2_13B,))
    assert memory.frozen == 2 * 13_015_864_320 + 2 * TINY.parameters
    for changes in ({"mixed_precision": "no"}, {"lora": Lora(rank=2)}, {"rollout": Rollout(attention="torch")}):
        other = training_memory(
            TINY, entry.model_copy(update=changes), weights_dtype="float32", teachers=(LLAMA_2_13B,)
        )
        assert other.frozen == 2 * 13_015_864_320


def test_lora_trains_little_and_dpo_needs_no_reference_with_it() -> None:
    assert lora_parameters(TINY, 2) == 2 * 2 * (16 + 12 + 12 + 16 + 20 + 20 + 20)
    full = DpoEntry(name="d", objective="dpo", data=("a.parquet",))
    adapted = full.model_copy(update={"lora": Lora(rank=2)})
    whole = training_memory(TINY, full, weights_dtype="float32", teachers=())
    small = training_memory(TINY, adapted, weights_dtype="float32", teachers=())
    assert whole.frozen == 4 * TINY.parameters and small.frozen == 0
    assert small.optimizer == 8 * lora_parameters(TINY, 2)
    assert not whole.chunked  # dpo needs the log-probabilities of whole sequences
    mixed = adapted.model_copy(update={"mixed_precision": "bf16"})
    base = training_memory(TINY, mixed, weights_dtype="bfloat16", teachers=())
    assert base.weights == 2 * TINY.parameters + 4 * lora_parameters(TINY, 2)


def test_checkpointing_keeps_one_hidden_state_a_layer() -> None:
    layer = 6 * 8 + 3 * 8 + 3 * 4 + 4 * 12
    assert activation_bytes(TINY, tokens=5, bytes_per_value=2, checkpointing=False) == 5 * 2 * layer * 2
    assert activation_bytes(TINY, tokens=5, bytes_per_value=2, checkpointing=True) == 5 * (layer + 2 * 8) * 2


def test_training_on_text_holds_master_weights_and_full_logits() -> None:
    entry = LmEntry(name="l", objective="lm", corpus="chats", steps=1, rows=4, row_tokens=32)
    memory = training_memory(TINY, entry, weights_dtype="bfloat16", teachers=())
    assert memory.weights == 6 * TINY.parameters and memory.gradients == 4 * TINY.parameters
    assert memory.logits_full == 128 * 10 * 4 * 2 and not memory.chunked

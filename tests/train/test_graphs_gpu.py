"""Captured and fused passes on a GPU: the trainings of plain ones, bitwise where they only are captured."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import train_step_ways as ways
from distill.engine.runner import Engine
from distill.engine.types import EngineConfig, SamplingParams
from distill.recipe.train import OnPolicyEntry, Rollout
from distill.train.batches import collator
from distill.train.copies import Copy
from distill.train.graphs import GraphedDecoder
from distill.train.rollouts import Rollouts

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


def model(hidden: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(layers)
    sizes = {"vocab_size": 1000, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    with GPU:
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def rows(lengths: list[int]) -> list[ways.Row]:
    draws = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, 1000, (length,), generator=draws).tolist() for length in lengths]
    return [ways.Row(row[:5], row[5:]) for row in ids]


def captured(entry: Any, student: Any, teacher: Any, **_: Any) -> GraphedDecoder:
    """Decoders of transformers' own layers."""
    pool = torch.cuda.graph_pool_handle()
    teacher.decoder = GraphedDecoder(teacher.model, pool)
    return GraphedDecoder(student, pool)


def train(lengths: list[int], *, graphs: bool) -> tuple[list[float], dict[str, torch.Tensor], int]:
    """Losses and weights of a training of kd in bfloat16, two micro-batches of four a step; how many shapes it has."""
    steps = len(lengths) // 8
    student, teacher = model(256, 3), model(512, 4).to(torch.bfloat16)
    sizes: dict[str, Any] = {"steps": steps, "batch": 8, "micro_batch": 4, "max_new_tokens": 0}
    setting = ways.Setting(student, teacher, rows(lengths), **sizes, bfloat16=True, triton=False, cuda_graphs=graphs)
    trainer = ways.ours_off_policy(setting)
    trainer.args.logging_steps, trainer.args.learning_rate = 1, 1e-3
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    weights = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    decoder = trainer.decoder
    return losses, weights, decoder.num_captured if isinstance(decoder, GraphedDecoder) else 0


def test_a_captured_training_is_bitwise_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weights, none = train([128] * 48, graphs=False)
    monkeypatch.setattr(ways, "decoder_of", captured)
    again, others, found = train([128] * 48, graphs=True)
    assert (none, found) == (0, 1)
    assert again == plain and plain[-1] < plain[0]
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def test_fused_layers_train_alike_and_again_the_same() -> None:
    plain, _, _ = train([128] * 48, graphs=False)
    once, weights, _ = train([128] * 48, graphs=True)
    twice, others, found = train([128] * 48, graphs=True)
    assert found == 1 and once == twice and once == pytest.approx(plain, rel=1e-2)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def test_rows_of_many_lengths_train_alike() -> None:
    lengths = [int(x) for x in torch.randint(20, 200, (80,), generator=torch.Generator().manual_seed(1))]
    plain, _, _ = train(lengths, graphs=False)
    again, _, found = train(lengths, graphs=True)
    assert found >= 2 and again == pytest.approx(plain, rel=1e-2)


def test_what_waits_for_the_device_is_not_captured() -> None:
    student = model(256, 2)
    layer = student.model.layers[0]
    before = layer.forward

    def waiting(*args: Any, **kwargs: Any) -> Any:
        found = before(*args, **kwargs)
        return found if found.detach().sum().item() < float("inf") else found * 2

    layer.forward = waiting
    decoder, reference = GraphedDecoder(student, torch.cuda.graph_pool_handle()), copy.deepcopy(student)
    ids = torch.randint(4, 1000, (2, 64), device=GPU)
    positions = torch.arange(64, device=GPU).repeat(2, 1)
    for _ in range(3):
        hidden = decoder(ids, positions)
        hidden.square().sum().backward()
    assert decoder.num_captured == 0 and "synchronizing" in str(decoder.failure)
    torch.randn(2, device=GPU)  # a capture that failed would leave these unusable
    expected = reference.base_model(input_ids=ids, position_ids=positions).last_hidden_state
    torch.testing.assert_close(hidden, expected)


def test_rollouts_by_a_copy_are_those_of_the_rounded_weights() -> None:
    """The engine joins and fuses the copy's weights; the trained ones stay where they are."""
    student = model(256, 3)
    entry = OnPolicyEntry(
        objective="on_policy",
        name="own",
        data=("rows.parquet",),
        max_length=128,
        rollout=Rollout(max_new_tokens=20, temperature=0.0),
    )
    words = ways.tokenizer()
    rollouts = Rollouts(student, words, entry, rows=4, collate=collator(0), bfloat16=True)
    ids = torch.randint(4, 1000, (4, 40), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, 30:] = ids[:, 30:]
    names = torch.arange(4)[:, None]
    batch = {"input_ids": ids.to(GPU), "labels": labels.to(GPU), "row_ids": names}
    places = [weight.data_ptr() for weight in student.parameters()]
    for step in range(2):
        rounded = Copy(student).model
        engine = Engine(rounded, words, EngineConfig(max_batch=4, max_model_len=128))
        expected = engine.generate(ids[:, :30].tolist(), SamplingParams(max_tokens=20, temperature=0.0))
        (made,) = rollouts([batch], step)
        answers = [[token for token in row if token != -100] for row in made["labels"].tolist()]
        assert answers == [list(answer.token_ids) for answer in expected]
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02)
    assert places == [weight.data_ptr() for weight in student.parameters()]

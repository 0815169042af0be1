"""A decoder whose passes are replayed gives the hidden states, gradients and trainings of one that runs as ever.

Without a GPU a replay computes the same thing on the same fixed inputs; captured graphs: `test_graphs_gpu.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from benchmarks import train_step_ways as ways
from benchmarks.train_step import TINY, rows_of
from distill.train.graphs import GraphedDecoder, capturable, rounded_up


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, **changes})).double()


def rows(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 97, (3, width), generator=torch.Generator().manual_seed(seed))
    return ids, torch.arange(width).repeat(3, 1)


def loss(model: LlamaForCausalLM, hidden: torch.Tensor) -> torch.Tensor:
    return (model.lm_head(hidden).log_softmax(-1)[..., 5] * torch.linspace(0.5, 1.5, hidden.shape[1])).sum()


def test_widths_are_rounded_up_to_a_few() -> None:
    assert [rounded_up(width) for width in (1, 32, 33, 512, 513, 1000, 1024, 1025)] == [
        *(32, 32, 64, 512, 576, 1024, 1024, 1152)
    ]
    assert len({rounded_up(width) for width in range(1, 2049)}) == 32
    assert all(width <= rounded_up(width) < width * 1.13 for width in range(250, 4096))


def test_replayed_passes_give_the_same_gradients() -> None:
    plain, graphed = llama(), llama()
    decoder = GraphedDecoder(graphed)
    for step in range(4):
        for width in (20, 20, 31, 40):  # the first three are one shape
            ids, positions = rows(width, 10 * step + width)
            one = plain.base_model(input_ids=ids, position_ids=positions).last_hidden_state
            other = decoder(ids, positions)
            torch.testing.assert_close(other, one)
            loss(plain, one).backward()
            loss(graphed, other).backward()
        for (name, weight), theirs in zip(plain.named_parameters(), graphed.parameters(), strict=True):
            assert weight.grad is not None and theirs.grad is not None
            torch.testing.assert_close(theirs.grad, weight.grad, msg=lambda text, name=name: f"{name}: {text}")
        with torch.no_grad():
            for model in (plain, graphed):
                for weight in model.parameters():
                    weight -= 1e-5 * weight.grad
                model.zero_grad()
    assert decoder.num_captured == 2 and decoder.failure is None


def test_gradients_of_an_eager_pass_before_are_kept() -> None:
    plain, graphed = llama(), llama()
    ids, positions = rows(20, 0)
    for model in (plain, graphed):
        loss(model, model.base_model(input_ids=ids, position_ids=positions).last_hidden_state).backward()
    loss(plain, plain.base_model(input_ids=ids, position_ids=positions).last_hidden_state).backward()
    loss(graphed, GraphedDecoder(graphed)(ids, positions)).backward()
    for weight, theirs in zip(plain.parameters(), graphed.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, weight.grad)


def test_without_gradients_weights_keep_none() -> None:
    model = llama().requires_grad_(False)
    decoder = GraphedDecoder(model)
    with torch.no_grad():
        for width in (20, 25, 30):
            ids, positions = rows(width, width)
            expected = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
            torch.testing.assert_close(decoder(ids, positions), expected)
    assert decoder.num_captured == 1 and all(weight.grad is None for weight in model.parameters())


def test_a_decoder_that_gives_something_else_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    ids, positions = rows(20, 0)
    expected = GraphedDecoder(model)(ids, positions)
    decoder = GraphedDecoder(model)
    attention = model.model.layers[0].self_attn
    before = attention.forward

    def without_attention(*args: Any, **kwargs: Any) -> Any:
        found, weights = before(*args, **kwargs)
        return found * (attention.config._attn_implementation == "sdpa"), weights

    monkeypatch.setattr(attention, "forward", without_attention)
    for _ in range(3):
        torch.testing.assert_close(decoder(ids, positions), expected)
    assert decoder.num_captured == 0 and "hidden states differ" in str(decoder.failure)


def test_what_can_be_captured() -> None:
    assert capturable(llama())
    assert not capturable(llama(attention_dropout=0.1))
    assert not capturable(llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))
    eager = llama()
    eager.set_attn_implementation("eager")
    assert not capturable(eager)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    for window, able in ((8, False), (None, True)):
        config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=window)
        assert capturable(MistralForCausalLM(config)) is able


def losses() -> list[float]:
    """Of a training of kd on rows of several lengths, two micro-batches a step."""
    torch.manual_seed(0)
    sizes = {"vocab_size": TINY.vocab, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    student, teacher = (LlamaForCausalLM(config) for _ in range(2))
    rows = [ways.Row(*row) for row in rows_of(TINY, 24)]
    setting = ways.Setting(
        student, teacher, rows, 6, batch=4, micro_batch=2, max_new_tokens=0, bfloat16=False, triton=False
    )
    trainer = ways.ours_off_policy(setting)
    trainer.args.logging_steps = 1
    trainer.args.learning_rate = 1e-2
    trainer.train()
    assert trainer.state.global_step == 6
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_training_with_replayed_passes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GraphedDecoder] = []

    def decoders(entry: Any, student: Any, teacher: Any, **_: Any) -> GraphedDecoder:
        teacher.decoder = GraphedDecoder(teacher.model)
        made.extend([GraphedDecoder(student), teacher.decoder])
        return made[0]

    plain = losses()
    monkeypatch.setattr(ways, "decoder_of", decoders)
    graphed = losses()
    assert [decoder.num_captured for decoder in made] == [2, 2] and made[0].failure is None
    assert plain[-1] < 0.9 * plain[0]
    assert graphed == pytest.approx(plain, rel=1e-5)
